"""One run of one verb: metrics while it goes, a record when it is done."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from tenfold.errors import UserError
from tenfold.runs.files import (
    TEMPORARY_PREFIX,
    append_jsonl,
    atomic_write_json,
    atomic_write_text,
    fsync_tree,
    read_json,
    read_jsonl,
)
from tenfold.runs.fingerprints import fingerprint
from tenfold.runs.legs import begin_leg, end_legs, holds_only_legs
from tenfold.runs.lock import one_writer
from tenfold.runs.provenance import distribution_name, hardware, library_versions, package_source, package_version
from tenfold.runs.record import METRICS_NAME, RECORD_NAME, RunRecord

logger = logging.getLogger(__name__)

_STAGING = f"{TEMPORARY_PREFIX}run"


class Run:
    """What a verb sees of its run. Made by `run`.

    Attributes:
        id: of the run, as in its record.
        metrics: final numbers; fill it before the context ends.
        record: the finished `RunRecord`; None until the context has ended without an exception.
    """

    def __init__(self, run_id: str, output: Path | None, tracker: Any) -> None:
        self.id = run_id
        self.metrics: dict[str, Any] = {}
        self.record: RunRecord | None = None
        self._output = output
        self._tracker = tracker
        self._logged = False

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line `{"step": step, ...}` to metrics.jsonl (and send it to wandb when asked for).

        The first call after a kill drops the lines of `step` and later, which the resumed run writes again.

        Args:
            step: the number of finished steps (or samples, epochs: one meaning within a run).
            metrics: numbers or short texts; one-element numpy arrays and tensors become numbers.
        """
        values = plain(metrics)
        if self._output is not None:
            path = self._output / METRICS_NAME
            if not self._logged and path.exists():
                _drop_from(path, step)
            append_jsonl(path, {"step": step, **values})
        self._logged = True
        if self._tracker is not None:
            self._tracker.log(values, step=step)

    def file(self, name: str) -> Path:
        """The path to write the result file `name` (relative, may contain folders) to.

        It lies in a temporary folder and moves into the run's folder when the run ends without an exception.

        Raises:
            UserError: the run has no folder.
        """
        if self._output is None:
            raise UserError("this run writes no files", name, "--output FOLDER")
        path = self._output / _STAGING / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def run(
    package: str,
    verb: str,
    *,
    config: Mapping[str, Any],
    seed: int,
    output: str | Path | None,
    data: Mapping[str, str | Path] = {},
    wandb_project: str | None = None,
) -> Iterator[Run]:
    """Record a run of one verb.

        with run("fitprune", "fit", config=settings, seed=0, output=folder) as r:
            r.metrics["reduction"] = 0.597

    On success `output/run.json` appears, last and whole. On an exception no record and no file of
    `Run.file` appears; `metrics.jsonl` stays, and so do checkpoints, to resume from. Without `output` nothing
    is written: that is how all ranks but the first call it.

    Args:
        package: import name, e.g. "inst_diff_edit".
        verb: e.g. "eval".
        config: every setting that the numbers depend on, JSON-able (paths become text).
        seed: the run's seed.
        output: the run's folder; made when missing.
        data: name -> file or folder that is read (fingerprinted at the start), or its ready "sha256:...".
        wandb_project: also log to this wandb project, offline unless WANDB_MODE in the environment says
            otherwise.

    Raises:
        UserError: `output` holds a finished run or cannot be written; data are missing; no wandb installed.
    """
    settings = plain(config)
    fingerprints = {name: _data_fingerprint(value) for name, value in data.items()}
    wandb = _import_wandb(package, wandb_project) if wandb_project else None
    started = datetime.now(UTC)
    clock = time.perf_counter()
    run_id = f"{distribution_name(package)}-{verb}-{started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    with _folder(output) as folder, _tracker(wandb, wandb_project, run_id, settings, folder) as tracker:
        current = Run(run_id, folder, tracker)
        earlier = begin_leg(folder) if folder is not None else 0.0
        yield current
        metrics = plain(current.metrics)
        if folder is not None:
            _move_results(folder)
        source, base = package_source(package), package_source("tenfold")
        current.record = RunRecord(
            id=run_id,
            package=package,
            version=package_version(package),
            verb=verb,
            config=settings,
            config_sha256=fingerprint(settings),
            seed=seed,
            data=fingerprints,
            commit=source.commit,
            dirty=None if source.dirty is None else bool(source.dirty or base.dirty),
            libraries=library_versions(package),
            hardware=hardware(),
            python=platform.python_version(),
            started=started,
            duration_seconds=round(earlier + time.perf_counter() - clock, 3),
            metrics=metrics,
            outputs=output_fingerprints(folder) if folder is not None else {},
        )
        if folder is not None:
            atomic_write_json(folder / RECORD_NAME, current.record.model_dump(mode="json"))
            end_legs(folder)


