"""A host and the exit that is attached to it, as settings name them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from dyvte.checkpoints.hosts import Host, load_host
from dyvte.checkpoints.load import load_gates
from dyvte.data.prompts import SYSTEM, encode, prompt_text
from dyvte.evaluation.settings import NONE, SHIPPED, ExitSettings
from dyvte.exits import VisualExit
from dyvte.fastv import FastV
from dyvte.gates import Gates
from tenfold import UserError
from tenfold.cli import find_package_file
from tenfold.cli.settings import MINI
from tenfold.hosts import structure

MINI_GATES = "src/dyvte/assets/mini_gates"


@dataclass(frozen=True)
class Answer:
    """What a host answered to one prompt.

    Attributes:
        text: the answer.
        exit_layer: after which its visual tokens left, counted from 0; None where they stayed or there were none.
        visual_tokens, text_tokens: of its prompt.
    """

    text: str
    exit_layer: int | None
    visual_tokens: int
    text_tokens: int


@dataclass(frozen=True)
class ExitingHost:
    """A host that answers with an exit attached.

    Attributes:
        host: the model.
        exit: what is attached; None for the dense model.
    """

    host: Host
    exit: VisualExit | None
    system: str = ""

    @torch.inference_mode()
    def answers(
        self, images: list[Image.Image | None], questions: list[str], max_new_tokens: int
    ) -> list[Answer]:
        """Greedy answers to a batch, padded on the left: the same as one prompt at a time.

        Raises:
            UserError: an image that the host's processor cannot take.
        """
        model, processor = self.host.model, self.host.processor
        texts = [
            prompt_text(processor, question, images=int(image is not None), system=self.system)
            for image, question in zip(images, questions, strict=True)
        ]
        inputs = encode(processor, model, images, texts)
        visual = structure.visual_mask(structure.unwrap(model), inputs).sum(1).tolist()
        width = inputs["input_ids"].shape[1]
        real = inputs["attention_mask"].sum(1).tolist() if "attention_mask" in inputs else [width] * len(texts)
        attached: AbstractContextManager[Any] = nullcontext() if self.exit is None else self.exit(model)
        exits: list[int | None] = [None] * len(texts)
        with attached:
            ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
            if self.exit is not None and any(visual):
                exits = self.exit.exit_layers()
        told = processor.batch_decode(ids[:, width:], skip_special_tokens=True)
        return [
            Answer(text.strip(), left, images_, tokens - images_)
            for text, left, images_, tokens in zip(told, exits, visual, real, strict=True)
        ]


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


def open_exiting(settings: ExitSettings, *, system: bool = False, host: Host | None = None) -> ExitingHost:
    """Load host and gates, and see that they fit.

    Raises:
        UserError: either cannot be loaded, or the gates are for another host.
    """
    exit = make_exit(settings)
    opened = host or load_host(settings)
    if exit is not None:
        with exit(opened.model):
            pass
    return ExitingHost(opened, exit, SYSTEM if system else "")
