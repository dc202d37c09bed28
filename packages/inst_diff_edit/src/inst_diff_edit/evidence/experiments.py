"""The miniature: one training a seed, its gates, and masks and edits against their controls on the same scenes.

Every rule sees the same pictures, prompts, noises and attention; each one's threshold is chosen on scenes that are not
tested. What a seed has finished is kept in the folder, so that a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from inst_diff_edit.data import scenes
from inst_diff_edit.data.scenes import EDGE, Edit
from inst_diff_edit.evidence import arms, rules
from inst_diff_edit.evidence.arms import CHOOSING, GATE_SCENES, GATE_WORLD, GUIDANCE, STEPS, STRENGTH, TESTING, WORLD
from inst_diff_edit.evidence.edits import editing
from inst_diff_edit.evidence.rules import CHUNK, Cut, auc, cut_of
from inst_diff_edit.masks import word_pictures
from inst_diff_edit.pipeline import InstDiffEditPipeline
from inst_diff_edit.resize import resize
from inst_diff_edit.words import stack_weights
from tenfold.ledger.seeds import kept
from tenfold.runs import atomic_write_json, last_complete_checkpoint, read_json, read_jsonl
from tenfold.runs.record import METRICS_NAME

PAPER_THRESHOLD = 0.2
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
CHECKPOINT_EVERY = 250
# Steps of a training over which its curves are averaged.
CURVE = 100


@dataclass(frozen=True)
class Scores:
    """One rule on the tested scenes.

    Attributes:
        threshold: the one used.
        iou: ``[scenes]``, of its masks with the true ones.
    """

    threshold: float
    iou: np.ndarray


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Train one seed (or go on, or take what is there) and measure it; kept as ``folder/seed-N.json``."""
    path = kept(folder, "seed", seed)
    if path.exists():
        return read_json(path)
    from inst_diff_edit.miniature import model as mini
    from inst_diff_edit.training.run import TrainSettings, train

    work = folder / f"seed-{seed}"
    if not (work / "model").is_dir():
        resume = work.is_dir() and last_complete_checkpoint(work) is not None
        train(TrainSettings(), seed, work, every=CHECKPOINT_EVERY, resume=resume, project=None)
    found = measure(mini.load(work / "model")) | {"curve": curve(work / METRICS_NAME)}
    atomic_write_json(path, found)
    return found


def curve(metrics: Path) -> dict[str, list[float]]:
    """A training's loss and shares of attention, each the mean over `CURVE` steps."""
    logged = read_jsonl(metrics)
    found = {}
    for name in ("loss", "attention_to_words", "attention_to_end"):
        values = [row[name] for row in logged]
        found[name] = [round(float(np.mean(values[at : at + CURVE])), 6) for at in range(0, len(values), CURVE)]
    return found


def measure(
    pipe: InstDiffEditPipeline,
    world: int = WORLD,
    choosing: int = CHOOSING,
    testing: int = TESTING,
    gate_world: int = GATE_WORLD,
    gate_scenes: int = GATE_SCENES,
) -> dict[str, Any]:
    """Everything that is measured of one trained model.

    Returns:
        "gates" by name; "iou" and "threshold" by rule, one IoU a tested scene; "reference" and "roles" by kind of word,
        of the method's own prompts and of the short ones; "edits" by variant.
    """
    torch.set_num_threads(1)
    edits = [scenes.edit(world, index) for index in range(choosing + testing)]
    found = localisation(pipe, edits, choosing)
    return {
        "gates": gates(pipe, [scenes.edit(gate_world, index) for index in range(gate_scenes)]),
        **found,
        "edits": editing(pipe, edits[choosing:], found["threshold"][arms.METHOD]),
    }


def collect(
    pipe: InstDiffEditPipeline,
    edits: Sequence[Edit],
    prompts: Sequence[str] | None = None,
    num_masks: int = arms.NOISES,
    roles: Literal["first", "every"] = "first",
) -> dict[str, Tensor]:
    """Run the mask stage on pictures, by default under the prompts of their edits.

    Returns:
        "attention" of the first and the last step ``[2, edits, 16, 16, positions]``, and "soft" masks of the last step
        in [0, 1], ``[edits, 64, 64]``.
    """
    prompts = [edit.prompt for edit in edits] if prompts is None else prompts
    first, last, soft = [], [], []
    for at in range(0, len(edits), CHUNK):
        seen: dict[int, Tensor] = {}

        def keep(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor], seen: Any = seen) -> None:
            seen[step] = tensors["attention"]

        found = pipe(
            [edit.picture() for edit in edits[at : at + CHUNK]],
            prompts[at : at + CHUNK],
            STRENGTH,
            STEPS,
            GUIDANCE,
            num_masks,
            PAPER_THRESHOLD,
            roles=roles,
            matched_noise=True,
            output_type="latent",
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=("attention",),
        )
        first.append(seen[0])
        last.append(seen[max(seen)])
        soft.append(found.soft_masks.float() / 255)
    return {"attention": torch.stack([torch.cat(first), torch.cat(last)]), "soft": torch.cat(soft)}


