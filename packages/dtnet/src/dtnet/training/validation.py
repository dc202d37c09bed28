"""The score that decides which weights are kept: CIDEr-D of the captions of val, by beam search."""

from __future__ import annotations

from dtnet.data.caption_data import CaptionData
from dtnet.data.datasets import ImageDataset, collate_images
from dtnet.model import DTNet
from dtnet.training.settings import ValidationSettings
from tenfold.metrics.captions.coco import score_captions
from tenfold.metrics.captions.ptb import PtbTokeniser
from tenfold.runs.ranks import Ranks


class Validation:
    """Captions of val against their references.

    Args:
        settings: how captions are searched and turned into words.
        data: the data set.
        ranks: share the images.

    Raises:
        UserError: no images in val, or one without features; no Java for the tokens that are asked for (now, not after
            an epoch).
    """

    def __init__(self, settings: ValidationSettings, data: CaptionData, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.images = ImageDataset(data.features, data.captions.limit("val", settings.limit), "val")
        if settings.tokens == "ptb":
            with PtbTokeniser() as tokenise:
                tokenise(["a"])

    def captions(self, model: DTNet) -> dict[int, str]:
        """Image id -> caption, of all ranks."""
        captions: dict[int, str] = {}
        mine = range(self.ranks.rank, len(self.images), self.ranks.world)
        for start in range(0, len(mine), self.settings.batch):
            batch = collate_images([self.images[number] for number in mine[start : start + self.settings.batch]])
            features = batch.features.to(self.ranks.device)
            found = model.caption(features, beam_size=self.settings.beams, max_len=self.settings.max_len)
            captions |= {image_id: one.text for image_id, one in zip(batch.image_ids, found, strict=True)}
        merged: dict[int, str] = {}
        for part in self.ranks.gather(captions):
            merged |= part
        return merged

    def cider(self, model: DTNet) -> float:
        """CIDEr-D of val, times 100 as papers print it; every rank gets the same number."""
        captions = self.captions(model)
        score = 0.0
        if self.ranks.leads:
            scores = score_captions(captions, self.images.references, ("cider",), tokens=self.settings.tokens)
            score = scores.table["CIDEr-D"]
        return self.ranks.tell(score)
