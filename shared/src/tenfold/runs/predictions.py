"""Predictions of an evaluation, kept as they are made: a run that was killed goes on, several ranks share the work.

    log = PredictionLog(output / "checkpoint-predictions", {"model": sha, "split": "test"}, rank, world)
    for ids in batches_of(log.todo(all_ids)):
        log.extend(zip(ids, answers(ids)))
    ...                                                     # all ranks meet here
    predictions = log.merged(all_ids)                       # id -> answer, from all ranks

A rank appends to a file of its own, so nobody waits for a lock; any number of ranks can go on where others stopped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.runs.context import plain
from tenfold.runs.files import append_jsonl, atomic_write_json, read_json, read_jsonl

HEADER = "header.json"

Id = int | str


class PredictionLog:
    """What has been predicted so far, in a folder.

    Args:
        folder: made when missing. Name it `checkpoint-...` inside a run's folder: it is the way, not the outcome.
        header: everything that the predictions depend on, JSON-able (fingerprints of model and data, settings).
        rank, world: this process among those that share the work.

    Attributes:
        done: ids that have a prediction, of all ranks, as found when the log was opened.

    Raises:
        UserError: the folder holds predictions under another header (names the first entry that differs), a file in it
            is broken, or it cannot be written.
    """

    def __init__(self, folder: str | Path, header: Mapping[str, Any], rank: int = 0, world: int = 1) -> None:
        self.folder, self.rank, self.world = Path(folder), rank, world
        self._open(plain(header))
        self.done: set[Id] = set(self._read())

    def todo(self, ids: Sequence[Id]) -> list[Id]:
        """This rank's share (the i-th id belongs to rank i mod world) without what is done."""
        return [one for one in ids[self.rank :: self.world] if one not in self.done]

    def append(self, id: Id, value: Any) -> None:
        """Keep one prediction; on the disk when this returns. Raises UserError like `extend`."""
        self.extend([(id, value)])

    def extend(self, predictions: Iterable[tuple[Id, Any]]) -> None:
        """Keep a batch of predictions, all of it or nothing; on the disk when this returns.

        Raises:
            UserError: the file cannot be written.
            TypeError, ValueError: a value that is not JSON.
        """
        batch = [[one, plain(value)] for one, value in predictions]
        if batch:
            append_jsonl(self.folder / f"part-{self.rank:04d}.jsonl", {"predictions": batch})

    def merged(self, ids: Iterable[Id]) -> dict[Id, Any]:
        """The predictions of all ranks, in the order of `ids`.

        Raises:
            UserError: an id without a prediction, an id with two that differ, or a broken file.
        """
        found, wanted = self._read(), list(ids)
        missing = [one for one in wanted if one not in found]
        if missing:
            raise UserError(f"{len(missing)} predictions missing, first {missing[0]}", self.folder, f"{len(wanted)}")
        return {one: found[one] for one in wanted}

    def _open(self, header: Any) -> None:
        path = self.folder / HEADER
        if not path.exists():
            if any(self.folder.glob("part-*.jsonl")):
                raise UserError("predictions without a header", self.folder, "a folder that an evaluation made")
            # Every rank may be the first; they all write the same.
            atomic_write_json(path, header)
            return
        known = read_json(path)
        if known == header:
            return
        if not isinstance(known, dict):
            raise UserError("not a header of predictions", path, "a JSON object")
        name = next(name for name in (*header, *known) if known.get(name, _ABSENT) != header.get(name, _ABSENT))
        was, now = (str(values.get(name, "nothing")) for values in (known, header))
        raise UserError(f"predictions made with another {name}: {was}", self.folder, f"{now}, or a new folder")

    def _read(self) -> dict[Id, Any]:
        found: dict[Id, Any] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            if not re.fullmatch(r"part-\d{4,}\.jsonl", path.name):
                continue
            for number, row in enumerate(read_jsonl(path), start=1):
                for one, value in _pairs(row, f"{path}, record {number}"):
                    if found.setdefault(one, value) != value:
                        raise UserError(f"two predictions of {one!r}", f"{path}, record {number}", "one")
        return found


_ABSENT = object()


def _pairs(row: Mapping[str, Any], where: str) -> list[tuple[Id, Any]]:
    pairs = row.get("predictions")
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int | str) for pair in pairs
    ):
        raise UserError("not a record of predictions", where, '{"predictions": [[id, value], ...]}')
    return [(one, value) for one, value in pairs]
