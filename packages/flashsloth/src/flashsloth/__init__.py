"""FlashSloth: lightning multimodal large language models via embedded visual compression (Tong et al., CVPR 2025).

81 visual tokens an image instead of 729; nine query tokens behind a question look at all 729 patches once more:

    import flashsloth

    model, processor = flashsloth.load("Tongbo/FlashSloth-3.2B", dtype="bfloat16", device="cuda")  # as released
    inputs = processor(images="shelf.jpg", text=processor.prompt("What does the sign say?"), return_tensors="pt")
    answer = model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=64)
    print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

`import flashsloth.auto` makes transformers' Auto classes and pipelines know the model type `flashsloth`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from flashsloth.checkpoints.load import load as load
    from flashsloth.configuration import FlashSlothConfig as FlashSlothConfig
    from flashsloth.modeling import FlashSlothForConditionalGeneration as FlashSlothForConditionalGeneration
    from flashsloth.processing import FlashSlothProcessor as FlashSlothProcessor

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FlashSlothConfig": "configuration",
        "FlashSlothForConditionalGeneration": "modeling",
        "FlashSlothProcessor": "processing",
        "load": "checkpoints.load",
    },
)
