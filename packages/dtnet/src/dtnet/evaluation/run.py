"""`dtnet eval`: caption the images of a split, score the captions, put the paper's row beside them (section 7).

    from dtnet.evaluate import run_eval
    run_eval(EvalSettings(model=("runs/coco/model",), data="data/coco"), Path("runs/eval"))

Captions are kept as they are made: a run that was killed goes on where it stopped. Under `torchrun` image i belongs to
rank i mod world; the first rank scores what all have made. The folder holds the captions in the layout of COCO's
results, every image's scores, and the run's record.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dtnet.beam import beam_search
from dtnet.data.caption_data import MINI_FOLDER
from dtnet.data.captions import ANNOTATION_NAMES, ID_LISTS, KARPATHY_NAME, read_captions
from dtnet.data.grid_features import GridFeatures
from dtnet.evaluation.settings import EvalSettings, ScoreSettings
from dtnet.model import DTNet
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.cli.settings import checked
from tenfold.data.formats.coco_captions import (
    ONLINE_IMAGES,
    read_caption_results,
    results_name,
    write_caption_results,
    write_online_test,
)
from tenfold.data.formats.records import Fields
from tenfold.ledger import load_ledger
from tenfold.metrics.captions.coco import Scores, check_metrics, lacks_spice, score_captions
from tenfold.runs import RunRecord, atomic_write_json, fingerprint, read_json, track
from tenfold.runs.context import require_unfinished
from tenfold.runs.evaluation import answer_left, open_log, shared_run
from tenfold.runs.finite import require_finite_values
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import Ranks, choose_device
from tenfold.runs.ranks import ranks as joined

logger = logging.getLogger(__name__)

# Beside the results, in a folder that is no result: see `tenfold.runs`.
PREDICTIONS = "checkpoint-predictions"
KARPATHY_TEST = 5000  # images of COCO's test split in Karpathy's division
ALGORITHM = "dtnet"
# The lists of an online set's images, in `data` or its folder of annotations.
ONLINE_LISTS = {"test2014": "image_info_test2014.json", "val2014": "captions_val2014.json"}
# Our name of a metric -> the claim that holds the paper's number.
_CLAIMS = {
    **{"BLEU-1": "karpathy-bleu1", "BLEU-4": "karpathy-bleu4", "METEOR": "karpathy-meteor"},
    **{"ROUGE-L": "karpathy-rouge", "CIDEr-D": "karpathy-cider", "SPICE": "karpathy-spice"},
}


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        metrics: as in the run's record.
        files: what was written.
        scores: None for an online set.
        paper: metric -> the paper's number on COCO's Karpathy test split; empty for other splits.
        images: how many. split: of which.
    """

    metrics: dict[str, Any]
    files: list[Path]
    scores: Scores | None
    paper: dict[str, float]
    images: int
    split: str

    def __rich__(self) -> Group:
        parts: list[Any] = []
        if self.scores is not None:
            table = Table("metric", f"{self.images:,} images of {self.split}", "paper")
            for name, score in self.scores.table.items():
                published = self.paper.get(name)
                table.add_row(name, f"{score:.1f}", "" if published is None else f"{published:.1f}")
            parts = [table]
            if self.paper:
                parts += [Text("paper: DTNet on COCO's Karpathy test split, 5,000 images, ResNeXt-101 features")]
            parts += [Text(f"left out: {line}") for line in self.scores.missing.values()]
        return Group(*parts, *(Text(f"wrote {file}", overflow="fold") for file in self.files))


@dataclass(frozen=True)
class Work:
    """What is to be captioned.

    Attributes:
        models: one, or an ensemble. folders: theirs.
        ids: of the images, in the order in which ranks share them.
        features: image id -> grid.
        references: image id -> captions; None: nothing to score with.
        files: name -> what was read.
    """

    models: list[DTNet]
    folders: list[Path]
    ids: tuple[int, ...]
    features: GridFeatures
    references: Mapping[int, Sequence[str]] | None
    files: dict[str, Path]

    def fingerprints(self) -> dict[str, str]:
        """Name -> SHA-256 of what was read."""
        names = ["model"] if len(self.folders) == 1 else [f"model-{n}" for n in range(1, len(self.folders) + 1)]
        return {
            name: fingerprint(path)
            for name, path in {**dict(zip(names, self.folders, strict=True)), **self.files}.items()
        }


