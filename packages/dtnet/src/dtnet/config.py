"""The dimensions of a DTNet; the paper's by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tenfold import UserError

# In the order in which the official code stacks them, and so in the order of the path weights.
SPATIAL_CELLS = ("lmc", "amc", "gmc")
CHANNEL_CELLS = ("cac", "cpc")
ROUTINGS = ("joint", "uniform", "spatial", "channel")


@dataclass(frozen=True)
class DTNetConfig:
    """Dimensions and variants of a model.

    Attributes:
        d_in: channels of a grid feature, an even number.
        grid: cells along each edge; an image has ``grid ** 2`` visual tokens.
        d_model: width of the model.
        heads: heads of every attention.
        d_k, d_v: width of a head's keys and values.
        d_ff: inner width of the feed-forward parts.
        encoder_layers, decoder_layers: depth.
        vocabulary_size: words, the special ones included.
        max_len: words of the longest caption that the decoder has positions for.
        pad_id, bos_id, eos_id: the special words.
        router_reductions: of a router's two branches, over positions (``grid ** 2 // 7``) and over channels
            (``d_model // 16``).
        se_reduction: of the channel attention cell.
        dropout: everywhere but on attention weights.
        attention_dropout: on attention weights; a number of its own, as officially `dropout` does not reach them.
        init: "official" draws the decoder's frozen positions at random, as released; "sinusoid" keeps the table.
        cells: the cells that a layer has: of "lmc" (local), "amc" (axial) and "gmc" (global) at least one, and of "cac"
            (channel attention) and "cpc" (channel projection).
        routing: "joint" is the paper's router; "spatial" and "channel" have one of its branches; "uniform" gives every
            cell the same weight.

    Raises:
        UserError: a value out of range; names the field.
    """

    d_in: int = 2048
    grid: int = 7
    d_model: int = 512
    heads: int = 8
    d_k: int = 64
    d_v: int = 64
    d_ff: int = 2048
    encoder_layers: int = 3
    decoder_layers: int = 3
    vocabulary_size: int = 10201
    max_len: int = 54
    pad_id: int = 1
    bos_id: int = 2
    eos_id: int = 3
    router_reductions: tuple[int, int] = (7, 16)
    se_reduction: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init: Literal["official", "sinusoid"] = "official"
    cells: tuple[str, ...] = (*SPATIAL_CELLS, *CHANNEL_CELLS)
    routing: Literal["joint", "uniform", "spatial", "channel"] = "joint"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check(type(getattr(self, name)) is int and getattr(self, name) >= 1, self, name, "a number from 1")
        for name in ("pad_id", "bos_id", "eos_id"):
            value = getattr(self, name)
            _check(type(value) is int and 0 <= value < self.vocabulary_size, self, name, "the number of a word")
        ids = {self.pad_id, self.bos_id, self.eos_id}
        _check(len(ids) == 3, self, "eos_id", "pad_id, bos_id and eos_id to differ")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            _check(type(value) in (int, float) and 0 <= value < 1, self, name, "a number from 0 to below 1")
        _check(self.d_in % 2 == 0, self, "d_in", "an even number: sines and cosines alternate")
        _check(self.init in ("official", "sinusoid"), self, "init", "official or sinusoid")
        _check(self.init == "official" or self.d_model % 2 == 0, self, "d_model", "an even number for a sinusoid")
        _check(self.routing in ROUTINGS, self, "routing", ", ".join(ROUTINGS))
        self._check_cells()
        self._check_reductions()

    def _check_cells(self) -> None:
        known = (*SPATIAL_CELLS, *CHANNEL_CELLS)
        is_names = isinstance(self.cells, (tuple, list)) and all(cell in known for cell in self.cells)
        _check(is_names and len(set(self.cells)) == len(self.cells), self, "cells", f"some of {', '.join(known)}")
        _check(bool(self.spatial_cells), self, "cells", f"at least one of {', '.join(SPATIAL_CELLS)}")
        _check(bool(self.channel_cells), self, "cells", f"at least one of {', '.join(CHANNEL_CELLS)}")
        object.__setattr__(self, "cells", (*self.spatial_cells, *self.channel_cells))

    def _check_reductions(self) -> None:
        pair = self.router_reductions
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(type(r) is int and r >= 1 for r in pair)
        _check(is_pair, self, "router_reductions", "two numbers from 1: (7, 16)")
        object.__setattr__(self, "router_reductions", tuple(pair))
        routed = self.routing != "uniform" and max(len(self.spatial_cells), len(self.channel_cells)) > 1
        if routed and self.routing != "channel":
            _check(self.positions >= pair[0], self, "router_reductions", f"at most {self.positions}, the grid's cells")
        if routed and self.routing != "spatial":
            _check(self.d_model >= pair[1], self, "router_reductions", f"at most d_model, {self.d_model}")
        if "cac" in self.cells:
            _check(self.d_model >= self.se_reduction, self, "se_reduction", f"at most d_model, {self.d_model}")

    @property
    def positions(self) -> int:
        """Visual tokens of an image, n."""
        return self.grid**2

    @property
    def spatial_cells(self) -> tuple[str, ...]:
        """The spatial cells of a layer, in the order of its path weights."""
        return tuple(cell for cell in SPATIAL_CELLS if cell in self.cells)

    @property
    def channel_cells(self) -> tuple[str, ...]:
        """The channel cells of a layer, in the order of its path weights."""
        return tuple(cell for cell in CHANNEL_CELLS if cell in self.cells)

    def to_json(self) -> dict[str, Any]:
        """Every field, as JSON values."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str | Path = "config") -> DTNetConfig:
        """What `to_json` gave; fields that are not there have their defaults.

        Raises:
            UserError: an unknown field, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise UserError(f"{type(values).__name__} instead of an object", where, "the dimensions of a DTNet")
        if unknown := sorted(set(values) - set(known)):
            raise UserError(f"unknown field {unknown[0]!r}", where, ", ".join(known))
        fixed: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        return cls(**fixed)


_COUNTS = (
    *("d_in", "grid", "d_model", "heads", "d_k", "d_v", "d_ff", "encoder_layers", "decoder_layers"),
    *("vocabulary_size", "max_len", "se_reduction"),
)


def _check(holds: bool, config: DTNetConfig, name: str, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} is {getattr(config, name)!r}", "DTNetConfig", expected)
