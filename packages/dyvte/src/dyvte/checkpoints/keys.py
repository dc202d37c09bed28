"""Names: what the official code calls a weight, and what it is called here and in transformers.

The official training writes a whole LLaVA-1.5 with the gates inside:

    part          official checkpoint                             here
    gates         model.visual_gates_router.{i}.w{1,2}.weight     layers.{i}.w{1,2}.weight, of `Gates`
    decoder       model.{embed_tokens,layers,norm}.*              model.language_model.*, of transformers' LLaVA
    head          lm_head.*                                       lm_head.*
    projector     model.mm_projector.{0,2}.*                      model.multi_modal_projector.linear_{1,2}.*
    vision tower  model.vision_tower.vision_tower.vision_model.*  model.vision_tower.*
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from dyvte.gates import GateConfig
from tenfold import UserError

GATES = "model.visual_gates_router."
GATE_KEY = re.compile(r"model\.visual_gates_router\.(\d+)\.(w[12]\.weight)")
# Buffers that old releases carry and that are recomputed: rotary frequencies, and CLIP's 0, 1, 2, ...
RECOMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|embeddings\.position_ids)$")
HOST_PARTS = (
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)


def gates_from_official(names: Iterable[str]) -> dict[str, str]:
    """Official name -> name in `Gates`, of the gates among ``names``."""
    found = {name: GATE_KEY.fullmatch(name) for name in names}
    return {name: f"layers.{match[1]}.{match[2]}" for name, match in found.items() if match}


def gates_to_official(names: Iterable[str], where: Any = None) -> dict[str, str]:
    """Name in `Gates` -> official name.

    Raises:
        UserError: gates that the official code cannot have: those of low rank.
    """
    official = {}
    for name in names:
        match = re.fullmatch(r"layers\.(\d+)\.(w[12]\.weight)", name)
        if match is None:
            raise UserError(f"the official code has no {name}", where, "gates with two full matrices")
        official[name] = f"{GATES}{match[1]}.{match[2]}"
    return official


def host_from_official(names: Iterable[str], where: Any = None) -> dict[str, str]:
    """Official name -> name in transformers' `LlavaForConditionalGeneration`; gates and recomputed buffers left out.

    Raises:
        UserError: a name that LLaVA-1.5 does not have.
    """
    return _renamed(names, HOST_PARTS, where, "official names")


def host_to_official(names: Iterable[str], where: Any = None) -> dict[str, str]:
    """Name in transformers' `LlavaForConditionalGeneration` -> official name.

    Raises:
        UserError: a name that LLaVA-1.5 does not have.
    """
    return _renamed(names, tuple((ours, official) for official, ours in HOST_PARTS), where, "transformers' names")


def _renamed(names: Iterable[str], parts: Iterable[tuple[str, str]], where: Any, layout: str) -> dict[str, str]:
    renamed = {}
    for name in names:
        if name.startswith(GATES) or RECOMPUTED.search(name):
            continue
        for old, new in parts:
            if name.startswith(old):
                renamed[name] = new + name.removeprefix(old)
                break
        else:
            raise UserError(f"LLaVA-1.5 has no weight {name}", where, layout)
    return renamed


def gate_config(shapes: Mapping[str, tuple[int, ...]], where: Any = None) -> GateConfig:
    """The dimensions of official gates, read off their shapes: default states, d from W1 [width, 2 d].

    Args:
        shapes: name in `Gates` -> shape.

    Raises:
        UserError: no gates, a gate that is missing, or shapes that do not fit each other.
    """
    layers = 1 + max((int(name.split(".")[1]) for name in shapes), default=-1)
    expected = {f"layers.{i}.w{j}.weight" for i in range(layers) for j in (1, 2)}
    if not layers or expected - shapes.keys():
        missing = sorted(expected - shapes.keys())
        raise UserError(
            f"gate weights are missing, first {missing[0]}" if missing else "no gates in this checkpoint",
            where,
            f"{GATES}0.w1.weight and so on, two for every decoder layer",
        )
    first = shapes["layers.0.w1.weight"]
    if len(first) != 2 or first[1] % 2 or 0 in first:
        raise UserError(f"layers.0.w1.weight is {list(first)}", where, "[width, 2 d]")
    width, inputs = first
    for name, shape in shapes.items():
        wanted = (width, inputs) if ".w1." in name else (2, width)
        if shape != wanted:
            raise UserError(f"{name} is {list(shape)}", where, f"{list(wanted)}, as of the first layer")
    return GateConfig(layers, inputs // 2, width)


def official_gates(state_dict: Mapping[str, Tensor], where: Any = None) -> tuple[GateConfig, dict[str, Tensor]]:
    """The gates of an official checkpoint, named for `Gates.load_state_dict`."""
    names = gates_from_official(state_dict)
    weights = {ours: state_dict[official] for official, ours in names.items()}
    return gate_config({name: tuple(tensor.shape) for name, tensor in weights.items()}, where), weights
