"""A threshold for a budget (ours): the one at which the mean exit layer of calibration samples is what was asked for.

A gate reads text that no exit has touched yet, so one dense pass gives the margins ``exit - keep`` of all layers, and
the exit layer under any threshold: the first layer whose margin is above it. The mean exit layer falls with the
threshold in steps; between two steps any threshold does the same.

    threshold = dyvte.calibrate(model, gates, samples, mean_exit=12)
    with dyvte.VisualExit(gates, threshold)(model): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.exits import VisualExit
from dyvte.gates import Gates
from tenfold import UserError

# How far the mean exit layer may stay from the one that was asked for.
TOLERANCE = 0.25


@torch.no_grad()
def margins(model: nn.Module, gates: Gates, samples: Iterable[Mapping[str, Any]]) -> Tensor:
    """What the gates say of samples that no exit has touched.

    Args:
        model: the host.
        gates: its gates.
        samples: inputs of its forward, single prompts or batches, each row with an image.

    Returns:
        ``[samples, layers]`` float32 on the CPU: ``exit - keep`` after every layer.

    Raises:
        UserError: no sample, or a row without an image.
    """
    found = []
    exit = VisualExit(gates, threshold=torch.inf)
    with exit(model):
        for inputs in samples:
            trace: list[Any] = []
            exit.trace = trace
            model(**inputs, use_cache=False)
            images = exit.images()
            if not all(images):
                raise UserError("a calibration sample without an image", f"row {images.index(False)}", "image and text")
            found.append(torch.stack([(logits[:, 1] - logits[:, 0]).float().cpu() for _, logits in trace], dim=1))
    if not found:
        raise UserError("no calibration samples", None, "inputs of the model's forward")
    return torch.cat(found)


def exits_at(margins: Tensor, threshold: float) -> Tensor:
    """Exit layer of every sample under a threshold, ``[samples]`` int64; the last layer where none fires."""
    fires = margins > threshold
    fires[:, -1] = True  # leaving after the last layer and never leaving are the same
    return fires.to(torch.uint8).argmax(1)


def threshold_for(margins: Tensor, mean_exit: float) -> float:
    """The threshold at which the mean exit layer is nearest to ``mean_exit``, in the middle of its step.

    Args:
        margins: ``[samples, layers]``.
        mean_exit: counted from 0; a sample whose image stays counts as the last layer.

    Raises:
        UserError: none comes within `TOLERANCE` layers: too few samples, or gates that say the same of all.
    """
    layers = margins.shape[1]
    if not 0 <= mean_exit <= layers - 1:
        raise UserError(f"mean exit {mean_exit}", "calibration", f"a layer from 0 to {layers - 1}")
    # Exits change only where the threshold passes a running maximum of some sample's margins.
    steps = margins.nan_to_num(nan=-torch.inf).double().cummax(dim=1).values[:, :-1].flatten()
    steps = steps[steps.isfinite()].unique()
    if not len(steps):
        raise UserError("margins that are not finite", "calibration", "gates that were trained")
    candidates = torch.cat((steps[:1] - 1, (steps[:-1] + steps[1:]) / 2, steps[-1:] + 1))
    means = torch.stack([exits_at(margins, float(c)).double().mean() for c in candidates])
    best = int((means - mean_exit).abs().argmin())
    if abs(means[best] - mean_exit) > TOLERANCE:
        raise UserError(
            f"mean exit {mean_exit:g} is out of reach: the nearest is {means[best]:.2f}",
            f"{len(margins)} samples",
            "more samples, or another mean exit layer",
        )
    return float(candidates[best])


def calibrate(model: nn.Module, gates: Gates, samples: Iterable[Mapping[str, Any]], *, mean_exit: float) -> float:
    """The threshold for a mean exit layer on these samples; arguments and errors as in `margins`, `threshold_for`."""
    return threshold_for(margins(model, gates, samples), mean_exit)
