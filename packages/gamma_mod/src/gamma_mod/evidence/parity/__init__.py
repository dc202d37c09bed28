"""Golden cases: the released code's inputs, weights and outputs, against this package.

`COMPUTATIONS` and `TOLERANCES` go to `tenfold.ledger.goldens`, which decides what agrees.
"""

from gamma_mod.evidence.parity import fusion, model
from tenfold.ledger.goldens import Computation

# The prose tolerances of the cases as (absolute, relative); decisions, tokens, ranks and lengths are exact.
TOLERANCES = {
    "forward": (1e-5, 1e-4),
    "model": (2e-5, 2e-4),
    "gradient norms": (1e-6, 1e-3),
    "loss after a step": (0.0, 1e-3),
    "maps": (1e-5, 0.0),
}
COMPUTATIONS: dict[str, Computation] = {
    "arank": model.arank,
    "llava_hr_fusion": fusion.llava_hr_fusion,
    "mgm_layer": model.mgm_layer,
    "mod_layer_infer": model.mod_layer_infer,
    "mod_layer_train": model.mod_layer_train,
    "tiny_model_generate": model.tiny_model_generate,
    "tiny_model_train": model.tiny_model_train,
}
