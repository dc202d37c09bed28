"""What a folder's json says of a model's sizes, checked before a model of them takes memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tenfold import UserError

_MOST_WIDTH, _MOST_LAYERS = 2**15, 200


def check_sizes(plain: Any, content: Any, path: Path, bounds: Mapping[str, int]) -> None:
    """Numbers and flags as in the dataclass `plain`, whole ones from 1 to `bounds` or to what a model may have.

    Raises:
        UserError: a name that is missing or unknown, or a value of another type or size.
    """
    names = [field.name for field in fields(plain)]
    if not isinstance(content, dict) or set(content) != set(names):
        raise UserError("config is of another form", path, ", ".join(names))
    for name, value in content.items():
        default = getattr(plain, name)
        if type(default) is int:
            most = bounds.get(name, _MOST_LAYERS if name.endswith(("layers", "groups", "heads")) else _MOST_WIDTH)
            if type(value) is not int or not 1 <= value <= most:
                raise UserError(f"{name} is {str(value)[:40]!r}", path, f"1 to {most}")
        elif type(default) is bool and type(value) is not bool:
            raise UserError(f"{name} is {str(value)[:40]!r}", path, "true or false")
        elif type(default) is float:
            number = type(value) in (int, float)
            if not number or not 0 <= value < (1 if name == "dropout" else 1e6):
                raise UserError(f"{name} is {str(value)[:40]!r}", path, "a number from 0 on")
        elif isinstance(default, str) and not isinstance(value, str):
            raise UserError(f"{name} is {str(value)[:40]!r}", path, "a text")


def check_sites(skip: Any, count: int, path: Path) -> None:
    """A list of what is skipped. Raises UserError for one that is none."""
    if not isinstance(skip, list) or any(type(site) is not int or not 0 <= site < count for site in skip):
        raise UserError(f"skip is {str(skip)[:40]!r}", path, f"numbers 0 to {count - 1}")


def check_divided(pairs: Sequence[tuple[int, int]], path: Path) -> None:
    """Every number is a multiple of its part. Raises UserError."""
    if any(number % part for number, part in pairs):
        raise UserError("widths, ranks or sizes that their parts do not divide", path, "multiples")
