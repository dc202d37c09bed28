"""Public names of a package that are imported on first use, so that its command line answers --help without torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package's ``__init__`` needs: ``__getattr__, __dir__, __all__ = lazy(__name__, {...})``.

    Args:
        package: its ``__name__``.
        homes: public name -> the module below the package that defines it, e.g. ``{"Pruner": "pruner"}``.

    Returns:
        The module's ``__getattr__`` and ``__dir__``, and the public names (``__version__`` among them), sorted.
    """
    public = sorted([*homes, "__version__"])

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return attribute, lambda: public, public
