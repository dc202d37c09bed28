"""Choosing the threshold of prompts from samples (section 3.4; the released constant is 0.005).

The constant serves models whose routers were trained for an epoch. After a short adaptation no probability lies below
it and nothing is skipped; `calibrate` finds the threshold at which a wanted share of tokens is.

    found = gamma_mod.calibrate(model, samples, skip=0.5)      # sets model.gamma_mod.config.prefill_threshold
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gamma_mod.report import measure_skips
from tenfold import UserError
from tenfold.hosts import structure


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
    samples = [{name: value for name, value in sample.items() if name != "labels"} for sample in samples]
    if not samples:
        raise UserError("no samples to calibrate on", "calibrate", "at least one prompt")
    before = conversion.config
    tried: dict[float, Calibration] = {}
    try:
        probabilities = _run(model, conversion, samples, 0.0, tried)
        low, high = 0.0, 1.0
        threshold = torch.quantile(_thinned(probabilities), skip).item()
        for _ in range(max(1, rounds)):
            _run(model, conversion, samples, threshold, tried)
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
