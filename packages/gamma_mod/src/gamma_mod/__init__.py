"""gamma-MoD: mixture-of-depth adaptation for multimodal large language models (Luo et al., ICLR 2025).

A dense vision-language model becomes one whose layers let tokens pass by: ARank says which layers, a shared router
learns which tokens.

    import gamma_mod
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    ranks = gamma_mod.arank(model, samples)                       # samples: what the processor gives
    gamma_mod.convert(model, gamma_mod.select_layers(ranks), routing_ratio=0.5)
    ...                                                           # train as before: the loss includes the router's
    gamma_mod.calibrate(model.eval(), samples, skip=0.5)
    model.generate(**processor(images=image, text=prompt, return_tensors="pt"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamma_mod.cache import kv_lengths
    from gamma_mod.checkpoints.load import load, restore
    from gamma_mod.config import GammaModConfig
    from gamma_mod.conversion import Conversion, convert, train_only
    from gamma_mod.forward_pass import choosing
    from gamma_mod.placement import place, select_layers
    from gamma_mod.ranks import arank, head_ranks
    from gamma_mod.report import Calibration, Skips, calibrate, measure_skips

__version__ = "0.1.0"

_HOME = {
    "Calibration": "gamma_mod.report",
    "Conversion": "gamma_mod.conversion",
    "GammaModConfig": "gamma_mod.config",
    "Skips": "gamma_mod.report",
    "arank": "gamma_mod.ranks",
    "calibrate": "gamma_mod.report",
    "choosing": "gamma_mod.forward_pass",
    "convert": "gamma_mod.conversion",
    "head_ranks": "gamma_mod.ranks",
    "kv_lengths": "gamma_mod.cache",
    "load": "gamma_mod.checkpoints.load",
    "measure_skips": "gamma_mod.report",
    "place": "gamma_mod.placement",
    "restore": "gamma_mod.checkpoints.load",
    "select_layers": "gamma_mod.placement",
    "train_only": "gamma_mod.conversion",
}
__all__ = [
    "Calibration",
    "Conversion",
    "GammaModConfig",
    "Skips",
    "__version__",
    "arank",
    "calibrate",
    "choosing",
    "convert",
    "head_ranks",
    "kv_lengths",
    "load",
    "measure_skips",
    "place",
    "restore",
    "select_layers",
    "train_only",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line answers --help without loading torch.
    if name not in _HOME:
        raise AttributeError(f"module 'gamma_mod' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
