"""Golden cases in tests: all of them, and proofs that a comparison can fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tenfold.errors import UserError
from tenfold.ledger.goldens import Computation, Tolerance, check_case, find_cases, goldens

Computations = Mapping[str, Computation]


def cases(package: str) -> list[Path]:
    """A package's cases, for `pytest.mark.parametrize`; none is a `UserError`."""
    folder = goldens(package)
    assert folder is not None, f"no golden data of {package}"
    return find_cases(folder)


def agrees(path: Path, computations: Computations, tolerances: Mapping[str, Tolerance] | None = None) -> None:
    """The case's outputs are ours."""
    outcome = check_case(path, computations, tolerances)
    assert outcome.passed, outcome.detail


def altered(case: Path, folder: Path, tensor: str, factor: float = 1.003) -> Path:
    """A copy of a case in which the largest entry of one tensor is off by a hair beyond its tolerance."""
    tensors = load_file(case.with_suffix(".safetensors"))
    flat = tensors[tensor].view(-1)
    index = flat.abs().argmax()
    flat[index] = flat[index] * factor if flat.is_floating_point() else flat[index] + 1
    save_file(tensors, folder / f"{case.stem}.safetensors")
    shutil.copy(case, folder / case.name)
    return folder / case.name


def noticed(path: Path, name: str, computations: Computations, tolerances: Mapping[str, Tolerance]) -> None:
    """An altered case fails, and says where."""
    outcome = check_case(path, computations, tolerances)
    assert not outcome.passed and name in outcome.detail, outcome


def one_number_counts(
    package: str,
    computations: Computations,
    tolerances: Mapping[str, Tolerance],
    folder: Path,
    numbers: Mapping[tuple[str, str], str],
    factor: float = 1.003,
) -> None:
    """The frame is strict (`frame_is_strict`), and a case with one number a hair off fails there, saying where.

    Args:
        folder: for broken cases.
        numbers: (a golden case's name, one of its tensors) -> words of the failure: which comparison it was.
        factor: as for `altered`.
    """
    frame_is_strict(package, computations, folder)
    paths = {path.stem: path for path in cases(package)}
    for (case, tensor), detail in numbers.items():
        noticed(altered(paths[case], folder, tensor, factor), detail, computations, tolerances)


def frame_is_strict(package: str, computations: Computations, folder: Path) -> None:
    """No case, an unknown computation, and a case without its tensors are failures, never agreement."""
    (folder / "notes.json").write_text("{}")
    with pytest.raises(UserError, match="no golden case"):
        find_cases(folder)
    _refused(folder, {"computation": "something_new"}, computations, "unknown computation 'something_new'")
    case = json.loads(cases(package)[0].read_text(encoding="utf-8"))
    _refused(folder, case, computations, "without its tensors")


def _refused(folder: Path, case: Any, computations: Computations, message: str) -> None:
    (folder / "new.json").write_text(json.dumps(case))
    with pytest.raises(UserError, match=message):
        check_case(folder / "new.json", computations)


def compares_nothing(case: Path, folder: Path, empty: Mapping[str, Any], computations: Computations) -> None:
    """A case whose list of sub-cases is emptied is refused.

    Args:
        empty: entries of the json that replace those of the case, such as ``{"cases": []}``.
    """
    changed = json.loads(case.read_text(encoding="utf-8")) | dict(empty)
    (folder / case.name).write_text(json.dumps(changed))
    shutil.copy(case.with_suffix(".safetensors"), folder)
    with pytest.raises(UserError, match="nothing to compare"):
        check_case(folder / case.name, computations)
