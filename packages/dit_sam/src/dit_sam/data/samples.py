"""One item of a data set: a picture, what is said of an object in it, and the object's mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tenfold import UserError
from tenfold.data.formats.records import Picture


@dataclass(frozen=True)
class Sample:
    """An object with its sentences; unopened.

    Attributes:
        id: unique in its data set. A prediction's is this with the sentence's number: `sentence_id`.
        picture: the image file, opened on access.
        sentences: one or more.
        read_mask: gives the mask, uint8 [height, width], 0 outside; None: the sentence has no target.
        where: file and record, for messages.
    """

    id: str
    picture: Picture
    sentences: tuple[str, ...]
    read_mask: Callable[[], np.ndarray] | None
    where: str

    def sentence_id(self, number: int) -> str:
        """The id of one sentence."""
        return f"{self.id}/{number}"

    def image(self) -> Image.Image:
        """The decoded image, RGB, as the file has it. Raises UserError naming a broken file."""
        return self.picture.open()

    def mask(self, image: Image.Image) -> np.ndarray:
        """The mask of the picture's size, uint8 [height, width]; empty for a sentence without a target.

        Raises:
            UserError: a broken mask, or one of another size than the picture.
        """
        if self.read_mask is None:
            return np.zeros((image.height, image.width), dtype=np.uint8)
        mask = self.read_mask()
        if mask.shape != (image.height, image.width):
            what = f"a mask of {mask.shape[1]} x {mask.shape[0]} pixels"
            raise UserError(what, self.where, f"{image.width} x {image.height}, as its picture")
        return mask
