"""LaVIN on disk: the authors' adapters, a LLaMA and a CLIP tower into a folder of ours, and that folder opened again.

    lavin.json             sizes, skip list, format of the prompts
    model*.safetensors     all weights under our names; skipped attentions are left out
    tokenizer.model        LLaMA's

LLaMA comes in Meta's layout (``params.json``, one ``consolidated.NN.pth`` for each part of the model) or in Hugging
Face's, whose rows of query and key are put back in order. CLIP's ViT-L/14 comes in Hugging Face's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eas.checkpoints import lavin_keys
from eas.checkpoints.description import check_divided, check_sites, check_sizes
from eas.checkpoints.lightning import read_lightning
from eas.lavin import LAVIN_7B, LAVIN_13B, Lavin, LavinConfig
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json, read_json
from tenfold.weights import StoredTensor, WeightFiles, check_fits, require_finite, write_weights

CONFIG, TOKENIZER, FORMAT = "lavin.json", "tokenizer.model", "eas-lavin"
_BOUNDS = {"vocabulary": 10**6, "size": 4096}
# Which axis the parts of Meta's layout share; None: each part holds all of it.
_JOINED = {
    "tok_embeddings": 1, "output": 0, "wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1,
}  # fmt: skip
EVERY = 4  # blocks of the tower between two vectors of a picture
VISION_PROJECTION = 1024 * 768  # CLIP's, which LaVIN never uses and its count of the tower holds


@dataclass(frozen=True)
class ConvertedLavin:
    """What was written: parameters of the method and frozen ones, and classes beside the weights that were not read."""

    output: Path
    config: LavinConfig
    trained: int
    frozen: int
    skipped: tuple[str, ...]


def convert_lavin(
    source: str | Path,
    target: str | Path,
    *,
    base: str | Path,
    tower: str | Path,
    skip: tuple[int, ...],
    prompt_format: str = "QCM-ALE",
) -> ConvertedLavin:
    """Put a checkpoint of the authors' training together with its frozen parts; one tensor in memory at a time.

    Args:
        source: ``checkpoint-<epoch>.pth``. base: LLaMA's folder. tower: CLIP ViT-L/14's.
        skip: the layers without attention: a checkpoint holds both modules of every layer and does not say it.

    Raises:
        UserError: a file that is missing or broken, weights that are missing, have no place or another shape.
    """
    state, skipped = read_lightning(source, "model")
    method = lavin_keys.from_official_tensors(state)
    if stranger := next((name for name in method if not lavin_keys.is_method(name)), None):
        raise UserError(f"{stranger} is no weight of LaVIN-EAS", source, "adapters, projector, modality embedding")
    with llama(base) as (frozen, sizes), WeightFiles(tower) as files:
        clip = _clip(files, tower)
        sizes = _tower_sizes(replace(sizes, skip=tuple(sorted(skip))), clip, Path(tower))
        config = _sizes(sizes, method, source)
        with torch.device("meta"):
            both = dict(Lavin(config, both=True).trained())
            wanted = Lavin(config).state_dict()
        check_fits(both, method, source)
        require_finite(method, source)
        stored = {name: StoredTensor.of(value.float()) for name, value in method.items() if name in wanted}
        for name, tensor in (frozen | clip).items():
            if name in wanted:
                stored[name] = tensor
        _check(wanted, stored, base, tower)
        with atomic_directory(target) as folder:
            about = {"prompt_format": prompt_format, "skipped": skipped}
            atomic_write_json(folder / CONFIG, {"format": FORMAT, "config": asdict(config), "about": about})
            write_weights(folder, {name: stored[name] for name in wanted})
            if (place := _tokenizer(Path(base))) is not None:
                shutil.copyfile(place, folder / TOKENIZER)
    trained = sum(stored[name].numbers for name in wanted if lavin_keys.is_method(name))
    total = sum(stored[name].numbers for name in wanted)
    return ConvertedLavin(Path(target), config, trained, total - trained, tuple(skipped))


def _tokenizer(base: Path) -> Path | None:
    # Meta's lies beside the folder of the weights.
    return next((one for one in (base / TOKENIZER, base.parent / TOKENIZER) if one.is_file()), None)


def _sizes(config: LavinConfig, method: Mapping[str, Tensor], where: str | Path) -> LavinConfig:
    """With the ranks that the method's weights show."""
    names = {"adapter_rank": "layers.0.adapter.A.bias", "pia_rank": "layers.0.pia.A.bias"}
    names |= {"tower_rank": f"{lavin_keys.VISUAL}transformer.resblocks.0.adapter.A.bias"}
    names |= {"hidden_proj": "adapter_proj.conv_A.bias"}
    if missing := [name for name in names.values() if name not in method]:
        raise UserError(f"no weight {missing[0]}", where, "a checkpoint of LaVIN-EAS")
    return replace(config, **{field: len(method[name]) for field, name in names.items()})  # type: ignore[arg-type]


