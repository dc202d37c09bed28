"""What is asked of a benchmark's folders, and what becomes of the answers: scores, files.

asked = asked_questions(places, PAPER, settings, lambda name: settings.split or PAPER[name].split)
current.metrics.update(answer_metrics(benchmark, split, questions, answers))
write_answers(current, questions, answers, benchmark.write_submission)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, TypeVar

from tenfold.data.benchmarks import Question
from tenfold.runs import Run
from tenfold.runs.evaluation import write_predictions


class HasQuestions(Protocol):
    """A benchmark, a package's view of one included: reads its questions."""

    def read(self, place: Path, split: str) -> Sequence[Question]: ...


Asked = TypeVar("Asked", bound=HasQuestions)
QuestionT = TypeVar("QuestionT")


def asked_questions(
    places: Mapping[str, Path], known: Mapping[str, Asked], settings: Any, split: Callable[[str], str]
) -> list[tuple[Asked, Any, Sequence[Question]]]:
    """Every benchmark with its own settings and its questions, read before a model is, which takes longest.

    Args:
        places: of `benchmark_folders`.
        known: name -> benchmark.
        settings: of the evaluation, with `benchmark`, `data`, `split` and `limit`.
        split: name -> the split that is meant.

    Raises:
        UserError: no such split, or data that cannot be used.
    """
    asked = []
    for name, place in places.items():
        one = known[name]
        data = None if settings.data is None else str(place)
        meant = split(name)
        own = settings.model_copy(update={"benchmark": name, "data": data, "split": meant})
        asked.append((one, own, spread(one.read(place, meant), settings.limit)))
    return asked


def spread(questions: Sequence[QuestionT], limit: int | None) -> Sequence[QuestionT]:
    """So many of the questions, evenly over all of them: in a file sorted by kind the first ones are of one kind."""
    if limit is None or limit >= len(questions):
        return questions
    return [questions[number * len(questions) // limit] for number in range(limit)]


def answer_metrics(
    benchmark: Any, split: str, questions: Sequence[Question], answers: Mapping[Any, Any]
) -> dict[str, Any]:
    """Scores of a benchmark, and the mean numbers of tokens.

    Args:
        benchmark: with `name` and `score`.
        answers: question's id -> its answer, with "text", "visual_tokens", "text_tokens" and "new_tokens".
    """
    texts = {name: answer["text"] for name, answer in answers.items()}
    means = {
        name: fmean(answer[name] for answer in answers.values())
        for name in ("visual_tokens", "text_tokens", "new_tokens")
    }
    scores = benchmark.score(questions, texts)
    return {"benchmark": benchmark.name, "split": split, "questions": len(questions), "scores": scores, **means}


def write_answers(
    current: Run,
    questions: Sequence[Question],
    answers: Mapping[Any, Any],
    submission: Callable[[Sequence[Question], Mapping[Any, str], Path], Any],
) -> None:
    """Predictions, metrics and, where a server or a judge scores, what it is sent.

    Args:
        submission: the benchmark's `write_submission`.
    """
    rows = [{"id": question.id, "prompt": question.prompt, **answers[question.id]} for question in questions]
    write_predictions(current, rows)
    texts = {name: answer["text"] for name, answer in answers.items()}
    submission(questions, texts, current.file("submission"))
