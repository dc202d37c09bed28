"""`eas eval`: a benchmark's questions in, answers and scores out (section 7).

Several ranks share the questions. Every batch of answers is kept until all are there: a run that was killed goes on
where it stopped when the same command is given again, and ends with the same files.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from eas import costs
from eas.checkpoints.folder import About, read_about
from eas.checkpoints.load import open_adapters
from eas.data.records import Record, check_format, check_leak, read_records
from eas.data.samples import Encoder
from eas.data.scienceqa import Problem, read_problems
from eas.evaluation import scores
from eas.evaluation.answers import answer
from eas.evaluation.benchmarks import BENCHMARKS, Benchmark, Evaluation, fitting_host
from eas.evaluation.lavin import run_lavin, score_file
from eas.evaluation.meter import run_meter
from eas.evaluation.settings import SHIPPED, EvalSettings
from eas.miniature import task
from eas.miniature.shipped import adapters_path
from eas.plan import Plan
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.hosts.loading import Host, load_host
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
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import choose_device, ranks
from tenfold.runs.record import RECORD_NAME

logger = logging.getLogger(__name__)


IMAGES = {"slake": "imgs"}
MINI_QUESTIONS = 200


@dataclass(frozen=True)
class _Asked:
    records: Sequence[Record]
    problems: Sequence[Problem]
    print: str

    def score(self, name: str, texts: Mapping[str, str]) -> dict[str, Any]:
        if self.problems:
            return scores.scienceqa(self.problems, texts)
        return scores.slake(self.records, texts) if name == "slake" else scores.aid(self.records, texts)


def run_eval(
    settings: EvalSettings,
    seed: int,
    output: Path,
    progress: Progress = track,
    say: Callable[[str], None] = logger.info,
) -> Evaluation | None:
    """Evaluate on one benchmark, into a folder: ``run.json``, ``metrics.json``, ``predictions.jsonl``.

    Returns:
        The evaluation, on rank 0.

    Raises:
        UserError: model, adapters, data or split cannot be used, or do not go together; `output` holds a finished run
            of something else.
    """
    one = BENCHMARKS[settings.benchmark]
    if settings.predictions is not None:
        if settings.benchmark != "scienceqa":
            raise UserError("--predictions", f"--benchmark {settings.benchmark}", "scienceqa: the authors' file")
        return score_file(settings, seed, output)
    if (name := fitting_host(settings)) != "llava":
        work = run_meter if name == "meter" else run_lavin
        return work(settings, seed, output, progress, say)
    adapters_folder(settings.adapters, settings.model)  # before the model, whose loading takes longest
    with ranks() as group, _asked(settings, one) as asked:
        host = load_host(settings.model_copy(update={"device": str(choose_device(settings.device))}))
        skipper, about = _adapters(settings, host)
        check_format(about.prompt_format if about else None, asked.records, settings.data or "")
        data = {"model": host.fingerprint, "questions": asked.print} | _adapters_print(settings)
        config = settings.model_dump()
        if record := finished_before(group, output, "eval", config, seed, data):
            say(f"{one.title}: done before, in {output}")
            return _evaluation(one, record, output) if group.leads else None
        with shared_run(group, "eas", "eval", config=config, seed=seed, output=output, data=data) as current:
            log = open_log(group, output / PROGRESS, {**config, **data, "device": None})
            by_id = {record.id: record for record in asked.records}
            encoder = Encoder(host.processor, pad=one.pad)

            def answered(ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
                found = answer(
                    host.model,
                    encoder,
                    [by_id[name] for name in ids],
                    max_new_tokens=one.new_tokens,
                    folded=skipper if settings.folded else None,
                )
                return ((name, asdict(text)) for name, text in zip(ids, found, strict=True))

            batch = 1 if settings.folded else settings.batch
            answer_left(group, log, list(by_id), answered, batch=batch, title=one.title, progress=progress, say=say)
            if current is not None:
                answers: dict[str, Any] = {str(name): value for name, value in log.merged(by_id).items()}
                texts = {name: value["text"] for name, value in answers.items()}
                current.metrics.update(_metrics(settings, one, asked, answers, texts, host, skipper, about))
                rows = ({"id": name, "question": by_id[name].question, **value} for name, value in answers.items())
                write_predictions(current, rows)
        forget(group, log)
        if skipper is not None:
            skipper.detach()
        if current is None:
            return None
        assert current.record is not None
        return _evaluation(one, current.record, output)


def _metrics(
    settings: EvalSettings,
    one: Benchmark,
    asked: _Asked,
    answers: Mapping[Any, Any],
    texts: Mapping[str, str],
    host: Host,
    skipper: Skipper | None,
    about: About | None,
) -> dict[str, Any]:
    shape = costs.Shape.of(host.model.config)
    removed = len(skipper.plan.skip) if skipper else 0
    sizes = _ranks(skipper.plan) if skipper else None
    tokens = round(fmean(value["prompt_tokens"] for value in answers.values()))
    full = costs.prefill_macs(shape, tokens, 0, None)
    return {
        "benchmark": settings.benchmark,
        "split": settings.split or one.split,
        "questions": len(answers),
        "scores": asked.score(settings.benchmark, texts),
        "skip": list(skipper.plan.skip) if skipper else [],
        "search": about.search if about else None,
        "new_tokens": fmean(value["new_tokens"] for value in answers.values()),
        "prompt_tokens": tokens,
        "macs_saved": 1 - costs.prefill_macs(shape, tokens, removed, sizes) / full,
        "cache_share": 1 - removed / shape.layers,
    }


def _ranks(plan: Plan) -> costs.RankSizes:
    return costs.RankSizes(plan.adapter_rank, plan.pia_rank, plan.groups)


@contextmanager
def _asked(settings: EvalSettings, one: Benchmark) -> Iterator[_Asked]:
    split = settings.split or one.split
    if settings.data is None:
        if settings.benchmark != "mini":
            raise UserError("no data", f"--benchmark {settings.benchmark}", f"--data FOLDER with {one.tree}")
        with tempfile.TemporaryDirectory(prefix="eas-eval-") as folder:
            place = Path(folder, "mini")
            task.write(place, 1, test=min(MINI_QUESTIONS, settings.limit or MINI_QUESTIONS))
            yield _read(settings, place, split)
        return
    place = Path(settings.data)
    if not place.is_dir():
        raise UserError("no such folder", place, one.tree)
    yield _read(settings, place, split)


def _read(settings: EvalSettings, place: Path, split: str) -> _Asked:
    if settings.benchmark == "scienceqa":
        problems = read_problems(place, split)[: settings.limit]
        return _Asked([one.record for one in problems], problems, fingerprint(place / "problems.json"))
    file, images = place / f"{split}.json", place / IMAGES.get(settings.benchmark, "images")
    records = read_records(file, images)
    if settings.train is not None:
        check_leak(read_records(settings.train, images), records, file)
    return _Asked(records[: settings.limit], (), fingerprint(file))


def _adapters(settings: EvalSettings, host: Host) -> tuple[Skipper | None, About | None]:
    folder = adapters_folder(settings.adapters, settings.model)
    return open_adapters(folder, host.model) if folder is not None else (None, None)


def _adapters_print(settings: EvalSettings) -> dict[str, str]:
    folder = adapters_folder(settings.adapters, settings.model)
    return {} if folder is None else {"adapters": fingerprint(folder)}


def adapters_folder(name: str | None, model: str) -> Path | None:
    """The folder of adapters that was named; "mini" is what ships, for the mini host alone; "none" is none.

    Raises:
        UserError: no such folder; the shipped adapters for another host.
    """
    if name is None or name == "none":
        return None
    if name == SHIPPED:
        if model != MINI:
            raise UserError("the shipped adapters are the mini host's", f"model {model}", "--adapters FOLDER, or none")
        return adapters_path()
    if not Path(name).is_dir():
        raise UserError("no such adapters", name, "a folder that eas train or eas convert wrote, mini, or none")
    read_about(name)
    return Path(name)


def _evaluation(one: Benchmark, record: RunRecord, output: Path) -> Evaluation:
    files = [output / name for name in (*record.outputs, RECORD_NAME)]
    return Evaluation(one, record.metrics, files)
