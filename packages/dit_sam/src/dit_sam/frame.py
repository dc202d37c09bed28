"""Where a picture lies in the padded square, and the way back for masks (sections 3 and 7).

    frame = fit(height=480, width=640, size=512)       # long side to 512, centred
    x = picture(image, frame)                          # [3, 512, 512], normalised, zeros around
    shown = foreground(mask, frame)                    # bool [480, 640], the paper's protocol

SAM itself pads at the right and below, and at 1024 pixels: its transform does not fit these models.

Two ways lead a prediction back to the picture's own size:

    official  threshold in the square, cut out, resize the 0/1 map with bilinear weights, and count every pixel that
              got any weight: edges grow by up to one pixel of the square. The published numbers are made so.
    smooth    cut out the logits, resize them, and threshold there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dit_sam.model import PIXEL_MEAN, PIXEL_STD
from tenfold import UserError


@dataclass(frozen=True)
class Frame:
    """A picture's place in the square.

    Attributes:
        height, width: of the picture. inner_height, inner_width: of its resized copy.
        top, left: where that lies. size: the square's edge. All in pixels.
    """

    height: int
    width: int
    inner_height: int
    inner_width: int
    top: int
    left: int
    size: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the picture in the square."""
        return self.left, self.top, self.left + self.inner_width, self.top + self.inner_height

    def cut(self, square: Tensor) -> Tensor:
        """The picture's part of [..., size, size]."""
        left, top, right, bottom = self.box
        return square[..., top:bottom, left:right]


def fit(height: int, width: int, size: int, long_side: int | None = None) -> Frame:
    """The frame of a picture: its long side to `long_side` (default: the square's edge), centred.

    Raises:
        UserError: a picture so narrow that nothing of it is left.
    """
    ratio = (long_side or size) / max(height, width)
    inner_width, inner_height = round(width * ratio), round(height * ratio)
    if not inner_width or not inner_height:
        raise UserError(f"a picture of {width} x {height} pixels", f"at {size} pixels", "sides less far apart")
    return Frame(height, width, inner_height, inner_width, (size - inner_height) // 2, (size - inner_width) // 2, size)


def picture(image: Image.Image, frame: Frame) -> Tensor:
    """An RGB image as the model takes it: resized with antialiasing, normalised, zeros around. [3, size, size]"""
    resized = image.resize((frame.inner_width, frame.inner_height), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div_(255)
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    return _pad((values - mean) / std, frame)


def target(mask: np.ndarray, frame: Frame) -> Tensor:
    """A mask as the loss takes it, [1, size, size] in [0, 1]: resized as the picture is, so its edges are soft.

    Args:
        mask: uint8 [height, width] of 0 and 1. As in the authors' files a 2, where polygons overlap, becomes 254 / 255.
    """
    grey = Image.fromarray(mask * np.uint8(255))
    resized = grey.resize((frame.inner_width, frame.inner_height), Image.Resampling.BILINEAR)
    return _pad(torch.from_numpy(np.array(resized))[None].float().div_(255), frame)


def _pad(inner: Tensor, frame: Frame) -> Tensor:
    square = torch.zeros(len(inner), frame.size, frame.size)
    frame.cut(square).copy_(inner)
    return square


def foreground(mask: np.ndarray, frame: Frame) -> np.ndarray:
    """A mask of the square at the picture's size, as the published numbers take it: bool [height, width].

    Where a pixel's bilinear weights reach a foreground pixel at all, it is foreground: OpenCV's resize and "> 0",
    without OpenCV. Positions are computed in float64; in float32 about one pixel in 10^5 comes out otherwise.

    Args:
        mask: bool [size, size].
    """
    left, top, right, bottom = frame.box
    inner = np.asarray(mask, dtype=bool)[top:bottom, left:right]
    rows = _touched(inner.T, frame.height).T
    return _touched(rows, frame.width)


def _touched(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize the last axis to `size`: a pixel is set when one that has weight in it is."""
    there = mask.shape[-1]
    place = (np.arange(size, dtype=np.float64) + 0.5) * (there / size) - 0.5
    first = np.floor(place).astype(np.int64)
    weight = place - first  # of the second of two neighbours; the first has 1 - weight, which is never 0
    outside = (first < 0) | (first >= there - 1)
    first = first.clip(0, there - 1)
    second = (first + 1).clip(max=there - 1)
    return mask[..., first] | (mask[..., second] & (weight > 0) & ~outside)


def to_picture(logits: Tensor, frame: Frame) -> Tensor:
    """Logits of the square, [..., size, size], at the picture's size, [..., height, width], by bilinear weights."""
    inner = frame.cut(logits).float()
    flat = inner.reshape(-1, 1, *inner.shape[-2:])
    resized = F.interpolate(flat, size=(frame.height, frame.width), mode="bilinear", align_corners=False)
    return resized.reshape(*inner.shape[:-2], frame.height, frame.width)
