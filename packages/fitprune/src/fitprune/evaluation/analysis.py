"""`fitprune analyze`: the attention statistics of a model, layer by layer (the paper's "attention distribution").

Of the unpruned model, for every sample and decoder layer:

- the self and the cross mass, ``W_self`` and ``W_cross`` of the recipe search (`fitprune.search`);
- how concentrated both are: the share of the mass that the strongest tenth of the visual tokens receives (0.1 if all
  receive alike);
- Spearman's rank correlation of the self score with the token's place. A causal column sum favours early tokens: only
  tokens after it can look at one, so a value near -1 says that place, not content, decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitprune.attachment import Selection
from fitprune.data.calibration import Prompts, calibration_samples
from fitprune.evaluation.settings import AnalyzeSettings
from fitprune.fitting import model_name
from fitprune.recipe import Recipe, open_recipe
from fitprune.rules import Observation
from fitprune.search import ModelInputs, prefill
from fitprune.statistics import token_mass
from tenfold.hosts.loading import load_host
from tenfold.runs import atomic_write_bytes, atomic_write_json, fingerprint, run, track
from tenfold.runs.progress import Progress

TOP_SHARE = 0.1
MEASURES = ("cross_mass", "self_mass", "cross_top", "self_top", "self_place")
PLOT, FIGURES = "attention.png", "analysis.json"


@dataclass(frozen=True)
class Analysis:
    """The statistics of a model.

    Attributes:
        model: its name.
        visual_tokens: of every sample.
        values: measure (of `MEASURES`) -> ``[samples, layers]`` float64.
        recipe: to stand beside them.
        files: what was written.
    """

    model: str
    visual_tokens: Sequence[int]
    values: Mapping[str, Tensor]
    recipe: Recipe | None = None
    files: Sequence[Path] = ()

    def mean(self, measure: str) -> list[float]:
        """Over the samples, per layer."""
        return self.values[measure].mean(0).tolist()

    def spread(self, measure: str) -> list[float]:
        """Standard deviation over the samples, per layer; 0 for a single sample."""
        return self.values[measure].std(0, correction=0).tolist()

    def figures(self) -> dict[str, Any]:
        """Means and spreads, for a run record."""
        return {
            "samples": len(self.visual_tokens),
            "visual_tokens": sum(self.visual_tokens) / len(self.visual_tokens),
            "layers": {name: {"mean": self.mean(name), "spread": self.spread(name)} for name in MEASURES},
        }


def run_analyze(settings: AnalyzeSettings, seed: int, output: Path, progress: Progress = track) -> Analysis:
    """Measure a model, and write the figures, a plot and ``run.json`` into ``output``.

    Raises:
        UserError: model, samples, recipe or folder cannot be used.
    """
    samples = calibration_samples(settings.model, settings.samples, settings.image_folder, settings.limit, seed)
    recipe = None if settings.recipe is None else open_recipe(settings.recipe)
    host = load_host(settings)
    if recipe is not None:
        recipe.validate(host.model)
    data = {"model": host.fingerprint}
    data |= {"samples": fingerprint(Path(settings.samples))} if settings.samples else {}
    with run("fitprune", "analyze", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        values, visual = analyze(host.model, Prompts(host, samples), progress)
        files = (output / PLOT, output / FIGURES)
        found = Analysis(model_name(host.model), visual, values, recipe, files)
        current.metrics |= found.figures()
        atomic_write_json(current.file(FIGURES), found.figures())
        atomic_write_bytes(current.file(PLOT), plot(found))
    return found


def analyze(
    model: nn.Module, samples: Sequence[ModelInputs], progress: Progress = lambda things, label: things
) -> tuple[dict[str, Tensor], list[int]]:
    """Measure the unpruned model on samples of batch 1.

    Returns:
        Measure -> ``[samples, layers]`` float64, and the visual tokens of every sample.

    Raises:
        UserError: a sample without an image or without text after it, or a host that cannot be served.
    """
    rows, visual = [], []
    for number in progress(range(len(samples)), "attention statistics"):
        seen = _Scores()
        prefill(model, samples[number], seen)
        rows.append(torch.stack([_measures(cross, self_) for cross, self_ in seen.scores]))
        visual.append(len(seen.scores[0][0]))
    stacked = torch.stack(rows)  # [samples, layers, measures]
    return {name: stacked[..., place] for place, name in enumerate(MEASURES)}, visual


def _measures(cross: Tensor, self_: Tensor) -> Tensor:
    """The measures of one layer from both scores ``[visual tokens]`` float64, in the order of `MEASURES`."""
    place = torch.arange(len(self_), dtype=torch.float64)
    return torch.stack((cross.sum(), self_.sum(), top_share(cross), top_share(self_), rank_correlation(self_, place)))


def top_share(score: Tensor, share: float = TOP_SHARE) -> Tensor:
    """Share of the sum that the highest ``share`` of the entries (at least one) hold; ``score`` is ``[tokens]``."""
    count = max(1, round(share * len(score)))
    return score.topk(count).values.sum() / score.sum()


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's, with mean ranks among equals; ``[tokens]`` each. NaN where one of both is constant."""
    ranks = torch.stack((_ranks(one), _ranks(other)))
    return torch.corrcoef(ranks)[0, 1] if len(one) > 1 else torch.tensor(math.nan, dtype=torch.float64)


