"""LLaVA-HR: mixture-of-resolution adaptation for multi-modal large language models (Luo et al., ICLR 2025).

An image is read at two resolutions, and gated adapters write the fine features into the vision transformer, so that
1,024 pixels cost 1,024 visual tokens:

    import llava_hr

    model, processor = llava_hr.load("llava-hr-7b-sft-1024", dtype="bfloat16", device="cuda")  # the official folder
    inputs = processor(images="shelf.jpg", text=processor.prompt("What does the sign say?"), return_tensors="pt")
    answer = model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=64)
    print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

`import llava_hr.auto` makes transformers' Auto classes and pipelines know the model type `llava_hr`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_hr.configuration import LlavaHrConfig
    from llava_hr.loading import load
    from llava_hr.modeling import LlavaHrForConditionalGeneration
    from llava_hr.processing import LlavaHrProcessor

__version__ = "0.1.0"
__all__ = ["LlavaHrConfig", "LlavaHrForConditionalGeneration", "LlavaHrProcessor", "__version__", "load"]

_HOME = {
    "LlavaHrConfig": "llava_hr.configuration",
    "LlavaHrForConditionalGeneration": "llava_hr.modeling",
    "LlavaHrProcessor": "llava_hr.processing",
    "load": "llava_hr.loading",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line answers --help without loading torch.
    if name not in _HOME:
        raise AttributeError(f"module 'llava_hr' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
