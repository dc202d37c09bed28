"""`fitprune fit`: calibration samples in, one recipe file per budget out, with the run's record.

Every measured sample is kept in ``<output>/progress``: a run that was killed goes on there when the same command is
given again, and writes the same recipes, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitprune.checkpoints.load import Host, load_host
from fitprune.costs import DecoderShape, prompt_flops
from fitprune.evaluation.settings import MINI, FitSettings
from fitprune.fitting import Calibration, Progress
from fitprune.prompts import encode
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.data.formats import CalibrationSample, read_calibration
from tenfold.runs import fingerprint, run, sample_rng, track

MINI_SAMPLES = 16
PROGRESS = "progress"
DONE = "statistics.jsonl"  # of a Calibration's folder: one line for each sample that is measured


class Prompts(Sequence[dict[str, Any]]):
    """Samples as model inputs, encoded when asked for: pixels of hundreds of images do not lie in memory.

    Attributes:
        lengths: tokens of each prompt that was asked for, by its number.
    """

    def __init__(self, host: Host, samples: Sequence[CalibrationSample]) -> None:
        self._host, self._samples = host, samples
        self.lengths: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: Any) -> dict[str, Any]:
        sample = self._samples[number]
        inputs = encode(self._host.processor, self._host.model, sample.image(), sample.text)
        self.lengths[number] = inputs["input_ids"].shape[1]
        return inputs


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


def mini_calibration(seed: int, count: int) -> list[CalibrationSample]:
    """Scenes of the mini world, each with a question, for the mini host."""
    from tenfold.data import mini_host, mini_sets

    return list(mini_sets.calibration(seed, count, mini_host.IMAGE_SIZE))


def calibration_samples(settings: FitSettings, seed: int) -> list[CalibrationSample]:
    """The samples to calibrate on, in the order of their file.

    Raises:
        UserError: a broken or empty file, or no samples named for a model other than the mini host.
    """
    if settings.samples is None:
        if settings.model != MINI:
            raise UserError("no calibration samples", settings.model, "--samples FILE.jsonl --image-folder DIR")
        return mini_calibration(seed, settings.limit or MINI_SAMPLES)
    samples = read_calibration(settings.samples, settings.image_folder or Path(settings.samples).parent)
    if settings.limit is None or settings.limit >= len(samples):
        return samples
    drawn = sample_rng(seed, 0, 0).choice(len(samples), size=settings.limit, replace=False)
    return [samples[number] for number in sorted(drawn.tolist())]


def run_fit(settings: FitSettings, seed: int, output: Path, progress: Progress = track) -> Fitted:
    """Fit recipes and write ``recipe-<ratio>.json`` for each, ``run.json`` and the progress into ``output``.

    Raises:
        UserError: model, samples or folder cannot be used; a ratio out of range or out of reach.
    """
    for ratio in settings.ratios:
        if not 0 < ratio < 1:
            raise UserError("not a share of the visual FLOPs", f"ratio {ratio:g}", "a number between 0 and 1")
    samples = calibration_samples(settings, seed)
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


def prompt_reduction(recipe: Recipe, text_tokens: float, shape: DecoderShape) -> float:
    """Share of a whole prompt's FLOPs that a recipe saves, with so many tokens of prefix and text."""
    whole, text = [0] * recipe.num_layers, round(text_tokens)
    pruned = prompt_flops(recipe.remove, recipe.visual_tokens, text, shape)
    return 1 - pruned / prompt_flops(whole, recipe.visual_tokens, text, shape)


def samples_done(output: Path) -> int:
    """How many samples an earlier run into this folder had measured."""
    path = output / PROGRESS / DONE
    return path.read_bytes().count(b"\n") if path.exists() else 0
