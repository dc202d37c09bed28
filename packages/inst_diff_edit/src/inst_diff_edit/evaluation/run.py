"""`inst-diff-edit eval`: edit the pictures of a benchmark, measure masks and pictures, put the paper's numbers beside.

    run_eval(EvalSettings(model="stable-diffusion-v1-4", inpaint="stable-diffusion-inpainting", data="data"), 0, folder)

Every picture's noises come from a generator of its own, so its edit depends neither on order nor on the batch. Edits
are kept as they are made: a run that was killed goes on where it stopped. Under `torchrun` record i belongs to rank
i mod world; the first rank measures what all have made.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from inst_diff_edit.checkpoints.load import fingerprints, load_pipeline
from inst_diff_edit.checkpoints.settings import MINI
from inst_diff_edit.data import scenes
from inst_diff_edit.evaluation.edit import describe, edit
from inst_diff_edit.evaluation.scores import Edited, Networks, score
from inst_diff_edit.evaluation.settings import EvalSettings
from inst_diff_edit.inputs import from_tensor, masks_as
from inst_diff_edit.pipeline import SEED
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import lms_scheduler, noise_seeds, noises, start_index
from tenfold import UserError
from tenfold.data.formats.editing import EditRecord, EditSample, list_file, read_edits, write_edits
from tenfold.data.formats.records import Picture
from tenfold.runs import atomic_write_bytes, atomic_write_json, fingerprint, track
from tenfold.runs.context import require_unfinished
from tenfold.runs.evaluation import answer_left, open_log, shared_run
from tenfold.runs.files import TEMPORARY_PREFIX
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import Ranks, choose_device, ranks

logger = logging.getLogger(__name__)

PACKAGE = "inst_diff_edit"

# Beside the results, in a folder that is no result: see `tenfold.runs`.
EDITS = "checkpoint-edits"
IMAGES, MASKS, RESULTS, METRICS = "images", "masks", "results.jsonl", "metrics.json"
# Which scenes are the mini set, and how many.
MINI_WORLD, MINI_SCENES = 2, 24
# What edits do not depend on: where pictures are computed, and what they are measured with.
_NOT_OF_EDITS = {"device", "offload", "batch", "data", "lpips", "inception", "real", "clip", "model", "inpaint"}


@dataclass(frozen=True)
class Task:
    """One picture to edit.

    Attributes:
        set: of which it is. key: its name among results, unique within the set. sample: record, picture and mask.
    """

    set: str
    key: str
    sample: EditSample

    @property
    def id(self) -> str:
        """Unique in an evaluation."""
        return f"{self.set}/{self.key}"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        metrics: as in the run's record: "sets" by name, each with "records" and its measures.
        settings: what was asked for. folder: of the results. skipped: what was not measured, and why.
    """

    metrics: dict[str, Any]
    settings: EvalSettings
    folder: Path
    skipped: tuple[str, ...]


def run_eval(settings: EvalSettings, seed: int, output: Path, progress: Progress = track) -> Evaluation | None:
    """Edit and measure; under `torchrun` every rank calls this.

    Args:
        seed: of the noises; 0: the authors' own.
        output: for pictures, masks, results and ``run.json``; all ranks see the same one. Edits that an unfinished
            evaluation left in it are kept.
        progress: wraps the batches of the first rank.

    Returns:
        What came out, on the first rank; None on the others.

    Raises:
        UserError: model, data or weights cannot be used; `output` holds a finished run, or edits made otherwise.
    """
    with ranks() as group, data_folder(settings) as folder:
        return evaluate(settings, seed, output, group, folder, progress)


def evaluate(
    settings: EvalSettings, seed: int, output: Path, group: Ranks, folder: Path, progress: Progress
) -> Evaluation | None:
    """`run_eval` among given ranks, on a folder of data."""
    require_unfinished(output)
    tasks = read_tasks(settings, folder)
    loaded: list[Networks] = []  # on the first rank, which measures; before the first edit, so that errors come early

    def look() -> tuple[dict[str, str], dict[str, str]]:
        loaded.append(Networks.load(settings))
        return fingerprints(settings) | data_fingerprints(settings, folder, tasks), weight_fingerprints(settings)

    read, weights = group.from_lead(look)
    pipe = load_pipeline(settings.model_copy(update={"device": str(choose_device(settings.device))}))
    kept = {name: value for name, value in settings.model_dump().items() if name not in _NOT_OF_EDITS}
    # A folder's fingerprint stands for its name: it may be moved between two halves of an evaluation.
    header = {"model": settings.model, "inpaint": settings.inpaint, **read, "seed": seed, **kept}
    config = settings.model_dump()
    with shared_run(group, PACKAGE, "eval", config=config, seed=seed, output=output, data=read | weights) as current:
        log = open_log(group, output / EDITS, header)
        edit_all(pipe, settings, seed, tasks, log, group, progress)
        if current is None:
            return None
        facts = log.merged([task.id for task in tasks])
        current.metrics["sets"] = {}
        skipped: dict[str, None] = {}
        for name in settings.sets:
            edited = [
                Edited(task.key, task.sample, facts[task.id]["facts"], *_files(output, task, facts[task.id]["files"]))
                for task in tasks
                if task.set == name
            ]
            for one in edited:
                for kind, file in named(one.image_file, one.mask_file):
                    if file is not None:
                        link(file, current.file(f"{name}/{kind}/{one.key}.png"))
            found = score(name, edited, settings, loaded[0])
            current.metrics["sets"][name] = found.metrics
            skipped |= dict.fromkeys(found.skipped)
            write_jsonl(current.file(f"{name}/{RESULTS}"), found.rows)
        atomic_write_json(current.file(METRICS), current.metrics)
    # Results hold the same files under their final names.
    shutil.rmtree(output / EDITS)
    return Evaluation(current.metrics, settings, output, tuple(skipped))


