"""Golden cases: the frame in which a package compares itself with its paper's reference implementation.

A case is a json file that names its ``computation`` and all dimensions, with a safetensors file of inputs, weights and
outputs beside it, so that any folder of cases can be checked. A package hands in its ``computations`` and its
``tolerances``; what agrees, and what counts as a comparison at all, is decided here for all packages.

    COMPUTATIONS = {"router": _router}            # _router(case, tensors, compare)
    TOLERANCES = {"router": (1e-5, 1e-4)}         # absolute, relative
    outcome = check_case("tests/goldens/router.json", COMPUTATIONS, TOLERANCES)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tenfold.cli.files import find_package_file
from tenfold.errors import UserError
from tenfold.ledger.evidence import Outcome
from tenfold.ledger.text import small
from tenfold.runs import read_json

Tolerance = tuple[float, float]
NO_GOLDENS = Outcome(None, None, "golden data are in the source tree")
# A case of this name lists the names and shapes of official weights; it has no tensors.
OFFICIAL_KEYS = "official_keys"


class Comparison:
    """Collects what was compared: the largest difference, and every entry outside its tolerance.

    Args:
        tolerances: name -> (absolute, relative), for `close`.
    """

    def __init__(self, tolerances: Mapping[str, Tolerance] | None = None) -> None:
        self.tolerances = dict(tolerances or {})
        self.largest = 0.0
        self.compared = 0
        self.failures: list[str] = []

    def close(self, name: str, ours: Any, golden: Any, tolerance: str | Tolerance | float) -> None:
        """Tensors, arrays or numbers: every entry within absolute + relative x |golden|.

        Args:
            tolerance: a name among the tolerances, (absolute, relative), or the absolute one alone.
        """
        if isinstance(tolerance, str):
            tolerance = self.tolerances[tolerance]
        absolute, relative = tolerance if isinstance(tolerance, tuple) else (tolerance, 0.0)
        golden = torch.as_tensor(golden).detach().double()
        self.within(name, ours, golden, absolute + relative * golden.abs(), f"{absolute:g} + {relative:g} x")

    def within(self, name: str, ours: Any, golden: Any, allowed: Tensor, rule: str = "of each entry") -> None:
        """Every entry within its own tolerance; not a number is not within anything."""
        ours, golden = (torch.as_tensor(x).detach().double() for x in (ours, golden))
        if not self._comparable(name, ours, golden):
            return
        same = ours == golden  # also infinities
        difference = torch.where(same, 0.0, (ours - golden).abs())
        self.largest = max(self.largest, difference.max().item())
        # Infinity is within nothing but itself, whatever a relative tolerance makes of it.
        within = same | ((difference <= allowed) & golden.isfinite())
        if not bool(within.all()):
            self.failures.append(f"{name}: off by {difference.max().item():.2e} (tolerance {rule})")

    def close_as_a_whole(self, name: str, ours: Tensor, golden: Tensor, relative: float) -> None:
        """The norm of the difference over the golden norm."""
        if self._comparable(name, ours, golden):
            difference = ((ours.double() - golden.double()).norm() / golden.double().norm()).item()
            if not difference <= relative:
                self.failures.append(f"{name}: off by {difference:.2e} as a whole (tolerance {relative:g})")

    def grey_levels(self, name: str, ours: Tensor, golden: Tensor, most: int, within: int, share: float) -> None:
        """8-bit pictures: no pixel off by more than ``most``, at least ``share`` of them by at most ``within``."""
        if self._comparable(name, ours, golden):
            difference = (ours.int() - golden.int()).abs()
            near = (difference <= within).double().mean().item()
            if difference.max().item() > most or near < share:
                self.failures.append(f"{name}: {difference.max().item()} grey levels off, {near:.2%} within {within}")

    def equal(self, name: str, ours: Any, golden: Any) -> None:
        """Exactly equal, as Python values: decisions, tokens, texts and counts."""
        self.compared += 1
        ours, golden = (x.tolist() if isinstance(x, Tensor) else x for x in (ours, golden))
        if ours != golden:
            self.failures.append(f"{name}: {str(ours)[:80]}, golden {str(golden)[:80]}")

    def _comparable(self, name: str, ours: Tensor, golden: Tensor) -> bool:
        if ours.shape != golden.shape:
            self.compared += 1
            self.failures.append(f"{name}: shape {list(ours.shape)}, golden {list(golden.shape)}")
            return False
        if not golden.numel():
            return False  # of nothing, nothing is compared
        self.compared += 1
        return True

    def outcome(self) -> Outcome:
        """Passed when something was compared and nothing differs."""
        if self.failures:
            return Outcome(f"{len(self.failures)} of {self.compared} differ", False, "; ".join(self.failures[:5]))
        return Outcome(f"{self.compared} values agree", self.compared > 0, f"largest difference {small(self.largest)}")


Computation = Callable[[Mapping[str, Any], Mapping[str, Tensor], Comparison], None]


def check_case(
    path: str | Path,
    computations: Mapping[str, Computation],
    tolerances: Mapping[str, Tolerance] | None = None,
    *,
    without_tensors: Collection[str] = (OFFICIAL_KEYS,),
) -> Outcome:
    """Compare one golden case.

    A computation runs without gradients (those it needs it enables itself), and leaves torch's generator as it was.

    Args:
        path: the case's json file.
        computations: computation -> what compares it: takes the json, the tensors, and the `Comparison` to fill.
        tolerances: for `Comparison.close` by name.
        without_tensors: the computations whose cases are a json file alone.

    Raises:
        UserError: no such file, a computation that this package does not know, a case without its tensors, or one
            that compares nothing.
    """
    path = Path(path)
    case = read_json(path)
    computation = case.get("computation") if isinstance(case, dict) else None
    if computation not in computations:
        raise UserError(f"unknown computation {computation!r}", path, ", ".join(sorted(computations)))
    tensors = _Tensors(path.with_suffix(".safetensors"), computation in without_tensors)
    comparison = Comparison(tolerances)
    # Models are built before their golden weights go in; drawing those must not move the caller's generator.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        computations[str(computation)](case, tensors, comparison)
    if not comparison.compared:
        raise UserError("nothing to compare", path, "outputs of the reference implementation")
    return comparison.outcome()


class _Tensors(dict[str, Tensor]):
    """A case's tensors by name; one that is missing is named with its file."""

    def __init__(self, path: Path, optional: bool) -> None:
        self.path = path
        if not path.exists():
            if not optional:
                raise UserError("a golden case without its tensors", path, "the safetensors file beside the json")
            return
        try:
            super().__init__(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"not readable: {error}", path, "a safetensors file") from error

    def __missing__(self, name: str) -> Tensor:
        raise UserError(f"no tensor {name!r}", self.path, "what the case's json describes")


def find_cases(folder: str | Path) -> list[Path]:
    """The golden cases of a folder: json files with a ``computation`` (`OFFICIAL_KEYS` is none).

    Raises:
        UserError: there is none.
    """
    cases = []
    for path in sorted(Path(folder).glob("*.json")):
        case = read_json(path)
        if isinstance(case, dict) and case.get("computation") not in (None, OFFICIAL_KEYS):
            cases.append(path)
    if not cases:
        raise UserError("no golden case", folder, "json files that name their computation")
    return cases


def goldens(package: str) -> Path | None:
    """A package's folder of golden data: under `$TENFOLD_GOLDENS`, else its own; None in an installed wheel."""
    named = os.environ.get("TENFOLD_GOLDENS")
    return Path(named) / package if named else find_package_file(package, "tests/goldens")


def parity(
    package: str,
    case: str,
    computations: Mapping[str, Computation],
    tolerances: Mapping[str, Tolerance] | None = None,
) -> Outcome:
    """The check behind a claim of parity: one golden case of a package, by name."""
    folder = goldens(package)
    return NO_GOLDENS if folder is None else check_case(folder / f"{case}.json", computations, tolerances)
