"""What was really skipped: the realised skip of every converted layer, apart from the routing ratio.

    with gamma_mod.measure_skips() as skips:
        model.generate(**inputs)
    print(skips.table())           # layer by layer: prompt and decoding; skips.prefill is the mean

Section 8's "skip ratio" is skipped over all tokens of the converted layers, prompt and generated ones together. The
routing ratio r is what training enforces on routable tokens; of a whole row training skips ``(T - k) / T``.

`calibrate` sets the threshold of prompts (section 3.4; the released constant is 0.005, for models whose routers were
trained for an epoch: after a short adaptation no probability lies below it and nothing is skipped):

    found = gamma_mod.calibrate(model, samples, skip=0.5)      # sets model.gamma_mod.config.prefill_threshold
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tenfold import UserError
from tenfold.hosts import structure

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
        rows: list[tuple[str, ...]] = [("layer", *PHASES)]
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


@dataclass(frozen=True)
class Calibration:
    """Outcome of `calibrate`.

    Attributes:
        threshold: the threshold that was set.
        skip: share of the samples' prompt tokens that converted layers skip under it.
        per_layer: the same, layer by layer.
    """

    threshold: float
    skip: float
    per_layer: dict[int, float]


@torch.no_grad()
def calibrate(
    model: nn.Module, samples: Iterable[Mapping[str, Any]], skip: float = 0.5, *, rounds: int = 12
) -> Calibration:
    """Set the threshold of prompts so that about ``skip`` of their tokens are skipped in the converted layers.

    What deeper layers see depends on what earlier ones skip, so quantiles of the probabilities are not enough: the
    threshold is bracketed and halved on the realised skip, starting from their quantile.

    Args:
        model: converted, in evaluation mode.
        samples: arguments of its forward, prompts as at inference.
        skip: the wanted realised skip, 0 to below 1.
        rounds: passes over the samples at most.

    Raises:
        UserError: a model that is not converted or in training mode, no samples, or ``skip`` out of range.
    """
    host = structure.unwrap(model)
    conversion = getattr(host, "gamma_mod", None)
    if conversion is None or host.training:
        what = "a model that is not converted" if conversion is None else "a model in training mode"
        raise UserError(what, type(host).__name__, "a converted model, after eval()")
    if not 0 <= skip < 1:
        raise UserError(f"skip {skip}", "calibrate", "0 to below 1")
    prompts = [{name: value for name, value in sample.items() if name != "labels"} for sample in samples]
    if not prompts:
        raise UserError("no samples to calibrate on", "calibrate", "at least one prompt")
    before = conversion.config
    tried: dict[float, Calibration] = {}
    try:
        probabilities = _run(model, conversion, prompts, 0.0, tried)
        low, high = 0.0, 1.0
        threshold = torch.quantile(_thinned(probabilities), skip).item()
        for _ in range(max(1, rounds)):
            _run(model, conversion, prompts, threshold, tried)
            realised = tried[threshold].skip
            if abs(realised - skip) <= 0.005:
                break
            low, high = (threshold, high) if realised < skip else (low, threshold)
            threshold = (low + high) / 2
    finally:
        conversion.config = before
    best = min(tried.values(), key=lambda found: (abs(found.skip - skip), found.threshold))
    conversion.configure(prefill_threshold=best.threshold)
    return best


def _run(
    model: nn.Module, conversion: Any, samples: list[dict[str, Any]], threshold: float, tried: dict[float, Calibration]
) -> torch.Tensor:
    conversion.configure(prefill_threshold=threshold)
    with measure_skips(keep_tensors=not tried) as skips:
        for sample in samples:
            model(**sample, use_cache=False)
    per_layer = {layer: skips.ratio("prefill", layer=layer) or 0.0 for layer in skips.layers}
    tried[threshold] = Calibration(threshold, skips.prefill or 0.0, per_layer)
    passes = [
        found.flatten() for (phase, _), kept in skips.probabilities.items() if phase == "prefill" for found in kept
    ]
    return torch.cat(passes).cpu() if passes else torch.zeros(1)


def _thinned(values: torch.Tensor, most: int = 1_000_000) -> torch.Tensor:
    return values[:: -(-len(values) // most)]  # torch.quantile takes sixteen million at most
