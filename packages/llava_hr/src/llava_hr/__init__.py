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

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from llava_hr.checkpoints.load import load as load
    from llava_hr.configuration import LlavaHrConfig as LlavaHrConfig
    from llava_hr.modeling import LlavaHrForConditionalGeneration as LlavaHrForConditionalGeneration
    from llava_hr.processing import LlavaHrProcessor as LlavaHrProcessor

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "LlavaHrConfig": "configuration",
        "LlavaHrForConditionalGeneration": "modeling",
        "LlavaHrProcessor": "processing",
        "load": "checkpoints.load",
    },
)
