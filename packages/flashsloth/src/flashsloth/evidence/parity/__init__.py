"""Golden cases: the reference implementation's inputs, weights and outputs, against this package.

All dimensions are read from the json of a case, so that any folder of cases can be checked. Weights carry official
names and come in through `checkpoints.keys`.
"""

from __future__ import annotations

from pathlib import Path

from flashsloth.evidence.parity.common import TOLERANCES
from flashsloth.evidence.parity.data import data
from flashsloth.evidence.parity.model import tiny_model
from flashsloth.evidence.parity.modules import modules
from tenfold.ledger import Outcome
from tenfold.ledger.goldens import Computation
from tenfold.ledger.goldens import check_case as check

COMPUTATIONS: dict[str, Computation] = {"modules": modules, "data": data, "tiny_model": tiny_model}


def check_case(path: str | Path) -> Outcome:
    """Compare one golden case: its json file, with the tensors beside it."""
    return check(path, COMPUTATIONS, TOLERANCES)


__all__ = ["COMPUTATIONS", "TOLERANCES", "check_case"]
