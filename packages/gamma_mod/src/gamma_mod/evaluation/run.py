"""`gamma-mod eval`: a benchmark's questions in, answers, scores and the realised skip out.

Greedy decoding, in batches that give what single prompts give. Several ranks share the questions. Every batch of
answers is kept in `<output>/checkpoint-predictions` until all are there: a run that was killed goes on where it stopped
when the same command is given again, and ends with the same files, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from gamma_mod import costs
from gamma_mod.costs import DecoderShape
from gamma_mod.evaluation.answers import Host, answer, calibrate_on, open_host
from gamma_mod.evaluation.questions import ALL, benchmark_folders
from gamma_mod.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.data.benchmarks import Benchmark, Question, benchmark
from tenfold.data.question_sets import questions_fingerprint
from tenfold.runs import Run, RunRecord, fingerprint, track
from tenfold.runs.evaluation import (
    PROGRESS,
    answer_left,
    finished_before,
    forget,
    open_log,
    shared_run,
    write_predictions,
)
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.record import RECORD_NAME

logger = logging.getLogger(__name__)

PACKAGE = "gamma_mod"
CALIBRATION = 16  # questions that a threshold is calibrated on


@dataclass(frozen=True)
class Evaluation:
    """What one benchmark gave.

    Attributes:
        benchmark: which. metrics: as in the run's record. files: what was written.
        limited: only the first questions were asked.
    """

    benchmark: Benchmark
    metrics: Mapping[str, Any]
    files: Sequence[Path]
    limited: bool


@dataclass(frozen=True)
class Task:
    """One benchmark to evaluate on, into one folder.

    Attributes:
        settings: with the benchmark's own name, split and data folder.
        output: the run's folder.
    """

    host: Host
    settings: EvalSettings
    seed: int
    output: Path
    benchmark: Benchmark
    group: Ranks

    def run(
        self, questions: Sequence[Question], progress: Progress, say: Callable[[str], None], *, again: bool
    ) -> list[Evaluation]:
        """The evaluation, on rank 0.

        Args:
            again: a finished run of the same settings and data is not an error, but the result.
        """
        digest = self.group.from_lead(lambda: questions_fingerprint(questions))
        data = {"model": self.host.fingerprint, "questions": digest}
        config = self.settings.model_dump(mode="json")
        if again and (record := finished_before(self.group, self.output, "eval", config, self.seed, data)):
            say(f"{self.benchmark.title}: done before, in {self.output}")
            return [self._evaluation(record)] if self.group.leads else []
        with shared_run(
            self.group, PACKAGE, "eval", config=config, seed=self.seed, output=self.output, data=data
        ) as current:
            if self.settings.skip is not None:
                asked = [(one.image(), one.prompt) for one in questions[:CALIBRATION]]
                calibrate_on(self.host, asked, self.settings.skip, self.settings.protocol)
            log = open_log(self.group, self.output / PROGRESS, self._header(digest))
            by_id: dict[Any, Question] = {question.id: question for question in questions}
            batch, title = self.settings.batch, self.benchmark.title
            answer_left(
                self.group,
                log,
                list(by_id),
                lambda ids: self._answers([by_id[one] for one in ids]),
                batch=batch,
                title=title,
                progress=progress,
                say=say,
            )
            if current is not None:
                answers = log.merged(question.id for question in questions)
                current.metrics.update(self._metrics(questions, answers))
                self._write(questions, answers, current)
        forget(self.group, log)
        if current is None:
            return []
        assert current.record is not None
        return [self._evaluation(current.record)]

    def _answers(self, questions: Sequence[Question]) -> list[tuple[Any, Any]]:
        found = answer(
            self.host,
            [question.image() for question in questions],
            [question.prompt for question in questions],
            protocol=self.settings.protocol,
            max_new_tokens=self.benchmark.max_new_tokens,
        )
        return [(question.id, asdict(one)) for question, one in zip(questions, found, strict=True)]

    def _header(self, questions: str) -> dict[str, Any]:
        conversion = self.host.conversion
        return {
            "benchmark": self.benchmark.name,
            "model": self.host.fingerprint,
            "conversion": None if conversion is None else fingerprint(conversion.config.to_dict()),
            "seed": self.seed,
            "questions": questions,
            "split": self.settings.split,
            "limit": self.settings.limit,
            "protocol": self.settings.protocol,
            "max_new_tokens": self.benchmark.max_new_tokens,
            "batch": self.settings.batch,
            "dtype": str(self.host.model.dtype),
            "device": self.host.model.device.type,
            "attention": self.settings.attention,
        }

    def _metrics(self, questions: Sequence[Question], answers: Mapping[Any, Any]) -> dict[str, Any]:
        texts = {name: one["text"] for name, one in answers.items()}
        conversion = self.host.conversion
        layers = () if conversion is None else conversion.config.layers
        shape = DecoderShape.of(self.host.model.config)
        return {
            "benchmark": self.benchmark.name,
            "split": self.settings.split,
            "questions": len(questions),
            "scores": self.benchmark.score(questions, texts),
            "tokens": fmean(one["tokens"] for one in answers.values()),
            "new_tokens": fmean(one["new_tokens"] for one in answers.values()),
            "threshold": None if conversion is None else conversion.config.prefill_threshold,
            **skipped(list(answers.values()), layers, shape),
        }

    def _write(self, questions: Sequence[Question], answers: Mapping[Any, Any], current: Run) -> None:
        rows = [{"id": question.id, "prompt": question.prompt, **answers[question.id]} for question in questions]
        write_predictions(current, rows)
        texts = {name: one["text"] for name, one in answers.items()}
        self.benchmark.write_submission(questions, texts, current.file("submission"))

    def _evaluation(self, record: RunRecord) -> Evaluation:
        files = [self.output / name for name in (*record.outputs, RECORD_NAME)]
        return Evaluation(self.benchmark, record.metrics, files, self.settings.limit is not None)


def run_eval(
    settings: EvalSettings,
    seed: int,
    output: Path,
    progress: Progress = track,
    say: Callable[[str], None] = logger.info,
) -> list[Evaluation]:
    """Evaluate on one benchmark, or on all that the data folder holds.

    Each benchmark is a run of its own: `run.json`, `metrics.json`, `predictions.jsonl` and, where a server or a judge
    scores, the submission files, in `output`, for "all" in `output/<benchmark>`.

    Args:
        say: told when a run goes on, or was done before.

    Returns:
        One evaluation for each benchmark, on rank 0; nothing on the others.

    Raises:
        UserError: model, benchmark, split or data cannot be used; a broken image; `output` holds a finished run, or one
            of another model, benchmark, data set or other settings.
    """
    if settings.split is not None and settings.benchmark == ALL:
        raise UserError("a split for all benchmarks", settings.split, "--benchmark NAME beside --split")
    several = settings.benchmark == ALL
    with ranks() as group, benchmark_folders(settings, seed) as places:
        asked = []  # before the model, whose loading takes longest
        for name, place in places.items():
            one = benchmark(name)
            own: dict[str, Any] = {"benchmark": name, "data": None if settings.data is None else str(place)}
            own["split"] = settings.split or one.splits[0]
            questions = one.read(place, own["split"])[: settings.limit]
            asked.append((one, settings.model_copy(update=own), questions))
        host = open_host(settings, str(choose_device(settings.device)), seed)
        found = []
        for one, chosen, questions in asked:
            task = Task(host, chosen, seed, output / one.name if several else output, one, group)
            found += task.run(questions, progress, say, again=several)
    return found


def skipped(answers: Sequence[Mapping[str, Any]], layers: Sequence[int], shape: DecoderShape) -> dict[str, Any]:
    """The realised skip and what it saved.

    Args:
        answers: each with its ``tokens``, ``new_tokens``, and per converted layer ``kept`` and ``decoded``.
        layers: the converted ones, in their order.

    Returns:
        ``skip``: skipped over all tokens of converted layers, of prompts (``prefill``), generated tokens (``decode``),
        both (``total``, the paper's) and prompts layer by layer; None where nothing passed. Mean GFLOPs of prompts,
        dense and as computed.
    """
    prompts = sum(one["tokens"] for one in answers)
    steps = sum(one["new_tokens"] - 1 for one in answers)
    kept, decoded = (sum(sum(one[name]) for one in answers) for name in ("kept", "decoded"))
    passed, decoding = prompts * len(layers), steps * len(layers)
    dense = sum(costs.prefill_flops([one["tokens"]] * shape.layers, shape) for one in answers)
    real = 0
    for one in answers:
        counts = dict(zip(layers, one["kept"], strict=True))
        real += costs.prefill_flops([counts.get(layer, one["tokens"]) for layer in range(shape.layers)], shape)
    per_layer = {
        str(layer): 1 - sum(one["kept"][index] for one in answers) / prompts for index, layer in enumerate(layers)
    }
    return {
        "skip": {
            "prefill": 1 - kept / passed if passed else None,
            "decode": 1 - decoded / decoding if decoding else None,
            "total": 1 - (kept + decoded) / (passed + decoding) if passed else None,
            "per_layer": per_layer,
        },
        "prompt_gflops": real / len(answers) / 1e9,
        "prompt_gflops_dense": dense / len(answers) / 1e9,
    }
