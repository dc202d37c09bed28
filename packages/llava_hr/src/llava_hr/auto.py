"""Make transformers' Auto classes and pipelines know LLaVA-HR.

    import llava_hr.auto
    from transformers import pipeline

    answer = pipeline("image-text-to-text", model="llava-hr-7b")

Configurations, models and the image processor register themselves when their modules are imported; the processor is
added here.
"""

from __future__ import annotations

from transformers import AutoProcessor

import llava_hr.modeling  # noqa: F401
from llava_hr.configuration import LlavaHrConfig
from llava_hr.processing import LlavaHrProcessor

AutoProcessor.register(LlavaHrConfig, LlavaHrProcessor, exist_ok=True)
