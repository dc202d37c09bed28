"""What the verbs that answer questions can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import HostSettings


class ConvertedHostSettings(HostSettings):
    """A host, converted already or now.

    Attributes:
        imports: modules that make further model types known to transformers, such as llava_hr.auto.
        layers: convert a dense host for this run, by a placement's name (`gamma_mod.place`): its router is untrained.
            None: the model as it is, converted or dense.
        threshold: of prompts; None: the model's own.
        skip: instead, calibrate the threshold so that this share of the first prompts' tokens is skipped.
        decode_skip: whether generated tokens may be skipped; None: as the model has it.
    """

    imports: tuple[str, ...] = ()
    layers: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    skip: float | None = Field(default=None, ge=0, lt=1)
    decode_skip: bool | None = None


class EvalSettings(ConvertedHostSettings):
    """Settings of `gamma-mod eval`.

    Attributes:
        benchmark: by name, or "all" that the data folder holds.
        data: the benchmark's folder, or for "all" the folder of theirs; None: sets of the mini world, for the mini host
            only.
        split: None: the benchmark's first.
        protocol: how an image and a question become a prompt: "template", the host's own, or "vicuna", the released
            models'.
        limit: the first so many questions; None: all.
        batch: prompts at a time.
    """

    benchmark: str = "all"
    data: str | None = None
    split: str | None = None
    protocol: Literal["template", "vicuna"] = "template"
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)


class ArankSettings(HostSettings):
    """Settings of `gamma-mod arank`.

    Attributes:
        imports: as above.
        data: LLaVA's json of conversations, or JSON lines with `question_id`, `image`, `text`; None: scenes of the mini
            world, for the mini host only.
        image_folder: what images are relative to; None: the folder of ``data``.
        protocol: as of an evaluation.
        samples: prompts that are ranked.
        num_dense: layers of highest rank that stay dense. threshold: instead, those of at least this rank.
    """

    imports: tuple[str, ...] = ()
    data: str | None = None
    image_folder: str | None = None
    protocol: Literal["template", "vicuna"] = "template"
    samples: int = Field(default=25, ge=1)
    num_dense: int | None = Field(default=None, ge=0)
    threshold: float | None = None


class DemoSettings(ConvertedHostSettings):
    """Settings of `gamma-mod demo`.

    Attributes:
        image: a picture; None: a scene of the mini world.
        question: about the picture; None: the scene's own.
        protocol: as of an evaluation.
    """

    layers: str | None = "arank_mod"
    skip: float | None = Field(default=0.3, ge=0, lt=1)
    image: str | None = None
    question: str | None = None
    protocol: Literal["template", "vicuna"] = "template"