def run_eval(settings: EvalSettings, output: Path, seed: int = 0, progress: Progress = track) -> Evaluation | None:
    """Caption and score into a folder; under `torchrun` every rank calls this.

    Args:
        settings: of the evaluation.
        output: for captions, scores and ``run.json``; all ranks must see the same one. Captions that an unfinished
            evaluation left in it are kept.
        seed: nothing here is random; the record has one.
        progress: wraps the batches of the first rank.

    Returns:
        What came out, on the first rank; None on the others.

    Raises:
        UserError: model, data or features cannot be used or do not fit each other; `output` holds a finished run, or
            captions of another model, other features or another search; Java or pycocoevalcap is missing.
    """
    device = choose_device(settings.device)
    with joined(device) as ranks:
        return evaluate(settings, output, seed, ranks, progress)


def evaluate(settings: EvalSettings, output: Path, seed: int, ranks: Ranks, progress: Progress) -> Evaluation | None:
    """`run_eval` among given ranks."""
    require_unfinished(output)
    if settings.online is None:
        check_metrics(settings.metrics, settings.tokens)
        if "spice" in settings.metrics and settings.spice is not None and (lack := lacks_spice(settings.spice)):
            raise UserError(lack, "--spice")
    work = open_work(settings, str(ranks.device))
    fingerprints = ranks.tell(work.fingerprints() if ranks.leads else {})
    read = {name: value for name, value in fingerprints.items() if name.startswith(("model", "features"))}
    header = {**read, "beams": settings.beams, "max_len": settings.max_len}
    config = settings.model_dump()
    with shared_run(ranks, "dtnet", "eval", config=config, seed=seed, output=output, data=fingerprints) as current:
        log = open_log(ranks, output / PREDICTIONS, header)
        caption_images(work, settings, log, ranks, progress)
        if current is None:
            return None
        predictions = {one: value for one, value in log.merged(work.ids).items() if isinstance(one, int)}
        captions = {image_id: one["caption"] for image_id, one in predictions.items()}
        log_probs = [one["log_prob"] for one in predictions.values()]
        current.metrics |= {"images": len(captions), "mean_log_prob": math.fsum(log_probs) / len(log_probs)}
        place = current.file("captions").parent
        paper = published() if settings.online is None and is_papers(settings.split, work.ids, work.files) else {}
        if settings.online is not None:
            scores, files = None, write_online(settings, captions, place)
        else:
            assert work.references is not None
            references = {image_id: work.references[image_id] for image_id in work.ids}
            scores = score_captions(
                captions, references, settings.metrics, spice=settings.spice, tokens=settings.tokens
            )
            current.metrics["scores"] = scores.table
            files = write_results(settings, predictions, scores, paper, place)
    return Evaluation(
        current.metrics,
        [output / name for name in files],
        scores,
        paper,
        len(captions),
        settings.online or settings.split,
    )