def edit_all(
    pipe: Any,
    settings: EvalSettings,
    seed: int,
    tasks: Sequence[Task],
    log: PredictionLog,
    group: Ranks,
    progress: Progress,
) -> None:
    """Edit this rank's pictures that are not done; pictures first, then the log that vouches for them."""
    by_id = {task.id: task for task in tasks}

    def made(ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        chosen = [by_id[one] for one in ids]
        edits = edit_batch(pipe, [task.sample for task in chosen], settings, seed)
        for task, (picture, mask, _) in zip(chosen, edits, strict=True):
            for kind, image in named(picture, mask):
                if image is not None:
                    atomic_write_bytes(log.folder / task.set / kind / f"{task.key}.png", png(image))
        return (
            (task.id, {"facts": facts, "files": [kind for kind, image in named(picture, mask) if image is not None]})
            for task, (picture, mask, facts) in zip(chosen, edits, strict=True)
        )

    answer_left(
        group, log, list(by_id), made, batch=settings.batch, title="editing", progress=progress, say=logger.info
    )


Made = tuple[Image.Image | None, Image.Image | None, dict[str, Any]]


def edit_batch(pipe: Any, samples: Sequence[EditSample], settings: EvalSettings, seed: int) -> list[Made]:
    """Edited picture, mask (mode L, at the size the mask stage works at) and what is to be said, for each sample."""
    pictures = [sample.image() for sample in samples]
    prompts = [sample.record.edit_prompt for sample in samples]
    generators = [torch.Generator().manual_seed(SEED + seed) for _ in samples]
    if settings.method == "sdedit":
        return [(image, None, {}) for image in edit_by_sdedit(pipe, pictures, prompts, settings, generators)]
    if settings.method == "diffedit":
        rows = zip(pictures, [sample.record for sample in samples], generators, strict=True)
        return [edit_by_diffedit(pipe, picture, record, settings, own) for picture, record, own in rows]
    found = edit(pipe, pictures, prompts, settings, generators)
    assert found.step_masks is not None  # asked for by `edit`
    masks = found.step_masks[:, -1].cpu().numpy()
    return [(found.images[row], Image.fromarray(masks[row]), describe(found, row)) for row in range(len(samples))]


@torch.no_grad()
def edit_by_sdedit(
    pipe: Any, pictures: list[Image.Image], prompts: list[str], settings: EvalSettings, generators: list[Any]
) -> list[Image.Image]:
    """SDEdit with the same encoding, schedule, guidance and strength, one noise a picture."""
    from inst_diff_edit.evaluation.baselines import sdedit

    seeds = [noise_seeds(own, 1) for own in generators]
    height, width = pipe._size(settings.size, settings.size)
    originals = pipe._encode_images(pictures, height, width, generators).to(pipe.unet.dtype)
    noise = torch.cat([noises(own, row[None]) for own, row in zip(seeds, originals, strict=True)])
    scale = settings.guidance_scale
    embeddings = pipe._encode_prompts(prompts, settings.negative_prompt, scale > 1)
    begin = start_index(settings.steps, settings.strength)
    edited = sdedit(pipe.unet, pipe.scheduler, originals, noise, embeddings, settings.steps, begin, scale)
    return from_tensor(pipe._decode(edited), "pil")


@torch.no_grad()
def edit_by_diffedit(
    pipe: Any, picture: Image.Image, record: EditRecord, settings: EvalSettings, generator: torch.Generator
) -> Made:
    """The repository's DiffEdit: its mask from source and target phrase, then inpainting where there is a model."""
    from inst_diff_edit.evaluation.baselines import diffedit_distances, diffedit_mask

    # The script draws one number, and the noises' seeds from it.
    inner = torch.Generator().manual_seed(noise_seeds(generator, 1)[0])
    seeds = noise_seeds(inner, settings.diffedit_noises)
    height, width = pipe._size(settings.size, settings.size)
    latents = pipe._encode_images([picture], height, width, [generator]).to(pipe.unet.dtype)
    empty, source, target = encode(pipe, ["", record.source, record.edit_prompt]).split(1)
    distances, _, _ = diffedit_distances(
        pipe.unet, lms_scheduler(pipe.scheduler), latents, noises(seeds, latents), source, target, empty,
        settings.steps, start_index(settings.steps, settings.strength), settings.guidance_scale,
        settings.diffedit_noises,
    )  # fmt: skip
    _, mask = diffedit_mask(distances.float(), settings.diffedit_threshold)
    facts = {"mask_share": round(mask.float().mean().item() / 255, 6)}
    shown = masks_as(mask[None], "pil")[0]
    if settings.stage() != "inpaint":
        return None, shown, facts
    painted = resize(mask[None], height, width)
    edited = pipe._inpaint([picture], [record.edit_prompt], painted, height, width, [generator], "pil", None)
    return edited[0], shown, facts


def encode(pipe: Any, texts: list[str]) -> torch.Tensor:
    """Text embeddings ``[texts, positions, width]``; not rounded to float16, as in the authors' script of DiffEdit."""
    length = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids.to(pipe._execution_device))[0].to(pipe.unet.dtype)


