"""Golden cases: the reference implementation's inputs, weights and outputs, against this package.

A case is a json file that names its computation and dimensions, with a safetensors file beside it.
"""

from __future__ import annotations

from dit_sam.evidence.parity import data, model
from tenfold.ledger import goldens
from tenfold.ledger.evidence import Outcome

COMPUTATIONS = {**model.COMPUTATIONS, **data.COMPUTATIONS}
# The tolerances of the cases, as (absolute, relative). Masks, counts, tokens and files are compared exactly.
TOLERANCES = {
    "encoder": (2e-5, 1e-4),
    "forward": (2e-4, 1e-4),
    "losses": (0.0, 1e-5),
    "rates": (0.0, 1e-9),
    "pictures": (1e-6, 0.0),
    "metrics": (1e-6, 0.0),
}


def parity(case: str) -> Outcome:
    """A golden case by name, for a claim."""
    return goldens.parity("dit_sam", case, COMPUTATIONS, TOLERANCES)
