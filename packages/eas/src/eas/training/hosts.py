"""The three hosts behind one training: which one a model is, and what `eas.training.run` asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from eas.checkpoints.hosts import host_of
from eas.result import SearchResult
from eas.training.settings import TrainSettings
from eas.training.stages import Samples, Trainee
from tenfold import UserError
from tenfold.runs.ranks import Ranks
from tenfold.runs.resumption import flat


class TrainingHost(Protocol):
    """A frozen model with its data, from which stages begin.

    Attributes:
        sites: attentions that can be skipped. prints: fingerprints of model and data.
        held_out: what subnets are scored on; None: the batch of the step.
        outcome: what the folder of a tuning is called. unread: settings that mean nothing to this host.
    """

    @property
    def sites(self) -> int: ...
    @property
    def samples(self) -> Samples: ...
    @property
    def held_out(self) -> Samples | None: ...
    @property
    def prints(self) -> Mapping[str, str]: ...
    @property
    def outcome(self) -> str: ...

    def read_data(self) -> None:
        """Read, or draw, what is learnt from; before that there are no samples and no prints."""
        ...

    def trainee(self, skip: tuple[int, ...], *, both: bool) -> Trainee:
        """A model at the start of a stage; `both`: of a search."""
        ...

    def save(self, trainee: Any, target: Path, result: SearchResult | None) -> None:
        """Write what a tuning made."""
        ...


def open_host(settings: TrainSettings, output: Path, group: Ranks, seed: int, device: torch.device) -> TrainingHost:
    """Open the frozen model; its data are read when `read_data` is called.

    Raises:
        UserError: it is missing or broken, or a setting means nothing to this host.
    """
    name = host_of(settings.model, settings.host)
    if name == "llava":
        from eas.training.llava import LlavaHost

        _refuse(settings, name, LlavaHost.unread)
        return LlavaHost(settings, output, group, seed, device)
    if name == "lavin":
        from eas.training.lavin import LavinHost

        _refuse(settings, name, LavinHost.unread)
        return LavinHost(settings, seed, device)
    from eas.training.meter import MeterHost

    _refuse(settings, name, MeterHost.unread)
    return MeterHost(settings, seed, device)


def _refuse(settings: TrainSettings, host: str, unread: tuple[str, ...]) -> None:
    """A setting that is not read stands at its default, or somebody would wait for its effect."""
    usual, values = (dict(flat(one.model_dump())) for one in (TrainSettings(), settings))
    for name in unread:
        if values[name] != usual[name]:
            raise UserError(f"{name}={values[name]}", f"a {host} host", "this host has no use for it")
