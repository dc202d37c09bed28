"""LaVIN's frozen parts as they are released: LLaMA-1 in two layouts and CLIP's ViT-L/14 in two, not yet read.

LLaMA comes in Meta's layout (``params.json``, one ``consolidated.NN.pth`` for each part of the model) or in Hugging
Face's, whose rows of query and key are put back in order. CLIP's ViT-L/14 comes in Hugging Face's or OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eas.checkpoints import lavin_keys
from eas.lavin import LavinConfig
from tenfold import UserError
from tenfold.runs import read_json
from tenfold.weights import StoredTensor, WeightFiles

# Which axis the parts of Meta's layout share; None: each part holds all of it.
_JOINED = {
    "tok_embeddings": 1, "output": 0, "wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1,
}  # fmt: skip
EVERY = 4  # blocks of the tower between two vectors of a picture


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


def clip(files: WeightFiles, where: str | Path) -> dict[str, StoredTensor]:
    """The vision tower's weights under our names. Raises UserError for what is none of CLIP."""
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


def tower_sizes(config: LavinConfig, clip: Mapping[str, StoredTensor], where: Path) -> LavinConfig:
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
