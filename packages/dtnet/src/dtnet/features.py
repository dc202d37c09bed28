"""From images to grid features `[batch, 49, d_in]`: what a model trained on such features captions images with.

The authors' features come from a detector that this package does not contain (grid-feats-vqa; `dtnet.data.extract`
converts its output). Here: a torchvision ResNet or ResNeXt, and block averages for the mini world.

    extractor = build_extractor({"name": "backbone", "arch": "resnext101_32x8d", "weights": "resnext101.pth"})
    features = extractor([image, another])          # float32 [2, 49, 2048]
    extractor.settings()                            # JSON: what `build_extractor` makes the same extractor of
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold import UserError
from tenfold.runs import fingerprint
from tenfold.weights import load_pickled, without_wrapper


class FeatureExtractor(Protocol):
    """What turns images into grid features."""

    d_in: int
    grid: int

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of any size and mode -> float32 `[batch, grid * grid, d_in]`, row-major, on the CPU."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON from which `build_extractor` makes the same extractor."""
        ...


def build_extractor(settings: Mapping[str, Any]) -> FeatureExtractor:
    """The extractor that `settings()` described.

    Args:
        settings: "name" ("mini" or "backbone") and that class's arguments.

    Raises:
        UserError: an unknown name or argument; what the extractor's class raises.
    """
    kinds: dict[str, Any] = {"mini": MiniFeatures, "backbone": BackboneFeatures}
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if name not in kinds:
        raise UserError("unknown feature extractor", str(name), " or ".join(kinds))
    known = kinds[name].ARGUMENTS
    if unknown := sorted(set(arguments) - set(known)):
        raise UserError(f"unknown setting {unknown[0]!r}", f"feature extractor {name}", ", ".join(known))
    return kinds[name](**arguments)


