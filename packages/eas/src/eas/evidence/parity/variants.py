"""A golden file may hold one case, or several of one computation whose tensors stand behind ``<case>/``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tenfold.ledger.goldens import Comparison

KINDS = ("in/", "out/", "weights/")
Case = Callable[[Mapping[str, Any], Mapping[str, Tensor], Comparison], None]


class _Behind(dict[str, Tensor]):
    """The tensors behind a prefix; one that is missing is named by the file's own mapping."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
        self.tensors, self.prefix = tensors, prefix

    def __missing__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]


def each(compare_one: Case) -> Case:
    """Run a comparison for every case of a file."""

    def compare(case: Mapping[str, Any], tensors: Mapping[str, Tensor], comparison: Comparison) -> None:
        prefixes = {key.split("/", 1)[0] + "/" for key in tensors if not key.startswith(KINDS)}
        if not prefixes:
            compare_one(case, tensors, comparison)
        for prefix in sorted(prefixes):
            compare_one(_settings(case, prefix[:-1]), _Behind(tensors, prefix), comparison)

    return compare


def _settings(case: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The json of one of several cases: its own part where there is one, else what all share."""
    for shelf in ("cases", "config", "configs"):
        own = case.get(shelf, {})
        own = own.get(name) if isinstance(own, Mapping) else None
        if isinstance(own, Mapping):
            return own if "config" in own else {**case, "config": own}
    return case
