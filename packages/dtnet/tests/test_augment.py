"""The feature augmentation: the authors' four transforms, gates and rates, one draw a batch, nothing in place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as vision

from dtnet.training.augment import TRAINING, TRANSFORMS, _rotation, augment, crop, pepper_and_salt, pool, rotate
from tenfold import UserError
from tenfold.runs import sample_rng

GOLDENS = Path(__file__).parent / "goldens"
ALWAYS = 100.0


def batch(grid: int = 7) -> torch.Tensor:
    return torch.randn(3, grid * grid, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@pytest.mark.parametrize("grid", [7, 5])
def test_the_input_stays_as_it_was(name: str, grid: int) -> None:
    """The authors' pepper and salt writes into the batch. Fails if `clone` is left out."""
    features = batch(grid)
    before = features.clone()
    changed = TRANSFORMS[name](features, sample_rng(0, 0, 1), ALWAYS)
    assert torch.equal(features, before)
    assert (changed.shape, changed.dtype) == (features.shape, features.dtype)
    assert changed.data_ptr() != features.data_ptr()
    assert TRANSFORMS[name](features, sample_rng(0, 0, 1), -ALWAYS) is features


def test_the_same_batch_of_the_same_epoch_draws_the_same() -> None:
    """A resumed run goes on bit for bit. Fails if anything is drawn from a global generator."""
    features = batch()
    for index in range(20):
        np.random.seed(index)
        first = augment(features, sample_rng(3, 1, index))
        assert torch.equal(first, augment(features, sample_rng(3, 1, index)))
    drawn = [augment(features, sample_rng(3, 1, index)) for index in range(20)]
    assert len({one.sum().item() for one in drawn}) > 5


def test_the_gates_are_a_uniform_and_three_normal_draws() -> None:
    """Nominal p = 0.3: pepper and salt acts in 0.30 of its draws, the others in 0.618. 1,500 draws: sd < 0.013.

    Fails if one gate draws from the other distribution.
    """
    features = batch()[:1]
    for name in TRAINING:
        acted = sum(TRANSFORMS[name](features, sample_rng(0, 7, n), 0.3) is not features for n in range(1500)) / 1500
        assert acted == pytest.approx(0.3 if name == "pepper_and_salt" else 0.618, abs=0.04)


def test_about_half_of_the_batches_change() -> None:
    """0.48 by the golden data's own count. Fails if a gate, or the choice among the four, is another."""
    measured = json.loads((GOLDENS / "augmentation.json").read_text())["measured_fraction_changed_by_selector"]
    features = batch()
    changed = sum(not torch.equal(augment(features, sample_rng(0, 0, n)), features) for n in range(1500)) / 1500
    assert changed == pytest.approx(measured, abs=0.04)


def test_pepper_and_salt_are_the_extremes_of_the_batch() -> None:
    features = batch()
    changed = pepper_and_salt(features, sample_rng(0, 0, 0), ALWAYS)
    rows = (changed != features).any(-1)
    assert 8 <= int(rows.sum()) <= 14  # 2 x int(3 x 49 x 0.05), less those drawn twice
    for row in changed[rows]:
        assert (row == features.max()).all() or (row == features.min()).all()


def test_pooling_keeps_the_largest_of_four_cells() -> None:
    features = batch()
    changed = pool(features, sample_rng(0, 0, 0), ALWAYS).view(3, 7, 7, 5)
    maps = features.view(3, 7, 7, 5)
    assert torch.equal(changed[:, 0, 0], maps[:, :2, :2].amax((1, 2)))
    assert torch.equal(changed[:, 6, 6], maps[:, 4:6, 4:6].amax((1, 2)))


def test_crops_begin_in_the_first_or_second_row() -> None:
    """Fails if the window may begin at 2 as well, as 7 - 5 suggests."""
    numbers = torch.arange(49.0).view(1, 49, 1)
    corners = {int(crop(numbers, sample_rng(0, 0, n), ALWAYS)[0, 0]) for n in range(40)}
    assert corners == {0, 1, 7, 8}
    window = crop(numbers, sample_rng(0, 0, 0), ALWAYS).view(7, 7)
    assert len(set(window.flatten().tolist())) == 25


@pytest.mark.parametrize("grid", [3, 7, 8])
def test_rotation_is_torchvisions(grid: int) -> None:
    """All sixty angles, to the bit. Fails if the sign of the angle or the rounding between two cells is another."""
    features = batch(grid)
    maps = features.view(3, grid, grid, 5).permute(0, 3, 1, 2)
    for degrees in range(-30, 30):
        source, inside = _rotation(grid, degrees)
        expected = vision.rotate(maps, degrees).permute(0, 2, 3, 1).reshape(features.shape)
        assert torch.equal(features[:, source] * inside[:, None], expected)


def test_rotation_draws_whole_degrees_from_minus_30_to_29() -> None:
    drawn = set()

    class Rng:
        def standard_normal(self) -> float:
            return 0.0

        def integers(self, high: int) -> int:
            drawn.add(high)
            return high - 1

    changed = rotate(batch(), Rng(), 0.3)
    source, inside = _rotation(7, 29)
    assert drawn == {60} and torch.equal(changed, batch()[:, source] * inside[:, None])


def test_what_cannot_be_augmented_is_refused() -> None:
    rng = sample_rng(0, 0, 0)
    with pytest.raises(UserError, match=r"features \[2, 48, 4\]"):
        augment(torch.zeros(2, 48, 4), rng)
    with pytest.raises(UserError, match="grid >= 3"):
        augment(torch.zeros(2, 4, 4), rng)
    with pytest.raises(UserError, match="unknown augmentation: blur"):
        augment(batch(), rng, transforms=("blur",))
