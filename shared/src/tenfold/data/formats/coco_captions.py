"""COCO captions: the official annotations, Karpathy's split of them, and the results that the server takes.

captions_train2014.json, captions_val2014.json          {"images": [{"id", "file_name"}], "annotations": [{"id",
                                                         "image_id", "caption"}]}        (Chen et al. 2015)
dataset_coco.json, dataset_flickr8k.json, ...            {"images": [{"filename", "split", "imgid", "sentids",
                                                         "sentences": [{"raw", "tokens", ...}], and for COCO
                                                         "cocoid" and "filepath"}], "dataset"}  (Karpathy, Li 2015)
captions_test2014_<algorithm>_results.json               [{"image_id": 42, "caption": "a red kite"}]
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.data.formats.records import Fields, not_empty, once, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_bytes, atomic_write_json, atomic_write_text, read_json

SPLITS = ("train", "restval", "val", "test")
# Images of the two sets that the online server scores: it refuses any other number of captions.
ONLINE_IMAGES = {"test2014": 40_775, "val2014": 40_504}


@dataclass(frozen=True)
class CocoCaption:
    """One annotation: its own id, the image's id, the text."""

    id: int
    image_id: int
    caption: str


@dataclass(frozen=True)
class CocoCaptions:
    """An annotation file: image id -> file name, and the captions in the file's order."""

    file_names: dict[int, str]
    annotations: tuple[CocoCaption, ...]


@dataclass(frozen=True)
class KarpathyImage:
    """One image of a Karpathy json.

    `image_id` is COCO's id (`cocoid`), or the running number `imgid` where the data set has none (Flickr). For COCO the
    sentence ids are the ids of the official annotations.
    """

    image_id: int
    file_name: str
    split: str
    captions: tuple[str, ...]
    sentence_ids: tuple[int, ...]
    folder: str = ""


def read_coco_captions(path: str | Path) -> CocoCaptions:
    """Read one official annotation file.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, an id that occurs twice, an
            annotation of an image that the file does not list, no annotations.
    """
    document = Fields(read_json(path), str(path))
    file_names: dict[int, str] = {}
    for number, values in enumerate(document.items("images")):
        record = Fields(values, f"{path}, image {number}")
        if (image_id := record.integer("id")) in file_names:
            raise UserError(f"image id {image_id} twice", record.where, "unique ids")
        file_names[image_id] = relative_name(record.text("file_name"), record.where)
    seen: set[int] = set()
    annotations = []
    for number, values in enumerate(document.items("annotations")):
        record = Fields(values, f"{path}, annotation {number}")
        annotation = CocoCaption(record.integer("id"), record.integer("image_id"), record.text("caption"))
        once(seen, annotation.id, "annotation id", record.where)
        if annotation.image_id not in file_names:
            raise record.wrong("image_id", f"is {annotation.image_id}", "the id of one of the file's images")
        annotations.append(annotation)
    return CocoCaptions(file_names, tuple(annotations))


def write_coco_captions(path: str | Path, captions: CocoCaptions) -> None:
    """Write one annotation file in the official layout."""
    document = {
        "info": {"description": "COCO captions layout"},
        "licenses": [],
        "images": [{"id": image_id, "file_name": name} for image_id, name in captions.file_names.items()],
        "annotations": [
            {"id": one.id, "image_id": one.image_id, "caption": one.caption} for one in captions.annotations
        ],
    }
    _write_compact_json(path, document)


def read_karpathy(path: str | Path) -> list[KarpathyImage]:
    """Read a Karpathy json (COCO, Flickr8k, Flickr30k).

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, an unknown split, an image or
            sentence id that occurs twice, as many sentence ids as sentences not, no images.
    """
    images: list[KarpathyImage] = []
    seen: set[int] = set()
    sentences: set[int] = set()
    for number, values in enumerate(Fields(read_json(path), str(path)).items("images")):
        record = Fields(values, f"{path}, image {number}")
        image_id = record.integer("cocoid" if "cocoid" in record else "imgid")
        once(seen, image_id, "image id", record.where)
        captions = tuple(
            Fields(sentence, f"{record.where}, sentence {k}").text("raw")
            for k, sentence in enumerate(record.items("sentences"))
        )
        ids = tuple(_integers(record, "sentids"))
        if len(ids) != len(captions):
            raise record.wrong("sentids", f"has {len(ids)} entries", f"{len(captions)}, one a sentence")
        for sentence_id in ids:
            once(sentences, sentence_id, "sentence id", record.where)
        images.append(
            KarpathyImage(
                image_id=image_id,
                file_name=relative_name(record.text("filename"), record.where),
                split=record.choice("split", SPLITS),
                captions=captions,
                sentence_ids=ids,
                folder=record.text("filepath") if "filepath" in record else "",
            )
        )
    return not_empty(images, path)


