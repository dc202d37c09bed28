"""Settings: a YAML file (by path, or by the name of a shipped one), `--set key=value`, one checked model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tenfold.cli.files import find_package_file
from tenfold.errors import UserError
from tenfold.runs import read_yaml
from tenfold.runs.parse import parse_yaml
from tenfold.runs.record import validation_error

Model = TypeVar("Model", bound=BaseModel)


def load_config(model: type[Model], path_or_name: str | Path, overrides: Sequence[str] = ()) -> Model:
    """Read settings into `model`.

    Args:
        model: the pydantic model of the settings; the configs that ship with its package are found by name.
        path_or_name: a YAML file, or the name of a shipped one without `.yaml`.
        overrides: "key=value" or "key.inner=value", applied in order; values are YAML.

    Raises:
        UserError: no such file or name (lists the shipped ones); broken YAML; an unknown key (names it and
        the
            nearest known one); a value of the wrong type.
    """
    path = _resolve(model, path_or_name)
    values = read_yaml(path)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{type(values).__name__} instead of settings", path, "key: value lines")
    _refuse_unknown(model, values, str(path))
    for override in overrides:
        _apply(model, values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        where = f"{path} and --set {' '.join(overrides)}" if overrides else path
        raise validation_error(error, where, "valid settings") from error


def _resolve(model: type[BaseModel], path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    module = model.__module__.partition(".")[0]
    folder = find_package_file(module, "configs")
    shipped = sorted(file.stem for file in folder.glob("*.yaml")) if folder is not None else []
    if folder is None or path.name not in shipped:
        known = f"a .yaml file or one of: {', '.join(shipped)}" if shipped else "a .yaml file"
        raise UserError("no such config", path, known)
    return folder / f"{path.name}.yaml"


def _apply(model: type[BaseModel], values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError("not a setting", f"--set {override}", "key=value")
    value = parse_yaml(text, f"--set {override}")
    nested: dict[str, Any] = {}
    inner = nested
    *outer, last = key.split(".")
    for part in outer:
        inner[part] = {}
        inner = inner[part]
    inner[last] = value
    _refuse_unknown(model, nested, f"--set {override}")
    for part in outer:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value


def _refuse_unknown(model: type[BaseModel], values: dict[str, Any], where: str, prefix: str = "") -> None:
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, value in values.items():
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            near = f"{prefix}{nearest[0]}, perhaps" if nearest else "no settings here"
            raise UserError(f"unknown setting {prefix}{key}", where, near)
        inner = _inner_model(known[key].annotation)
        if inner is not None and isinstance(value, dict):
            _refuse_unknown(inner, value, where, f"{prefix}{key}.")


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The settings model in `Inner` or `Inner | None`; None where the field is no group of settings."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
