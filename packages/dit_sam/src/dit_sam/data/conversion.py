"""REFER's files in the form that the authors' trainer reads: anns/<set>.json and masks/<set>/<ref_id>.npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dit_sam.data.refer import SPLITS, converted, read_annotations, read_references
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json


def convert_refer(folder: str | Path, target: str | Path, name: str, split: str | None = None) -> dict[str, int]:
    """Write a set's json and masks; pictures stay where they are.

    Args:
        folder: holds <set>/refs(<split>).p and <set>/instances.json. target: a new folder.

    Returns:
        Part -> records.

    Raises:
        UserError: an unknown set or split, a missing or broken file, a target that exists.
    """
    if name not in SPLITS:
        raise UserError(f"unknown set {name!r}", "--refer", ", ".join(SPLITS))
    split = split or SPLITS[name][0]
    path = Path(folder) / name / f"refs({split}).p"
    references = read_references(path)
    annotations = read_annotations(path.parent / "instances.json")
    parts = converted(references, annotations, str(path))
    with atomic_directory(target) as place:
        masks = place / "masks" / name
        masks.mkdir(parents=True)
        (place / "anns").mkdir()
        for reference in references:
            where = f"{path}, reference {reference.ref_id}"
            np.save(masks / f"{reference.ref_id}.npy", annotations[reference.ann_id].mask(where))
        atomic_write_json(place / "anns" / f"{name}.json", parts)
    return {part: len(records) for part, records in parts.items()}
