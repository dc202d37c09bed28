"""A host and the exit that is attached to it, as settings name them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from dyvte.checkpoints.load import load_gates
from dyvte.data.prompts import find_protocol
from dyvte.evaluation.settings import NONE, SHIPPED, ExitSettings
from dyvte.exits import VisualExit
from dyvte.fastv import FastV
from dyvte.gates import Gates
from tenfold import UserError
from tenfold.cli import find_package_file
from tenfold.cli.settings import MINI
from tenfold.hosts.answers import Protocol, generate
from tenfold.hosts.loading import Host, load_host

MINI_GATES = "src/dyvte/assets/mini_gates"


@dataclass(frozen=True)
class ExitingHost:
    """A host that answers with an exit attached.

    Attributes:
        host: the model.
        exit: what is attached; None for the dense model.
        protocol: how questions become prompts.
    """

    host: Host
    exit: VisualExit | None
    protocol: Protocol

    def answers(
        self, images: Sequence[Image.Image | None], questions: Sequence[str], max_new_tokens: int
    ) -> list[dict[str, Any]]:
        """Greedy answers to a batch, the same as one prompt at a time: text, numbers of tokens, and ``exit_layer``,
        counted from 0; None where the image stayed or there was none.

        Raises:
            UserError: an image or a text that the host's processor cannot take.
        """
        model, processor = self.host.model, self.host.processor
        prompts = [self.protocol.prompt(processor, *one) for one in zip(images, questions, strict=True)]
        attached: AbstractContextManager[Any] = nullcontext() if self.exit is None else self.exit(model)
        exits: list[int | None] = [None] * len(prompts)
        with attached:
            found = generate(model, processor, prompts, max_new_tokens=max_new_tokens)
            if self.exit is not None and any(answer.visual_tokens for answer in found):
                exits = self.exit.exit_layers()
        return [{**asdict(answer), "exit_layer": left} for answer, left in zip(found, exits, strict=True)]


def open_gates(name: str, model: str) -> Gates:
    """The gates that settings name.

    Raises:
        UserError: shipped gates for a host other than the mini host; or as `load_gates`.
    """
    if name != SHIPPED:
        return load_gates(name)
    folder = find_package_file("dyvte", "assets/mini_gates") or find_package_file("dyvte", MINI_GATES)
    if model != MINI or folder is None:
        raise UserError("no gates are shipped for this host", model, "--gates FOLDER, of dyvte train")
    return load_gates(folder)


def make_exit(settings: ExitSettings) -> VisualExit | None:
    """The exit that settings describe; None for the dense model."""
    fastv = FastV() if settings.fastv else None
    if settings.exit_at is not None:
        return VisualExit(exit_at=settings.exit_at, fastv=fastv, compact_every=settings.compact_every)
    if settings.gates == NONE:
        return None
    gates = open_gates(settings.gates, settings.model)
    return VisualExit(gates, settings.threshold, compact_every=settings.compact_every, fastv=fastv)


def open_exiting(settings: ExitSettings, protocol: str = "auto", host: Host | None = None) -> ExitingHost:
    """Load host and gates, and see that they fit.

    Raises:
        UserError: either cannot be loaded, or the gates are for another host.
    """
    exit = make_exit(settings)
    opened = host or load_host(settings)
    if exit is not None:
        with exit(opened.model):
            pass
    return ExitingHost(opened, exit, find_protocol(protocol, opened.model, opened.processor))