def write_karpathy(path: str | Path, images: Iterable[KarpathyImage], dataset: str = "coco") -> None:
    """Write a Karpathy json. `tokens` are the caption's words by white space, lower-cased; readers here use `raw`.

    Args:
        path: the file.
        images: in the order in which they are numbered (`imgid`).
        dataset: "coco" also writes `cocoid` and `filepath`; others take the running number as the image's id.

    Raises:
        UserError: image ids other than 0, 1, ... in a data set that has no field for them.
    """
    records: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        record: dict[str, Any] = {
            "sentids": list(image.sentence_ids),
            "imgid": number,
            "sentences": [
                {"tokens": caption.lower().split(), "raw": caption, "imgid": number, "sentid": sentence_id}
                for caption, sentence_id in zip(image.captions, image.sentence_ids, strict=True)
            ],
            "split": image.split,
            "filename": image.file_name,
        }
        if dataset == "coco":
            record |= {"filepath": image.folder, "cocoid": image.image_id}
        elif image.image_id != number:
            raise UserError(f"image id {image.image_id}", f"{path}, image {number}", f"{number}, the running number")
        records.append(record)
    _write_compact_json(path, {"images": records, "dataset": dataset})


def results_name(algorithm: str, subset: str = "test2014") -> str:
    """The name that the evaluation server asks for: `captions_<subset>_<algorithm>_results.json`.

    Raises:
        UserError: an algorithm's name with anything but letters, digits and "-" (the server splits at underscores).
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+", algorithm):
        raise UserError("not a name for a results file", algorithm, "letters, digits and -")
    return f"captions_{subset}_{algorithm}_results.json"


def read_caption_results(path: str | Path) -> dict[int, str]:
    """Read a results file: image id -> caption.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, an id that occurs twice, no
            results.
    """
    values = read_json(path)
    if not isinstance(values, list):
        raise UserError(f"{type(values).__name__} instead of a list", path, '[{"image_id": 42, "caption": "..."}]')
    results: dict[int, str] = {}
    for number, value in enumerate(values):
        record = Fields(value, f"{path}, result {number}")
        if (image_id := record.integer("image_id")) in results:
            raise UserError(f"image_id {image_id} twice", record.where, "unique ids")
        results[image_id] = record.text("caption")
    if not results:
        raise UserError("no records", path, "at least one")
    return results


def write_caption_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Write image id -> caption as a results file, by ascending id.

    Raises:
        UserError: no captions, or the file cannot be written.
    """
    if not captions:
        raise UserError("no captions", path, "at least one")
    atomic_write_json(path, _results(captions))


def write_online_test(
    folder: str | Path,
    algorithm: str,
    captions: Mapping[str, Mapping[int, str]],
    images: Mapping[str, int] | None = None,
) -> Path:
    """Write what the online server takes: both results files, and a zip of the two (no folders inside).

    Args:
        folder: where the three files go.
        algorithm: a short name; becomes part of the files' names.
        captions: "test2014" and "val2014" -> image id -> caption.
        images: how many captions each subset must have; default: the whole official sets (40,775 and 40,504).

    Returns:
        The zip's path.

    Raises:
        UserError: a subset is missing or not complete; nothing is written then.
    """
    images = ONLINE_IMAGES if images is None else images
    names = {subset: results_name(algorithm, subset) for subset in images}
    for subset, count in images.items():
        given = captions.get(subset, {})
        if len(given) != count:
            raise UserError(f"{len(given)} captions", f"subset {subset}", f"{count}, one for every image of the set")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for subset, name in names.items():
            # A fixed time: the same captions give the same bytes.
            entry = zipfile.ZipInfo(name, date_time=(2014, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, json.dumps(_results(captions[subset]), ensure_ascii=False))
    for subset, name in names.items():
        write_caption_results(Path(folder) / name, captions[subset])
    path = Path(folder) / f"captions_{algorithm}_results.zip"
    atomic_write_bytes(path, packed.getvalue())
    return path


def _results(captions: Mapping[int, str]) -> list[dict[str, object]]:
    return [{"image_id": int(image_id), "caption": captions[image_id]} for image_id in sorted(captions)]


def _integers(record: Fields, name: str) -> list[int]:
    values = record.items(name)
    if any(not isinstance(value, int) or isinstance(value, bool) for value in values):
        raise record.wrong(name, "holds something else", "integers")
    return values


def _write_compact_json(path: str | Path, document: Any) -> None:
    # COCO has 600,000 captions: an indent would double the file.
    atomic_write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False))
