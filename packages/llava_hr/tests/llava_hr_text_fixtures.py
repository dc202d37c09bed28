"""A processor with tokenizers of every kind, made from the golden SentencePiece model."""

from __future__ import annotations

import functools
from pathlib import Path

from safetensors.torch import load_file

from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.processing import LlavaHrProcessor
from tenfold.testing.tokenizers import tokenizer

GOLDENS = Path(__file__).parent / "goldens"


@functools.cache
def sentencepiece_model() -> bytes:
    """The golden tokenizer: 420 pieces, bytes for what has none."""
    return load_file(GOLDENS / "conversation.safetensors")["in/tokenizer_model"].numpy().tobytes()


def processor(folder: Path, kind: str = "fast legacy", **options) -> LlavaHrProcessor:
    """At 32 pixels, with 4 visual tokens."""
    options = {"num_image_tokens": 4, **options}
    return LlavaHrProcessor(LlavaHrImageProcessor(size=32), tokenizer(kind, folder, sentencepiece_model()), **options)
