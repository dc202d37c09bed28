"""`dyvte eval`: a benchmark's questions in, answers, scores, exit layers and delivered FLOPs out.

Greedy decoding, in batches that give what single prompts give. Several ranks share the questions. Every batch of
answers is kept in `<output>/checkpoint-predictions` until all are there: a run that was killed goes on where it stopped
when the same command is given again, and ends with the same files, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dyvte.costs import DecoderShape, prefill_flops
from dyvte.evaluation.model import ExitingHost, open_exiting
from dyvte.evaluation.settings import EvalSettings
from dyvte.exits import mean_exit
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data import write
from tenfold.data.benchmark_answers import spread
from tenfold.data.benchmarks import BENCHMARKS, Benchmark, Question, benchmark
from tenfold.hosts.loading import Host
from tenfold.runs import RunRecord, fingerprint, track
from tenfold.runs.evaluation import (
    PROGRESS,
    answer_left,
    finished_before,
    forget,
    open_log,
    shared_run,
    write_predictions,
)
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.record import RECORD_NAME

logger = logging.getLogger(__name__)

ALL = "all"
MINI_SCENES, MINI_PIXELS, MINI_WORLD = 12, 96, 1_000_000


@dataclass(frozen=True)
class Evaluation:
    """What one benchmark gave.

    Attributes:
        benchmark: which.
        model: the host's name.
        metrics: as in the run's record.
        files: what was written.
        limited: only a part of the questions was asked.
    """

    benchmark: Benchmark
    model: str
    metrics: Mapping[str, Any]
    files: Sequence[Path]
    limited: bool


def run_eval(
    settings: EvalSettings,
    seed: int,
    output: Path,
    say: Callable[[str], None] = logger.info,
    host: Host | None = None,
) -> list[Evaluation]:
    """Evaluate on one benchmark, or on all that the data folder holds; each is a run of its own.

    Args:
        output: for ``run.json``, ``metrics.json``, ``predictions.jsonl`` and submissions; for "all" in a folder each.
        say: told when a run goes on, or was done before.
        host: an opened one instead of `settings.model`.

    Returns:
        One evaluation for each benchmark, on rank 0; nothing on the others.

    Raises:
        UserError: model, gates, benchmark, split or data cannot be used; a broken image; `output` holds a finished
            run, or one of other settings.
    """
    if settings.split is not None and settings.benchmark == ALL:
        raise UserError("a split for all benchmarks", settings.split, "--benchmark NAME beside --split")
    several = settings.benchmark == ALL
    with ranks() as group, benchmark_folders(settings, seed) as places:
        asked = []  # before the model, whose loading takes longest
        for name, place in places.items():
            one = benchmark(name)
            split = settings.split or one.splits[0]
            own = {"benchmark": name, "split": split, "data": None if settings.data is None else str(place)}
            asked.append((one, settings.model_copy(update=own), spread(one.read(place, split), settings.limit)))
        device = str(choose_device(settings.device))
        answering = open_exiting(settings.model_copy(update={"device": device}), settings.protocol, host)
        found = []
        for one, chosen, questions in asked:
            folder = output / one.name if several else output
            found += _Task(answering, chosen, seed, folder, one, group).run(questions, say, again=several)
    return found


@dataclass(frozen=True)
class _Task:
    """One benchmark, into one folder."""

    answering: ExitingHost
    settings: EvalSettings
    seed: int
    output: Path
    benchmark: Benchmark
    group: Ranks

    def run(self, questions: Sequence[Question], say: Callable[[str], None], *, again: bool) -> list[Evaluation]:
        group, config = self.group, self.settings.model_dump(mode="json")
        digest = group.from_lead(lambda: questions_fingerprint(questions))
        data: dict[str, Any] = {"model": self.answering.host.fingerprint, "questions": digest, "gates": self._gates()}
        if again and (record := finished_before(group, self.output, "eval", config, self.seed, data)):
            say(f"{self.benchmark.title}: done before, in {self.output}")
            return [self._evaluation(record)] if group.leads else []
        header = {**config, **data, "seed": self.seed, "on": self.answering.host.model.device.type}
        ids: list[Any] = [question.id for question in questions]
        by_id = {question.id: question for question in questions}

        def answer(names: Sequence[Any]) -> list[tuple[Any, Any]]:
            asked = [by_id[name] for name in names]
            images, prompts = [one.image() for one in asked], [one.prompt for one in asked]
            given = self.answering.answers(images, prompts, self.benchmark.max_new_tokens)
            return list(zip(names, given, strict=True))

        with shared_run(
            group, "dyvte", "eval", config=config, seed=self.seed, output=self.output, data=data
        ) as current:
            log = open_log(group, self.output / PROGRESS, header)
            title, batch = self.benchmark.title, self.settings.batch
            answer_left(group, log, ids, answer, batch=batch, title=title, progress=track, say=say)
            if current is not None:
                answers = log.merged(ids)
                current.metrics.update(self._metrics(questions, answers))
                write_predictions(
                    current, ({"id": one.id, "prompt": one.prompt, **answers[one.id]} for one in questions)
                )
                texts: dict[Any, str] = {name: answer["text"] for name, answer in answers.items()}
                self.benchmark.write_submission(questions, texts, current.file("submission"))
        forget(group, log)
        if current is None:
            return []
        assert current.record is not None
        return [self._evaluation(current.record)]

    def _metrics(self, questions: Sequence[Question], answers: Mapping[Any, Any]) -> dict[str, Any]:
        texts = {name: answer["text"] for name, answer in answers.items()}
        return {
            "benchmark": self.benchmark.name,
            "split": self.settings.split,
            "questions": len(questions),
            "scores": self.benchmark.score(questions, texts),
            **delivered(list(answers.values()), self.answering),
        }

    def _gates(self) -> str:
        exit = self.answering.exit
        if exit is None or exit.gates is None:
            return fingerprint({"gates": None})
        weights = b"".join(w.detach().cpu().float().numpy().tobytes() for w in exit.gates.state_dict().values())
        return fingerprint({"gates": hashlib.sha256(weights).hexdigest()})

    def _evaluation(self, record: RunRecord) -> Evaluation:
        files = [self.output / name for name in (*record.outputs, RECORD_NAME)]
        return Evaluation(self.benchmark, self.settings.model, record.metrics, files, self.settings.limit is not None)


def delivered(answers: Sequence[Mapping[str, Any]], answering: ExitingHost) -> dict[str, Any]:
    """Exit layers, and what the decoder's prefill cost with and without the exit, means over the prompts.

    FLOPs are 2 x multiply-adds, of the decoder's layers and the gates; the vision encoder is the same for both.
    """
    shape = DecoderShape.of(answering.host.model.config)
    gates = answering.exit.gates.config if answering.exit is not None and answering.exit.gates is not None else None
    pictured = [answer for answer in answers if answer["visual_tokens"]]
    exits = [answer["exit_layer"] for answer in pictured]
    costs = {
        name: [
            prefill_flops(
                answer["visual_tokens"] + answer["text_tokens"],
                answer["visual_tokens"],
                answer["exit_layer"] if name == "exit" else None,
                shape,
                gates if name == "exit" else None,
            )
            for answer in answers
        ]
        for name in ("dense", "exit")
    }
    histogram = Counter("never" if left is None else str(left) for left in exits)
    return {
        "mean_exit": mean_exit(exits, shape.layers) if exits else None,
        "exit_layers": dict(sorted(histogram.items())),
        "visual_tokens": fmean(answer["visual_tokens"] for answer in answers),
        "text_tokens": fmean(answer["text_tokens"] for answer in answers),
        "dense_gflops": fmean(costs["dense"]) / 1e9,
        "exit_gflops": fmean(costs["exit"]) / 1e9,
        "saved": 1 - fmean(costs["exit"]) / fmean(costs["dense"]),
    }


@contextmanager
def benchmark_folders(settings: EvalSettings, seed: int) -> Iterator[dict[str, Path]]:
    """The folder of every benchmark that was asked for, by its name.

    Without a data folder the mini world is written in the official formats, into a temporary folder.

    Raises:
        UserError: an unknown benchmark, no such folder, none of the benchmarks in it; no folder for a real model.
    """
    wanted = None if settings.benchmark == ALL else benchmark(settings.benchmark)
    if settings.data is not None:
        folder = Path(settings.data)
        if not folder.is_dir():
            files = "the benchmarks' folders" if wanted is None else f"the files of {wanted.title}: {wanted.tree}"
            raise UserError("no such folder", folder, files)
        found = {name: folder / name for name in BENCHMARKS if (folder / name).is_dir()}
        if wanted is None and not found:
            raise UserError("no benchmark's folder in it", folder, f"one of {', '.join(BENCHMARKS)}")
        yield found if wanted is None else {wanted.name: folder}
        return
    if settings.model != MINI:
        tree = "FOLDER with the benchmarks' folders" if wanted is None else f"FOLDER with {wanted.tree}"
        raise UserError("no data", f"--benchmark {settings.benchmark}", f"--data {tree}")
    names = [name for name in BENCHMARKS if name in write.Format.__members__]
    if wanted is not None and wanted.name not in names:
        raise UserError("no mini set", wanted.name, f"one of {', '.join(names)}, or --data FOLDER")
    with tempfile.TemporaryDirectory(prefix="dyvte-eval-") as temporary:
        places = {name: Path(temporary, name) for name in (names if wanted is None else [wanted.name])}
        for name, place in places.items():
            write.WRITERS[write.Format[name]](place, MINI_WORLD + seed, MINI_SCENES, MINI_PIXELS)
        yield places


def questions_fingerprint(questions: Sequence[Question]) -> str:
    """Of what is asked and of every image's content; of no path."""
    digest = hashlib.sha256()
    for one in questions:
        digest.update(json.dumps([one.id, one.prompt]).encode())
        image = one.image()
        if image is not None:
            digest.update(f"{image.size}".encode() + image.tobytes())
    return fingerprint({"questions": digest.hexdigest()})
