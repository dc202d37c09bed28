"""Images to pixel values (sheet section 6): one image processor, for the high resolution.

    >>> LlavaHrImageProcessor(size=1024)("shelf.jpg", return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 1024, 1024])

Resized by Pillow, on eight bits, as the models were trained: torchvision's bicubic differs by a grey level or more
at some pixels, so there is no such backend. An image in memory becomes RGB by Pillow's `convert` (transparency and
what is beyond eight bits are dropped) and is not turned: both are what the official code does. A file that is given by
its path is opened by `tenfold.data.pictures`: turned as its EXIF orientation says, more than eight bits scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from tenfold import UserError
from tenfold.hosts.processing import ImageLike, as_list, open_image

ASPECT_RATIOS = ("pad", "square")
# CLIP's statistics.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class LlavaHrImageProcessor(BaseImageProcessor):
    """Pad or crop to a square, resize to R x R, normalise.

    Args:
        size: R, or `{"shortest_edge": R}` as transformers writes it.
        image_aspect_ratio: "pad": paste in the middle of a square of the mean colour (stage 2 and the released models);
            "square": resize the short side, crop the middle (stage 1).
        image_mean, image_std: per channel, of pixels in [0, 1].
        do_rescale, rescale_factor: grey levels times a factor, 1 / 255; False leaves them at 0 to 255.
        do_normalize: less the mean, over the deviation. The models were trained with both.
        kwargs: what else transformers stores with an image processor; those switches cannot be turned off.

    Raises:
        UserError: an unknown aspect ratio, a size that is no positive integer, a switch that cannot be turned off, or
            one that is neither True nor False, a factor that is no finite number.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own name and form)

    def __init__(
        self,
        size: int | dict[str, int] = 1024,
        image_aspect_ratio: str = "pad",
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        edge = edge_of(size)
        fixed = {**_FIXED, "crop_size": {"height": edge, "width": edge}}
        for name, value in fixed.items():
            if (asked := kwargs.pop(name, value)) not in (value, None):
                raise UserError(f"{name} is {asked!r}", "LlavaHrImageProcessor", f"{value!r}, which is all it does")
        super().__init__(**kwargs)
        self.size = {"shortest_edge": edge}
        self.image_aspect_ratio = _aspect_ratio(image_aspect_ratio)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.do_rescale, self.do_normalize = _switch("do_rescale", do_rescale), _switch("do_normalize", do_normalize)
        self.rescale_factor = _factor(rescale_factor)
        for name, value in fixed.items():
            setattr(self, name, value)

    @property
    def image_size(self) -> int:
        """R."""
        return edge_of(self.size)

    @property
    def pad_colour(self) -> tuple[int, ...]:
        """The mean, rounded down: (122, 116, 104)."""
        return tuple(int(255 * mean) for mean in self.image_mean)

    def preprocess(
        self,
        images: ImageLike | Sequence[ImageLike],
        image_aspect_ratio: str | None = None,
        size: int | dict[str, int] | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Pixel values of one image or a flat list of images.

        Args:
            images: paths, PIL images of any mode, or arrays `[height, width, 3]` of uint8.
            image_aspect_ratio, size, do_rescale, rescale_factor, do_normalize: instead of the processor's own.
            return_tensors: "pt", "np", or None for a list of arrays.

        Returns:
            `pixel_values` `[images, 3, R, R]`, float32.

        Raises:
            UserError: a missing, broken or empty file, an array of another shape or type; options as of the class.
        """
        edge = edge_of(self.size if size is None else size)
        rescaled = _switch("do_rescale", self.do_rescale if do_rescale is None else do_rescale)
        normalised = _switch("do_normalize", self.do_normalize if do_normalize is None else do_normalize)
        factor = _factor(self.rescale_factor if rescale_factor is None else rescale_factor) if rescaled else 1.0
        table = self._table(factor, normalised)
        pad = _aspect_ratio(image_aspect_ratio or self.image_aspect_ratio) == "pad"
        pixels = []
        for image in map(open_image, as_list(images)):
            square = pad_to_square(image, edge, self.pad_colour) if pad else crop_to_square(image, edge)
            pixels.append(np.stack([table[channel][values] for channel, values in enumerate(_channels(square))]))
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _table(self, factor: float, normalised: bool) -> np.ndarray:
        """What becomes of the 256 grey levels of each channel, `[3, 256]`: a look-up takes two thirds of the time."""
        levels = (np.arange(256) * factor).astype(np.float32)[None].repeat(3, axis=0)
        if not normalised:
            return levels
        mean, std = (np.array(values, np.float32) for values in (self.image_mean, self.image_std))
        return (levels - mean[:, None]) / std[:, None]


def _channels(image: Image.Image) -> np.ndarray:
    """`[3, R, R]` uint8."""
    return np.moveaxis(np.asarray(image), -1, 0)


# What transformers lets one switch and this processor always does.
_FIXED: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": int(Image.Resampling.BICUBIC),
    "do_center_crop": True,
}


def pad_to_square(image: Image.Image, edge: int, colour: tuple[int, ...]) -> Image.Image:
    """Pasted in the middle of a square of one colour, then resized."""
    long = max(image.size)
    if image.size != (long, long):
        square = Image.new("RGB", (long, long), colour)
        square.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
        image = square
    return image.resize((edge, edge), Image.Resampling.BICUBIC)


def crop_to_square(image: Image.Image, edge: int) -> Image.Image:
    """Resized to a short side of `edge`, then the middle of the long one."""
    short = min(image.size)
    width, height = (int(edge * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - edge) // 2, (height - edge) // 2
    return image.crop((left, top, left + edge, top + edge))


def _aspect_ratio(name: str) -> str:
    if name not in ASPECT_RATIOS:
        raise UserError(f"image_aspect_ratio {name!r}", None, " or ".join(ASPECT_RATIOS))
    return name


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{name} {value!r}", "LlavaHrImageProcessor", "True or False")
    return value


def _factor(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"rescale_factor {value!r}", "LlavaHrImageProcessor", "a number, 1 / 255 as in training")
    return float(value)


def edge_of(size: Any) -> int:
    """R of a size in any of transformers' spellings."""
    if isinstance(size, dict):
        sides = {value for value in size.values() if value is not None}
        size = sides.pop() if len(sides) == 1 else size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"image size {size!r}", None, 'a positive integer, or {"shortest_edge": R}')
    return size
