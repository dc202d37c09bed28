"""A training in LLaVA's two stages, in pieces that packages share: where it stands, what it read, what it gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tenfold.cli.stages import StageName, TwoStages
from tenfold.errors import UserError
from tenfold.runs.checkpoints import checkpoint_step, last_complete_checkpoint
from tenfold.runs.files import read_jsonl
from tenfold.runs.fingerprints import fingerprint
from tenfold.runs.plan import StagePlan
from tenfold.runs.record import METRICS_NAME


def stands_at(stage: StagePlan[Any, Any], checkpoints: Path, handed: Path) -> int:
    """Optimiser steps of the training that a stage's checkpoints hold; 0: none.

    Args:
        checkpoints: the stage's.
        handed: what stage 1 trained, for stage 2; there when stage 1 is done.
    """
    if stage.name == "pretrain" and handed.exists():
        return stage.end
    checkpoint = last_complete_checkpoint(checkpoints)
    return stage.first + checkpoint_step(checkpoint) if checkpoint is not None else 0


def handed_to(stage: StageName, settings: TwoStages[Any], handed: Path, given: str | None) -> Path | None:
    """What stage 1 trained, where a stage begins with it: this training's own, or the user's file."""
    if stage == "pretrain":
        return None
    if "pretrain" in settings.running:
        return handed
    return Path(given) if given else None


def stage_metrics(plans: Sequence[StagePlan[Any, Any]], output: Path, ranks: int) -> dict[str, Any]:
    """For the run's record: ranks, and of each stage the steps, and the mean loss of the last tenth of them.

    Args:
        output: the run's folder, with metrics.jsonl.
    """
    rows = read_jsonl(output / METRICS_NAME)
    found: dict[str, Any] = {"ranks": ranks}
    for stage in plans:
        since = stage.end - max(1, stage.steps // 10)
        last = [row["loss"] for row in rows if row["stage"] == stage.name and row["step"] > since]
        found[stage.name] = {"steps": stage.steps, "loss": fmean(last) if last else None}
    return found


def require_data(settings: TwoStages[Any], command: str) -> None:
    """Refuse a training without data.

    Args:
        command: whose help shows what the folder holds.

    Raises:
        UserError: no folder named where there is no miniature's, or none there.
    """
    folder = settings.data.folder
    if folder is None and settings.data.mini is None:
        raise UserError("no data", "--data", f"a folder: {command} train --help shows the tree")
    if folder is not None and not Path(folder).is_dir():
        raise UserError("no such folder", folder, f"the data: {command} train --help shows the tree")


def read_fingerprints(settings: TwoStages[Any], folder: Path, model: Any, names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 of what is read: the stages' json, and weights that lie here.

    Args:
        folder: what the stages' data are relative to.
        model: settings of what the training starts from. names: of its fields that may name a file or folder.
    """
    found: Mapping[str, Path] = {f"{name} json": folder / settings.stage(name).data for name in settings.running}
    given = {name.replace("_", " "): getattr(model, name) for name in names}
    paths = {**found, **{name: Path(path) for name, path in given.items() if path is not None}}
    return {name: fingerprint(path) for name, path in paths.items()}
