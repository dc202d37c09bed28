"""`e3-facenet eval`: FID, KID, CLIP score, MVIC and flatness of faces made from a split's captions.

A distance is printed with its protocol, or it says nothing: how many pictures, which real ones, psi, cameras,
temperature, divisor. Faces are drawn by (seed, number), so that any rank makes the same ones; finished batches are
kept, and a killed evaluation goes on. The authors' repository has no code for MVIC: ours is the mean cosine of face
embeddings over the pairs of five views, with an embedding that the user brings.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e3_facenet.camera import five_views, gaussian_poses, poses
from e3_facenet.data.captioned import CaptionedPictures, open_split, read_picture
from e3_facenet.evaluation.features import Features
from e3_facenet.evaluation.generate import portrait_flatness
from e3_facenet.evaluation.model import model_data, open_model
from e3_facenet.evaluation.scores import frechet_distance, kernel_distance, pair_cosine
from e3_facenet.evaluation.settings import EvalSettings
from e3_facenet.facenet import E3FaceNet, Face, Portrait
from tenfold import UserError
from tenfold.runs import RunRecord, fingerprint, sample_generator, sample_rng, track
from tenfold.runs.evaluation import (
    PROGRESS,
    answer_left,
    finished_before,
    forget,
    open_log,
    shared_run,
    write_predictions,
)
from tenfold.runs.ranks import ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """Metrics and protocol of an evaluation, as in its record."""

    metrics: dict[str, Any]
    output: Path


def run_eval(settings: EvalSettings, seed: int, output: Path, again: bool = True) -> Evaluated:
    """Evaluate into a folder; under `torchrun` every rank calls this.

    Writes predictions.jsonl (a line a face), metrics.json and run.json.

    Raises:
        UserError: data, model or feature file cannot be used; answers of other settings in the folder.
    """
    if settings.data.folder is None:
        raise UserError("no data", "data.folder", "--data FOLDER")
    split = open_split(settings.data, Path(settings.data.folder), settings.split)
    config = settings.model_dump(mode="json")
    prints = {"captions": split.fingerprint()}
    prints |= {name: value if isinstance(value, str) else fingerprint(value)
               for name, value in model_data(settings.model).items()}  # fmt: skip
    count = settings.count or len(split.pictures)
    count = min(count, settings.limit or count)
    with ranks() as group:
        done = finished_before(group, output, "eval", config, seed, prints) if again else None
        if done is not None:
            return Evaluated(done.metrics, output)
        model = open_model(settings)
        features = Features(model, settings.inception, settings.face)
        with shared_run(group, "e3_facenet", "eval", config=config, seed=seed, output=output, data=prints) as current:
            header = {"settings": config, "seed": seed, **prints}
            log = open_log(group, output / PROGRESS, header)
            maker = FaceMaker(model, features, split, settings, seed)
            ids = list(range(count))
            answer_left(
                group, log, ids, maker.answers, batch=settings.batch, title="faces", progress=track, say=logger.info
            )
            if current is not None:
                answers = log.merged(ids)
                current.metrics |= metrics(answers, real_features(split, features, model, settings), settings, split)
                current.metrics["protocol"]["features"] = features.name
                rows = [{name: value for name, value in one.items() if name != "features"} for one in answers.values()]
                write_predictions(current, rows)
        forget(group, log)
    found = RunRecord.load(output).metrics
    return Evaluated(found, output)


class FaceMaker:
    """Makes the faces of an evaluation and measures each."""

    def __init__(
        self, model: E3FaceNet, features: Features, split: CaptionedPictures, settings: EvalSettings, seed: int
    ) -> None:
        self.model, self.features, self.split, self.settings, self.seed = model, features, split, settings, seed

    def answers(self, ids: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Every face with its caption, features, CLIP score and, of the first ones, what five views tell."""
        for number in ids:
            yield number, self.measure(int(number))

    def measure(self, number: int) -> dict[str, Any]:
        """One face: a random caption of the split, its own noise and camera."""
        s, c = self.settings, self.model.config
        caption = self.split.captions[int(sample_rng(self.seed, 0, number).integers(len(self.split)))]
        draw = sample_generator(self.seed, 1, number)
        with torch.no_grad():
            text = self.model.encoder([caption])
            z, z_bg = torch.randn(1, c.z_dim, generator=draw), torch.randn(1, c.bg_dim, generator=draw)
            ws = self.model.generator.styles(z.to(self.model.device), text.t, s.psi)
        face = Face(caption, number, ws, (z_bg * s.temperature).to(self.model.device), text)
        units = torch.randn(1, 2, generator=draw)
        camera = gaussian_poses(units, c) if s.cameras == "random" else poses([0.0])
        picture = as_uint8(self.model.render(face, camera))
        text_unit = torch.nn.functional.normalize(text.t, dim=-1).cpu()
        found = {
            "id": number,
            "caption": caption,
            "clip": float((self.features.clip(picture) * text_unit).sum()),
            "features": packed(self.features.distance(picture)),
        }
        if number < s.multiview:
            views = self.model.render(face, five_views())
            found["flatness"] = portrait_flatness(views, c)
            found["view_clip"] = pair_cosine(self.features.clip(as_uint8(views)).numpy())
            embedded = self.features.faces(as_uint8(views))
            if embedded is not None:
                found["mvic"] = pair_cosine(embedded.numpy())
        return found


def as_uint8(portrait: Portrait) -> Tensor:
    """A portrait's pictures [V, 3, R, R] uint8."""
    return torch.from_numpy(portrait.uint8()).permute(0, 3, 1, 2).contiguous()


def packed(features: Tensor) -> str:
    """Features [1, d] float32 as text."""
    return base64.b64encode(features.float().numpy().tobytes()).decode()


def unpacked(text: str) -> NDArray[np.float32]:
    """Features [d] from text."""
    return np.frombuffer(base64.b64decode(text), dtype=np.float32)


def real_features(
    split: CaptionedPictures, features: Features, model: E3FaceNet, settings: EvalSettings
) -> NDArray[np.float32]:
    """Features of the split's pictures, each once: [N, d]."""
    pictures = split.pictures[: settings.limit]
    rows = []
    for path in track(pictures, "real pictures"):
        rows.append(features.distance(read_picture(path, model.config.resolution)[None]).numpy())
    return np.concatenate(rows)


def metrics(
    answers: Mapping[Any, Any], real: NDArray[np.float32], settings: EvalSettings, split: CaptionedPictures
) -> dict[str, Any]:
    """All scores and the protocol that they belong to."""
    rows = list(answers.values())
    made = np.stack([unpacked(row["features"]) for row in rows])
    found: dict[str, Any] = {
        "fid": frechet_distance(real, made),
        "kid_x1000": 1000 * kernel_distance(real, made),
        "clip_score": float(np.mean([row["clip"] for row in rows])),
    }
    for name, key in (("mvic", "mvic"), ("view_clip", "view_clip"), ("flatness", "flatness")):
        values = [row[key] for row in rows if key in row]
        if values:
            found[name] = float(np.mean(values))
    found["protocol"] = {
        "made": len(made), "real": len(real), "real_set": f"{settings.split}, each picture once", "psi": settings.psi,
        "cameras": settings.cameras, "temperature": settings.temperature, "captions": "random, with replacement",
        "covariance_divisor": "N", "multiview": min(settings.multiview, len(made)),
        "mvic": "mean cosine of face embeddings over pairs of five views, our definition" if settings.face else
        "skipped: no face embedding was given",
    }  # fmt: skip
    return found
