"""`inst-diff-edit edit` and `demo`: one picture, its edit, its mask, and the masks over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from inst_diff_edit.checkpoints.load import fingerprints, load_pipeline
from inst_diff_edit.data import scenes
from inst_diff_edit.evaluation import picture as drawing
from inst_diff_edit.evaluation.settings import EditSettings, MethodSettings
from inst_diff_edit.inputs import as_image
from inst_diff_edit.pipeline import SEED, InstDiffEditOutput
from inst_diff_edit.words import Words
from tenfold import UserError
from tenfold.runs import Run, fingerprint, run

EDITED, MASK, OVERLAY, STEPS = "edited.png", "mask.png", "overlay.png", "steps.png"
ROLES = {1: "object", -1: "background", 0: "neither"}
# Of the mini world: a scene that the mini model edits well. How often it does is in the ledger.
DEMO_WORLD, DEMO_SCENE = 101, 13


def run_edit(settings: EditSettings, seed: int, output: Path, verb: str = "edit") -> Run:
    """Edit one picture and write what came of it.

    Args:
        seed: of the noises; 0: the authors' own.

    Raises:
        UserError: model, picture or prompt cannot be used, or `output` holds a finished run.
    """
    import torch

    picture, prompt = find_task(settings)
    data = fingerprints(settings) | ({"image": fingerprint(Path(settings.image))} if settings.image else {})
    pipe = load_pipeline(settings)
    generator = None if seed == 0 else torch.Generator().manual_seed(SEED + seed)
    with run("inst_diff_edit", verb, config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        found = edit(pipe, [picture], [prompt], settings, None if generator is None else [generator])
        edited, mask = found.images[0], found.masks[0]
        squashed = picture.resize(edited.size)
        edited.save(current.file(EDITED))
        mask.save(current.file(MASK))
        drawing.overlay(squashed, mask).save(current.file(OVERLAY))
        drawing.step_strip(squashed, found.step_masks[0], edited).save(current.file(STEPS))
        current.metrics |= describe(found, 0) | {"prompt": prompt}
    return current


def edit(
    pipe: Any, pictures: list[Any], prompts: list[str], settings: MethodSettings, generators: Any = None
) -> InstDiffEditOutput:
    """The pipeline called as settings say; PIL out, masks of all steps kept."""
    stage = settings.stage()
    return pipe(
        pictures,
        prompts,
        settings.strength,
        settings.steps,
        settings.guidance_scale,
        settings.noises(),
        settings.threshold,
        object_threshold=settings.object_threshold,
        background_threshold=settings.background_threshold,
        roles=settings.roles,
        final=stage,
        negative_prompt=settings.negative_prompt,
        height=settings.size,
        width=settings.size,
        generator=generators,
        return_step_masks=True,
    )


def describe(found: InstDiffEditOutput, row: int) -> dict[str, Any]:
    """What a run's record says of one picture: words by role, and how much of the picture the mask covers."""
    words: Words = found.words[row]
    roles = found.roles[row].tolist()[1:]
    assert found.step_masks is not None  # `edit` keeps them
    covered = found.step_masks[row, -1].float().mean().item() / 255
    return {
        "words": {f"{number}:{word}": ROLES[roles[number]] for number, word in enumerate(words.text)},
        "mask_share": round(covered, 6),
        "steps": found.step_masks.shape[1],
    }


def find_task(settings: EditSettings) -> tuple[Image.Image, str]:
    """The picture and the prompt that were named; by default a scene of the mini world and its edit.

    Raises:
        UserError: a picture without a prompt, a prompt without a picture, or a broken file.
    """
    if settings.image is None and settings.prompt is None:
        task = scenes.edit(DEMO_WORLD, DEMO_SCENE)
        return task.picture(), task.prompt
    if settings.image is None:
        return scenes.edit(DEMO_WORLD, DEMO_SCENE).picture(), settings.prompt or ""
    if settings.prompt is None:
        raise UserError("no prompt", settings.image, '--to "a raccoon"')
    return as_image(settings.image), settings.prompt
