"""Names and shapes of the released weights, against a converted model at full size on the meta device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from transformers import LlamaForCausalLM

from gamma_mod.checkpoints.keys import RELEASES, ReleaseShape, Shapes, is_derived, router_key, vision_shapes
from gamma_mod.checkpoints.official import llama_config
from gamma_mod.conversion import convert
from tenfold.ledger import Outcome

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_patterns(patterns: Mapping[str, Any]) -> Shapes:
    """``layers.{0..31}.x`` -> one name a layer; buffers that models compute for themselves are left out."""
    found: Shapes = {}
    for pattern, shape in patterns.items():
        match = _RANGE.search(pattern)
        names = [pattern]
        if match is not None:
            numbers = range(int(match[1]), int(match[2]) + 1)
            names = [pattern.replace(match[0], str(number)) for number in numbers]
        found |= {name: tuple(shape) for name in names if not is_derived(name)}
    return found


def official_model(shape: ReleaseShape) -> tuple[Shapes, int]:
    """Official names and shapes of a release, and its number of parameters, the shared router counted once."""
    with torch.device("meta"):
        model = convert(LlamaForCausalLM(llama_config(shape)), shape.converted)
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} | vision_shapes(shape)
    total = sum(prod(found) for found in own.values())
    router = own.pop("model.router.weight")
    return own | {router_key(layer): router for layer in shape.converted}, total


def official_keys(listed: Mapping[str, Any]) -> Outcome:
    """Every release of ``official_keys.json``: none missing, none unexpected, all shapes and the total equal."""
    wrong, compared = [], 0
    for release, shape in RELEASES.items():
        expected = expand_patterns(listed[release]["keys"])
        ours, total = official_model(shape)
        compared += len(expected)
        names = sorted(name for name in expected.keys() | ours.keys() if expected.get(name) != ours.get(name))
        wrong += [f"{release}: {name} {ours.get(name)}, official {expected.get(name)}" for name in names]
        counted = listed[release]["param_counts"]["total_unique"]
        if total != counted:
            wrong.append(f"{release}: {total:,} parameters, official {counted:,}")
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, "; ".join(wrong[:5]))
    return Outcome(f"{compared} names agree", True, f"{len(RELEASES)} releases, router [2, width] once")
