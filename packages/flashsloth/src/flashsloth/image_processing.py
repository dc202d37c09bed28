"""Images to pixel values (sheet section 6): one picture, or five views in HD.

    >>> FlashSlothImageProcessor(size=384)("shelf.jpg", return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 384, 384])
    >>> FlashSlothImageProcessor(size=384, views=5)("shelf.jpg", return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 5, 3, 384, 384])

Resized by Pillow, on eight bits, as the models were trained: torchvision's bicubic differs by a grey level or more at
some pixels, so there is no such backend. An image becomes RGB by Pillow's `convert`, and its EXIF orientation is not
applied: both are what the official code does, and the published numbers were made so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from flashsloth.configuration import HD_VIEWS
from tenfold import UserError
from tenfold.hosts.processing import ImageLike, as_list, open_image

ASPECT_RATIOS = ("square", "pad", "crop")
GREY = (127, 127, 127)
BICUBIC = Image.Resampling.BICUBIC


class FlashSlothImageProcessor(BaseImageProcessor):
    """Squash to R x R, and normalise to [-1, 1]; in HD also four tiles of a square of twice the side.

    Args:
        size: R, or `{"height": R, "width": R}` as transformers writes it.
        views: 1, or 5 for HD.
        image_aspect_ratio: "square" squashes (the released models); "pad" pads to a square with grey 127 first;
            "crop" resizes the short side and takes the middle. The last two have one view only.
        kwargs: what transformers stores with an image processor; its switches cannot be turned off.

    Raises:
        UserError: an unknown aspect ratio, one that HD does not have, a size that is no positive integer, a switch
            turned off.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own name and form)

    def __init__(
        self,
        size: int | dict[str, int] = 384,
        views: int = 1,
        image_aspect_ratio: str = "square",
        **kwargs: Any,
    ) -> None:
        edge = _edge(size)
        for name, value in _FIXED.items():
            if (asked := kwargs.pop(name, value)) not in (value, None):
                raise UserError(f"{name} is {asked!r}", "FlashSlothImageProcessor", f"{value!r}, which is all it does")
        super().__init__(**kwargs)
        self.size = {"height": edge, "width": edge}
        self.views = views
        self.image_aspect_ratio = _aspect_ratio(image_aspect_ratio, views)
        for name, value in _FIXED.items():
            setattr(self, name, value)

    def preprocess(
        self,
        images: ImageLike | Sequence[ImageLike],
        image_aspect_ratio: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Pixel values of one image or a flat list of images.

        Args:
            images: paths, PIL images of any mode, or arrays `[height, width, 3]` of uint8.
            image_aspect_ratio: instead of the processor's own.
            return_tensors: "pt", "np", or None for a list of arrays.

        Returns:
            `pixel_values` `[images, 3, R, R]`, in HD `[images, 5, 3, R, R]`, float32.

        Raises:
            UserError: a missing, broken or empty file, an array of another shape or type.
        """
        edge = _edge(self.size)
        way = _aspect_ratio(image_aspect_ratio or self.image_aspect_ratio, self.views)
        pixels = []
        for image in map(open_image, as_list(images)):
            if self.views > 1:
                pixels.append(np.stack([normalised(view) for view in hd_views(image, edge)]))
            else:
                pixels.append(normalised(_ONE_VIEW[way](image, edge)))
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


def squash(image: Image.Image, edge: int) -> Image.Image:
    """Resized to a square, whatever its shape was."""
    return image.resize((edge, edge), BICUBIC)


def pad_to_square(image: Image.Image) -> Image.Image:
    """Pasted in the middle of a square of grey 127."""
    long = max(image.size)
    if image.size == (long, long):
        return image
    square = Image.new("RGB", (long, long), GREY)
    square.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
    return square


def crop_to_square(image: Image.Image, edge: int) -> Image.Image:
    """Resized to a short side of `edge`, then the middle of the long one."""
    short = min(image.size)
    width, height = (int(edge * side / short) for side in image.size)
    left, top = (width - edge) // 2, (height - edge) // 2
    return image.resize((width, height), BICUBIC).crop((left, top, left + edge, top + edge))


def hd_views(image: Image.Image, edge: int) -> list[Image.Image]:
    """The whole image squashed, then the tiles of a padded square of twice the side: top left, top right, below."""
    canvas = squash(pad_to_square(image), 2 * edge)
    corners = [(left, top) for top in (0, edge) for left in (0, edge)]
    tiles = [canvas.crop((left, top, left + edge, top + edge)) for left, top in corners]
    return [squash(image, edge), *tiles]


def normalised(image: Image.Image) -> np.ndarray:
    """``(u / 255 - 0.5) / 0.5``, as `[3, height, width]` float32, looked up for the 256 grey levels."""
    levels = ((np.arange(256, dtype=np.float32) / np.float32(255)) - np.float32(0.5)) / np.float32(0.5)
    return np.ascontiguousarray(levels[np.asarray(image)].transpose(2, 0, 1))


_ONE_VIEW: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "square": squash,
    "pad": lambda image, edge: squash(pad_to_square(image), edge),
    "crop": crop_to_square,
}
# What transformers lets one switch and this processor always does.
_FIXED: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": int(BICUBIC),
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _aspect_ratio(name: str, views: int) -> str:
    if name not in ASPECT_RATIOS:
        raise UserError(f"image_aspect_ratio {name!r}", None, ", ".join(ASPECT_RATIOS))
    if views not in (1, HD_VIEWS):
        raise UserError(f"views {views}", None, f"1, or {HD_VIEWS} for HD")
    if views > 1 and name != "square":
        raise UserError(f"image_aspect_ratio {name!r} with {views} views", None, "square: HD has no other")
    return name


def _edge(size: Any) -> int:
    """R of a size in any of transformers' spellings."""
    if isinstance(size, dict):
        sides = {value for value in size.values() if value is not None}
        size = sides.pop() if len(sides) == 1 else size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"image size {size!r}", None, 'a positive integer, or {"height": R, "width": R}')
    return size
