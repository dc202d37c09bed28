"""`flashsloth eval`: a benchmark's questions in, answers and scores out (sheet section 7).

Greedy decoding, in batches that give what single prompts give. Several ranks share the questions. Every batch of
answers is kept in `<output>/checkpoint-predictions` until all are there: a run that was killed goes on where it stopped
when the same command is given again, and ends with the same files, bit for bit. The tower runs once an image for
questions about it that follow each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashsloth.evaluation.benchmarks import PAPER, PaperBenchmark, benchmark_folders
from flashsloth.evaluation.model import Host, model_fingerprint, open_host
from flashsloth.evaluation.published import paper_model
from flashsloth.evaluation.seen import SeenPictures
from flashsloth.evaluation.settings import ALL, EvalSettings
from tenfold import UserError
from tenfold.data.benchmark_answers import answer_metrics, asked_questions, write_answers
from tenfold.data.benchmarks import Question
from tenfold.data.question_sets import questions_fingerprint
from tenfold.hosts.answers import Prompt, generate
from tenfold.runs import Run, RunRecord, track
from tenfold.runs.evaluation import answer_left, evaluate
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.record import RECORD_NAME

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What one benchmark gave.

    Attributes:
        benchmark: which.
        model: its name. paper_model: the paper's name for a model of these sizes; None: another one.
        metrics: as in the run's record.
        files: what was written.
        limited: only a part of the questions was asked.
    """

    benchmark: PaperBenchmark
    model: str
    paper_model: str | None
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
    benchmark: PaperBenchmark
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

        def finish(log: PredictionLog, current: Run) -> None:
            answers = log.merged(question.id for question in questions)
            current.metrics.update(self._metrics(questions, answers))
            write_answers(current, questions, answers, self.benchmark.bench.write_submission)

        record = evaluate(
            self.group,
            "flashsloth",
            self.output,
            config=self.settings.model_dump(),
            seed=self.seed,
            data=data,
            header=self._header(data),
            title=self.benchmark.title,
            answer=lambda log: self._answer(questions, log, progress, say),
            finish=finish,
            say=say,
            again=again,
        )
        return [] if record is None else [self._evaluation(record)]

    def _header(self, data: Mapping[str, str]) -> dict[str, Any]:
        model, settings = self.host.model, self.settings
        return {
            **data,
            "benchmark": self.benchmark.name,
            "split": settings.split,
            "limit": settings.limit,
            "max_new_tokens": self.benchmark.max_new_tokens,
            "batch": settings.batch,
            "dtype": str(model.dtype),
            "device": model.device.type,
            "attention": settings.attention,
        }

    def _answer(
        self, questions: Sequence[Question], log: PredictionLog, progress: Progress, say: Callable[[str], None]
    ) -> None:
        by_id: dict[Any, Question] = {question.id: question for question in questions}
        model, processor = self.host.model, self.host.processor

        seen = SeenPictures(model, processor)

        def answer(ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
            some = [by_id[one] for one in ids]
            prompts = [self._prompt(question) for question in some]
            inputs = seen.inputs([prompt.text for prompt in prompts], [question.picture for question in some])
            most = self.benchmark.max_new_tokens
            found = generate(model, processor, prompts, max_new_tokens=most, inputs=inputs)
            return ((one, asdict(answer)) for one, answer in zip(ids, found, strict=True))

        title, batch = self.benchmark.title, self.settings.batch
        answer_left(self.group, log, list(by_id), answer, batch=batch, title=title, progress=progress, say=say)

    def _prompt(self, question: Question) -> Prompt:
        # An <image> in a question's own words is words: the processor would look for a picture.
        text = self.benchmark.prefix + question.prompt.replace("<image>", "<picture>")
        return Prompt(self.host.processor.prompt(text, image=question.picture is not None))

    def _metrics(self, questions: Sequence[Question], answers: Mapping[Any, Any]) -> dict[str, Any]:
        return answer_metrics(self.benchmark, self.settings.split or "", questions, answers)

    def _evaluation(self, record: RunRecord) -> Evaluation:
        files = [self.output / name for name in (*record.outputs, RECORD_NAME)]
        name = paper_model(self.host.model.config)
        limited = self.settings.limit is not None
        return Evaluation(self.benchmark, self.host.name, name, record.metrics, files, limited)


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
        seed: of the miniature's questions; decoding is greedy.
        say: told when a run goes on, or was done before.

    Returns:
        One evaluation for each benchmark, on rank 0; nothing on the others.

    Raises:
        UserError: model, benchmark, split or data cannot be used; a broken image; `output` holds a finished run, or one
            of another model, benchmark, data set or other settings.
    """
    if settings.split is not None and settings.benchmark == ALL:
        raise UserError("a split for all benchmarks", settings.split, "--benchmark NAME beside --split")
    several = settings.benchmark == ALL and settings.data is not None
    with ranks() as group, benchmark_folders(settings, seed) as places:
        asked = asked_questions(places, PAPER, settings, lambda name: settings.split or PAPER[name].split)
        # One rank reads (or fetches) the weights for the fingerprint.
        known_by = group.from_lead(lambda: model_fingerprint(settings))
        host = open_host(settings.model_copy(update={"device": str(choose_device(settings.device))}), known_by)
        found = []
        for one, chosen, questions in asked:
            folder = output / one.name if several else output
            found += Task(host, chosen, seed, folder, one, group).run(questions, progress, say, again=several)
    return found
