"""The knobs of a conversion, and what of it is stored beside the weights.

GammaModConfig.preset("paper", layers=(3, ..., 30), routing_ratio=0.5)      # questions protected
GammaModConfig.preset("released", ...)                                       # questions and answers
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gamma_mod.routing import INITIALISATIONS, PROTECT
from tenfold import UserError

PRESETS = {"paper": {"protect": "question"}, "released": {"protect": "question+answer"}}
POSITIONS = ("auto", "compact", "original")
PADDING = ("ignored", "released")


@dataclass(frozen=True)
class GammaModConfig:
    """How a model is converted.

    Attributes:
        layers: decoder layers that become mixture-of-depths layers, counted from 0.
        routing_ratio: r, in training the share of each row's routable tokens that are skipped.
        protect: what may not be skipped in training (`gamma_mod.routing`).
        aux_coefficient: lambda, weight of the sum of the auxiliary losses.
        prefill_threshold: a prompt's token is computed if its keep probability lies above it.
        decode_threshold: a generated token is computed if its keep probability is at least this.
        decode_skip: whether generated tokens may be skipped at all.
        shared_router: one router for all layers (the paper), or one a layer (its ablation).
        router: kind of router; the paper's is "linear", and its authors found no difference with an MLP.
        initialisation: of the router: "linear" (LLaVA-HR) or "xavier" (Mini-Gemini).
        positions: RoPE positions in converted layers: "compact" numbers the kept tokens 0, 1, ... (the paper);
            "original" leaves them; "auto" is compact, but original where the host counts positions along several
            axes (Qwen2-VL), which have no numbering 0, 1, ....
        padding: "ignored", or "released": right padding is kept, computed without attention, and counts in the
            auxiliary loss, as in the released code.
    """

    layers: tuple[int, ...]
    routing_ratio: float = 0.5
    protect: str = "question"
    aux_coefficient: float = 0.01
    prefill_threshold: float = 0.005
    decode_threshold: float = 0.5
    decode_skip: bool = True
    shared_router: bool = True
    router: str = "linear"
    initialisation: str = "linear"
    positions: str = "auto"
    padding: str = "ignored"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        where = "gamma-MoD configuration"
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise UserError(f"layers {list(self.layers)}", where, "at least one layer, each once, in order")
        for name, low, high in (
            ("routing_ratio", 0.0, 1.0),
            ("prefill_threshold", 0.0, 1.0),
            ("decode_threshold", 0.0, 1.0),
            ("aux_coefficient", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high or (name == "routing_ratio" and value == 1):
                raise UserError(f"{name} {value}", where, f"{low:g} to {'below 1' if name[0] == 'r' else f'{high:g}'}")
        for name, known in (
            ("protect", PROTECT),
            ("router", ("linear",)),
            ("initialisation", INITIALISATIONS),
            ("positions", POSITIONS),
            ("padding", PADDING),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name} {getattr(self, name)!r}", where, " or ".join(map(repr, known)))

    @classmethod
    def preset(cls, name: str, **knobs: Any) -> GammaModConfig:
        """The paper's best setting ("paper") or the released code's ("released"); ``knobs`` as the attributes.

        Raises:
            UserError: an unknown preset, or a knob out of range.
        """
        if name not in PRESETS:
            raise UserError(f"unknown preset {name!r}", "gamma-MoD configuration", " or ".join(PRESETS))
        return cls(**(PRESETS[name] | knobs))

    def changed(self, **knobs: Any) -> GammaModConfig:
        """A copy with other knobs."""
        return replace(self, **knobs)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Any, where: str | Path = "gamma-MoD configuration") -> GammaModConfig:
        """Read what `to_dict` wrote.

        Raises:
            UserError: not an object of the known keys and types.
        """
        kinds: dict[str, tuple[type, ...]] = {
            field.name: {"bool": (bool,), "float": (float, int), "str": (str,)}.get(str(field.type), (list,))
            for field in fields(cls)
        }
        if not isinstance(values, Mapping) or "layers" not in values:
            raise UserError("no gamma-MoD configuration", where, "a json object with its layers")
        for name, value in values.items():
            wrong = name not in kinds or not isinstance(value, kinds[name])
            wrong = wrong or (isinstance(value, bool) and bool not in kinds[name])
            if wrong or (name == "layers" and any(type(layer) is not int for layer in value)):
                raise UserError(f"{name}: {str(value)[:40]}", where, ", ".join(kinds))
        return cls(**values)
