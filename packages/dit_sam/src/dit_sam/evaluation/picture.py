"""One result as pictures: a mask as PNG, and masks over the picture, a colour for each sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# Okabe and Ito's colours, told apart by most eyes.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_STRENGTH = 0.55


def mask_image(mask: np.ndarray) -> Image.Image:
    """bool [height, width] as a grey PNG of 0 and 255."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def overlay(image: Image.Image, masks: np.ndarray, texts: Sequence[str] = ()) -> Image.Image:
    """Masks, bool [n, height, width], over their picture; sentences in their colours below it."""
    values = np.array(image.convert("RGB"), dtype=np.float32)
    for mask, colour in zip(masks, _colours(len(masks)), strict=True):
        values[mask] = (1 - _STRENGTH) * values[mask] + _STRENGTH * np.array(colour, dtype=np.float32)
    shown = Image.fromarray(values.round().astype(np.uint8))
    if not texts:
        return shown
    row = 14
    sheet = Image.new("RGB", (max(shown.width, 240), shown.height + row * len(texts)), (255, 255, 255))
    sheet.paste(shown, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (text, colour) in enumerate(zip(texts, _colours(len(texts)), strict=True)):
        top = shown.height + i * row
        draw.rectangle((2, top + 2, 10, top + 10), fill=colour)
        # The built-in font has Latin letters only.
        draw.text((14, top), text.encode("latin-1", "replace").decode("latin-1"), fill=(0, 0, 0))
    return sheet


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
