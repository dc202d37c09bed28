"""An evaluation that several ranks share and that goes on where it was killed, in the pieces that all packages need.

    if again and (record := finished_before(group, output, "eval", config, seed, data)):
        ...                                                    # done before, with the same settings and data
    with shared_run(group, PACKAGE, "eval", config=config, seed=seed, output=output, data=data) as current:
        log = open_log(group, output / PROGRESS, header)
        answer_left(group, log, ids, answer, batch=8, title="TextVQA", progress=track, say=print)
        if current is not None:                                # on rank 0, when all are done
            answers = log.merged(ids)
            ...
    forget(group, log)                                         # the outcome holds what the log held

`evaluate` is all of that in one call.

Answers are kept batch by batch in a folder beside the outcome; a finished run has them in its own files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tenfold.runs.context import Run, is_finished, run
from tenfold.runs.files import atomic_write_json, atomic_write_text
from tenfold.runs.predictions import Id, PredictionLog
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import Ranks
from tenfold.runs.record import RunRecord

PREDICTIONS, METRICS = "predictions.jsonl", "metrics.json"
PROGRESS = "checkpoint-predictions"  # by its name no part of a run's outcome
Answer = Callable[[Sequence[Id]], Iterable[tuple[Id, Any]]]


def finished_before(
    group: Ranks, output: Path, verb: str, config: Mapping[str, Any], seed: int, data: Mapping[str, str]
) -> RunRecord | None:
    """The record of a finished run of the same settings, seed and data in `output`, told to all ranks; else None.

    Raises:
        UserError: a record there cannot be read.
    """

    def look() -> RunRecord | None:
        if not is_finished(output):
            return None
        record = RunRecord.load(output)
        same = record.config == config and record.seed == seed and record.verb == verb and record.data == data
        return record if same else None

    return group.tell(group.lead(look))


@contextmanager
def shared_run(
    group: Ranks,
    package: str,
    verb: str,
    *,
    config: Mapping[str, Any],
    seed: int,
    output: Path,
    data: Mapping[str, Any],
) -> Iterator[Run | None]:
    """The run's record, written by rank 0; None on the others.

    Raises:
        UserError: `output` holds a finished run, or cannot be written.
    """
    with ExitStack() as stack:
        yield group.lead(
            lambda: stack.enter_context(run(package, verb, config=config, seed=seed, output=output, data=data))
        )


def open_log(group: Ranks, folder: Path, header: Mapping[str, Any]) -> PredictionLog:
    """The answers that are kept, opened by rank 0 first, so that its line says what does not fit.

    Args:
        header: everything that an answer depends on.

    Raises:
        UserError: answers of another model, data set or other settings.
    """

    def opened() -> PredictionLog:
        return PredictionLog(folder, header, group.rank, group.world)

    log = group.lead(opened) or opened()
    group.meet()  # all have seen the same answers before the first new one is kept
    return log


def answer_left(
    group: Ranks,
    log: PredictionLog,
    ids: Sequence[Id],
    answer: Answer,
    *,
    batch: int,
    title: str,
    progress: Progress,
    say: Callable[[str], None],
    share: Callable[[Sequence[Id]], Sequence[Id]] | None = None,
    coming: Callable[[Sequence[Id]], object] | None = None,
) -> None:
    """Answer this rank's part of what has no answer yet, keep every batch, and wait for the other ranks.

    Args:
        ids: of all questions, in their order.
        answer: a batch of ids -> each id with its answer (JSON).
        title: shown beside the progress.
        say: told by rank 0 when the evaluation goes on.
        share: this rank's part of the ids that are left; None: the i-th of all ids belongs to rank i mod world.
        coming: told the batch after the present one before that is answered, to prepare it meanwhile.
    """
    if group.leads and (done := sum(one in log.done for one in ids)):
        say(f"{title}: going on after {done} of {len(ids)} answers in {log.folder.parent}")
    mine = log.todo(ids) if share is None else share([one for one in ids if one not in log.done])
    batches = [mine[start : start + batch] for start in range(0, len(mine), batch)]
    for number, some in enumerate(progress(batches, title) if group.leads else batches):
        if coming is not None and number + 1 < len(batches):
            coming(batches[number + 1])
        log.extend(answer(some))
    group.meet()


def write_predictions(current: Run, rows: Iterable[Mapping[str, Any]]) -> None:
    """`predictions.jsonl`, a line each, and `metrics.json`, what the record's metrics are so far."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write_text(current.file(PREDICTIONS), lines)
    atomic_write_json(current.file(METRICS), current.metrics)


def forget(group: Ranks, log: PredictionLog) -> None:
    """Remove the log of a finished evaluation."""
    if group.leads:
        shutil.rmtree(log.folder)
    group.meet()


def evaluate(
    group: Ranks,
    package: str,
    output: Path,
    *,
    config: Mapping[str, Any],
    seed: int,
    data: Mapping[str, str],
    header: Mapping[str, Any],
    title: str,
    answer: Callable[[PredictionLog], None],
    finish: Callable[[PredictionLog, Run], None],
    say: Callable[[str], None],
    again: bool = False,
) -> RunRecord | None:
    """One evaluation: answers kept as they come, then its outcome and its record.

    Args:
        group, package, output, config, seed, data: as for `shared_run`.
        header: as for `open_log`.
        title: what is evaluated, for messages.
        answer: answers what has no answer in the log.
        finish: writes metrics and files from the answers, on rank 0.
        say: told when it was done before.
        again: a finished run of the same settings and data is not an error, but the result.

    Returns:
        The record on rank 0, None on the others.

    Raises:
        UserError: `output` holds a finished run, or answers of another one.
    """
    if again and (record := finished_before(group, output, "eval", config, seed, data)):
        say(f"{title}: done before, in {output}")
        return record if group.leads else None
    with shared_run(group, package, "eval", config=config, seed=seed, output=output, data=data) as current:
        log = open_log(group, output / PROGRESS, header)
        answer(log)
        if current is not None:
            finish(log, current)
    forget(group, log)
    return None if current is None else current.record
