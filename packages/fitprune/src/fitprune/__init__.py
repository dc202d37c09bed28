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

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from fitprune.fitting import fit as fit
    from fitprune.pruner import Pruner as Pruner
    from fitprune.recipe import Recipe as Recipe

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"Pruner": "pruner", "Recipe": "recipe", "fit": "fitting"},
)