def caption_images(work: Work, settings: EvalSettings, log: PredictionLog, ranks: Ranks, progress: Progress) -> None:
    """Caption this rank's images that are not done, batch after batch."""
    vocabulary = work.models[0].vocabulary
    assert vocabulary is not None
    models = work.models if len(work.models) > 1 else work.models[0]

    def caption(ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        features = work.features.batch(ids).to(ranks.device)
        with torch.inference_mode():
            beams = beam_search(models, features, settings.beams, settings.max_len, early_stop=True)
        texts = vocabulary.decode_all(beams.tokens[:, 0])
        require_finite_values(beams.log_probs[:, 0], "log-probabilities", f"images {', '.join(map(str, ids))}")
        log_probs = beams.log_probs[:, 0].sum(-1).tolist()
        made = zip(ids, texts, log_probs, strict=True)
        return ((image_id, {"caption": text, "log_prob": log_prob}) for image_id, text, log_prob in made)

    answer_left(
        ranks, log, work.ids, caption, batch=settings.batch, title="captioning", progress=progress, say=logger.info
    )


def open_work(settings: EvalSettings, device: str) -> Work:
    """Models, features and captions, checked against each other before the first image.

    Raises:
        UserError: something is missing or broken, or does not fit the rest.
    """
    folders = [Path(name) for name in settings.model]
    models = [DTNet.from_pretrained(folder, device=device) for folder in folders]
    first = models[0]
    for folder, model in zip(folders, models, strict=True):
        if model.vocabulary is None:
            raise UserError("a model without a vocabulary", folder, "vocabulary.json in it")
        if model.vocabulary != first.vocabulary:
            raise UserError("has another vocabulary", folder, f"that of {folders[0]}: an ensemble shares one")
        if (model.config.positions, model.config.d_in) != (first.config.positions, first.config.d_in):
            raise UserError("takes other features", folder, f"those of {folders[0]}: an ensemble shares them")
    data = find_data(settings)
    path = find_features(settings, data)
    features = GridFeatures(path, settings.key, rows=first.config.positions)
    if features.d_in != first.config.d_in:
        raise UserError(f"features of {features.d_in} channels", path, f"{first.config.d_in}, as {folders[0]} takes")
    files = {"features": path}
    references: Mapping[int, Sequence[str]] | None = None
    if settings.online is not None:
        ids = online_ids(settings.online, data, features)
    else:
        source = find_captions(settings, data)
        captions = read_captions(source).limit(settings.split, settings.limit)
        ids, references = captions.images(settings.split), captions.references(settings.split)
        files |= caption_files(source)
    features.require(ids)
    return Work(models, folders, ids, features, references, files)


def find_data(settings: EvalSettings) -> Path | None:
    """The folder of the data set; None where captions and features are named one by one."""
    if settings.data is not None:
        folder = Path(settings.data)
        if not folder.is_dir():
            raise UserError("no such folder", folder, "the data set that --data describes")
        return folder
    drawn = Path(settings.model[0]).parent / MINI_FOLDER
    return drawn if drawn.is_dir() else None


def find_features(settings: EvalSettings, data: Path | None) -> Path:
    """The h5 file that is named, or the only one in the data set's folder."""
    if settings.features is not None:
        return Path(settings.features)
    if data is None:
        raise UserError("no features", "--features", "an h5 file of grid features, or --data FOLDER with one")
    found = sorted(path for path in data.iterdir() if path.suffix in (".h5", ".hdf5"))
    if len(found) != 1:
        what = f"{len(found)} files of features" if found else "no features"
        raise UserError(what, data, "one .h5 or .hdf5 file, or --features FILE")
    return found[0]


def find_captions(settings: EvalSettings | ScoreSettings, data: Path | None) -> Path:
    """The captions that are named, or those of the data set's folder."""
    if settings.captions is not None:
        return Path(settings.captions)
    if data is None:
        raise UserError("no captions", "--data", f"a folder with {KARPATHY_NAME} or annotations")
    for folder in (data, data / "annotations"):
        if all((folder / name).is_file() for name in ANNOTATION_NAMES):
            return folder
        if (folder / KARPATHY_NAME).is_file():
            return folder / KARPATHY_NAME
    others = sorted(data.glob("dataset_*.json"))  # Flickr8k, Flickr30k
    if len(others) != 1:
        raise UserError("no captions", data, f"{KARPATHY_NAME}, or annotations/ with {', '.join(ANNOTATION_NAMES)}")
    return others[0]


def caption_files(source: Path) -> dict[str, Path]:
    """Name -> file, of what the captions were read from: a folder may hold much else."""
    if source.is_file():
        return {"captions": source}
    names = (*ANNOTATION_NAMES, *(f"{name}.npy" for name in ID_LISTS), KARPATHY_NAME)
    return {name: source / name for name in names if (source / name).is_file()}


def online_ids(subset: str, data: Path | None, features: GridFeatures) -> tuple[int, ...]:
    """The images of a set that COCO's server scores: those of its list in the data set's folder, else all that have
    features.

    Raises:
        UserError: not as many as the server takes.
    """
    ids, where = features.ids(), features.path
    for folder in () if data is None else (data, data / "annotations"):
        if (path := folder / ONLINE_LISTS[subset]).is_file():
            images = Fields(read_json(path), str(path)).items("images")
            ids = tuple(Fields(image, f"{path}, image {n}").integer("id") for n, image in enumerate(images))
            where = path
            break
    if len(set(ids)) != ONLINE_IMAGES[subset]:
        raise UserError(
            f"{len(set(ids)):,} images of {subset}", where, f"{ONLINE_IMAGES[subset]:,}: the server takes no less"
        )
    return ids


def write_online(settings: EvalSettings, captions: Mapping[int, str], folder: Path) -> list[str]:
    """Results file and zip for COCO's server; returns their names."""
    assert settings.online is not None
    given: dict[str, Mapping[int, str]] = {settings.online: captions}
    if settings.other_results is not None:
        other = next(subset for subset in ONLINE_IMAGES if subset != settings.online)
        given[other] = read_caption_results(settings.other_results)
    packed = write_online_test(folder, ALGORITHM, given, {subset: ONLINE_IMAGES[subset] for subset in given})
    return [*(results_name(ALGORITHM, subset) for subset in given), packed.name]


def write_results(
    settings: EvalSettings, predictions: Mapping[int, Any], scores: Scores, paper: Mapping[str, float], folder: Path
) -> list[str]:
    """Captions in COCO's layout, the scores, and those of every image; returns the files' names."""
    name = results_name(ALGORITHM, settings.split)
    write_caption_results(folder / name, {image_id: one["caption"] for image_id, one in predictions.items()})
    return [name, *write_scores(settings.split, predictions, scores, paper, folder)]


def write_scores(
    split: str, predictions: Mapping[int, Any], scores: Scores, paper: Mapping[str, float], folder: Path
) -> list[str]:
    """The scores, and those of every image; returns the files' names."""
    names = ["metrics.json", "per_image.json"]
    summary = {"split": split, "images": len(predictions), "scores": _finite(scores.table), "paper": paper}
    atomic_write_json(folder / names[0], {**summary, "left_out": scores.missing})
    rows = []
    for number, image_id in enumerate(scores.ids):
        each = _finite({name: values[number] for name, values in scores.per_image.items()})
        rows.append({"image_id": image_id, **predictions[image_id], "scores": each})
    (folder / names[1]).write_text(
        "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", "utf-8"
    )
    return names


def is_papers(split: str, ids: Iterable[int], files: Mapping[str, Path]) -> bool:
    """Whether these are the images of the paper's table: all of COCO's Karpathy test split."""
    coco = ANNOTATION_NAMES[0] in files or files.get("captions", Path()).name == KARPATHY_NAME
    return split == "test" and coco and len(set(ids)) == KARPATHY_TEST


def published() -> dict[str, float]:
    """Metric -> what the paper reports on COCO's Karpathy test split, from the package's claims."""
    values = {claim.id: claim.value for claim in load_ledger(package_file("dtnet", "claims.yaml")).claims}
    found = ((name, values.get(claim)) for name, claim in _CLAIMS.items())
    return {name: float(value) for name, value in found if isinstance(value, int | float)}


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """SPICE has no score where a caption has no tuples."""
    return {name: score if math.isfinite(score) else None for name, score in scores.items()}


# How far the numbers may move on another machine, where rounding can tip a word.
TOLERANCES = {"scores.*": 1.0, "mean_log_prob": 0.05}


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """For `dtnet verify`: the metrics of the same evaluation, made in a new folder."""
    found = run_eval(checked(EvalSettings, record.config, record.id), folder, record.seed)
    return found.metrics if found is not None else {}
