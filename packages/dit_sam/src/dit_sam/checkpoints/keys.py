"""Names of weights: the authors' <-> ours.

| authors'                                        | ours                                        |
|---|---|
| visual_encoder.{probs, tokens, cross, ln, prob_text} | image_encoder.text_path.{the same}     |
| visual_encoder.*, as SAM's image_encoder.*      | image_encoder.*                             |
| prompt_encoder.*, mask_decoder.*, text_proj.*   | the same                                    |
| lang_encoder.bert.*, as BertModel               | text_encoder.*                              |
| query_embeddings, self_attention.*              | none: in the files, read by nothing         |

A checkpoint of several GPUs has `module.` before every name. Which of `layer_wise` and `e2e` a file holds cannot be
told: their weights have the same names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from dit_sam.config import DITConfig, Variant

Value = TypeVar("Value")

TEXT_PATH = ("probs", "tokens", "cross", "ln", "prob_text")
_PREFIXES = (
    *((f"visual_encoder.{name}.", f"image_encoder.text_path.{name}.") for name in TEXT_PATH if name != "tokens"),
    ("visual_encoder.tokens", "image_encoder.text_path.tokens"),
    ("visual_encoder.", "image_encoder."),
    ("lang_encoder.bert.", "text_encoder."),
)
# Present in every file but those of the default variant, and used nowhere.
UNUSED = ("query_embeddings", "self_attention.")


def ours(name: str) -> str | None:
    """Our name of an official weight; None for one that nothing uses."""
    name = name.removeprefix("module.")
    if name.startswith(UNUSED):
        return None
    for theirs, own in _PREFIXES:
        if name.startswith(theirs):
            return own + name[len(theirs) :]
    return name


def official(name: str) -> str:
    """The authors' name of one of our weights, without `module.`."""
    for theirs, own in _PREFIXES:
        if name.startswith(own):
            return theirs + name[len(own) :]
    return name


def from_official(state: Mapping[str, Value]) -> dict[str, Value]:
    """An official state under our names, without what nothing uses."""
    return {own: value for name, value in state.items() if (own := ours(name)) is not None}


def to_official(state: Mapping[str, Value]) -> dict[str, Value]:
    """Our state under the official names."""
    return {official(name): value for name, value in state.items()}


def unused_shapes(config: DITConfig) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of the weights that are in a release and that nothing uses."""
    if config.variant == "default":
        return {}
    width = config.text_width
    return {
        "query_embeddings": (1, 4, width),
        "self_attention.in_proj_weight": (3 * width, width),
        "self_attention.in_proj_bias": (3 * width,),
        "self_attention.out_proj.weight": (width, width),
        "self_attention.out_proj.bias": (width,),
    }


def possible_variants(names: Iterable[str]) -> tuple[Variant, ...]:
    """The variants whose weights have these official names: one, or layer_wise and e2e, which share theirs."""
    marks = {
        match.group(1)
        for name in names
        if (
            match := re.match(r"(?:module\.)?visual_encoder\.(probs\.\d|probs|tokens|cross\.\d|prob_text|ln\.\d)", name)
        )
    }
    kinds = {re.sub(r"\.\d+", ".N", mark) for mark in marks}
    if "prob_text" in kinds:
        return ("layer_wise_vith",)
    if "cross.N" in kinds:
        return ("cross_attention",) if "probs.N" in kinds else ("cross_attention_ffn",)
    if "tokens" in kinds:
        return ("e2e_token",) if "probs" in kinds else ("token_layer_wise",)
    return ("layer_wise", "e2e") if "probs.N" in kinds else ("default",)


def without_prefix(state: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The part of a state below a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
