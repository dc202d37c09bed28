"""What the tower made of the latest pictures: several questions about one need it once.

seen = SeenPictures(model, processor)
inputs = seen.inputs(texts, pictures)                      # pictures: one a prompt, or None
model.generate(**inputs)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flashsloth.looking import ImageFeatures
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from tenfold.data.formats import Picture
from tenfold.data.instruct import pad_rows

LATEST = 16  # pictures that are kept; in HD and bfloat16 10 MB each


class SeenPictures:
    """Inputs of prompts, with features of their pictures that are made once.

    Each picture goes through the tower alone: its features do not depend on which questions share a batch.
    """

    def __init__(self, model: FlashSlothForConditionalGeneration, processor: FlashSlothProcessor) -> None:
        self.model, self.processor = model, processor
        self.kept: dict[Any, ImageFeatures] = {}

    @torch.inference_mode()
    def inputs(self, texts: Sequence[str], pictures: Sequence[Picture | None]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` `[batch, tokens]`, padded on the left, and `image_features`, if any.

        Args:
            texts: prompts, with one `<image>` where there is a picture.
            pictures: one a prompt; None: it is about none.

        Raises:
            UserError: a broken image.
        """
        rows = [self.processor.ids(text) for text in texts]
        padded = pad_rows(rows, self.processor.tokenizer.pad_token_id, side="left")
        device = self.model.device
        made: dict[str, Any] = {name: torch.tensor(values, device=device) for name, values in padded.items()}
        if found := [self._features(picture) for picture in pictures if picture is not None]:
            made["image_features"] = ImageFeatures(
                torch.cat([one.patches for one in found]), torch.cat([one.visual_tokens for one in found])
            )
        return made

    def _features(self, picture: Picture) -> ImageFeatures:
        key = picture.source if isinstance(picture.source, Path) else id(picture.source)
        features = self.kept.pop(key, None)
        if features is None:
            pixels = self.processor(images=picture.open(), return_tensors="pt")["pixel_values"]
            features = self.model.encode_images(pixels.to(self.model.device, self.model.dtype))
        self.kept[key] = features  # the latest stand last
        while len(self.kept) > LATEST:
            del self.kept[next(iter(self.kept))]
        return features
