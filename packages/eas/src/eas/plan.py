"""What is skipped and by what it is replaced: the knobs of EAS, checked once.

A decoder has one attention site a layer. `meter_flags` is the map of the two-stream encoder METER, whose 24 sites are
the self- and cross-attentions of six text and six image layers: its search results are lists of such numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tenfold import UserError

# Skip lists that the authors' code ships (README and sources); no checkpoint was ever released.
RELEASED: dict[str, tuple[int, ...]] = {
    "llava-scienceqa-12": (31, 29, 21, 23, 24, 20, 22, 30, 26, 28, 25, 27),
    "llava-scienceqa-8": (20, 24, 22, 6, 17, 29, 26, 28),
    "llava-scienceqa-12-older": (7, 26, 5, 13, 29, 25, 2, 17, 23, 21, 30, 27),
    "llava-aid-12": (28, 3, 13, 19, 12, 5, 24, 22, 4, 10, 30, 26),
    "llava-aid50-10": (17, 23, 13, 5, 28, 30, 16, 26, 7, 29),
    "llava-aid20-10": (22, 26, 6, 30, 11, 4, 9, 28, 13, 23),
    "llava-slake-12": (5, 8, 21, 23, 30, 26, 27, 6, 19, 24, 28, 25),
    "llava-slake-10": (22, 23, 21, 27, 5, 28, 26, 24, 25, 6),
    "lavin-scienceqa-12": (24, 23, 19, 21, 28, 31, 22, 30, 25, 26, 29, 27),
}
# METER's lists were found, and trained with, under the authors' map of sites (`meter_flags(..., as_released=True)`).
METER_RELEASED: dict[str, tuple[int, ...]] = {
    "meter-nlvr2-16": (23, 6, 21, 19, 5, 13, 7, 0, 12, 17, 22, 4, 2, 18, 3, 1),
    "meter-nlvr2-14": (22, 16, 11, 7, 23, 2, 4, 18, 1, 13, 19, 12, 3, 5),
    "meter-nlvr2-12": (23, 6, 19, 3, 8, 13, 2, 7, 21, 11, 15, 0),
    "meter-nlvr2-10": (15, 0, 23, 3, 10, 1, 13, 12, 18, 8),
    "meter-nlvr2-8": (19, 0, 12, 18, 15, 21, 9, 8),
    "meter-vqa-10": (16, 13, 6, 12, 18, 5, 3, 21, 15, 7),
    "meter-vqa-8": (8, 12, 2, 5, 19, 13, 6, 7),
    "meter-flickr30k-10": (12, 5, 20, 11, 18, 14, 3, 19, 13, 6),
    "meter-flickr30k-8": (5, 12, 13, 18, 19, 20, 2, 14),
    "meter-default-10": (13, 8, 17, 4, 6, 12, 23, 2, 1, 0),
}
METER_LAYERS = 6


# No decoder has as many layers, nor a host that an adapter fits such a rank: a list of them would take all memory.
LARGEST = 2**15


@dataclass(frozen=True)
class Plan:
    """Which attentions a decoder skips, and the sizes of what is trained.

    Attributes:
        layers: of the decoder.
        skip: the layers whose attention goes, ascending; layer 0 and the last one may go too.
        adapter_rank: h of the adapter before a kept attention; 0 trains none.
        pia_rank: h' of the PIA in a removed one's place.
        groups: of the up-projections.
        scale, temperature: s and t.
        dropout: on the hidden vectors, in training.
        identity_start: PIA starts as the identity; the LLaVA host's does not.
        use_global: PIA adds its global vector.
    """

    layers: int
    skip: tuple[int, ...] = ()
    adapter_rank: int = 128
    pia_rank: int = 128
    groups: int = 2
    scale: float = 1.0
    temperature: float = 10.0
    dropout: float = 0.1
    identity_start: bool = False
    use_global: bool = True

    def __post_init__(self) -> None:
        skip = _numbers(self.skip)
        if max(self.layers, self.adapter_rank, self.pia_rank) > LARGEST:
            raise UserError("layers or a rank beyond every model", "the plan", f"at most {LARGEST:,}")
        if self.layers < 1 or len(set(skip)) != len(skip) or any(not 0 <= site < self.layers for site in skip):
            raise UserError(f"a skip list {list(skip)}", f"of {self.layers} layers", "each layer once, from 0 on")
        if len(skip) >= self.layers:
            raise UserError("every attention skipped", f"{self.layers} layers", "at least one attention that stays")
        for name in ("adapter_rank", "pia_rank"):
            rank = getattr(self, name)
            if self.groups < 1 or rank < 0 or rank % self.groups:
                raise UserError(f"{name} {rank}", "the plan", f"a multiple of groups ({self.groups})")
        if self.pia_rank == 0 and skip:
            raise UserError("pia_rank 0", "the plan", "a rank for what replaces the skipped attentions")
        if not 0 <= self.dropout < 1 or not self.temperature > 0 or not abs(self.scale) < float("inf"):
            raise UserError("dropout, temperature or scale", "the plan", "dropout in [0, 1), temperature above 0")
        object.__setattr__(self, "skip", tuple(sorted(skip)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Layers whose attention stays."""
        return tuple(layer for layer in range(self.layers) if layer not in self.skip)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "skip": list(self.skip)}

    @classmethod
    def from_dict(cls, content: Any, where: Any) -> Plan:
        """The plan that a file holds. Raises UserError for an unknown or missing key, or a value of another type."""
        known = {field.name: field.type for field in fields(cls)}
        if not isinstance(content, Mapping) or not set(content) <= set(known) or "layers" not in content:
            raise UserError("no plan of skipped attentions", where, ", ".join(known))
        kinds = {"int": int, "float": (int, float), "bool": bool}
        for name, value in content.items():
            kind = kinds.get(str(known[name]))
            if kind and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):  # type: ignore[arg-type]
                raise UserError(f"{name} is {str(value)[:40]!r}", where, f"{known[name]}")
        try:
            return cls(**content)
        except UserError as error:
            raise UserError(error.what, where, error.expected) from error


def meter_flags(skip: Sequence[int], *, as_released: bool = False) -> Tensor:
    """Which attentions of METER a list of its 24 sites skips.

    Sites 0-5 are the text layers' self-attentions, 6-11 their cross-attentions, 12-17 and 18-23 those of the image
    layers. The authors' code sets the image self-attention for 18-23 again (`as_released`), so image cross-attention
    is never skipped there and a list of ten removes fewer; the published lists were found that way.

    Returns:
        ``[12, 2]`` bool, text layers first; columns self and cross.
    """
    flags = torch.zeros(2 * METER_LAYERS, 2, dtype=torch.bool, device="cpu")  # also where a model is built on "meta"
    for site in _numbers(skip):
        if not 0 <= site < 4 * METER_LAYERS:
            raise UserError(f"site {site}", "a skip list of METER", "0 to 23")
        kind, layer = divmod(site, METER_LAYERS)
        stream, column = divmod(kind, 2)
        flags[stream * METER_LAYERS + layer, 0 if as_released and stream else column] = True
    return flags


def released(name: str) -> tuple[int, ...]:
    """A skip list of the authors by name. Raises UserError listing the names."""
    lists = RELEASED | METER_RELEASED
    if name not in lists:
        raise UserError("unknown skip list", name, ", ".join(lists))
    return lists[name]


def _numbers(skip: Any) -> tuple[int, ...]:
    if not isinstance(skip, list | tuple) or any(not isinstance(site, int) or isinstance(site, bool) for site in skip):
        raise UserError(f"a skip list {str(skip)[:60]}", "the plan", "numbers of layers")
    return tuple(skip)
