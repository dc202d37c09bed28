"""`eas demo`: the miniature's questions, answered by the host as it is and without the skipped attentions."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eas.checkpoints.load import open_adapters
from eas.data.records import Record, read_records
from eas.data.samples import Encoder
from eas.evaluation.answers import answer
from eas.evaluation.run import adapters_folder
from eas.evaluation.settings import DemoSettings
from eas.miniature import task
from tenfold import UserError
from tenfold.hosts.loading import load_host
from tenfold.runs import fingerprint, run


@dataclass(frozen=True)
class Row:
    """A question, its right answer, the host's own and the tuned one."""

    question: str
    answer: str
    host: str
    eas: str


@dataclass(frozen=True)
class Demonstration:
    """What was shown: rows, per cent right with all attentions and without the skipped ones, the record's metrics."""

    rows: list[Row]
    skip: tuple[int, ...]
    layers: int
    host: float
    eas: float
    metrics: dict[str, Any]


def run_demo(settings: DemoSettings, seed: int, output: Path) -> Demonstration:
    """Answer questions and write ``run.json`` into `output`.

    Raises:
        UserError: model or adapters cannot be used.
    """
    folder = adapters_folder(settings.adapters, settings.model)
    if folder is None:
        raise UserError("nothing to show", "--adapters none", "a folder of adapters, or mini")
    host = load_host(settings)
    data = {"model": host.fingerprint, "adapters": fingerprint(folder)}
    with run("eas", "demo", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        records = questions(settings.questions, seed)
        encoder = Encoder(host.processor)
        plain = [record.text for record in answer(host.model, encoder, records[0], max_new_tokens=4)]
        skipper, _ = open_adapters(folder, host.model)
        tuned = [record.text for record in answer(host.model, encoder, records[0], max_new_tokens=4)]
        layers = skipper.plan.layers
        skipper.detach()
        rows = [
            Row(record.question, record.answer, one, two)
            for record, one, two in zip(records[0], plain, tuned, strict=True)
        ]
        right = [100 * sum(getattr(row, name) == row.answer for row in rows) / len(rows) for name in ("host", "eas")]
        current.metrics.update(
            {
                "questions": len(rows),
                "skip": list(skipper.plan.skip),
                "host": right[0],
                "eas": right[1],
                "cache_share": 1 - len(skipper.plan.skip) / layers,
            }
        )
        records[1].cleanup()
    return Demonstration(rows, skipper.plan.skip, layers, right[0], right[1], current.metrics)


def questions(count: int, seed: int) -> tuple[list[Record], tempfile.TemporaryDirectory[str]]:
    """Questions of a world of their own, and the folder that holds their pictures."""
    place = tempfile.TemporaryDirectory(prefix="eas-demo-")
    task.write(Path(place.name, "mini"), 1, seed=1000 + seed, test=count)
    return read_records(Path(place.name, "mini", task.TEST), Path(place.name, "mini", task.IMAGES)), place
