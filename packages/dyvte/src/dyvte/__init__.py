"""DyVTE: dynamic visual-token exit for multi-modal large language models (Wu et al., NeurIPS 2025).

Past some layer, a different one for every question, the visual tokens no longer change the answer. Small gates find it,
and all visual tokens leave there:

    import dyvte
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    gates = dyvte.load_gates("gates/")                       # dyvte train makes them; none are released
    with dyvte.VisualExit(gates)(model) as exit:
        model.generate(**processor(images=image, text=prompt, return_tensors="pt"))
        print(exit.exit_layers())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dyvte.branches import LabelRule
    from dyvte.calibration import calibrate
    from dyvte.checkpoints.load import load_gates, save_gates
    from dyvte.exits import VisualExit
    from dyvte.fastv import FastV
    from dyvte.gates import GateConfig, Gates

__version__ = "0.1.0"
__all__ = [
    "FastV",
    "GateConfig",
    "Gates",
    "LabelRule",
    "VisualExit",
    "__version__",
    "calibrate",
    "load_gates",
    "save_gates",
]

_HOME = {
    "FastV": "dyvte.fastv",
    "GateConfig": "dyvte.gates",
    "Gates": "dyvte.gates",
    "LabelRule": "dyvte.branches",
    "VisualExit": "dyvte.exits",
    "calibrate": "dyvte.calibration",
    "load_gates": "dyvte.checkpoints.load",
    "save_gates": "dyvte.checkpoints.load",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line answers --help without loading torch.
    if name not in _HOME:
        raise AttributeError(f"module 'dyvte' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