def _check(wanted: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], base: Any, tower: Any) -> None:
    for name, tensor in wanted.items():
        where = tower if name.startswith(lavin_keys.VISUAL) else base
        if name not in stored:
            raise UserError(f"no weight {name}", where, "all of the frozen parts")
        if stored[name].shape != tuple(tensor.shape):
            raise UserError(f"{name} {list(stored[name].shape)}", where, f"{list(tensor.shape)}")


def _clip(files: WeightFiles, where: str | Path) -> dict[str, StoredTensor]:
    read = {name: tensor for name, tensor in files.tensors.items() if name.startswith(("vision_model.", "visual."))}
    if all(name.startswith("visual.") for name in read):
        named = {lavin_keys.VISUAL + name.removeprefix("visual."): tensor for name, tensor in read.items()}
    else:
        try:
            found = lavin_keys.from_hf_clip({name: tensor.read() for name, tensor in read.items()})
        except KeyError as error:
            raise UserError(
                f"{error.args[0]} is no weight of CLIP", where, "CLIP ViT-L/14 in transformers' layout"
            ) from error
        named = {name: StoredTensor.of(value) for name, value in found.items()}
    if not named:
        raise UserError("no vision tower", where, "CLIP ViT-L/14: vision_model.* or visual.*")
    return named


def _tower_sizes(config: LavinConfig, clip: Mapping[str, StoredTensor], where: Path) -> LavinConfig:
    """With the tower's sizes: of its weights, and the heads of its config.json (else 64 wide, as CLIP's are)."""
    names = [f"{lavin_keys.VISUAL}{one}" for one in ("conv1.weight", "positional_embedding")]
    if missing := [name for name in names if name not in clip]:
        raise UserError(f"no weight {missing[0]}", where, "CLIP ViT-L/14")
    (width, _, patch, _), (positions, _) = (clip[name].shape for name in names)
    numbers = {name.split(".")[4] for name in clip if name.startswith(f"{lavin_keys.VISUAL}transformer.resblocks.")}
    heads: Any = width // 64
    if (where / "config.json").is_file():
        content = read_json(where / "config.json")
        inner = content.get("vision_config", content) if isinstance(content, dict) else {}
        heads = inner.get("num_attention_heads", heads) if isinstance(inner, dict) else heads
    if type(heads) is not int or heads < 1 or width % heads or len(numbers) < EVERY:
        raise UserError(f"a tower of {len(numbers)} blocks, {heads} heads", where, "CLIP ViT-L/14")
    return replace(
        config,
        vision_width=width,
        vision_layers=len(numbers),
        vision_heads=heads,
        features=len(numbers) // EVERY,
        patch=patch,
        size=round((positions - 1) ** 0.5) * patch,
    )


