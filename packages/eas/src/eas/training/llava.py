"""The LLaVA host in training: adapters and PIAs on a frozen transformers model, from LLaVA's json of conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from eas import costs
from eas.checkpoints import keys
from eas.checkpoints.folder import About, save_folder
from eas.data.records import Record, check_format, prompt_format, read_records
from eas.data.samples import IGNORED, Encoder
from eas.miniature import task
from eas.plan import Plan
from eas.result import SearchResult
from eas.skipper import Skipper
from eas.training.plan import plan_of
from eas.training.settings import StageSettings, TrainSettings
from tenfold import UserError
from tenfold.cli.settings import MINI, HostSettings
from tenfold.hosts.loading import load_host
from tenfold.runs import fingerprint
from tenfold.runs.ranks import Ranks

DATA = "data"  # of the miniature's task, in the run's folder


class Encoded:
    """Records of a file, encoded when they are asked for."""

    def __init__(self, records: Sequence[Record], encoder: Encoder) -> None:
        self.records, self.encoder = records, encoder

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, numbers: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """These records, in every epoch the same."""
        return self.encoder.collate([self.encoder.sample(self.records[number]) for number in numbers])


class LlavaTrainee:
    """A frozen host with `skipper` attached, whose modules and projector move (`eas.training.stages.Trainee`)."""

    def __init__(self, model: nn.Module, skipper: Skipper) -> None:
        self.model, self.skipper, self.sites = model, skipper, skipper.plan.layers
        projector = {keys.PROJECTOR + name: parameter for name, parameter in skipper.projector.items()}
        self.parameters = {**keys.named(skipper.adapters, skipper.pias), **projector}

    def factor(self, name: str, settings: StageSettings) -> float:
        """One rate for all."""
        return 1.0

    def set_skip(self, skip: tuple[int, ...]) -> None:
        self.skipper.set_skip(skip)

    def count(self, batch: dict[str, Tensor]) -> int:
        """Tokens of the answers."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the cross entropy over the answers' tokens."""
        own = next(self.model.parameters())
        given = {name: value.to(own.device) for name, value in batch.items()}
        if "pixel_values" in given:
            given["pixel_values"] = given["pixel_values"].to(own.dtype)
        logits = self.model(**given, use_cache=False).logits[:, :-1].float()
        labels = given["labels"][:, 1:]
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    @contextmanager
    def scoring(self, means: str) -> Iterator[None]:
        attachment = self.skipper.attachment
        before, attachment.means = attachment.means, cast(Literal["prompt", "all"], means)
        try:
            yield
        finally:
            attachment.means = before

    def close(self) -> None:
        self.skipper.detach()


class LlavaHost:
    """A loaded host and its data (`eas.training.hosts.TrainingHost`)."""

    outcome = "adapters"
    unread = ("data.splits", "data.held_out", "data.false_texts", "adapters.as_released", "search.scored_samples",
              "search.cross", "search.head", "tune.cross", "tune.head")  # fmt: skip
    held_out = None

    def __init__(self, settings: TrainSettings, output: Path, group: Ranks, seed: int, device: torch.device) -> None:
        self.settings, self.output, self.group, self.seed = settings, output, group, seed
        dtype: Any = "bfloat16" if settings.precision == "bf16" else "float32"
        self.host = load_host(HostSettings(model=settings.model, device=str(device), dtype=dtype))
        self.sites = costs.Shape.of(self.host.model.config).layers

    def read_data(self) -> None:
        """Read LLaVA's json, or draw the miniature's into the run's folder."""
        data, folder = self.settings.data, self._folder(self.output, self.group)
        train = folder / data.train
        records = read_records(train, folder / data.images)
        check_format(self.settings.prompt_format, records, train)
        self.format = self.settings.prompt_format or prompt_format(records)
        self.samples = Encoded(records, Encoder(self.host.processor, pad=data.pad, max_length=data.max_length))
        self.prints = {"train": fingerprint(train), "model": self.host.fingerprint}

    def _folder(self, output: Path, group: Ranks) -> Path:
        if self.settings.data.folder is not None:
            return Path(self.settings.data.folder)
        if self.settings.model != MINI:
            raise UserError("no data", "--data", "a folder: eas train --help shows the tree")
        folder, count = output / DATA, self.settings.data.samples
        group.lead(lambda: None if folder.exists() else task.write(folder, count, seed=0))
        group.meet()
        return folder

    def trainee(self, skip: tuple[int, ...], *, both: bool) -> LlavaTrainee:
        """The host without these attentions, or, for a search, with both modules in every layer."""
        adapters, model = self.settings.adapters, cast(Any, self.host.model)
        plan: Plan = plan_of(adapters, self.sites, skip)
        skipper = Skipper(plan, both=both, means=adapters.means, seed=self.seed)
        if adapters.projector:
            skipper.take_projector(model)
        skipper.attach(model)
        for parameter in skipper.parameters():
            parameter.data = parameter.data.float()
        if self.settings.gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        return LlavaTrainee(model, skipper)

    def save(self, trainee: Any, target: Path, result: SearchResult | None) -> None:
        """Write what was trained into a folder of adapters."""
        skipper: Skipper = trainee.skipper
        first: Any = next(skipper.host_layers())
        about = About(
            width=first.input_layernorm.weight.numel(),
            host=self.host.fingerprint,
            data=self.prints["train"],
            prompt_format=self.format,
            search=None if result is None else result.sha256,
        )
        save_folder(skipper, target, about)
