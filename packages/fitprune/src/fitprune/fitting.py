"""``fit``: a recipe for a model, from a handful of images with questions.

Measuring is done once per model and calibration set; any number of budgets then share it:

    calibration = Calibration(model, processor, samples)
    recipes = [calibration.recipe(ratio) for ratio in (0.4, 0.6, 0.8)]

With a folder, every finished sample is kept there, so that a run that was killed goes on where it stopped
and ends with the same recipe, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fitprune.costs import DecoderShape
from fitprune.recipe import Recipe
from fitprune.search import (
    Evaluation,
    ModelInputs,
    SampleStatistics,
    bisect,
    collect_statistics,
    fit_alpha,
    mean_removals,
)
from tenfold import UserError
from tenfold.data.pictures import open_picture
from tenfold.hosts import structure
from tenfold.hosts.prompts import encode
from tenfold.runs import append_jsonl, atomic_write_json, read_json, read_jsonl
from tenfold.runs.progress import Progress


def fit(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Any],
    ratio: float = 0.6,
    *,
    rounding: str = "largest_remainder",
    folder: str | Path | None = None,
) -> Recipe:
    """Find how many visual tokens each decoder layer can lose so that ``ratio`` of the visual FLOPs is saved.

    Args:
        model: a transformers vision-language model.
        processor: its processor; unused for samples that are model inputs already.
        samples: calibration prompts, each with ``image`` (PIL, or a path) and ``text`` as attributes or in a mapping,
            or a mapping of model inputs of batch 1. The paper used about 0.1 % of LLaVA's instruction data; ten already
            give a usable recipe.
        ratio: share of the visual FLOPs to save, in (0, 1).
        rounding: "largest_remainder", or "floor" as the official script does (it delivers less than asked).
        folder: where to keep progress, so that a killed run can go on.

    Returns:
        The recipe, with the cost that it delivers after rounding.

    Raises:
        UserError: no samples, a sample without image or question, a ratio out of range or out of reach, a
            host that cannot be served, or a folder that belongs to other samples or another model.
    """
    return Calibration(model, processor, samples, folder=folder).recipe(ratio, rounding=rounding)


class Calibration:
    """A model measured on calibration samples, from which recipes for any budget follow.

    Attributes:
        statistics: per sample, the attention masses of the unpruned model.
        shape: the decoder's dimensions.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        samples: Sequence[Any],
        *,
        folder: str | Path | None = None,
        progress: Progress = lambda items, label: items,
    ) -> None:
        if isinstance(samples, str | PathLike | Mapping) or not isinstance(samples, Sequence):
            raise UserError(
                f"samples as {type(samples).__name__}", "fit", "a list of them: objects with image and text"
            )
        if not samples:
            raise UserError("no calibration samples", folder, "at least one image with a question")
        self.model, self.processor, self.samples = model, processor, samples
        self.folder = None if folder is None else Path(folder)
        self.shape = DecoderShape.of(structure.unwrap(model).config)
        self._progress = progress
        self._left: dict[float, list[tuple[int, ...]]] = {}
        self._open_folder()
        self.statistics = self._measure()

    def recipe(
        self,
        ratio: float,
        *,
        rounding: str = "largest_remainder",
        visual_tokens: int | None = None,
        name: str | None = None,
    ) -> Recipe:
        """The recipe for one budget; arguments and errors as in `fit`.

        Args:
            visual_tokens: the prompt size that the recipe is written for, by default that of the largest
                sample; at inference it is scaled to each prompt.
            name: the model's name in the recipe, by default the one that it was loaded under.
        """
        steps, best = self.search(ratio)
        if best is None:
            raise UserError(
                f"no recipe saves {ratio:.0%} of the visual FLOPs on these samples",
                f"alpha up to {steps[-1].alpha:.3f} was tried",
                "a smaller ratio",
            )
        counts = [sample.num_visual for sample in self.statistics]
        reference = visual_tokens or max(counts)
        return Recipe.from_counts(
            mean_removals(best, counts, reference),
            model=name or model_name(self.model),
            visual_tokens=reference,
            shape=self.shape,
            ratio=ratio,
            alpha=best.alpha,
            rounding=rounding,
            calibration={"samples": len(counts), "visual_tokens": sum(counts) / len(counts)},
        )

    def search(self, ratio: float) -> tuple[list[Evaluation], Evaluation | None]:
        """Every step of the bisection for a budget, and the feasible one of smallest alpha."""
        if not 0 < ratio < 1:
            raise UserError(f"ratio {ratio}", None, "a share of the visual FLOPs between 0 and 1, such as 0.6")
        return bisect(ratio, self.shape, self._fit)

    def _fit(self, alpha: float) -> list[tuple[int, ...]]:
        """Visual tokens left per sample and layer at one alpha; does not depend on the budget, so it is
        kept."""
        if alpha not in self._left:
            path = None if self.folder is None else self.folder / f"alpha-{alpha:.7f}.jsonl"
            rows = [tuple(row["left"]) for row in _finished(path)]
            for number in self._progress(range(len(rows), len(self.samples)), f"alpha {alpha:.4f}"):
                left = fit_alpha(self.model, self._inputs(number), self.statistics[number], alpha)
                rows.append(left)
                if path is not None:
                    append_jsonl(path, {"left": left})
            self._left[alpha] = rows
        return self._left[alpha]

    def _measure(self) -> list[SampleStatistics]:
        path = None if self.folder is None else self.folder / "statistics.jsonl"
        rows = _finished(path)
        statistics = []
        for number in self._progress(range(len(self.samples)), "attention statistics"):
            inputs = self._inputs(number)
            digest = _digest(inputs)
            if number < len(rows):
                if rows[number].pop("inputs") != digest:
                    raise UserError(f"sample {number} differs from the one measured before", path, "the same samples")
                statistics.append(
                    SampleStatistics(**{k: tuple(v) if isinstance(v, list) else v for k, v in rows[number].items()})
                )
                continue
            statistics.append(collect_statistics(self.model, inputs))
            if path is not None:
                append_jsonl(path, {**asdict(statistics[-1]), "inputs": digest})
        return statistics

    def _inputs(self, number: int) -> ModelInputs:
        sample = self.samples[number]
        if isinstance(sample, Mapping):
            if "input_ids" in sample or "inputs_embeds" in sample:
                return sample
            image, text = sample.get("image"), sample.get("text")
        else:
            image, text = getattr(sample, "image", None), getattr(sample, "text", None)
        if isinstance(image, str | PathLike):
            image = open_picture(image)
        if not isinstance(image, Image.Image) or not isinstance(text, str):
            given = f"image {type(image).__name__}, text {type(text).__name__}"
            raise UserError(f"sample {number} has {given}", "fit", "an image or its path, and a text; or model inputs")
        return encode(self.processor, self.model, image, text)

    def _open_folder(self) -> None:
        """Progress belongs to one model and one number of samples; another one's is refused, not
        overwritten."""
        if self.folder is None:
            return
        model = structure.unwrap(self.model)
        first = model.get_input_embeddings().weight[:64].detach().float().cpu().contiguous()
        header = {
            "layers": self.shape.layers,
            "samples": len(self.samples),
            "weights": hashlib.sha256(first.numpy().tobytes()).hexdigest(),
        }
        path = self.folder / "calibration.json"
        if not path.exists():
            atomic_write_json(path, header)
        elif read_json(path) != header:
            raise UserError(
                "progress of another model or calibration set", self.folder, "the same ones, or a new folder"
            )


def model_name(model: nn.Module) -> str:
    """The name that a model was loaded under: a hub id, or the last part of a local folder."""
    name = getattr(structure.unwrap(model).config, "_name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_absolute() else name


def _finished(path: Path | None) -> list[dict[str, Any]]:
    return read_jsonl(path) if path is not None and path.exists() else []


def _digest(inputs: ModelInputs) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        if torch.is_tensor(inputs[name]):
            digest.update(name.encode() + inputs[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