@contextmanager
def llama(folder: str | Path) -> Iterator[tuple[dict[str, StoredTensor], LavinConfig]]:
    """LLaMA's weights under Meta's names, not yet read, and its sizes.

    Raises:
        UserError: neither of the two layouts, a broken file, or sizes that are none.
    """
    place = Path(folder)
    with ExitStack() as stack:
        if (place / "params.json").is_file():
            yield _meta(place, stack)
        elif (place / "config.json").is_file():
            yield _hf(place, stack)
        else:
            raise UserError("no LLaMA", place, "params.json and consolidated.*.pth, or transformers' config.json")


def _meta(place: Path, stack: ExitStack) -> tuple[dict[str, StoredTensor], LavinConfig]:
    path = place / "params.json"
    content = read_json(path)
    if not isinstance(content, dict) or not {"dim", "n_layers", "n_heads", "norm_eps"} <= set(content):
        raise UserError("no sizes of LLaMA", path, "dim, n_layers, n_heads, norm_eps")
    parts = [stack.enter_context(WeightFiles(one)).tensors for one in sorted(place.glob("consolidated.*.pth"))]
    if not parts:
        raise UserError("no weights", place, "consolidated.00.pth")
    found = {}
    for name, first in parts[0].items():
        if name.endswith("rope.freqs"):
            continue
        if any(name not in part for part in parts):
            raise UserError(f"{name} is not in all parts", place, "parts of one model")
        axis = _JOINED.get(name.split(".")[-2]) if len(parts) > 1 else None
        found[name] = first if axis is None else _join([part[name] for part in parts], axis)
    sizes = _llama_sizes(found, content["dim"], content["n_layers"], content["n_heads"], content["norm_eps"], path)
    return found, sizes


def _join(parts: list[StoredTensor], axis: int) -> StoredTensor:
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return StoredTensor(tuple(shape), parts[0].dtype, lambda: torch.cat([part.read() for part in parts], dim=axis))


def _hf(place: Path, stack: ExitStack) -> tuple[dict[str, StoredTensor], LavinConfig]:
    path = place / "config.json"
    content = read_json(path)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise UserError("no sizes of LLaMA", path, ", ".join(names))
    heads = content["num_attention_heads"]
    found = {}
    for name, tensor in stack.enter_context(WeightFiles(place)).tensors.items():
        try:
            ours = lavin_keys.from_hf_llama(name)
        except KeyError as error:
            raise UserError(f"{name} is no weight of LLaMA-1", place, "LLaMA in transformers' layout") from error
        if ours is None:
            continue
        turned = ours.endswith(("wq.weight", "wk.weight"))
        read: Callable[[], Tensor] = partial(_turned, tensor, heads) if turned else tensor.read
        found[ours] = StoredTensor(tensor.shape, tensor.dtype, read)
    width, layers, heads, eps = (content[name] for name in names)
    return found, _llama_sizes(found, width, layers, heads, eps, path)


def _turned(tensor: StoredTensor, heads: int) -> Tensor:
    return lavin_keys.unpermute(tensor.read(), heads)


def _llama_sizes(
    found: Mapping[str, StoredTensor], width: Any, layers: Any, heads: Any, eps: Any, path: Path
) -> LavinConfig:
    whole = [one for one in (width, layers, heads) if type(one) is int and 1 <= one <= 2**15]
    if len(whole) != 3 or type(eps) is not float or not 0 < eps < 1 or width % heads or width // heads % 2:
        raise UserError("sizes that are none of LLaMA", path, "whole numbers, heads that divide the width")
    for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if name not in found:
            raise UserError(f"no weight {name}", path.parent, "LLaMA's")
    vocabulary, ffn = (found[name].shape[0] for name in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"))
    return LavinConfig(width=width, layers=layers, heads=heads, norm_eps=eps, vocabulary=vocabulary, ffn=ffn)


def read_lavin_about(folder: str | Path) -> tuple[LavinConfig, str]:
    """A folder's sizes and the format of its prompts. Raises UserError for a missing or broken ``lavin.json``."""
    path = Path(folder) / CONFIG
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"format", "config", "about"} or content["format"] != FORMAT:
        raise UserError("no LaVIN of ours", path, f"format {FORMAT}, config, about: what eas convert writes")
    about = content["about"]
    if not isinstance(about, dict) or not isinstance(about.get("prompt_format"), str):
        raise UserError("about is of another form", path, "prompt_format, skipped")
    values = content["config"]
    check_sizes(LavinConfig(), values, path, _BOUNDS)
    check_sites(values["skip"], values["layers"], path)
    config = LavinConfig(**values | {"skip": tuple(values["skip"])})
    pairs = [(config.width, 2 * config.heads), (config.vision_width, config.vision_heads), (config.size, config.patch)]
    pairs += [(rank, config.groups) for rank in (config.adapter_rank, config.pia_rank, config.tower_rank, config.width)]
    check_divided([*pairs, (config.vision_layers, config.features), (config.vision_width, config.groups)], path)
    if not config.temperature > 0 or not config.norm_eps > 0:
        raise UserError("temperature or norm_eps 0", path, "above 0")
    return config, about["prompt_format"]


