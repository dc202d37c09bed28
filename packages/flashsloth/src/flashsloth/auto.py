"""Make transformers' Auto classes and pipelines know FlashSloth.

    import flashsloth.auto
    from transformers import pipeline

    answer = pipeline("image-text-to-text", model="flashsloth-3.2b")

Configurations, models and the image processor register themselves when their modules are imported; the processor is
added here.
"""

from __future__ import annotations

from transformers import AutoProcessor

import flashsloth.modeling  # noqa: F401
from flashsloth.configuration import FlashSlothConfig
from flashsloth.processing import FlashSlothProcessor

AutoProcessor.register(FlashSlothConfig, FlashSlothProcessor, exist_ok=True)
