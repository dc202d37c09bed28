"""`eas train`, `eas search`, `eas tune`: find the attentions that a task does not need, then tune without them.

A killed training goes on from its last complete checkpoint with the same bits, whichever the host. In the end the
folder holds ``search.json`` (what the search found) and ``adapters/`` (LLaVA, LaVIN) or ``model/`` (METER).
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from eas.checkpoints.hosts import host_of
from eas.result import SearchResult
from eas.training.hosts import TrainingHost, open_host
from eas.training.plan import StagePlan, check_sites, stage_plan
from eas.training.settings import StageName, TrainSettings
from eas.training.stages import Kept, Stage
from tenfold.runs import Run, read_jsonl, run, track
from tenfold.runs.context import require_unfinished
from tenfold.runs.launch import join
from tenfold.runs.ranks import Ranks, choose_device
from tenfold.runs.record import METRICS_NAME
from tenfold.runs.resumption import identity, keep_identity, require_new, threads

logger = logging.getLogger(__name__)

SEARCH = "search.json"
CHECKPOINTS = "checkpoint-{}"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "keep", "log_steps", "wandb", "data.folder", "from_search")


@dataclass(frozen=True)
class Trained:
    """A finished training: what the search found, where the tuning is, the record's metrics, steps done before."""

    search: SearchResult | None
    tuned: Path | None
    metrics: dict[str, Any]
    resumed: int


def run_train(settings: TrainSettings, seed: int, output: Path, resume: bool = False) -> Trained:
    """Train, or go on training, into a folder; under `torchrun` every rank calls this.

    Raises:
        UserError: the folder holds a finished run, or anything without `resume`; a checkpoint of other settings; data
            or weights that are missing, broken or do not fit; a loss that is not finite.
    """
    require_unfinished(output)
    device = choose_device(settings.device)
    with threads(settings.threads), join(device, "eas") as group:
        group.lead(lambda: require_new(output, resume, ("data",)))
        result = SearchResult.load(settings.from_search) if settings.from_search else None
        host = open_host(settings, output, group, seed, device)
        skip = check_sites(settings, host_of(settings.model, settings.host), host.sites, result)
        host.read_data()
        prints = {**host.prints} | ({"search": f"sha256:{result.sha256}"} if result else {})
        known_by = identity(settings.model_dump(mode="json"), seed, group.world, prints, FREE)
        group.lead(lambda: keep_identity(output, known_by))
        options: dict[str, Any] = {"output": output, "data": prints, "wandb_project": settings.wandb}
        with run(
            "eas",
            "train",
            config=settings.model_dump(mode="json"),
            seed=seed,
            **(options if group.leads else {"output": None, "data": {}}),
        ) as current:
            trained = _Training(settings, seed, output, host, group, current).run(result, skip)
            if group.leads:
                current.metrics.update(trained.metrics)
    return trained


class _Training:
    def __init__(
        self, settings: TrainSettings, seed: int, output: Path, host: TrainingHost, group: Ranks, current: Run
    ) -> None:
        self.settings, self.seed, self.output, self.host = settings, seed, output, host
        self.group, self.current = group, current
        self.losses: dict[str, list[float]] = {}
        self.resumed = 0

    def run(self, result: SearchResult | None, skip: tuple[int, ...] | None) -> Trained:
        tuned = None
        metrics: dict[str, Any] = {"ranks": self.group.world}
        for name in self.settings.stages:
            plan = stage_plan(self.settings, name, len(self.host.samples), self.group.world)
            if name == "search":
                stage = self._stage(name, plan, (), both=True)
                assert stage.search is not None
                told = {"host": self.host.prints["model"], "data": self.host.prints["train"]}
                result = SearchResult.of(stage.search, seed=self.seed, **told)
                skip = result.skip
                if self.group.leads:
                    result.save(self.current.file(SEARCH))
                metrics["search"] = {**self._summary(plan), "skip": list(result.skip), "margin": result.margin}
            else:
                assert skip is not None
                stage = self._stage(name, plan, skip, both=False)
                tuned = self.output / self.host.outcome
                if self.group.leads:
                    self._save(stage, result)
                metrics["tune"] = {**self._summary(plan), "skip": sorted(skip)}
            stage.trainee.close()
        return Trained(result, tuned, metrics, self.resumed)

    def _save(self, stage: Stage, result: SearchResult | None) -> None:
        target = self.current.file(self.host.outcome)
        if target.exists():  # written by a run that was killed before its record
            shutil.rmtree(target)
        self.host.save(stage.trainee, target, result)

    def _summary(self, plan: StagePlan) -> dict[str, Any]:
        losses = self.losses[plan.name]
        last = losses[-max(1, plan.steps // 10) :]
        return {"steps": plan.steps, "loss": fmean(last) if last else None}

    def _stage(self, name: StageName, plan: StagePlan, skip: tuple[int, ...], *, both: bool) -> Stage:
        trainee = self.host.trainee(skip, both=both)
        losses = self.losses.setdefault(name, [])

        def log(step: int, values: dict[str, float]) -> None:
            losses.append(values["loss"])
            if self.group.leads and (step % self.settings.log_steps == 0 or step == plan.steps):
                self.current.log(offset + step, stage=name, **values)

        # Steps of a later stage are logged behind those of the first: a resumed run writes the same lines.
        first = self.settings.stages[0]
        samples = self.host.samples
        offset = 0 if name == first else stage_plan(self.settings, first, len(samples), self.group.world).steps
        stage = Stage(
            trainee,
            samples,
            plan,
            seed=self.seed,
            group=self.group,
            search=self.settings.search if both else None,
            removed=self.settings.adapters.removed,
            held_out=self.host.held_out,
            kept=Kept(self.output / CHECKPOINTS.format(name), self.settings.checkpoint_steps, self.settings.keep),
            log=log,
        )
        if stage.step:
            losses += _logged(self.output, name, offset + stage.step)
            if self.group.leads:
                logger.info("%s goes on after step %d of %d", name, stage.step, plan.steps)
        self.resumed += stage.step
        bar = (lambda steps: track(list(steps), name)) if self.group.leads else iter
        stage.run(bar)
        return stage


def _logged(output: Path, stage: str, until: int) -> list[float]:
    path = output / METRICS_NAME
    rows = read_jsonl(path) if path.exists() else []
    return [row["loss"] for row in rows if row.get("stage") == stage and row["step"] <= until]
