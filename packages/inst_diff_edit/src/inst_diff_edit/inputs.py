"""Pictures in and out: whatever a caller has, as the VAE wants it, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tenfold import InputError
from tenfold.data.pictures import open_picture, require_size

# How far beyond [0, 1] arithmetic in half precision may have carried a value.
ROUNDING = 1e-2
Picture = Image.Image | np.ndarray | Tensor | str | Path


def as_image(picture: Picture) -> Image.Image:
    """One picture as PIL RGB.

    Args:
        picture: PIL in any mode, a file, an array ``[height, width, 3]`` uint8 or floating-point in [0, 1], or a tensor
            ``[3, height, width]`` in [0, 1].

    Raises:
        UserError: no picture, a broken file, or an array of another shape or type.
    """
    edges = picture.size if isinstance(picture, Image.Image) else getattr(picture, "shape", ())
    if 0 in edges:
        raise InputError("a picture without pixels", "image", "at least one row and one column")
    if isinstance(picture, Image.Image):
        require_size(picture.size, "image")
        try:
            return picture.convert("RGB")
        except OSError as error:  # a file that was opened, and is broken further on
            raise InputError(f"broken image ({error})", "image", "a complete picture") from error
    if isinstance(picture, str | Path):
        return open_picture(picture)
    if isinstance(picture, np.ndarray):
        floats = np.issubdtype(picture.dtype, np.floating)
        if not (floats or picture.dtype == np.uint8) or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(
                f"{picture.dtype} array of shape {picture.shape}",
                "image",
                "[height, width, 3], uint8 or floating-point in [0, 1]",
            )
        return (
            _rounded(torch.from_numpy(picture.astype(np.float32)), "an array") if floats else Image.fromarray(picture)
        )
    if torch.is_tensor(picture):
        if not picture.is_floating_point() or picture.ndim != 3 or picture.shape[0] != 3:
            raise InputError(
                f"{picture.dtype} tensor of shape {list(picture.shape)}", "image", "float [3, height, width]"
            )
        return _rounded(picture.permute(1, 2, 0), "a tensor")
    raise InputError(f"a picture of type {type(picture).__name__}", "image", "PIL, a file, an array or a tensor")


def _rounded(values: Tensor, what: str) -> Image.Image:
    """``[height, width, 3]`` in [0, 1] as a picture of 8 bits.

    Raises:
        InputError: values that are not numbers, or in another range.
    """
    if not values.isfinite().all():
        raise InputError(f"{what} with values that are not numbers", "image", "[0, 1]")
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InputError(f"{what} with values from {low:g} to {high:g}", "image", "[0, 1]")
    return Image.fromarray((values.clamp(0, 1) * 255).round().byte().cpu().numpy())


def as_images(pictures: Picture | Sequence[Picture]) -> list[Image.Image]:
    """One picture, a batch ``[images, ...]``, or a list of both, as a list. Errors as in `as_image`."""
    given = pictures if isinstance(pictures, list | tuple) else [pictures]
    pictures = []
    for one in given:
        batch = isinstance(one, np.ndarray | Tensor) and one.ndim == 4
        pictures += list(one) if batch else [one]  # type: ignore[arg-type,list-item]
    if not pictures:
        raise InputError("no picture", "image", "at least one")
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
        InputError: numbers that are not finite.
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
        InputError: they are not.
    """
    if not bool(values.isfinite().all()):
        raise InputError(f"{what} that are not finite", str(values.dtype), "float32, or bfloat16")
    return values


def masks_as(masks: Tensor, output_type: str) -> Any:
    """``[images, height, width]`` uint8 (0 or 255) as PIL in mode L ("pil"), bool arrays ("np") or a bool tensor."""
    if output_type == "pil":
        return [Image.fromarray(mask) for mask in masks.cpu().numpy()]
    return (masks.cpu().numpy() >= 128) if output_type == "np" else masks >= 128


# The authors' seed: every picture's noise is drawn from it when no generator is given.
SEED = 4623523532252


def one_of(name: str, given: Any, allowed: Sequence[str]) -> None:
    """Raises InputError for something else than what is allowed."""
    if given not in allowed:
        raise InputError(f"{name} {given!r}", name, " or ".join(f'"{one}"' for one in allowed))


def require_number(
    name: str, value: Any, expected: str, holds: Callable[[Any], bool], *, whole: bool = False, what: str = ""
) -> None:
    """Raises InputError for what is no number (a string, a bool), or one that does not hold.

    Args:
        expected: in words.
        what: more about the value, in the message.
    """
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise InputError(f"{name} {value!r} {what}".rstrip(), name, expected)


def one_each(texts: Any, count: int, name: str) -> list[str]:
    """One text for all pictures, or one a picture, as a list."""
    if isinstance(texts, str):
        return [texts] * count
    if not isinstance(texts, Sequence):
        raise InputError(f"a {name} of type {type(texts).__name__}", name, "text, or a list of texts")
    if len(texts) != count:
        raise InputError(f"{len(texts)} texts for {count} pictures", name, "one for all, or one a picture")
    return list(texts)


def as_generators(given: Any, count: int, edits: int = 1) -> list[torch.Generator]:
    """One generator for each of the ``edits`` of ``count`` pictures, a picture's side by side.

    None: the authors' seed for a picture's first edit, the next number for its next one. A single generator is used by
    all in turn, a picture's own by its edits.
    """
    if given is None:
        return [torch.Generator().manual_seed(SEED + edit) for _ in range(count) for edit in range(edits)]
    generators = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(generators) == count:
        generators = [one for one in generators for _ in range(edits)]
    if len(generators) != count * edits:
        raise InputError(f"{len(generators)} generators for {count} pictures", "generator", "one, or one a picture")
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise InputError("something else than a generator", "generator", "torch.Generator, one, or one a picture")
    if any(one.device.type != "cpu" for one in generators):
        raise InputError("a generator on another device", "generator", 'torch.Generator("cpu"): seeds are drawn there')
    return generators