def plain(value: Any) -> Any:
    """`value` as JSON sees it: paths as text, tuples as lists, scalars of numpy and torch as numbers.

    NaN and infinities, which JSON lacks and which are no result, become None.

    Raises:
        TypeError: something that is none of these.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and callable(value.item):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be recorded: {value!r}")


def _data_fingerprint(value: str | Path) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return value
    return fingerprint(Path(value))


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path | None]:
    """Open the run's folder with its place for unfinished results; close it without traces of a failure."""
    if output is None:
        yield None
        return
    output = Path(output)
    require_unfinished(output)
    made = not output.exists()
    staging = output / _STAGING
    try:
        output.mkdir(parents=True, exist_ok=True)
        with one_writer(output):
            staging.mkdir(exist_ok=True)
            for leftover in staging.iterdir():  # of a killed run
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            try:
                yield output
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(output)):
            raise
        raise UserError(f"cannot write a run's folder ({error.strerror})", output, "a writable one") from error
    finally:
        if output.is_dir() and holds_only_legs(output):
            end_legs(output)
        if made and output.is_dir() and not any(output.iterdir()):
            output.rmdir()


def is_finished(output: Path) -> bool:
    """Whether a folder holds the record of a finished run; half a record, which nothing of ours leaves, is none."""
    path = output / RECORD_NAME
    if not path.exists():
        return False
    try:
        read_json(path)
    except UserError as error:
        logger.warning("%s: the run counts as unfinished", error)
        return False
    return True


def require_unfinished(output: Path) -> None:
    """Refuse a folder that holds a finished run, before anything is said or done about going on in it.

    Raises:
        UserError: it does.
    """
    if is_finished(output):
        raise UserError("holds a finished run", output, "a new folder")


def _drop_from(path: Path, step: int) -> None:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int):
            raise UserError(f"step {row.get('step')!r}", f"{path}, line {number}", "a number of steps")
    kept = [row for row in rows if row["step"] < step]
    if len(kept) < len(rows):
        logger.info("%s: %d lines from step %d on are written again", path, len(rows) - len(kept), step)
        atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _move_results(output: Path) -> None:
    staging = output / _STAGING
    fsync_tree(staging)
    for file in sorted(path for path in staging.rglob("*") if path.is_file()):
        target = output / file.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def output_fingerprints(output: Path) -> dict[str, str]:
    """Results only: checkpoints, logs and temporary files are the run's way, not its outcome."""

    def is_result(name: Path) -> bool:
        top = name.parts[0]
        if top in (METRICS_NAME, RECORD_NAME, "wandb") or top.startswith("checkpoint-"):
            return False
        return not any(part.startswith(TEMPORARY_PREFIX) for part in name.parts)

    names = sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return {name.as_posix(): fingerprint(output / name) for name in names if is_result(name)}


def _import_wandb(package: str, project: str) -> ModuleType:
    missing = UserError(
        "wandb is not installed", f"project {project}", f'pip install "{distribution_name(package)}[wandb]"'
    )
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise missing from error
    # A folder named wandb in the working directory, such as an earlier offline run's, imports as an empty
    # package.
    if not hasattr(wandb, "init"):
        raise missing
    return wandb


@contextmanager
def _tracker(
    wandb: ModuleType | None, project: str | None, run_id: str, settings: Any, folder: Path | None
) -> Iterator[Any]:
    if wandb is None:
        yield None
        return
    tracker = wandb.init(
        project=project,
        name=run_id,
        config=settings,
        mode=os.environ.get("WANDB_MODE", "offline"),
        dir=folder,
        settings=wandb.Settings(silent=True),
    )
    try:
        yield tracker
    except BaseException:
        tracker.finish(exit_code=1)
        raise
    tracker.finish(exit_code=0)
