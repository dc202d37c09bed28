"""InstDiffEdit: edit a picture from a prompt alone; the mask is found while denoising (AAAI 2024, arXiv 2401.07709).

from inst_diff_edit import InstDiffEditPipeline

pipe = InstDiffEditPipeline.from_pretrained("stable-diffusion-v1-4", inpaint="stable-diffusion-inpainting")
found = pipe("bear.jpg", "a raccoon")
found.images[0].save("raccoon.png")
found.masks[0].save("mask.png")
print(found.words[0].text, found.roles[0])  # 1: object, -1: background
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inst_diff_edit.attention import AttentionRecorder
    from inst_diff_edit.masks import InstantMask, instant_mask
    from inst_diff_edit.mini import PixelAutoencoder
    from inst_diff_edit.pipeline import InstDiffEditOutput, InstDiffEditPipeline
    from inst_diff_edit.words import Words, split_words

__version__ = "0.1.0"

# Imported when asked for: diffusers takes seconds, which `inst-diff-edit --help` need not.
_HOMES = {
    "AttentionRecorder": "attention",
    "InstDiffEditOutput": "pipeline",
    "InstDiffEditPipeline": "pipeline",
    "InstantMask": "masks",
    "PixelAutoencoder": "mini",
    "Words": "words",
    "instant_mask": "masks",
    "split_words": "words",
}

__all__ = [
    "AttentionRecorder",
    "InstDiffEditOutput",
    "InstDiffEditPipeline",
    "InstantMask",
    "PixelAutoencoder",
    "Words",
    "instant_mask",
    "split_words",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
