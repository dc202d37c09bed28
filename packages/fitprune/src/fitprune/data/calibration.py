"""Prompts that a recipe is fitted on: of the mini world, or of a benchmark that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitprune.costs import DecoderShape, prompt_flops
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data.formats import CalibrationSample, read_calibration
from tenfold.hosts.loading import Host
from tenfold.hosts.prompts import encode
from tenfold.runs import sample_rng

MINI_SAMPLES = 16


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


def mini_calibration(seed: int, count: int) -> list[CalibrationSample]:
    """Scenes of the mini world, each with a question, for the mini host."""
    from tenfold.data import mini_host, mini_sets

    return list(mini_sets.calibration(seed, count, mini_host.IMAGE_SIZE))


def calibration_samples(
    model: str, samples: str | None, image_folder: str | None, limit: int | None, seed: int
) -> list[CalibrationSample]:
    """The samples to calibrate on, in the order of their file.

    Args:
        model: its name; the mini host needs no file.
        samples: a jsonl file of images and texts.
        image_folder: of the images; None: that of the file.
        limit: draw only so many; None: all.

    Raises:
        UserError: a broken or empty file, or no samples named for a model other than the mini host.
    """
    if samples is None:
        if model != MINI:
            raise UserError("no calibration samples", model, "--samples FILE.jsonl --image-folder DIR")
        return mini_calibration(seed, limit or MINI_SAMPLES)
    found = read_calibration(samples, image_folder or Path(samples).parent)
    if limit is None or limit >= len(found):
        return found
    drawn = sample_rng(seed, 0, 0).choice(len(found), size=limit, replace=False)
    return [found[number] for number in sorted(drawn.tolist())]


def prompt_reduction(recipe: Recipe, text_tokens: float, shape: DecoderShape) -> float:
    """Share of a whole prompt's FLOPs that a recipe saves, with so many tokens of prefix and text."""
    whole, text = [0] * recipe.num_layers, round(text_tokens)
    pruned = prompt_flops(recipe.remove, recipe.visual_tokens, text, shape)
    return 1 - pruned / prompt_flops(whole, recipe.visual_tokens, text, shape)
