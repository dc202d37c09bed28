"""Pictures in and out: whatever a caller has, as the VAE wants it, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tenfold import UserError
from tenfold.data.pictures import open_picture, require_size

# How far beyond [0, 1] arithmetic in half precision may have carried a value.
ROUNDING = 1e-2
Picture = Image.Image | np.ndarray | Tensor | str | Path


def as_image(picture: Picture) -> Image.Image:
    """One picture as PIL RGB.

    Args:
        picture: PIL in any mode, a file, ``[height, width, 3]`` uint8, or a tensor ``[3, height, width]`` in [0, 1].

    Raises:
        UserError: no picture, a broken file, or an array of another shape or type.
    """
    edges = picture.size if isinstance(picture, Image.Image) else getattr(picture, "shape", ())
    if 0 in edges:
        raise UserError("a picture without pixels", "image", "at least one row and one column")
    if isinstance(picture, Image.Image):
        require_size(picture.size, "image")
        try:
            return picture.convert("RGB")
        except OSError as error:  # a file that was opened, and is broken further on
            raise UserError(f"broken image ({error})", "image", "a complete picture") from error
    if isinstance(picture, str | Path):
        return open_picture(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(f"{picture.dtype} array of shape {picture.shape}", "image", "uint8 [height, width, 3]")
        return Image.fromarray(picture)
    if torch.is_tensor(picture):
        if not picture.is_floating_point() or picture.ndim != 3 or picture.shape[0] != 3:
            raise UserError(
                f"{picture.dtype} tensor of shape {list(picture.shape)}", "image", "float [3, height, width]"
            )
        if not picture.isfinite().all():
            raise UserError("a tensor with values that are not numbers", "image", "[0, 1]")
        low, high = float(picture.min()), float(picture.max())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise UserError(f"a tensor with values from {low:g} to {high:g}", "image", "[0, 1]")
        return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
    raise UserError(f"a picture of type {type(picture).__name__}", "image", "PIL, a file, an array or a tensor")


def as_images(pictures: Picture | Sequence[Picture]) -> list[Image.Image]:
    """One picture, a batch ``[images, ...]``, or a list of both, as a list. Errors as in `as_image`."""
    given = pictures if isinstance(pictures, list | tuple) else [pictures]
    pictures = []
    for one in given:
        batch = isinstance(one, np.ndarray | Tensor) and one.ndim == 4
        pictures += list(one) if batch else [one]  # type: ignore[arg-type,list-item]
    if not pictures:
        raise UserError("no picture", "image", "at least one")
    return [as_image(picture) for picture in pictures]


def to_tensor(images: Sequence[Image.Image], height: int, width: int) -> Tensor:
    """``[images, 3, height, width]`` float32 in [-1, 1]; squashed to the size with Pillow's bicubic filter."""
    resized = [np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images]
    # Contiguous: with channels last, convolutions on the CPU take another, less exact path.
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous().float() / 255 * 2 - 1


def from_tensor(values: Tensor, output_type: str) -> Any:
    """``[images, 3, height, width]`` in [-1, 1] as PIL images ("pil"), ``[images, height, width, 3]`` in [0, 1]
    ("np") or a tensor in [0, 1] ("pt")."""
    values = (values.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return values
    arrays = values.permute(0, 2, 3, 1).cpu().numpy()
    return arrays if output_type == "np" else _pictures(arrays)


def finished_as(finished: Any, output_type: str) -> Any:
    """What another pipeline gave as numbers in [0, 1], as asked for; PIL images, which some give anyway, as they are.

    Raises:
        UserError: numbers that are not finite.
    """
    if not isinstance(finished, np.ndarray | Tensor):
        return finished
    require_numbers(torch.as_tensor(finished), "finished pictures")
    return _pictures(finished) if output_type == "pil" else finished


def _pictures(arrays: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray((array * 255).round().astype("uint8")) for array in arrays]


def require_numbers(values: Tensor, what: str) -> Tensor:
    """The values, if they are finite: half precision can overflow, and a picture of NaN is black.

    Raises:
        UserError: they are not.
    """
    if not bool(values.isfinite().all()):
        raise UserError(f"{what} that are not finite", str(values.dtype), "float32, or bfloat16")
    return values


def masks_as(masks: Tensor, output_type: str) -> Any:
    """``[images, height, width]`` uint8 (0 or 255) as PIL in mode L ("pil"), bool arrays ("np") or a bool tensor."""
    if output_type == "pil":
        return [Image.fromarray(mask) for mask in masks.cpu().numpy()]
    return (masks.cpu().numpy() >= 128) if output_type == "np" else masks >= 128


# The authors' seed: every picture's noise is drawn from it when no generator is given.
SEED = 4623523532252


def one_of(name: str, given: Any, allowed: Sequence[str]) -> None:
    """Raises UserError for something else than what is allowed."""
    if given not in allowed:
        raise UserError(f"{name} {given!r}", name, " or ".join(f'"{one}"' for one in allowed))


def one_each(texts: Any, count: int, name: str) -> list[str]:
    """One text for all pictures, or one a picture, as a list."""
    if isinstance(texts, str):
        return [texts] * count
    if not isinstance(texts, Sequence):
        raise UserError(f"a {name} of type {type(texts).__name__}", name, "text, or a list of texts")
    if len(texts) != count:
        raise UserError(f"{len(texts)} texts for {count} pictures", name, "one for all, or one a picture")
    return list(texts)


def as_generators(given: Any, count: int) -> list[torch.Generator]:
    """One generator a picture; a single one is used by all of them in turn."""
    if given is None:
        return [torch.Generator().manual_seed(SEED) for _ in range(count)]
    generators = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(generators) != count:
        raise UserError(f"{len(generators)} generators for {count} pictures", "generator", "one, or one a picture")
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise UserError("something else than a generator", "generator", "torch.Generator, one, or one a picture")
    if any(one.device.type != "cpu" for one in generators):
        raise UserError("a generator on another device", "generator", 'torch.Generator("cpu"): seeds are drawn there')
    return generators
