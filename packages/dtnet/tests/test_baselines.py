"""The captions of the most similar training image: what a captioner must beat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dtnet.data.caption_data import CaptionData
from dtnet.data.captions import CaptionSet
from dtnet.data.grid_features import GridFeatures, write_grid_features
from dtnet.evaluation.baselines import nearest_caption_baseline, split_cider
from dtnet.vocabulary import Vocabulary

CAPTIONS = {
    0: ("a red kite", "a red kite above a beach", "some dog"),
    1: ("two cats", "two cats on a bed"),
    2: ("a bus",),
    8: ("two cats on a bed", "cats"),
    9: ("a red kite", "a kite"),
}


@pytest.fixture
def data(tmp_path: Path) -> CaptionData:
    """Image 8 looks like 1, image 9 like 0."""
    drawn = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0))
    grids = {0: drawn[0], 1: drawn[1], 2: drawn[2], 8: drawn[1] + 0.1, 9: drawn[0] - 0.1}
    write_grid_features(tmp_path / "features.h5", grids.items())
    captions = CaptionSet(CAPTIONS, {"train": (0, 1, 2), "val": (8, 9), "test": (9,)}, {})
    words = Vocabulary.build([text.split() for texts in CAPTIONS.values() for text in texts], 1)
    return CaptionData(captions, GridFeatures(tmp_path / "features.h5", rows=9), words, {})


def test_an_image_gets_a_caption_of_its_nearest_neighbour(data: CaptionData) -> None:
    """Fails if distance is taken for likeness, or captions change images."""
    found = nearest_caption_baseline(data, "val")
    assert found[8] in CAPTIONS[1] and found[9] in CAPTIONS[0]
    assert nearest_caption_baseline(data, "test") == {9: found[9]}


def test_the_caption_that_the_others_agree_with_is_taken(data: CaptionData) -> None:
    """Fails if the first caption is taken whatever it says, or a caption agrees with itself."""
    turned = {**CAPTIONS, 0: ("some dog", "a red kite above a beach", "a red kite")}
    other = CaptionData(CaptionSet(turned, data.captions.splits, {}), data.features, data.vocabulary, {})
    assert nearest_caption_baseline(other, "test")[9] != "some dog"
    assert nearest_caption_baseline(data, "test", neighbours=3)[9] != "some dog"


def test_captions_of_a_split_are_scored_against_its_references(data: CaptionData) -> None:
    """Fails if another split's references are taken."""
    right = {image_id: CAPTIONS[image_id][0] for image_id in (8, 9)}
    wrong = {8: CAPTIONS[9][0], 9: CAPTIONS[8][0]}
    assert split_cider(right, data, "val") > 100 > split_cider(wrong, data, "val")
