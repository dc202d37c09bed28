"""From a sample to what a step takes: one sentence, the picture and its mask, changed at random (section 6).

All draws of a sample in an epoch come from one stream of (seed, epoch, sample), so that a resumed training sees the
same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance
from torch import Tensor

from dit_sam.config import DITConfig
from dit_sam.data.samples import Sample
from dit_sam.data.words import swapped, swapped_words
from dit_sam.frame import fit, picture, target
from dit_sam.training.settings import AugmentSettings

# A factor of brightness, contrast and saturation is drawn from 1 - this to 1 + this.
STRENGTH = 0.4
# Each scale is so many pixels below the one before.
SCALE_STEP = 32


class Example(NamedTuple):
    """One item of a batch: picture [3, S, S], mask [1, S, S], sentence."""

    image: Tensor
    mask: Tensor
    sentence: str


def example(sample: Sample, config: DITConfig, settings: AugmentSettings, rng: np.random.Generator) -> Example:
    """A sample as training sees it this time.

    Raises:
        UserError: a broken picture or mask.
    """
    sentence = sample.sentences[rng.integers(len(sample.sentences))]
    image = sample.image()
    mask = sample.mask(image)
    long_side = config.input_size - SCALE_STEP * int(rng.integers(settings.scales))
    if rng.random() < settings.jitter:
        image = jitter(image, rng)
    if rng.random() < settings.flip:
        image, mask = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), np.ascontiguousarray(mask[:, ::-1])
        sentence = swapped(sentence) if settings.flip_text == "letters" else swapped_words(sentence)
    frame = fit(image.height, image.width, config.input_size, max(long_side, config.patch_size))
    return Example(picture(image, frame), target(mask, frame), sentence)


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Other brightness, contrast and saturation, in random order."""
    for kind in rng.permutation(3):
        factor = rng.uniform(1 - STRENGTH, 1 + STRENGTH)
        image = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind](image).enhance(factor)
    return image