def open_lavin(folder: str | Path, *, dtype: torch.dtype | None = None) -> tuple[Lavin, str]:
    """The model of a folder, in eval mode, on the CPU, and the format of its prompts.

    Args:
        dtype: of the frozen weights; None: as they are stored. What a tuning made stays in float32.

    Raises:
        UserError: a broken file, or weights that do not fit what ``lavin.json`` says.
    """
    config, prompt_format = read_lavin_about(folder)
    with torch.device("meta"):
        model = Lavin(config)
    with WeightFiles(folder) as files:
        check_fits(model.state_dict(), {name: _Shape(one.shape) for name, one in files.tensors.items()}, folder)  # type: ignore[misc]
        for name, stored in files.tensors.items():
            value = stored.read()
            require_finite({name: value}, folder)
            if dtype is not None and not lavin_keys.is_method(name):
                value = value.to(dtype)
            model.load_state_dict({name: value}, strict=False, assign=True)
    return model.eval(), prompt_format


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]


def key_report(host: str, golden: Mapping[str, Any]) -> tuple[int, int, list[str]]:
    """Compare names, shapes and counts at full size, without memory.

    Args:
        host: "lavin_7b" or "lavin_13b". golden: ``official_keys.json``.

    Returns:
        Names, parameters of adapters in a checkpoint, and what differs.
    """
    entry, config = golden[host], LAVIN_7B if host == "lavin_7b" else LAVIN_13B
    with torch.device("meta"):
        model = Lavin(config, both=True)
    ours = {
        lavin_keys.PREFIX + lavin_keys.to_official(name): list(lavin_keys.official_shape(name, tuple(value.shape)))
        for name, value in model.trained()
    }
    theirs = entry["keys"]
    wrong = [
        f"{name}: {ours.get(name, 'missing')}, official {theirs.get(name, 'none')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    method = sum(value.numel() for _, value in model.trained())
    frozen = {name: value.numel() for name, value in model.named_parameters() if not lavin_keys.is_method(name)}
    visual = sum(count for name, count in frozen.items() if name.startswith(lavin_keys.VISUAL))
    counts = {"all_adapter_named": method, "visual": visual + VISION_PROJECTION, "llama": sum(frozen.values()) - visual}
    for name in (one for one in entry["counts"] if one.startswith("active_trainable_skip")):
        removed = int(name.removeprefix("active_trainable_skip"))
        unused = re.compile(rf"layers\.({'|'.join(map(str, range(removed)))})\.adapter\..*") if removed else None
        kept = re.compile(rf"layers\.({'|'.join(map(str, range(removed, config.layers)))})\.pia\..*")
        counts[name] = sum(
            value.numel()
            for one, value in model.trained()
            if not kept.fullmatch(one) and not (unused and unused.fullmatch(one))
        )
    wrong += [
        f"{name}: {count:,} parameters, official {entry['counts'][name]:,}"
        for name, count in counts.items()
        if count != entry["counts"][name]
    ]
    return len(ours), method, wrong
