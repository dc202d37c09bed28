"""The networks behind LPIPS, FID and CLIP score, with weights from files that the user names; nothing is downloaded.

    lpips = load_lpips(Path("weights/lpips"))["alex"]
    lpips.distance(edited, originals)  # [pictures]

LPIPS takes torchvision's backbones and the linear weights of LPIPS' own release (v0.1); FID the Inception network of
the original FID in its PyTorch port (`pt_inception-2015-12-05`); CLIP score a folder that transformers reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tenfold import UserError
from tenfold.hosts.loading import loading_from
from tenfold.runs import read_json
from tenfold.weights import read_weights

SUFFIXES = (".safetensors", ".pth", ".pt")
# Net -> torchvision's file; how many layers of `features` lead to each of the five activations; their channels.
BACKBONES = {"alex": "alexnet-owt-7be5be79", "vgg": "vgg16-397923af"}
DEPTHS = {"alex": (2, 5, 8, 10, 12), "vgg": (4, 9, 16, 23, 30)}
LPIPS_FILES = "alexnet-owt-7be5be79.pth and alex.pth, vgg16-397923af.pth and vgg.pth, or one of the pairs"
# LPIPS' normalisation of pictures in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TINY = 1e-10
# The TensorFlow network has 1008 outputs; torchvision's own has 1000 and is another network.
INCEPTION_CLASSES, INCEPTION_EDGE, INCEPTION_WIDTH = 1008, 299, 2048
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth, the FID network in torchvision's names"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Lpips(nn.Module):
    """Learned perceptual distance: weighted squared differences of unit-length activations, over five layers.

    Args:
        features: the backbone's convolutional layers. depths: how many of them lead to each activation.
        weights: per activation, ``[channels]``, non-negative.
    """

    def __init__(self, features: nn.Sequential, depths: Sequence[int], weights: Sequence[Tensor]) -> None:
        super().__init__()
        edges = (0, *depths)
        self.slices = nn.ModuleList(features[start:end] for start, end in pairwise(edges))
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight{number}", weight)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    @torch.no_grad()
    def layers(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """``[pictures, rows, columns]`` for each activation; pictures ``[pictures, 3, height, width]`` in [-1, 1]."""
        pair = (torch.cat([first, second]) - self.shift) / self.scale
        found = []
        for number, part in enumerate(self.slices):
            pair = part(pair)
            ours, theirs = (pair / (pair.norm(dim=1, keepdim=True) + TINY)).chunk(2)
            weight = self.get_buffer(f"weight{number}").view(1, -1, 1, 1)
            found.append(((ours - theirs).square() * weight).sum(1))
        return found

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """LPIPS, ``[pictures]``."""
        return torch.stack([layer.mean((1, 2)) for layer in self.layers(first, second)]).sum(0)

    def maps(self, first: Tensor, second: Tensor) -> Tensor:
        """Where pictures differ, ``[pictures, height, width]``: the layers, enlarged bilinearly and added."""
        size = first.shape[2:]
        enlarged = [
            functional.interpolate(layer[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
            for layer in self.layers(first, second)
        ]
        return torch.stack(enlarged).sum(0)


def load_lpips(folder: Path, option: str = "--lpips") -> dict[str, Lpips]:
    """The networks whose two files the folder holds, by name: "alex", "vgg".

    Raises:
        UserError: no pair of files, half a pair, broken files or other weights; no torchvision.
    """
    models = _torchvision(option).models
    build = {
        "alex": lambda: models.alexnet(weights=None),
        "vgg": lambda: models.vgg16(weights=None, init_weights=False),
    }
    found = {}
    for net, stem in BACKBONES.items():
        backbone, linear = _file(folder, stem), _file(folder, net)
        if backbone is None and linear is None:
            continue
        if backbone is None or linear is None:
            raise UserError(
                f"no {f'{stem}.pth' if backbone is None else f'{net}.pth'}", f"{option} {folder}", LPIPS_FILES
            )
        with torch.device("meta"):
            features = build[net]().features
        weights = state_dict(backbone, option)
        kept = {key.removeprefix("features."): value for key, value in weights.items() if key.startswith("features.")}
        fill(features, kept, backbone, f"torchvision's {stem}")
        widths = [features[depth - 2].out_channels for depth in DEPTHS[net]]
        found[net] = Lpips(features, DEPTHS[net], _linear_weights(linear, widths, option)).eval()
    if not found:
        raise UserError("no weights of LPIPS", f"{option} {folder}", LPIPS_FILES)
    return found


def _linear_weights(path: Path, widths: Sequence[int], option: str) -> list[Tensor]:
    weights = state_dict(path, option)
    for number, width in enumerate(widths):
        value = weights.get(f"lin{number}.model.1.weight")
        if value is None or value.shape != (1, width, 1, 1):
            shown = "missing" if value is None else list(value.shape)
            raise UserError(f"lin{number}.model.1.weight is {shown}", path, f"[1, {width}, 1, 1], as LPIPS v0.1 has it")
    return [weights[f"lin{number}.model.1.weight"].flatten().float() for number in range(len(widths))]


class Inception(nn.Module):
    """Features of the FID network.

    Args:
        network: torchvision's Inception 3 with 1008 outputs. Its average pools count no padding, and the last block
            takes the maximum, as TensorFlow's did.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.fc = nn.Identity()
        self.network = network.eval()
        for name, block in network.named_children():
            if hasattr(block, "branch_pool") and isinstance(block.branch_pool, nn.Module):
                _pool_anew(block, _max_pool if name == "Mixed_7c" else _mean_pool)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """``[pictures, 3, height, width]`` in [-1, 1] -> ``[pictures, 2048]``."""
        size = (INCEPTION_EDGE, INCEPTION_EDGE)
        return self.network(functional.interpolate(pictures, size=size, mode="bilinear", align_corners=False))


