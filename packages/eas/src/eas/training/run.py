"""`eas train`, `eas search`, `eas tune`: find the attentions that a task does not need, then tune without them.

A killed training goes on from its last complete checkpoint with the same bits. In the end the folder holds
``search.json`` (what the search found) and ``adapters/`` (what `eas.load` attaches).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from eas import costs
from eas.checkpoints.folder import About, save_folder
from eas.data.records import Record, check_format, prompt_format, read_records
from eas.data.samples import Encoder
from eas.miniature import task
from eas.plan import Plan
from eas.result import SearchResult
from eas.skipper import Skipper
from eas.training.plan import StagePlan, check_layers, plan_of, skip_of, stage_plan
from eas.training.settings import StageName, TrainSettings
from eas.training.stages import Kept, Stage
from tenfold import UserError
from tenfold.cli.settings import MINI, HostSettings
from tenfold.hosts.loading import Host, load_host
from tenfold.runs import Run, fingerprint, read_jsonl, run, track
from tenfold.runs.context import require_unfinished
from tenfold.runs.launch import join
from tenfold.runs.ranks import Ranks, choose_device
from tenfold.runs.record import METRICS_NAME
from tenfold.runs.resumption import identity, keep_identity, require_new, threads

logger = logging.getLogger(__name__)

SEARCH, ADAPTERS, DATA = "search.json", "adapters", "data"
CHECKPOINTS = "checkpoint-{}"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "keep", "log_steps", "wandb", "data.folder", "from_search")


@dataclass(frozen=True)
class Trained:
    """A finished training: what the search found, where the adapters are, the record's metrics, steps done before."""

    search: SearchResult | None
    adapters: Path | None
    metrics: dict[str, Any]
    resumed: int


class Encoded:
    """Records of a file, encoded when they are asked for."""

    def __init__(self, records: Sequence[Record], encoder: Encoder) -> None:
        self.records, self.encoder = records, encoder

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return self.encoder.collate([self.encoder.sample(self.records[number]) for number in numbers])


def run_train(settings: TrainSettings, seed: int, output: Path, resume: bool = False) -> Trained:
    """Train, or go on training, into a folder; under `torchrun` every rank calls this.

    Raises:
        UserError: the folder holds a finished run, or anything without `resume`; a checkpoint of other settings; data
            or weights that are missing, broken or do not fit; a loss that is not finite.
    """
    require_unfinished(output)
    device = choose_device(settings.device)
    with threads(settings.threads), join(device, "eas") as group:
        group.lead(lambda: require_new(output, resume, (DATA,)))
        result = SearchResult.load(settings.from_search) if settings.from_search else None
        shared: dict[str, Any] = {"dtype": "bfloat16" if settings.precision == "bf16" else "float32"}
        host = load_host(HostSettings(model=settings.model, device=str(device), **shared))
        check_layers(settings, host.model.config)
        records, prints = _data(settings, output, group, seed)
        prints |= {"model": host.fingerprint} | ({"search": f"sha256:{result.sha256}"} if result else {})
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
            training = _Training(settings, seed, output, host, records, group, current, prints)
            trained = training.run(result)
            if group.leads:
                current.metrics.update(trained.metrics)
    return trained


