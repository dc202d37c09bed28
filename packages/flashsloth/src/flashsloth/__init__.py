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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashsloth.checkpoints.load import load
    from flashsloth.configuration import FlashSlothConfig
    from flashsloth.modeling import FlashSlothForConditionalGeneration
    from flashsloth.processing import FlashSlothProcessor

__version__ = "0.1.0"
__all__ = ["FlashSlothConfig", "FlashSlothForConditionalGeneration", "FlashSlothProcessor", "__version__", "load"]

_HOME = {
    "FlashSlothConfig": "flashsloth.configuration",
    "FlashSlothForConditionalGeneration": "flashsloth.modeling",
    "FlashSlothProcessor": "flashsloth.processing",
    "load": "flashsloth.checkpoints.load",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line answers --help without loading torch.
    if name not in _HOME:
        raise AttributeError(f"module 'flashsloth' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