def _pool_anew(block: nn.Module, pool: Any) -> None:
    """Give a block's pooling branch what ``pool`` makes of the block's input, in place of what the block hands it."""
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block.branch_pool.register_forward_pre_hook(lambda module, args: (pool(seen.pop()),))  # type: ignore[union-attr]


def _mean_pool(values: Tensor) -> Tensor:
    return functional.avg_pool2d(values, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(values: Tensor) -> Tensor:
    return functional.max_pool2d(values, 3, stride=1, padding=1)


def load_inception(path: Path, option: str = "--inception") -> Inception:
    """The FID network.

    Raises:
        UserError: no such file, a broken one, or weights of another network; no torchvision.
    """
    models = _torchvision(option).models
    weights = state_dict(path, option)
    with torch.device("meta"):
        network = models.inception_v3(
            weights=None, aux_logits=False, transform_input=False, num_classes=INCEPTION_CLASSES, init_weights=False
        )
    fill(network, weights, path, INCEPTION_FILE)
    return Inception(network)


class ClipScore:
    """Cosine of picture and text in CLIP's common space, as it is: neither scaled nor clipped.

    Args:
        model: transformers' CLIPModel. tokenizer: its own.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.edge = model.config.vision_config.image_size

    @torch.no_grad()
    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """``[pictures]``; a text for every picture."""
        seen = self._features(self.model.get_image_features(pixel_values=self.pixels(pictures)))
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids = ids.to(self.model.device)
        read = self._features(self.model.get_text_features(input_ids=ids.input_ids, attention_mask=ids.attention_mask))
        return (seen * read).sum(1)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """As CLIP wants pictures: the shorter edge to the model's size, the middle, its mean and spread."""
        arrays = []
        for picture in pictures:
            scale = self.edge / min(picture.size)
            size = tuple(max(self.edge, round(edge * scale)) for edge in picture.size)
            left, top = ((edge - self.edge) // 2 for edge in size)
            resized = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            arrays.append(np.asarray(resized.crop((left, top, left + self.edge, top + self.edge))))
        values = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(three).view(1, 3, 1, 1) for three in (CLIP_MEAN, CLIP_STD))
        return ((values - mean) / std).to(self.model.device, self.model.dtype)

    def _features(self, found: Any) -> Tensor:
        vectors = (found if torch.is_tensor(found) else found.pooler_output).float()
        return vectors / vectors.norm(dim=1, keepdim=True)


def load_clip(folder: Path, option: str = "--clip") -> ClipScore:
    """CLIP from a folder in transformers' layout.

    Raises:
        UserError: no such folder, or one that holds something else.
    """
    from transformers import CLIPModel, CLIPTokenizer

    expected = "a folder of openai/clip-vit-base-patch32 or -large-patch14 in transformers' layout"
    where = f"{option} {folder}"
    if not (folder / "config.json").is_file():
        raise UserError("no config.json to read", where, expected)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "clip":
        raise UserError("not a CLIP model", where, expected)
    with loading_from(folder, f"{expected} ({option})"):
        model = CLIPModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return ClipScore(model, tokenizer)


def state_dict(path: Path, option: str) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors, .pth or .pt file; a pickle that holds more than tensors is refused.

    Args:
        option: that named the file, for messages.

    Raises:
        UserError: no such file, a broken one, or one without tensors by name.
    """
    found = read_weights(path)
    if not all(torch.is_tensor(value) for value in found.values()):
        raise UserError("not tensors by name", f"{option} {path}", "a state dict")
    return found


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path, expected: str) -> None:
    """Give a network (on the meta device) its weights, in float32.

    Raises:
        UserError: a name or a shape that differs.
    """
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    given = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    for name in wanted:  # counters that files from before they existed lack, and inference does not read
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros((), dtype=torch.long))
    for name, shape in wanted.items():
        if name not in given or given[name].shape != shape:
            there = list(given[name].shape) if name in given else "missing"
            raise UserError(f"{name} is {there}", path, f"{list(shape)}: {expected}")
    extra = sorted(given.keys() - wanted.keys())
    if extra:
        raise UserError(f"unknown weights, first {extra[0]}", path, expected)
    network.load_state_dict(given, strict=True, assign=True)


def _file(folder: Path, stem: str) -> Path | None:
    return next((folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()), None)


def _torchvision(option: str) -> ModuleType:
    try:
        import torchvision
    except ImportError as error:
        raise UserError("torchvision is not installed", option, 'pip install "inst-diff-edit[eval]"') from error
    return torchvision
