"""What of the paper's tables can be computed, beside what is printed there: tokens, parameters, prefill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llava_hr import costs


@dataclass(frozen=True)
class Row:
    """A line of a table that sets a published number beside the computed one.

    Attributes:
        published: None where no source prints it.
    """

    name: str
    unit: str
    published: float | None
    computed: float
    source: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.computed - self.published


# Tokens of table 1; published sizes; what gamma-MoD quotes for 1,400 tokens through the language model.
_TABLE_1 = {384: 576, 768: 576, 1024: 1024, 1536: 2304}
_TABLE_1_LLAVA = {336: 576, 448: 1024, 672: 2304, 1022: 5329}
_SIZES = {"7b": 7.4, "13b": 13.4, "x-13b": 14.0}
_QUOTED = {"7b": 19.2, "13b": 37.1}


def rows() -> Iterator[Row]:
    """Everything of the paper's tables that can be computed: tokens, parameters, prefill."""
    for size, tokens in _TABLE_1.items():
        yield Row(f"tokens, LLaVA-HR {size} px", "", tokens, costs.visual_tokens(costs.NAMED["7b"], size), "table 1")
    for size, tokens in _TABLE_1_LLAVA.items():
        yield Row(f"tokens, LLaVA-1.5 {size} px", "", tokens, costs.visual_tokens(costs.LLAVA_7B, size), "table 1")
    for name, published in _SIZES.items():
        shape = costs.NAMED[name]
        assert shape.conv is not None
        total = costs.parameters(shape).total + costs.head_parameters(shape.conv)
        yield Row(f"parameters, {name}", "B", published, total / 1e9, "table 4")
    for name, published in _QUOTED.items():
        macs = costs.llm_macs(costs.NAMED[name].decoder, 1400)
        yield Row(f"language model of {name}, 1,400 tokens", "TFLOPs", published, 2 * macs / 1e12, "gamma-MoD")
    for name, shape, size in prefills():
        yield Row(f"prefill, {name} {size} px", "TFLOPs", None, costs.prefill(shape, size).tflops)


def prefills() -> Iterator[tuple[str, costs.Shape, int]]:
    """The lines of the sheet's table of MACs: name, dimensions, image size."""
    for size in _TABLE_1:
        yield "7b", costs.NAMED["7b"], size
    for name in ("13b", "x-13b"):
        yield name, costs.NAMED[name], 1024
    for size in _TABLE_1_LLAVA:
        yield "LLaVA-1.5-7B", costs.LLAVA_7B, size