class MiniFeatures:
    """Features without weights: colours and edges of 7 x 7 cells, 24 numbers each.

    A cell is 8 x 8 pixels, of which four quarters of 4 x 4 are described by their mean red, green and blue (12 numbers
    in [0, 1]) and by their edges: the mean of |d/dx| + |d/dy| per colour, times 4 (12 numbers).

    Args:
        grid: cells along each edge.
    """

    ARGUMENTS = ("grid",)
    d_in = 24

    def __init__(self, grid: int = 7) -> None:
        if not 1 <= grid <= 64:
            raise UserError("grid out of range", str(grid), "1 to 64 cells along an edge")
        self.grid = grid

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of any size and mode -> float32 `[batch, grid * grid, 24]`."""
        edge = 8 * self.grid
        pixels = np.stack([_resized(image, edge) for image in images])  # uint8 [batch, edge, edge, 3]
        # Integer sums: the same features on every platform.
        whole = pixels.astype(np.int64)
        steps = np.zeros_like(whole)
        steps[:, :, :-1] += np.abs(whole[:, :, 1:] - whole[:, :, :-1])
        steps[:, :-1] += np.abs(whole[:, 1:] - whole[:, :-1])
        both = np.concatenate((self._quarters(whole), self._quarters(4 * steps)), axis=2)
        return torch.from_numpy((both / (16 * 255)).astype(np.float32))

    def settings(self) -> dict[str, Any]:
        return {"name": "mini", "grid": self.grid}

    def _quarters(self, values: np.ndarray) -> np.ndarray:
        """Sums over quarters of cells: `[batch, edge, edge, 3]` -> `[batch, cells, 12]`."""
        batch, grid = len(values), self.grid
        split = values.reshape(batch, grid, 2, 4, grid, 2, 4, 3).sum(axis=(3, 6))  # [batch, row, 2, column, 2, 3]
        return split.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, 12)


def _resized(image: Image.Image, edge: int) -> np.ndarray:
    image = image.convert("RGB")
    if image.size != (edge, edge):
        image = image.resize((edge, edge), Image.Resampling.BILINEAR)
    return np.asarray(image)


class BackboneFeatures:
    """The last feature map (C5) of a torchvision ResNet or ResNeXt, averaged to the grid (needs `dtnet[extract]`).

    Args:
        arch: a name of torchvision: "resnext101_32x8d", "resnet50", ...
        weights: a state dict of that network (.pth, .pt or .safetensors); None: random weights from `seed`.
        seed: for random weights.
        size: images are resized to a square of that many pixels.
        grid: cells along each edge.
        device: where the network runs; features come back on the CPU.

    Raises:
        UserError: torchvision is missing, an unknown architecture, a weights file that is missing, broken or does not
            fit, no such device.
    """

    ARGUMENTS = ("arch", "weights", "weights_sha256", "seed", "size", "grid", "device")

    def __init__(
        self,
        arch: str = "resnext101_32x8d",
        weights: str | Path | None = None,
        *,
        weights_sha256: str | None = None,
        seed: int = 0,
        size: int = 448,
        grid: int = 7,
        device: str = "cpu",
    ) -> None:
        if not 32 <= size <= 4096 or not 1 <= grid <= 64:
            raise UserError(
                "size or grid out of range", f"size={size}, grid={grid}", "32 to 4096 pixels, 1 to 64 cells"
            )
        self.arch, self.weights, self.seed, self.size, self.grid = arch, weights, seed, size, grid
        self.sha256 = None if weights is None else fingerprint(Path(weights))
        if weights_sha256 is not None and weights_sha256 != self.sha256:
            what = "no weights" if weights is None else f"weights {self.sha256}"
            raise UserError(what, str(weights or "feature extractor"), f"the file with {weights_sha256}")
        state = None if weights is None else _read_state(Path(weights))
        network = _random_resnet(arch, seed)
        self.d_in: int = network.fc.in_features
        if state is not None:
            _load(network, state, Path(weights or ""))
        self.network = _moved(_up_to_c5(network, grid), device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of any size and mode -> float32 `[batch, grid * grid, d_in]`."""
        pixels = torch.from_numpy(np.stack([_resized(image, self.size) for image in images])).to(self.device)
        pixels = pixels.permute(0, 3, 1, 2).float() / 255  # [batch, 3, size, size]
        mean, deviation = (pixels.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        maps = self.network((pixels - mean) / deviation)  # [batch, d_in, grid, grid]
        return maps.flatten(2).transpose(1, 2).contiguous().cpu()

    def settings(self) -> dict[str, Any]:
        return {
            "name": "backbone",
            "arch": self.arch,
            "weights": None if self.weights is None else str(self.weights),
            "weights_sha256": self.sha256,
            "seed": self.seed,
            "size": self.size,
            "grid": self.grid,
        }


# Of the images on which torchvision's networks were trained.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _random_resnet(arch: str, seed: int) -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise UserError("torchvision is not installed", "feature extractor", "pip install 'dtnet[extract]'") from error
    names = [name for name in models.list_models() if name.startswith(("resnet", "resnext", "wide_resnet"))]
    if arch not in names:
        raise UserError("unknown architecture", arch, ", ".join(names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.get_model(arch, weights=None)


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    expected = network.state_dict()
    # The classifier is not used: a file without it, or with another number of classes, will do.
    wrong = [
        name
        for name, tensor in expected.items()
        if not name.startswith("fc.")
        and not name.endswith("num_batches_tracked")
        and (name not in state or state[name].shape != tensor.shape)
    ]
    if wrong:
        what = "is missing" if wrong[0] not in state else f"has shape {list(state[wrong[0]].shape)}"
        raise UserError(f"{wrong[0]} {what}", path, f"{list(expected[wrong[0]].shape)}: a state dict of this network")
    network.load_state_dict({name: t for name, t in state.items() if not name.startswith("fc.")}, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    expected = "a state dict: tensors by name (.pth, .pt, .safetensors)"
    if path.suffix == ".safetensors":
        try:
            return without_wrapper(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read ({error})", path, expected) from error
    state = load_pickled(path, expected)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError("holds something else", path, expected)
    return without_wrapper(state)


def _up_to_c5(network: Any, grid: int) -> nn.Module:
    body = (network.conv1, network.bn1, network.relu, network.maxpool)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    return nn.Sequential(*body, *stages, nn.AdaptiveAvgPool2d(grid)).eval().requires_grad_(False)


def _moved(network: nn.Module, device: str) -> nn.Module:
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device {device!r} ({error})", "feature extractor", "cpu, cuda, cuda:0, ...") from error
