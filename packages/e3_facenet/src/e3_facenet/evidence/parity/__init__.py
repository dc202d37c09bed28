"""Golden cases of the authors' code against this package: what computes each, and how near is near."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from e3_facenet.evidence.parity import modules, networks, training
from tenfold.ledger.evidence import Outcome
from tenfold.ledger.goldens import Computation
from tenfold.ledger.goldens import check_case as check
from tenfold.ledger.goldens import parity as of_package

COMPUTATIONS: Mapping[str, Computation] = {
    **modules.COMPUTATIONS,
    **networks.COMPUTATIONS,
    **training.COMPUTATIONS,
}


def check_case(path: str | Path) -> Outcome:
    """Compare one golden case; its tolerance stands in its json."""
    return check(path, COMPUTATIONS)


def parity(case: str) -> Outcome:
    """The check behind a claim of parity."""
    return of_package("e3_facenet", case, COMPUTATIONS)
