"""What a verb can be told: frozen settings, checked once, from options, config files and run records alike.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tenfold.errors import UserError

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
DEVICES = "auto, cpu, cuda or cuda:N"
# The host that ships with Tenfold, by name.
MINI = "mini"
Model = TypeVar("Model", bound=BaseModel)
Plain = TypeVar("Plain")


class Settings(BaseModel):
    """Settings that cannot change and know no other names than their own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HostSettings(Settings):
    """Which host model, and how it is loaded.

    Attributes:
        model: "mini", a folder in transformers' layout, or a hub id.
        device: "auto" takes CUDA where there is a device, else the CPU.
        dtype: "auto" is that of the checkpoint; the mini host computes in float32.
        attention: the model's own attention implementation.
    """

    model: str = MINI
    device: str = Field(default="auto", pattern=DEVICE)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"


def checked(model: type[Model], values: dict[str, Any], where: str | Path | None = None) -> Model:
    """`values` as a `model`; options that were not given (None) keep its defaults.

    Raises:
        UserError: a value that does not fit, or an unknown name; names the setting.
    """
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if not name:  # settings that do not go together
            raise UserError(_expected(first), where) from error
        raise UserError(f"{name}: {first['input']!r}", where, _expected(first)) from error


def checked_dataclass(kind: type[Plain], values: dict[str, Any], where: str | Path | None = None) -> Plain:
    """Like `checked`, for settings that are a plain dataclass. Raises UserError as it does."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise UserError(f"unknown setting {unknown[0]}", where, ", ".join(sorted(known)))
    try:
        # As from a record's file: of Python values, strictness wants an instance of the dataclass itself.
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name}: {first['input']!r}", where, _expected(first)) from error


def _expected(error: Any) -> str:
    context = error.get("ctx", {})
    if context.get("pattern") == DEVICE:
        return DEVICES
    return str(context.get("expected") or error["msg"].removeprefix("Input should be ").removeprefix("Value error, "))
