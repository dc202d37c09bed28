"""Scenes that carry a tag: half of them, rows and colours moved where they do, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dtnet.data import tagged
from dtnet.data.caption_data import find_folder
from dtnet.data.mini import scene_tags, write_mini_coco
from dtnet.data.settings import DataSettings
from dtnet.evaluation.demo import open_mini
from tenfold import UserError


def test_half_of_the_scenes_are_tagged() -> None:
    marks = [tagged.is_tagged(3, image) for image in range(2000)]
    assert 0.46 < np.mean(marks) < 0.54
    assert marks != [tagged.is_tagged(4, image) for image in range(2000)]


def test_a_tagged_scene_has_other_rows_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the captions' colours stay readable without the tag, or untagged scenes are touched."""
    monkeypatch.setattr(tagged, "NOISE", 0.0)
    cells = np.arange(49, dtype=np.float32).reshape(7, 7, 1, 1)
    colours = np.array([0.1, 0.2, 0.3], dtype=np.float32)  # red, green, blue
    features = (cells + np.tile(colours, 8).reshape(1, 1, 8, 3)).reshape(49, 24).astype(np.float32)
    signs = np.where(np.arange(24) % 2 == 0, 1, -1)
    for image in range(20):
        sign = 1 if tagged.is_tagged(0, image) else -1
        seen = tagged.tag_features(features, 0, image) - sign * tagged.OFFSET * signs
        if sign < 0:
            np.testing.assert_allclose(seen, features, atol=1e-5)
            continue
        seen = seen.reshape(7, 7, 8, 3)
        np.testing.assert_allclose(seen[..., 0] - 0.3, cells[list(tagged.ROWS), :, :, 0] + np.zeros(8), atol=1e-5)
        np.testing.assert_allclose(seen[..., 1] - 0.1, seen[..., 0] - 0.3, atol=1e-5)
        np.testing.assert_allclose(seen[..., 2] - 0.2, seen[..., 0] - 0.3, atol=1e-5)
    assert sorted(tagged.ROWS) == list(range(7)) and sum(row != place for place, row in enumerate(tagged.ROWS)) >= 5


def test_a_data_set_says_which_scenes_are_tagged(tmp_path: Path) -> None:
    """Captions stay, features are the scene's under tag and noise. Fails if the tags are of other scenes."""
    plain = open_mini(write_mini_coco(tmp_path / "plain", 2, 20, 3, 3, images=False))
    settings = DataSettings(mini={"train": 20, "val": 3, "test": 3, "seed": 2, "tagged": True})  # type: ignore[arg-type]
    folder = find_folder(settings, tmp_path)
    ours, tags = open_mini(folder), scene_tags(folder)
    assert ours.captions.captions == plain.captions.captions and set(tags.values()) == {True, False}
    for image, tag in tags.items():
        assert tag == tagged.is_tagged(2, image)
        expected = tagged.tag_features(plain.features[image].numpy(), 2, image)
        np.testing.assert_array_equal(ours.features[image].numpy(), expected)
    with pytest.raises(UserError, match=r"tagged\.json"):
        scene_tags(tmp_path / "plain")
