"""What `eas eval`, `eas demo` and `eas sensitivity` can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import HostSettings

SHIPPED = "mini"  # the adapters that ship with the package, by name


class EvalSettings(HostSettings):
    """Settings of `eas eval`.

    Attributes:
        adapters: a folder of ours, "mini" (what ships, for the mini host), or None: the host as it is.
        host: "llava", "meter" or "lavin", where the folder does not tell; METER's holds its adapters, LaVIN's may.
        benchmark: "mini", "scienceqa", "aid" or "slake" (LLaVA); "vqav2", "nlvr2" or "flickr30k" (METER).
        data: its folder; None: the miniature's questions, drawn.
        split: of ScienceQA; for the others the json's name. None: the paper's.
        train: json of the training, refused where it shares questions with what is asked; METER: splits of the same
            data ("train2014,val2014"), refused where they share pictures. None: what its folder says, and told.
        limit: the first so many questions. batch: prompts at a time.
        folded: decode with folded matrices, one prompt at a time.
        semantics: of LaVIN's decoding: "consistent", or the authors' "unmerged" or "merged" (`eas.lavin_decoding`).
        predictions: the authors' file of ScienceQA predictions: it is scored, and no model is loaded.
    """

    adapters: str | None = SHIPPED
    host: Literal["llava", "meter", "lavin"] | None = None
    benchmark: Literal["mini", "scienceqa", "aid", "slake", "vqav2", "nlvr2", "flickr30k"] = "mini"
    data: str | None = None
    split: str | None = None
    train: str | None = None
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)
    folded: bool = False
    semantics: Literal["consistent", "unmerged", "merged"] = "consistent"
    predictions: str | None = None


class DemoSettings(HostSettings):
    """Settings of `eas demo`: how many questions are asked, and of which adapters."""

    adapters: str | None = SHIPPED
    questions: int = Field(default=24, ge=1)


class SensitivitySettings(HostSettings):
    """Settings of `eas sensitivity`, the cheap baseline: one attention at a time is taken out, nothing is trained.

    Attributes:
        data: LLaVA's json. images: the folder of its pictures. None: the miniature's questions.
        samples: so many of its first records are scored. removed: K of the list.
    """

    data: str | None = None
    images: str | None = None
    samples: int = Field(default=64, ge=1)
    batch: int = Field(default=8, ge=1)
    removed: int = Field(default=12, ge=1)
