"""What was really skipped: the realised skip of every converted layer, apart from the routing ratio.

    with gamma_mod.measure_skips() as skips:
        model.generate(**inputs)
    print(skips.table())           # layer by layer: prompt and decoding; skips.prefill is the mean

Section 8's "skip ratio" is skipped over all tokens of the converted layers, prompt and generated ones together. The
routing ratio r is what training enforces on routable tokens; of a whole row training skips ``(T - k) / T``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gamma_mod.forward_pass import ForwardPass

PHASES = ("training", "prefill", "decode")


@dataclass
class Skips:
    """Tokens that passed the converted layers, and how many of them were skipped.

    Attributes:
        tokens, skipped: (phase, layer) -> number, padding left out.
        probabilities: (phase, layer) -> of every pass, p ``[batch, tokens]``; only when asked for.
        kept: the same, the chosen tokens, bool.
        counts: (phase, layer) -> of every pass, how many tokens of each row were kept.
    """

    keep_tensors: bool = False
    tokens: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    skipped: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    probabilities: dict[tuple[str, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    kept: dict[tuple[str, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[tuple[str, int], list[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def layers(self) -> list[int]:
        return sorted({layer for _, layer in self.tokens})

    def ratio(self, *phases: str, layer: int | None = None) -> float | None:
        """Skipped over all tokens, in some phases and one layer or all; None where nothing passed."""
        keys = [key for key in self.tokens if key[0] in phases and layer in (None, key[1])]
        tokens = sum(self.tokens[key] for key in keys)
        return sum(self.skipped[key] for key in keys) / tokens if tokens else None

    @property
    def prefill(self) -> float | None:
        return self.ratio("prefill")

    @property
    def decode(self) -> float | None:
        return self.ratio("decode")

    @property
    def total(self) -> float | None:
        """The paper's skip ratio: prompt and generated tokens together."""
        return self.ratio("prefill", "decode")

    def per_layer(self) -> dict[int, dict[str, float | None]]:
        """Layer -> phase -> realised skip."""
        return {layer: {phase: self.ratio(phase, layer=layer) for phase in PHASES} for layer in self.layers}

    def table(self) -> str:
        """The same as text, in percent."""
        rows = [("layer", *PHASES)]
        rows += [
            (str(layer), *(_percent(found[phase]) for phase in PHASES)) for layer, found in self.per_layer().items()
        ]
        rows.append(("all", *(_percent(self.ratio(phase)) for phase in PHASES)))
        return "\n".join("  ".join(cell.rjust(8) for cell in row) for row in rows)

    def overlap(self, visual: Tensor | None = None) -> dict[tuple[int, int], float]:
        """How alike layers route: Jaccard index of the tokens that neighbouring converted layers skip.

        Args:
            visual: ``[batch, tokens]`` bool, count these only; of the one prompt that was recorded.

        Returns:
            (layer, next converted layer) -> intersection over union, 1.0 where neither skips anything.
        """
        found = {}
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            pairs = [~self.kept["prefill", layer][0] for layer in (before, after)]
            pairs = [pair if visual is None else pair & visual.to(pair.device) for pair in pairs]
            union = (pairs[0] | pairs[1]).sum().item()
            found[before, after] = (pairs[0] & pairs[1]).sum().item() / union if union else 1.0
        return found


_RECORDER: ContextVar[Skips | None] = ContextVar("gamma_mod_skips", default=None)


@contextmanager
def measure_skips(*, keep_tensors: bool = False) -> Iterator[Skips]:
    """Count what converted models skip in this thread, for a ``with`` block.

    Args:
        keep_tensors: keep probabilities and choices of prompts too.
    """
    skips = Skips(keep_tensors)
    token = _RECORDER.set(skips)
    try:
        yield skips
    finally:
        _RECORDER.reset(token)


def note(layer: int, run: ForwardPass, keep_prob: Tensor, chosen: Tensor | None, counts: tuple[int, ...]) -> None:
    """Count one layer's pass, where somebody counts. Costs nothing otherwise, and never waits for the device."""
    skips = _RECORDER.get()
    if skips is None:
        return
    phase = "training" if run.training else "decode" if run.decoding else "prefill"
    batch, tokens = keep_prob.shape
    real = batch * tokens if run.num_real is None else run.num_real
    skips.tokens[phase, layer] += real
    skips.skipped[phase, layer] += real - sum(counts)
    if not run.training:  # a training is long, and its budgets are known
        skips.counts[phase, layer].append(counts)
    if skips.keep_tensors:
        skips.probabilities[phase, layer].append(keep_prob.detach())
        skips.kept[phase, layer].append(torch.ones_like(keep_prob, dtype=torch.bool) if chosen is None else chosen)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