def read_tasks(settings: EvalSettings, folder: Path) -> list[Task]:
    """What is to be edited, set after set.

    Raises:
        UserError: a list, a picture or a mask that is missing or broken.
    """
    tasks = []
    for name in settings.sets:
        taken: dict[str, int] = {}
        for sample in read_edits(folder, name)[: settings.limit]:
            key = sample.record.id.replace("/", "-")
            taken[key] = taken.get(key, 0) + 1
            # A picture may be edited in several ways.
            tasks.append(Task(name, key if taken[key] == 1 else f"{key}-{taken[key]}", sample))
    return tasks


@contextmanager
def data_folder(settings: EvalSettings) -> Iterator[Path]:
    """The named folder, or a small set of the mini world in Editing-Mask's layout, for as long as it is needed.

    Raises:
        UserError: no such folder, or none named for a set that the mini world does not have.
    """
    if settings.data is not None:
        folder = Path(settings.data)
        if not folder.is_dir():
            raise UserError("no such folder", f"--data {folder}", "lists and pictures of the editing sets")
        yield folder
        return
    if settings.model != MINI or settings.sets != ("Editing-Mask",):
        raise UserError("no data", f"eval {settings.model} --set {' '.join(settings.sets)}", "--data FOLDER")
    with tempfile.TemporaryDirectory(prefix="inst-diff-edit-") as temporary:
        write_mini_set(Path(temporary, "data"), MINI_SCENES)
        yield Path(temporary, "data")


def write_mini_set(folder: Path, count: int, world: int = MINI_WORLD) -> None:
    """Scenes of the mini world as Editing-Mask: the official names, half of each kind, pictures without loss."""
    drawn = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}-png")
    drawn.mkdir(parents=True)
    samples = []
    for index in range(count):
        found, number = scenes.edit(world, index), index + 1
        if index < (count + 1) // 2:
            name, said = f"{number}.jpg", found.caption()
            record = EditRecord(str(number), name, found.prompt, found.source_prompt, found.prompt, said)
        else:
            name, digits = f"ILSVRC2012_val_{number:08d}.JPEG", f"{number:05d}"
            source, target = (text.removeprefix("a ") for text in (found.source_prompt, found.prompt))
            record = EditRecord(digits, name, found.prompt, source, target, None)
        file = drawn / f"{number}.png"
        found.picture().save(file)
        # Copied under the official names: PNG inside, whatever the suffix says.
        samples.append(EditSample(record, Picture(file), Picture(Image.fromarray(found.mask().astype(np.uint8) * 255))))
    write_edits(folder, "Editing-Mask", samples)
    shutil.rmtree(drawn)


def data_fingerprints(settings: EvalSettings, folder: Path, tasks: Sequence[Task]) -> dict[str, str]:
    """Set -> fingerprint of its list and of every file that is read of it."""
    found: dict[str, str] = {}
    for name in settings.sets:
        files = {"list": fingerprint(list_file(folder, name))}
        for task in tasks:
            if task.set == name:
                for part, picture in (("picture", task.sample.picture), ("mask", task.sample.mask_picture)):
                    if picture is not None and isinstance(picture.source, Path):
                        files[f"{task.key} {part}"] = fingerprint(picture.source)
        found[name] = fingerprint(files)
    return found


def weight_fingerprints(settings: EvalSettings) -> dict[str, str]:
    """Fingerprints of what pictures are measured with. Raises UserError: a file or folder that is not there."""
    named = {"lpips": settings.lpips, "inception": settings.inception, "real": settings.real, "clip": settings.clip}
    return {name: fingerprint(Path(path)) for name, path in named.items() if path is not None}


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as JSON lines."""
    import json

    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def named(image: Any, mask: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """Kind and value of both."""
    return (IMAGES, image), (MASKS, mask)


def _files(output: Path, task: Task, kinds: Sequence[str]) -> list[Path | None]:
    """Files of an edit's picture and mask; None for one that its method does not make."""
    files: list[Path | None] = []
    for kind in (IMAGES, MASKS):
        file = output / EDITS / task.set / kind / f"{task.key}.png"
        if kind in kinds and not file.is_file():
            raise UserError("an edit that was made is gone", file, "a new folder, to begin again")
        files.append(file if kind in kinds else None)
    return files