def localisation(pipe: InstDiffEditPipeline, edits: Sequence[Edit], choosing: int) -> dict[str, Any]:
    """Mask IoU of every rule, and what the method's first step decided.

    Args:
        choosing: so many of the edits, the first ones, choose thresholds; the others are tested.
    """
    truth = np.stack([edit.mask() for edit in edits])
    prompts, short = [edit.prompt for edit in edits], [rules.short_prompt(edit) for edit in edits]
    method, of_short = collect(pipe, edits), collect(pipe, edits, short)
    soft = {
        arms.METHOD: method["soft"],
        arms.ONE_NOISE: collect(pipe, edits, num_masks=1)["soft"],
        arms.EVERY_STEP: collect(pipe, edits, roles="every")["soft"],
        arms.SHORT: of_short["soft"],
        **rules.of_attention(pipe, prompts, method["attention"]),
        **rules.diffedits(pipe, edits),
    }
    cuts = {name: cut_of(maps) for name, maps in soft.items()} | rules.controls(edits)
    scores = {name: score(cut, truth, choosing, None) for name, cut in cuts.items()}
    scores[arms.PAPER] = score(cuts[arms.METHOD], truth, choosing, PAPER_THRESHOLD)
    decided = {
        name: rules.reference_counts(pipe, told[choosing:], collected["attention"][0, choosing:])
        for name, told, collected in (("whole", prompts, method), ("short", short, of_short))
    }
    return {
        "iou": {name: [round(float(value), 5) for value in found.iou] for name, found in scores.items()},
        "threshold": {name: found.threshold for name, found in scores.items()},
        "reference": {name: counts for name, (counts, _) in decided.items()},
        "roles": {name: roles for name, (_, roles) in decided.items()},
    }


def iou(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``[edits]``: intersection over union; an empty mask has 0."""
    both = (masks & truth).sum((1, 2))
    return both / np.maximum((masks | truth).sum((1, 2)), 1)


def score(cut: Cut, truth: np.ndarray, choosing: int, threshold: float | None) -> Scores:
    """IoU on the scenes behind the first ``choosing``, at ``threshold`` or at the one that is best on those."""
    if threshold is None:
        threshold = max(THRESHOLDS, key=lambda value: iou(cut(value)[:choosing], truth[:choosing]).mean())
    return Scores(threshold, iou(cut(threshold)[choosing:], truth[choosing:]))


def gates(pipe: InstDiffEditPipeline, edits: Sequence[Edit]) -> dict[str, float]:
    """What the method's attention tells of pictures that are not edited, under true captions; means over them.

    Returns:
        AUC of the noun's picture for its object's pixels, against the other object's and against all others, in prompts
        that name one thing and the ground, and in those that name both; of the ground's picture for what no object
        covers; and the correlation of the start token's share of attention with that of all words together, of the
        first and of the last step.
    """
    prompts = [edit.source_prompt for edit in edits]
    captions = [edit.caption() for edit in edits]
    one, both = (collect(pipe, edits, texts)["attention"] for texts in (prompts, captions))
    named = [edit.area(edit.changed) for edit in edits]
    other = [edit.area(1 - edit.changed) for edit in edits]
    nouns, grounds = (_maps(pipe, prompts, one[1], kind) for kind in ("noun", "ground"))
    last = _maps(pipe, captions, both[1], "noun")  # of the thing to be edited, as it is named last

    def against_other(maps: np.ndarray) -> float:
        return _mean(auc(values[a | b], a[a | b]) for values, a, b in zip(maps, named, other, strict=True))

    def against_rest(maps: np.ndarray) -> float:
        return _mean(auc(values, a) for values, a in zip(maps, named, strict=True))

    return {
        "noun against other": against_other(nouns),
        "noun against rest": against_rest(nouns),
        "noun against other, both named": against_other(last),
        "noun against rest, both named": against_rest(last),
        "ground": _mean(auc(values, ~(a | b)) for values, a, b in zip(grounds, named, other, strict=True)),
        "start and words, first step": start_and_words(pipe, prompts, one[0]),
        "start and words, last step": start_and_words(pipe, prompts, one[1]),
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _maps(pipe: InstDiffEditPipeline, prompts: Sequence[str], attention: Tensor, kind: str) -> np.ndarray:
    """``[prompts, 32, 32]``: the picture of each prompt's last word of a kind."""
    words = rules.words_of(pipe, prompts)
    weights, _ = stack_weights(words, attention.shape[-1])
    chosen = word_pictures(attention, weights)[torch.arange(len(words)), rules.rows_of(words, kind)]
    return resize(chosen, EDGE, EDGE).numpy().astype(float)


def start_and_words(pipe: InstDiffEditPipeline, prompts: Sequence[str], attention: Tensor) -> float:
    """Mean correlation over pixels of the start token's attention with the sum of the words'.

    -1 where nothing but words and the start token is attended to: its map then says nothing that theirs do not.
    """
    weights, is_word = stack_weights(rules.words_of(pipe, prompts), attention.shape[-1])
    counted = ((weights > 0) & is_word[..., None]).any(1).float()  # [prompts, positions]
    of_words = torch.einsum("pt,phct->phc", counted, attention).flatten(1).double().numpy()
    start = attention[..., 0].flatten(1).double().numpy()
    return _mean(np.corrcoef(a, b)[0, 1] for a, b in zip(start, of_words, strict=True))
