"""Edited pictures and masks into numbers: per record, and for each set.

What is measured depends on what there is: masks need Editing-Mask's human ones, LPIPS, FID, CSFID and CLIP score need
weights that the user names. What is left out is said, with the option that brings it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inst_diff_edit.evaluation import metrics
from inst_diff_edit.evaluation.networks import ClipScore, Inception, Lpips, load_clip, load_inception, load_lpips
from inst_diff_edit.evaluation.settings import EvalSettings
from inst_diff_edit.inputs import to_tensor
from tenfold import UserError
from tenfold.data.formats.editing import EditSample
from tenfold.data.pictures import open_picture
from tenfold.runs.ranks import choose_device

BATCH = 16
PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Edited:
    """One edit to be measured.

    Attributes:
        key, sample: of its record. facts: what the edit said of itself.
        image_file, mask_file: PNG; None: its method makes none.
    """

    key: str
    sample: EditSample
    facts: dict[str, Any]
    image_file: Path | None
    mask_file: Path | None


@dataclass(frozen=True)
class Scores:
    """Measures of one set.

    Attributes:
        metrics: name -> number. rows: one for each record. skipped: what was left out, and why.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    skipped: list[str]


@dataclass(frozen=True)
class Networks:
    """What pictures are measured with, as far as weights were named."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lpips: dict[str, Lpips] = field(default_factory=dict)
    inception: Inception | None = None
    clip: ClipScore | None = None

    @classmethod
    def load(cls, settings: EvalSettings) -> Networks:
        """The networks that settings name.

        Raises:
            UserError: weights that are missing, broken or of another network; real pictures without the FID network.
        """
        if settings.real is not None and settings.inception is None:
            raise UserError("no weights of the FID network", "--real", "--inception FILE beside it")
        if settings.real is not None and not Path(settings.real).is_dir():
            raise UserError("no such folder", f"--real {settings.real}", "a folder of pictures for every target class")
        device = choose_device(settings.device)
        lpips = load_lpips(Path(settings.lpips)) if settings.lpips else {}
        inception = load_inception(Path(settings.inception)) if settings.inception else None
        clip = load_clip(Path(settings.clip)) if settings.clip else None
        for network in (*lpips.values(), inception, clip and clip.model):
            if network is not None:
                network.to(device)
        return cls(device, lpips, inception, clip)


def score(name: str, edited: Sequence[Edited], settings: EvalSettings, networks: Networks) -> Scores:
    """Measure a set.

    Args:
        name: of the set.

    Raises:
        UserError: a picture or a mask that cannot be read; a target class without real pictures.
    """
    rows: list[dict[str, Any]] = [_row(one) for one in edited]
    found: dict[str, Any] = {"records": len(edited)}
    skipped = []
    with_images = [(row, one) for row, one in zip(rows, edited, strict=True) if one.image_file is not None]
    if name == "Editing-Mask":
        for row, one in zip(rows, edited, strict=True):
            if one.mask_file is not None:
                row |= metrics.mask_ious(_grey(one.mask_file), one.sample.mask())
    if len(with_images) < len(edited):
        skipped.append("pictures: DiffEdit's masks are finished by an inpainting model (--inpaint)")
    for batch in _batches(with_images):
        _score_pictures(name, [row for row, _ in batch], [one for _, one in batch], networks)
    found |= _means(rows)
    for net in networks.lpips:
        inside, outside = found.get(f"change_inside_{net}"), found.get(f"change_outside_{net}")
        if inside is not None and outside:
            found[f"change_rate_{net}"] = inside / outside
    if not networks.lpips:
        skipped.append("LPIPS and change rate: --lpips FOLDER")
    skipped += _score_features(name, [one for _, one in with_images], settings, networks, found)
    if networks.clip is None and name == "Imagen":
        skipped.append("CLIP score: --clip FOLDER")
    return Scores(found, rows, skipped)


def _row(one: Edited) -> dict[str, Any]:
    record = one.sample.record
    return {"id": one.key, "file": record.file_name, "prompt": record.edit_prompt, "source": record.source, **one.facts}


def _score_pictures(name: str, rows: list[dict[str, Any]], edited: list[Edited], networks: Networks) -> None:
    """LPIPS, change inside and outside of the human mask, CLIP score, into the rows."""
    if not networks.lpips and networks.clip is None:
        return
    pictures, after, before = pairs(edited, networks.device)
    for net, lpips in networks.lpips.items():
        for row, distance in zip(rows, lpips.distance(after, before).tolist(), strict=True):
            row[f"lpips_{net}"] = distance
        if name == "Editing-Mask":
            for row, one, changes in zip(rows, edited, lpips.maps(after, before), strict=True):
                inside, outside = metrics.inside_outside(changes, one.sample.mask())
                row[f"change_inside_{net}"], row[f"change_outside_{net}"] = inside, outside
    if networks.clip is not None:
        texts = {
            "clip_phrase": [one.sample.record.edit_prompt for one in edited],
            "clip_sentence": [one.sample.record.target_sentence for one in edited],
        }
        for measure, asked in texts.items():
            for row, value in zip(rows, networks.clip.score(pictures, asked).tolist(), strict=True):
                row[measure] = value


def pairs(edited: Sequence[Edited], device: torch.device) -> tuple[list[Image.Image], Tensor, Tensor]:
    """Edited pictures, as PIL and as ``[pictures, 3, height, width]`` in [-1, 1]; originals, squashed alike."""
    pictures = [open_picture(one.image_file, raw=True) for one in edited if one.image_file is not None]
    width, height = pictures[0].size
    originals = [one.sample.image() for one in edited]
    return pictures, *(to_tensor(images, height, width).to(device) for images in (pictures, originals))  # type: ignore[return-value]


def _score_features(
    name: str, edited: Sequence[Edited], settings: EvalSettings, networks: Networks, found: dict[str, Any]
) -> list[str]:
    """FID against the set's own pictures (the paper's reference set is not stated), and CSFID against real ones."""
    inception = networks.inception
    if inception is None:
        return ["FID and CSFID: --inception FILE"]
    if not edited:
        return []
    after, before = [], []
    for batch in _batches(list(edited)):
        _, ours, originals = pairs(batch, networks.device)
        after.append(inception(ours).cpu())
        before.append(inception(originals).cpu())
    features = torch.cat(after)
    if len(features) < 2:
        return ["FID: more than one picture"]
    found["fid"] = metrics.fid(features, torch.cat(before))
    if name != "ImageNet":
        return []
    if settings.real is None:
        return ["CSFID: --real FOLDER"]
    classes = [one.sample.record.target for one in edited]
    real = {target: _real_features(Path(settings.real) / target, networks) for target in dict.fromkeys(classes)}
    chosen = {target: features[[n for n, one in enumerate(classes) if one == target]] for target in real}
    found["csfid"] = metrics.csfid(chosen, real)
    return []


def _real_features(folder: Path, networks: Networks) -> Tensor:
    assert networks.inception is not None
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise UserError("no real pictures of a target class", folder, f"files of {', '.join(PICTURES)}")
    features = []
    for batch in _batches(files):
        # Pictures of many sizes: the network's own size makes them one batch.
        pixels = to_tensor([open_picture(file, raw=True) for file in batch], 512, 512).to(networks.device)
        features.append(networks.inception(pixels).cpu())
    return torch.cat(features)


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of every number that rows have, over the rows where it is one."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    means = {}
    for name in names:
        values = np.array([row[name] for row in rows if name in row], dtype=np.float64)
        kept = values[np.isfinite(values)]
        if len(kept):
            means[name] = float(kept.mean())
    return means


def _grey(file: Path) -> np.ndarray:
    return np.asarray(open_picture(file, raw=True).convert("L"))


def _batches(items: Sequence[Any]) -> Iterator[Any]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
