"""InstDiffEdit: edit a picture from a prompt alone; the mask is found while denoising (AAAI 2024, arXiv 2401.07709).


pipe = InstDiffEditPipeline.from_pretrained("stable-diffusion-v1-4", inpaint="stable-diffusion-inpainting")
found = pipe("bear.jpg", "a raccoon")
found.images[0].save("raccoon.png")
found.masks[0].save("mask.png")
print(found.words[0].text, found.roles[0])  # 1: object, -1: background
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from inst_diff_edit.attention import AttentionRecorder as AttentionRecorder
    from inst_diff_edit.masks import InstantMask as InstantMask
    from inst_diff_edit.masks import instant_mask as instant_mask
    from inst_diff_edit.pipeline import InstDiffEditOutput as InstDiffEditOutput
    from inst_diff_edit.pipeline import InstDiffEditPipeline as InstDiffEditPipeline
    from inst_diff_edit.pixels import PixelAutoencoder as PixelAutoencoder
    from inst_diff_edit.words import Words as Words
    from inst_diff_edit.words import split_words as split_words

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "AttentionRecorder": "attention",
        "InstDiffEditOutput": "pipeline",
        "InstDiffEditPipeline": "pipeline",
        "InstantMask": "masks",
        "PixelAutoencoder": "pixels",
        "Words": "words",
        "instant_mask": "masks",
        "split_words": "words",
    },
)
