"""What processors of vision-language models have in common: images and texts as a user gives them, checked.

images = [open_image(one) for one in flat_images(images)]
check_counts(texts, images)                            # as many `<image>` as images
rows = pad_rows(ids, pad, **padding_of(options))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
from PIL import Image

from tenfold.data.conversation import IMAGE
from tenfold.data.formats import Turn
from tenfold.data.formats.records import Fields
from tenfold.data.pictures import open_picture, require_size
from tenfold.errors import InputError

ImageLike = str | PathLike[str] | Image.Image | np.ndarray


def open_image(image: ImageLike) -> Image.Image:
    """An image as RGB.

    Raises:
        InputError: a missing, broken or empty file, an array of another shape or type, something that is no image.
    """
    if isinstance(image, (str, PathLike)):
        return open_picture(fspath(image))
    if isinstance(image, Image.Image):
        require_size(image.size, getattr(image, "filename", None) or repr(image))
        try:
            return image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:  # opened lazily and cut off, or a mode that cannot be RGB
            raise InputError(
                f"an image that cannot become RGB ({error})", getattr(image, "filename", None) or repr(image)
            ) from error
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image of type {type(image).__name__}", None, "a path, a PIL image or an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"array {list(image.shape)} of {image.dtype}", None, "[height, width, 3] of uint8")
    return Image.fromarray(image)


def as_list(images: Any) -> list[Any]:
    """One image or several, as a list."""
    return list(images) if isinstance(images, (list, tuple)) else [images]


def flat_images(images: Any) -> list[Any]:
    """One image, a list, or a list of lists, as a list."""
    if images is None:
        return []
    return [image for row in as_list(images) for image in as_list(row) if image is not None]


def read_turn(values: Any, where: str | None) -> Turn:
    said = Fields(values, where or "a conversation")
    return Turn(said.text("from"), said.text("value"))


def padding_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """`pad_rows`' arguments of a call's options."""
    padding, side = options["padding"], options["padding_side"]
    lengths = {True: None, "longest": None, False: 0, "do_not_pad": 0, "max_length": options["max_length"]}
    if padding not in lengths or side not in ("left", "right"):
        raise InputError(f"padding {padding!r} on the {side!r}", None, f"{', '.join(map(str, lengths))}; left or right")
    return {"side": side, "length": lengths[padding]}


def check_counts(texts: Sequence[str], images: Any) -> None:
    marks = [text.count(IMAGE) for text in texts]
    rows = as_list(images) if images is not None else []
    if rows and all(isinstance(row, (list, tuple)) for row in rows):
        if len(rows) != len(texts):
            raise InputError(f"{len(rows)} lists of images for {len(texts)} prompts", None, "one list for each prompt")
        for number, (mark, row) in enumerate(zip(marks, rows, strict=True)):
            if mark != len(row):
                raise InputError(f"{mark} {IMAGE} and {len(row)} images", f"prompt {number}", "as many of both")
    elif sum(marks) != len(rows):
        raise InputError(f"{sum(marks)} {IMAGE} and {len(rows)} images", None, "as many of both")


def check_lengths(rows: Sequence[Sequence[int]], options: Mapping[str, Any]) -> None:
    """With `truncation`, rows must fit `max_length` as they are: cutting would lose an image or the question.

    Raises:
        InputError: a row that would be cut, or another kind of truncation.
    """
    if options["truncation"] not in (True, False, "longest_first", "do_not_truncate"):
        raise InputError(f"truncation {options['truncation']!r}", None, "True or False")
    if options["truncation"] in (False, "do_not_truncate") or options["max_length"] is None:
        return
    for number, row in enumerate(rows):
        if len(row) > options["max_length"]:
            where = f"prompt {number} of {len(row)} tokens, visual ones included"
            raise InputError("prompts are not cut", where, f"at most {options['max_length']}, or truncation=False")


def call_options(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a processor's call, plain or in groups as transformers sorts them; None is as if not given.

    Args:
        given: of the call; `common_kwargs`, `text_kwargs` and `images_kwargs` hold the same.
        defaults: every option that there is.
        where: the processor, for messages.

    Raises:
        InputError: an option that there is not (names those that there are), or one that is given twice.
    """
    options = dict(defaults)
    seen: set[str] = set()
    grouped = [dict(given.get(name) or {}) for name in ("common_kwargs", "text_kwargs", "images_kwargs")]
    plain = {name: value for name, value in given.items() if not name.endswith("_kwargs")}
    for group in (*grouped, plain):
        asked = {name: value for name, value in group.items() if value is not None}
        if unknown := sorted(set(asked) - set(options)):
            raise InputError(f"unknown option {unknown[0]!r}", where, ", ".join(options))
        if twice := sorted(set(asked) & seen):
            raise InputError(f"option {twice[0]!r} is given twice", where, "once, plain or in a group")
        seen |= set(asked)
        options |= asked
    return options
