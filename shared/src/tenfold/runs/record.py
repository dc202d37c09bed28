"""The record of one run: enough to cite it, to compare it and to do it again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tenfold.errors import UserError
from tenfold.runs.files import read_json

RECORD_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"

_FINGERPRINT = r"^sha256:[0-9a-f]{64}$"


class Hardware(BaseModel):
    """What a run was computed on.

    Attributes:
        machine: instruction set, e.g. "x86_64". cpu: model name.
        threads: of torch's CPU operators.
        device: "cuda" when the run used CUDA, else "cpu". gpu: its name, or None.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    machine: str
    cpu: str
    threads: int
    device: str
    gpu: str | None


class RunRecord(BaseModel):
    """`run.json`: written once, when the run is complete.

    Attributes:
        id: `<package>-<verb>-<start>-<random>`.
        package, version, verb: what ran.
        config, config_sha256: every setting by value, and the fingerprint of its canonical JSON.
        seed: of everything random in the run.
        data: name -> fingerprint of each data set, file or checkpoint that was read.
        commit, dirty: the source's commit and whether files differed from it; None when unknown.
        libraries: distribution -> version.
        started: UTC, ISO 8601. duration_seconds: wall time.
        metrics: the final numbers.
        outputs: file name relative to the run's folder -> fingerprint.
    """

    # Strict: a record from elsewhere with "2" for 2 is not one of ours.
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    status: Literal["complete"] = "complete"
    package: str
    version: str
    verb: str
    config: dict[str, Any]
    config_sha256: str = Field(pattern=_FINGERPRINT)
    seed: int
    data: dict[str, str]
    commit: str | None
    dirty: bool | None
    libraries: dict[str, str]
    hardware: Hardware
    python: str
    started: datetime = Field(strict=False)
    duration_seconds: float = Field(ge=0, allow_inf_nan=False)
    metrics: dict[str, Any]
    outputs: dict[str, str]

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        """Read a `run.json`, or the one in a run's folder.

        Raises:
            UserError: there is none, it is broken, or a field is missing or wrong (names the field).
        """
        path = Path(path)
        if path.is_dir():
            path = path / RECORD_NAME
        content = read_json(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise validation_error(error, path, "a run record") from error


def validation_error(error: ValidationError, path: str | Path, what: str) -> UserError:
    """The first thing that pydantic found wrong in the file at `path`, as one line naming the field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole file"
    more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return UserError(f"not {what}, {field}: {first['msg']}{more}", path)
