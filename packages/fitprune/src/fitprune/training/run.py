"""`fitprune fit`: calibration samples in, one recipe file per budget out, with the run's record.

Every measured sample is kept in ``<output>/progress``: a run that was killed goes on there when the same command is
given again, and writes the same recipes, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitprune.costs import DecoderShape
from fitprune.data.calibration import Prompts, calibration_samples, prompt_reduction
from fitprune.fitting import Calibration
from fitprune.recipe import Recipe
from fitprune.training.settings import FitSettings
from tenfold import UserError
from tenfold.hosts.loading import load_host
from tenfold.runs import fingerprint, run, track
from tenfold.runs.progress import Progress

PROGRESS = "progress"
DONE = "statistics.jsonl"  # of a Calibration's folder: one line for each sample that is measured


@dataclass(frozen=True)
class Fitted:
    """What a fit found.

    Attributes:
        recipes: one for each ratio, in the order asked for.
        text_tokens: mean number of a calibration prompt's tokens that are not visual.
        shape: the decoder's dimensions.
        files: where the recipes were written.
        metrics: as in the run's record.
    """

    recipes: list[Recipe]
    text_tokens: float
    shape: DecoderShape
    files: list[Path]
    metrics: dict[str, Any]


def run_fit(settings: FitSettings, seed: int, output: Path, progress: Progress = track) -> Fitted:
    """Fit recipes and write ``recipe-<ratio>.json`` for each, ``run.json`` and the progress into ``output``.

    Raises:
        UserError: model, samples or folder cannot be used; a ratio out of range or out of reach.
    """
    for ratio in settings.ratios:
        if not 0 < ratio < 1:
            raise UserError("not a share of the visual FLOPs", f"ratio {ratio:g}", "a number between 0 and 1")
    samples = calibration_samples(settings.model, settings.samples, settings.image_folder, settings.limit, seed)
    host = load_host(settings)
    data = {"model": host.fingerprint}
    data |= {"samples": fingerprint(Path(settings.samples))} if settings.samples else {}
    with run("fitprune", "fit", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        prompts = Prompts(host, samples)
        calibration = Calibration(host.model, host.processor, prompts, folder=output / PROGRESS, progress=progress)
        recipes, files = [], []
        for ratio in dict.fromkeys(settings.ratios):
            recipe = calibration.recipe(ratio, rounding=settings.rounding, visual_tokens=settings.visual_tokens)
            recipe.save(current.file(f"recipe-{ratio:g}.json"))
            recipes.append(recipe)
            files.append(output / f"recipe-{ratio:g}.json")
        text = sum(prompts.lengths.values()) / len(samples) - recipes[0].calibration["visual_tokens"]
        current.metrics["samples"] = len(samples)
        current.metrics["text_tokens"] = text
        current.metrics["recipes"] = {
            f"{recipe.ratio:g}": {
                "alpha": recipe.alpha,
                "visual_reduction": recipe.reduction,
                "prompt_reduction": prompt_reduction(recipe, text, calibration.shape),
                "visual_tokens_left": recipe.alive()[-1],
            }
            for recipe in recipes
        }
    return Fitted(recipes, text, calibration.shape, files, current.metrics)


def samples_done(output: Path) -> int:
    """How many samples an earlier run into this folder had measured."""
    path = output / PROGRESS / DONE
    return path.read_bytes().count(b"\n") if path.exists() else 0
