"""EAS: efficient attention skipping for multi-modal large language models (Wu et al., 2024).

A search finds the attentions that a task does not need; they go, with their weights and their KV cache, and a low-rank
linear module (PIA) takes their place:

    import eas
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf", dtype="bfloat16")
    skipper = eas.load("runs/aid20/adapters", model)          # what eas train or eas convert wrote
    model.generate(**inputs)                                  # 20 of 32 attentions, 20 cache slots
    skipper.detach()                                          # the model is as before
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from eas.adapters import PIA as PIA
    from eas.adapters import Adapter as Adapter
    from eas.checkpoints.load import load as load
    from eas.checkpoints.load import push_to_hub as push_to_hub
    from eas.checkpoints.load import save as save
    from eas.plan import Plan as Plan
    from eas.plan import released as released
    from eas.result import SearchResult as SearchResult
    from eas.search import Search as Search
    from eas.skipper import Skipper as Skipper

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Adapter": "adapters",
        "PIA": "adapters",
        "Plan": "plan",
        "Search": "search",
        "SearchResult": "result",
        "Skipper": "skipper",
        "load": "checkpoints.load",
        "push_to_hub": "checkpoints.load",
        "released": "plan",
        "save": "checkpoints.load",
    },
)