class _Training:
    def __init__(
        self,
        settings: TrainSettings,
        seed: int,
        output: Path,
        host: Host,
        records: Sequence[Record],
        group: Ranks,
        current: Run,
        prints: Mapping[str, str],
    ) -> None:
        self.settings, self.seed, self.output, self.host = settings, seed, output, host
        self.group, self.current, self.prints = group, current, prints
        self.samples = Encoded(
            records, Encoder(host.processor, pad=settings.data.pad, max_length=settings.data.max_length)
        )
        self.format = settings.prompt_format or prompt_format(records)
        self.layers = costs.Shape.of(host.model.config).layers
        self.losses: dict[str, list[float]] = {}
        self.resumed = 0

    def run(self, result: SearchResult | None) -> Trained:
        adapters = None
        metrics: dict[str, Any] = {"ranks": self.group.world}
        for name in self.settings.stages:
            plan = stage_plan(self.settings, name, len(self.samples), self.group.world)
            if name == "search":
                stage = self._stage(name, plan, plan_of(self.settings.adapters, self.layers), both=True)
                assert stage.search is not None
                result = SearchResult.of(
                    stage.search, seed=self.seed, host=self.host.fingerprint, data=self.prints["train"]
                )
                if self.group.leads:
                    result.save(self.current.file(SEARCH))
                metrics["search"] = {**self._summary(plan), "skip": list(result.skip), "margin": result.margin}
            else:
                skip = skip_of(self.settings.adapters) if result is None else result.skip
                assert skip is not None
                stage = self._stage(name, plan, plan_of(self.settings.adapters, self.layers, skip), both=False)
                adapters = self.output / ADAPTERS
                if self.group.leads:
                    self._save(stage.skipper, result)
                metrics["tune"] = {**self._summary(plan), "skip": list(stage.skipper.plan.skip)}
            stage.skipper.detach()
        return Trained(result, adapters, metrics, self.resumed)

    def _summary(self, plan: StagePlan) -> dict[str, Any]:
        losses = self.losses[plan.name]
        last = losses[-max(1, plan.steps // 10) :]
        return {"steps": plan.steps, "loss": fmean(last) if last else None}

    def _stage(self, name: StageName, plan: StagePlan, what: Plan, *, both: bool) -> Stage:
        skipper = Skipper(what, both=both, seed=self.seed)
        if self.settings.adapters.projector:
            skipper.take_projector(self.host.model)
        skipper.attach(self.host.model)
        for parameter in skipper.parameters():
            parameter.data = parameter.data.float()
        if self.settings.gradient_checkpointing:
            model: Any = self.host.model
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        losses = self.losses.setdefault(name, [])

        def log(step: int, values: dict[str, float]) -> None:
            losses.append(values["loss"])
            if self.group.leads and (step % self.settings.log_steps == 0 or step == plan.steps):
                self.current.log(offset + step, stage=name, **values)

        # Steps of a later stage are logged behind those of the first: a resumed run writes the same lines.
        offset = (
            0
            if name == self.settings.stages[0]
            else stage_plan(self.settings, self.settings.stages[0], len(self.samples), self.group.world).steps
        )
        folder = self.output / CHECKPOINTS.format(name)
        stage = Stage(
            self.host.model,
            skipper,
            self.samples,
            plan,
            seed=self.seed,
            group=self.group,
            search=self.settings.search if both else None,
            removed=self.settings.adapters.removed,
            kept=Kept(folder, self.settings.checkpoint_steps, self.settings.keep),
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

    def _save(self, skipper: Skipper, result: SearchResult | None) -> None:
        first = next(skipper.host_layers())
        about = About(
            width=first.input_layernorm.weight.numel(),
            host=self.host.fingerprint,
            data=self.prints["train"],
            prompt_format=self.format,
            search=None if result is None else result.sha256,
        )
        target = self.current.file(ADAPTERS)
        if target.exists():  # written by a run that was killed before its record
            shutil.rmtree(target)
        save_folder(skipper, target, about)


def _logged(output: Path, stage: str, until: int) -> list[float]:
    path = output / METRICS_NAME
    rows = read_jsonl(path) if path.exists() else []
    return [row["loss"] for row in rows if row.get("stage") == stage and row["step"] <= until]


def _data(settings: TrainSettings, output: Path, group: Ranks, seed: int) -> tuple[list[Record], dict[str, str]]:
    folder = output / DATA if settings.data.folder is None else Path(settings.data.folder)
    if settings.data.folder is None:
        if settings.model != MINI:
            raise UserError("no data", "--data", "a folder: eas train --help shows the tree")
        group.lead(lambda: None if folder.exists() else task.write(folder, settings.data.samples, seed=0))
        group.meet()
    records = read_records(folder / settings.data.train, folder / settings.data.images)
    check_format(settings.prompt_format, records, folder / settings.data.train)
    return records, {"train": fingerprint(folder / settings.data.train)}
