"""Names of the weights in official FlashSloth checkpoints and in this package's models (sheet section 4).

    part            official                                        this package
    decoder         model.{embed_tokens,layers,final_layernorm}.    model.language_model.{...}.
    head            lm_head.                                        lm_head.
    projector       model.mm_projector.{0,2}.                       model.multi_modal_projector.linear_{1,2}.
    SAP             model.pooling.                                  model.pooling.
    query tokens    model.learnable_tokens.                         model.query_tokens.
    EmbQ            model.lqformer.                                 model.embq.
    vision tower    model.vision_tower.vision_tower.vision_model.   model.vision_tower.

Whole folders are converted by `checkpoints.convert`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from flashsloth.configuration import FlashSlothConfig
from flashsloth.modeling import FlashSlothForConditionalGeneration
from tenfold import UserError
from tenfold.hosts.checkpoints import compared

TOWER = "model.vision_tower.vision_tower.vision_model."
# Official prefix -> ours. No prefix begins another one.
_PARTS = {
    f"{TOWER}embeddings.": "model.vision_tower.embeddings.",
    f"{TOWER}encoder.": "model.vision_tower.encoder.",
    "model.pooling.": "model.pooling.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.learnable_tokens.": "model.query_tokens.",
    "model.lqformer.": "model.embq.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.final_layernorm.": "model.language_model.final_layernorm.",
    "lm_head.": "lm_head.",
}
# Official names without a place in our model: no output depends on these.
UNUSED = re.compile(
    rf"{re.escape(TOWER)}(post_layernorm\.|head\.|embeddings\.position_ids$)"
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$"
)
Value = TypeVar("Value")


def to_ours(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Weights under official names, renamed for `FlashSlothForConditionalGeneration.load_state_dict`.

    What no computation uses (`UNUSED`) is left out; tensors are passed on, not copied.

    Raises:
        UserError: a name that FlashSloth does not have.
    """
    return {new: state_dict[old] for old, new in renamed(state_dict, "ours").items()}


def to_official(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Weights of a `FlashSlothForConditionalGeneration` under official names; tensors are passed on, not copied.

    Raises:
        UserError: a name that FlashSloth does not have.
    """
    return {new: state_dict[old] for old, new in renamed(state_dict, "official").items()}


def renamed(names: Iterable[str], to: str, where: Path | None = None) -> dict[str, str]:
    """Old name -> new name, in the order given.

    Args:
        names: official ones for ``to`` "ours", of which `UNUSED` ones are left out; ours for "official".
        where: the file or folder that they come from, for the message.

    Raises:
        UserError: a name that FlashSloth does not have.
    """
    if to == "ours":
        return {name: _renamed(name, _PARTS, where) for name in names if not UNUSED.match(name)}
    back = {ours: official for official, ours in _PARTS.items()}
    return {name: _renamed(name, back, where) for name in names}


def _renamed(name: str, parts: Mapping[str, str], where: Path | None) -> str:
    for old, new in parts.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise UserError(f"FlashSloth has no weight {name}", where, f"names such as {next(iter(parts))}*")


def meta_model(name: str) -> FlashSlothForConditionalGeneration:
    """A released model on the meta device, without weights: for names, shapes, parameters and operations.

    Args:
        name: as in :meth:`FlashSlothConfig.named`.
    """
    with torch.device("meta"):
        return FlashSlothForConditionalGeneration(FlashSlothConfig.named(name)).eval()


@dataclass(frozen=True)
class KeyReport:
    """Our full-size model against the list of an official one's weights.

    Attributes:
        count: weights compared.
        parameters: numbers in them.
        wrong: a line for each that is missing, too many or of another shape; and for each number that differs.
    """

    count: int
    parameters: int
    wrong: list[str] = field(default_factory=list)


def key_report(golden: Mapping[str, Any], model: str = "3.2b") -> KeyReport:
    """Compare a full-size model, on the meta device, with the official list of names and shapes.

    Args:
        golden: content of `official_keys.json`.
        model: as in `FlashSlothConfig.named`; both have the same weights.
    """
    theirs = official_shapes(golden)
    ours = {name: tuple(tensor.shape) for name, tensor in to_official(meta_model(model).state_dict()).items()}
    wrong = compared(ours, theirs)
    expected = _official_counts(golden)
    for part, number in parameter_counts(ours).items():
        if number != expected[part]:
            wrong.append(f"{part}: {number:,} parameters, official {expected[part]:,}")
    if len(ours) != golden["number_of_tensors"]:
        wrong.append(f"{len(ours)} tensors, official {golden['number_of_tensors']}")
    return KeyReport(len(theirs), parameter_counts(ours)["total"], wrong)


def official_shapes(golden: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The list of official names with its patterns (``layers.{0..31}.``) written out."""
    shapes = {key: tuple(shape) for key, shape in golden["method_specific"].items()}
    for pattern, shape in golden["host_patterns"].items():
        bounds = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
        numbers = range(int(bounds[1]), int(bounds[2]) + 1) if bounds else range(1)
        for number in numbers:
            shapes[pattern.replace(bounds[0], str(number)) if bounds else pattern] = tuple(shape)
    return shapes


def parameter_counts(official: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Numbers in each part of a model, from official names and shapes."""

    def count(*prefixes: str) -> int:
        return sum(math.prod(shape) for key, shape in official.items() if key.startswith(prefixes))

    parts = {
        "vision tower": count(TOWER),
        "pooling": count("model.pooling."),
        "projector": count("model.mm_projector."),
        "query tokens": count("model.learnable_tokens."),
        "EmbQ": count("model.lqformer."),
    }
    total = count("")
    return parts | {
        "language model": total - sum(parts.values()),
        "total": total,
        "stage 1 trainable": parts["pooling"] + parts["projector"],
        "stage 2 trainable": total - parts["vision tower"],
    }


def _official_counts(golden: Mapping[str, Any]) -> dict[str, int]:
    groups = golden["parameters_by_group"]

    def group(start: str) -> int:
        return next(number for name, number in groups.items() if name.startswith(start))

    return {
        "vision tower": group("vision tower"),
        "pooling": group("pooling"),
        "projector": group("mm_projector"),
        "query tokens": group("learnable_tokens"),
        "EmbQ": group("lqformer"),
        "language model": group("language model"),
        "total": golden["total_parameters"],
        "stage 1 trainable": golden["stage1_trainable_parameters"],
        "stage 2 trainable": golden["stage2_trainable_parameters"],
    }
