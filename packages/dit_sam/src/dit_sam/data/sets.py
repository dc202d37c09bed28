"""From settings to samples: finds out in which form a data set lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dit_sam.data.general import PARTS as GENERAL_PARTS
from dit_sam.data.general import read_general, union
from dit_sam.data.own import read_own
from dit_sam.data.refer import PARTS, SPLITS, Annotation, read_annotations, read_references
from dit_sam.data.samples import Sample
from tenfold import UserError
from tenfold.arrays import read_array
from tenfold.data.formats.records import Fields, ImageFolder, not_empty
from tenfold.runs import read_json

# Where COCO's train2014 is looked for.
IMAGE_FOLDERS = ("train2014", "images/train2014", "images/coco", "images/mscoco/images/train2014")


@dataclass(frozen=True)
class ReferringSet:
    """A data set in its folder, opened part by part.

    Attributes:
        folder: where it lies. name: refcoco, refcoco+, refcocog, grefcoco, own or mini. split: of REFER's file.
        files: what was read, for fingerprints.
    """

    folder: Path
    name: str
    split: str | None = None
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def general(self) -> bool:
        """Whether sentences may mean several objects, or none: other measures are right then."""
        return self.name == "grefcoco"

    def samples(self, part: str) -> list[Sample]:
        """The samples of a part: in train an object with all sentences, elsewhere one sentence a sample.

        Raises:
            UserError: missing or broken files; the part is empty or unknown.
        """
        if self.name == "own":
            self.files[part] = self.folder / f"{part}.jsonl"
            return _one_each(read_own(self.folder, part), part)
        known = GENERAL_PARTS if self.general else PARTS
        if part not in known:
            raise UserError(f"unknown part {part!r}", f"data set {self.name}", ", ".join(known))
        if self.general:
            found = self._general(part)
        elif (self.folder / "anns" / f"{self.name}.json").exists():
            found = self._converted(part)
        else:
            found = self._refer(part)
        return not_empty(_one_each(found, part), f"{self.folder}, part {part} of {self.name}")

    def _images(self) -> ImageFolder:
        for name in IMAGE_FOLDERS:
            if (self.folder / name).is_dir():
                return ImageFolder(self.folder / name)
        raise UserError("no pictures", self.folder, f"COCO's train2014 as one of: {', '.join(IMAGE_FOLDERS)}")

    def _annotations(self, folder: Path) -> tuple[dict[int, Annotation], dict[int, str]]:
        path = folder / "instances.json"
        self.files["instances"] = path
        annotations = read_annotations(path)
        images = Fields(read_json(path), str(path)).items("images")
        names = {}
        for number, values in enumerate(images):
            fields = Fields(values, f"{path}, image {number}")
            names[fields.integer("id")] = fields.text("file_name")
        return annotations, names

    def _refer(self, part: str) -> list[Sample]:
        name = "refcoco" if self.name == "mini" else self.name
        folder = self.folder / name
        split = self.split or SPLITS[name][0]
        if split not in SPLITS[name]:
            raise UserError(f"no split {split!r}", f"data set {name}", ", ".join(SPLITS[name]))
        if name == "refcocog" and split == "google" and part == "test":
            raise UserError("refcocog's google split has no test part", str(folder), "--split umd, or --part val")
        path = folder / f"refs({split}).p"
        if not path.exists() and not folder.exists():
            raise UserError(f"no data set {name}", self.folder, f"{name}/refs({split}).p or anns/{name}.json in it")
        self.files["refs"] = path
        references = read_references(path)
        annotations, names = self._annotations(folder)
        images = self._images()
        found = []
        for reference in references:
            if not reference.belongs_to(part):
                continue
            where = f"{path}, reference {reference.ref_id}"
            if reference.ann_id not in annotations:
                raise UserError(f"names annotation {reference.ann_id}", where, "an annotation of instances.json")
            picture = images.picture(names.get(reference.image_id, _coco_name(reference.image_id)), where)
            read = _Masks(annotations, (reference.ann_id,), where)
            found.append(Sample(str(reference.ref_id), picture, reference.sentences, read, where))
        return found

    def _converted(self, part: str) -> list[Sample]:
        path = self.folder / "anns" / f"{self.name}.json"
        self.files["anns"] = path
        parts = Fields(read_json(path), str(path))
        if part not in parts:
            raise UserError(f"no part {part!r}", path, "one that the file has")
        images = self._images()
        found = []
        for number, values in enumerate(parts.items(part)):
            record = Fields(values, f"{path}, {part} {number}")
            sentences = record.items("refs")
            if not all(isinstance(one, str) for one in sentences):
                raise record.wrong("refs", "is no list of texts", "sentences")
            picture = images.picture(_coco_name(record.integer("iid")), record.where)
            mask = self.folder / "masks" / self.name / f"{record.integer('mask_id')}.npy"
            found.append(Sample(str(number), picture, tuple(sentences), _Array(mask), record.where))
        return found

    def _general(self, part: str) -> list[Sample]:
        folder = self.folder / self.name
        self.files["refs"] = folder / "grefs(unc).json"
        references = read_general(folder)
        annotations, names = self._annotations(folder)
        images = self._images()
        found = []
        for reference in references:
            if reference.part == part:
                where = f"{self.files['refs']}, reference {reference.ref_id}"
                picture = images.picture(names.get(reference.image_id, _coco_name(reference.image_id)), where)
                read = _Masks(annotations, reference.ann_ids, where) if reference.ann_ids else None
                found.append(Sample(str(reference.ref_id), picture, reference.sentences, read, where))
        return found


def _coco_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def _one_each(samples: list[Sample], part: str) -> list[Sample]:
    """Outside train every sentence is a sample."""
    if part == "train":
        return samples
    return [
        Sample(one.sentence_id(i), one.picture, (sentence,), one.read_mask, one.where)
        for one in samples
        for i, sentence in enumerate(one.sentences)
    ]


class _Masks:
    """Decodes the mask of some annotations when it is called."""

    def __init__(self, annotations: dict[int, Annotation], ann_ids: tuple[int, ...], where: str) -> None:
        self.annotations = {one: annotations[one] for one in ann_ids if one in annotations}
        self.ann_ids, self.where = ann_ids, where

    def __call__(self) -> np.ndarray:
        if len(self.ann_ids) == 1 and self.ann_ids[0] in self.annotations:
            return self.annotations[self.ann_ids[0]].mask(self.where)
        return union(self.ann_ids, self.annotations, self.where)


class _Array:
    """Reads a mask of the converted form when it is called."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> np.ndarray:
        mask = read_array(self.path, "a mask: uint8 [height, width] as .npy")
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise UserError("no mask", self.path, "uint8 [height, width]")
        return mask
