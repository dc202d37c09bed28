"""FitPrune: fast, training-free visual token pruning for multi-modal large language models (Ye et al., AAAI
2025).

Visual tokens are removed inside the decoder of a frozen vision-language model, layer by layer, by a recipe
that is fitted in minutes to a compute budget:

    import fitprune
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    processor = AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    recipe = fitprune.Recipe.released("llava-1.5-7b", 60)  # or fitprune.fit(model, processor, samples, 0.6)
    with fitprune.Pruner(recipe)(model):
        model.generate(**processor(images=image, text=prompt, return_tensors="pt"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitprune.fitting import fit
    from fitprune.pruner import Pruner
    from fitprune.recipe import Recipe

__version__ = "0.1.0"
__all__ = ["Pruner", "Recipe", "__version__", "fit"]

_HOME = {"Pruner": "fitprune.pruner", "Recipe": "fitprune.recipe", "fit": "fitprune.fitting"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line answers --help without loading torch.
    if name not in _HOME:
        raise AttributeError(f"module 'fitprune' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
