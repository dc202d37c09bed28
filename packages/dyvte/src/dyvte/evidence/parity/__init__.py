"""Golden cases: inputs, weights and outputs of the released code, against this package."""

from dyvte.evidence.parity.inference import COMPUTATIONS as _INFERENCE
from dyvte.evidence.parity.training import COMPUTATIONS as _TRAINING

COMPUTATIONS = _INFERENCE | _TRAINING
# The cases' tolerances as (absolute, relative). Decisions, tokens, lengths and positions are compared exactly.
TOLERANCES = {
    "gate": (1e-5, 1e-5),
    "states": (2e-4, 1e-4),
    "training": (2e-4, 1e-3),
    "step": (1e-7, 0.0),
    "attention": (1e-5, 1e-4),
    "profile": (2e-5, 1e-4),
}
