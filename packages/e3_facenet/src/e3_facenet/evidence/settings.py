"""Settings of the bench and of the full-size rehearsal."""

from __future__ import annotations

from pydantic import Field

from tenfold.cli.settings import DEVICE, Settings


class BenchSettings(Settings):
    """Settings of `e3-facenet bench`.

    Attributes:
        views: of one face, at once for us and one by one in the official style.
        repeats: alternated rounds after the warm-up; medians are reported.
        device: "auto" takes CUDA where there is a device, else the CPU.
        threads: of torch on the CPU; None: as torch chooses.
    """

    views: int = Field(default=5, ge=1, le=16)
    repeats: int = Field(default=5, ge=1)
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