def _ranks(values: Tensor) -> Tensor:
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[group]


class _Scores(Selection):
    """Keeps both scores of the visual tokens in every layer, and removes nothing."""

    def __init__(self) -> None:
        self.scores: list[tuple[Tensor, Tensor]] = []  # per layer, a_cross per text token and a_self

    def remove(self, seen: Observation) -> None:
        tokens = seen.tokens
        mass = token_mass(tokens, seen.query, seen.key, seen.scaling, seen.real_keys)
        visual = tokens.visual[0]
        cross = mass.cross[0] / tokens.text[0].sum()
        self.scores.append((cross[visual].double().cpu(), mass.self_[0][visual].double().cpu()))


def plot(found: Analysis) -> bytes:
    """Masses, concentration and the pull of the place over the layers, with the recipe where there is one; a PNG."""
    from matplotlib.figure import Figure

    panels = 3 if found.recipe is None else 4
    figure = Figure(figsize=(7, 2.1 * panels + 0.4), layout="constrained", dpi=150)
    axes = figure.subplots(panels, sharex=True)
    layers = range(len(found.mean("self_mass")))
    figure.suptitle(f"{found.model}: attention to the image, {len(found.visual_tokens)} samples", x=0.01, ha="left")
    for axis, label, drawn in (
        (axes[0], "mass", (("cross_mass", "cross", "#c8553d"), ("self_mass", "self", "#28536b"))),
        (axes[1], "share of the top tenth", (("cross_top", "cross", "#c8553d"), ("self_top", "self", "#28536b"))),
        (axes[2], "rank correlation\nof self score and place", (("self_place", "self", "#28536b"),)),
    ):
        for measure, name, colour in drawn:
            mean, spread = (torch.tensor(part) for part in (found.mean(measure), found.spread(measure)))
            axis.plot(layers, mean, color=colour, marker="o", markersize=3, linewidth=1.5, label=name)
            axis.fill_between(layers, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        axis.set_ylabel(label, fontsize=8)
        axis.legend(frameon=False, fontsize=8)
    axes[1].axhline(TOP_SHARE, color="#999999", linewidth=1, linestyle="--")
    axes[2].set_ylim(-1.05, 1.05)
    axes[2].axhline(0, color="#999999", linewidth=1, linestyle="--")
    if found.recipe is not None:
        axes[3].bar(layers, found.recipe.remove, color="#6a994e")
        axes[3].set_ylabel("removed by the recipe", fontsize=8)
    axes[-1].set_xlabel("decoder layer")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
