"""Pillow's resize on tensors, and the mask's own rules."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inst_diff_edit.evaluation.baselines import GAUSSIAN
from inst_diff_edit.masks import BACKGROUND, OBJECT, blur, decide_roles, instant_mask, stretch
from inst_diff_edit.resize import resize

EDGES = st.integers(2, 40)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(EDGES, EDGES, st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_resize_equals_pillow_bit_for_bit(rows, columns, factor, enlarge, seed):
    """Fails if the columns go first, if pixels are not rounded between the passes, or a coefficient is off by one."""
    picture = np.random.default_rng(seed).integers(0, 256, (rows, columns), dtype=np.uint8)
    scale = factor if enlarge else 1 / factor
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    if height * columns != width * rows:  # Pillow 13 may take the columns first where the edges scale differently
        height, width = rows * factor, columns * factor
    golden = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    assert np.array_equal(resize(torch.from_numpy(picture), height, width).numpy(), golden)


@pytest.mark.parametrize("size", [(16, 64), (64, 64), (64, 12), (64, 512), (64, 96)])
def test_the_sizes_of_the_method_equal_pillow(size):
    picture = np.random.default_rng(0).integers(0, 256, (size[0], size[0]), dtype=np.uint8)
    golden = np.asarray(Image.fromarray(picture).resize((size[1], size[1])))
    assert np.array_equal(resize(torch.from_numpy(picture), size[1], size[1]).numpy(), golden)


def bump(row: float, column: float, edge: int = 16, wide: float = 2.0) -> torch.Tensor:
    """A map with one hill."""
    places = torch.arange(edge, dtype=torch.float32)
    return torch.exp(-((places[:, None] - row) ** 2 + (places - column) ** 2) / (2 * wide**2)) + 0.01


def weights_of(words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a word, between start and end."""
    is_word = torch.zeros(1, words + 2, dtype=torch.bool)
    is_word[0, 1:-1] = True
    return torch.eye(words + 2)[None], is_word


def maps(*hills: torch.Tensor) -> torch.Tensor:
    """``[1, 16, 16, words + 2]``: the start token attends to everything but the first hill's place."""
    start = 1.02 - hills[0]
    return torch.stack([start, *hills, torch.full_like(start, 0.5)], -1)[None]


def test_the_word_like_the_inverted_start_is_the_object_and_an_unlike_one_the_background():
    """Fails if the start map is not inverted, or if object and background are exchanged."""
    found = instant_mask(maps(bump(4, 4), bump(12, 12)), *weights_of(2))
    assert found.roles.tolist() == [[0, OBJECT, BACKGROUND, 0]]
    mask = found.mask[0] > 0
    assert mask[16, 16] and not mask[48, 48]


def test_the_background_word_is_subtracted():
    """Fails if refined is the object's mean alone."""
    both = torch.maximum(bump(4, 4), 0.8 * bump(12, 12))
    found = instant_mask(maps(both, bump(12, 12)), *weights_of(2), background_threshold=0.75)
    assert found.roles.tolist() == [[0, OBJECT, BACKGROUND, 0]]
    assert found.refined[0, 50, 50] == 0 and found.refined[0, 18, 18] > 0.5


def test_one_word_is_its_own_map_without_asking_the_start_token():
    found = instant_mask(maps(bump(12, 4)), *weights_of(1))
    assert found.roles.tolist() == [[0, OBJECT, 0]]
    assert found.mask[0, 50, 18] == 255 and found.mask[0, 4, 60] == 0


def flat_pictures(*rows):
    """``[1, words + 2, 1, 4]`` from four pixels each: start, words, end."""
    is_word = torch.zeros(1, len(rows), dtype=torch.bool)
    is_word[0, 1:-1] = True
    return torch.tensor(rows, dtype=torch.uint8).view(1, len(rows), 1, 4), is_word


def test_one_word_is_the_object_even_if_the_start_token_has_nothing_in_common_with_it():
    """Fails if a single word needs a reference."""
    roles, _, _ = decide_roles(*flat_pictures([255, 255, 0, 0], [0, 0, 9, 255], [1, 1, 1, 1]), 0.9, 0.6)
    assert roles.tolist() == [[0, OBJECT, 0]]


def test_without_a_word_like_the_start_there_is_no_reference_and_no_role():
    """Its likeness must be above zero. Fails if zero is enough."""
    roles, likeness, _ = decide_roles(
        *flat_pictures([255, 255, 0, 0], [0, 0, 9, 255], [0, 0, 255, 0], [1, 1, 1, 1]), 0.9, 0.6
    )
    assert not roles.any() and not likeness[0, 1:3].any()


def test_a_word_exactly_at_a_threshold_has_its_role():
    """Cosine 0 at threshold 0, cosine 0.8 at 0.8. Fails if "at most" becomes "below", or "at least" "above"."""
    rows = ([200, 100, 0, 0], [200, 0, 0, 0], [0, 0, 0, 90], [1, 1, 1, 1])
    assert decide_roles(*flat_pictures(*rows), 0.9, 0.0)[0].tolist() == [[0, OBJECT, BACKGROUND, 0]]
    rows = ([200, 10, 0, 0], [200, 0, 0, 0], [80, 60, 0, 0], [1, 1, 1, 1])
    roles, _, likeness = decide_roles(*flat_pictures(*rows), 0.0, -1.0)
    at = likeness[0, 2].item()
    assert at == pytest.approx(0.8) and roles.tolist() == [[0, OBJECT, OBJECT, 0]]
    assert decide_roles(*flat_pictures(*rows), at, -1.0)[0].tolist() == [[0, OBJECT, OBJECT, 0]]


def test_the_reference_is_its_own_object_at_any_threshold():
    """Its likeness to itself is 1, whatever rounding says. Fails if it is computed."""
    pictures = torch.randint(0, 256, (200, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    is_word = torch.tensor([[False, True, True, False]]).expand(200, -1)
    roles, _, _ = decide_roles(pictures, is_word, 1.0, 0.0)
    assert ((roles == OBJECT).sum(1) == 1).all()


def test_at_threshold_zero_the_mask_is_whatever_has_any_weight():
    """Fails if pixels at the threshold belong to the mask: all of them would."""
    found = instant_mask(maps(bump(4, 4), bump(12, 12)), *weights_of(2), threshold=0.0)
    assert (found.soft > 0).sum() <= (found.mask > 0).sum() < found.mask.numel()


def test_a_word_without_any_attention_is_no_danger():
    """Fails if its map is divided by its maximum of zero."""
    nothing = torch.zeros(16, 16)
    found = instant_mask(maps(bump(4, 4), nothing), *weights_of(2))
    assert not found.pictures[0, 2].any() and found.roles[0, 1] == OBJECT and found.mask.any()


def test_given_roles_are_kept():
    """Fails if roles are decided anew in later steps."""
    roles = torch.tensor([[0, BACKGROUND, OBJECT, 0]], dtype=torch.int8)
    found = instant_mask(maps(bump(4, 4), bump(12, 12)), *weights_of(2), roles=roles)
    assert torch.equal(found.roles, roles) and found.mask[0, 50, 50] == 255


def test_maps_without_any_contrast_give_an_empty_mask_instead_of_failing():
    """The authors' code stops with an unbound variable here."""
    found = instant_mask(torch.full((1, 16, 16, 4), 0.25), *weights_of(2))
    assert not found.mask.any() and not found.roles.any()


def test_a_batch_gives_what_each_picture_gives_alone():
    """Fails if a minimum, a maximum or a reference is taken over the batch."""
    first, second = maps(bump(4, 4), bump(12, 12)), maps(bump(3, 12), bump(9, 2))
    weights, is_word = weights_of(2)
    together = instant_mask(torch.cat([first, second]), weights.repeat(2, 1, 1), is_word.repeat(2, 1))
    for row, alone in enumerate((first, second)):
        single = instant_mask(alone, weights, is_word)
        assert torch.equal(together.mask[row], single.mask[0]) and torch.equal(together.roles[row], single.roles[0])


def test_padding_words_change_nothing():
    weights, is_word = weights_of(2)
    padded = torch.cat([weights, torch.zeros(1, 3, 4)], 1), torch.cat([is_word, torch.zeros(1, 3, dtype=torch.bool)], 1)
    attention = maps(bump(4, 4), bump(12, 12))
    assert torch.equal(instant_mask(attention, *padded).mask, instant_mask(attention, weights, is_word).mask)


def test_a_low_threshold_gives_a_larger_mask():
    areas = [
        (instant_mask(maps(bump(4, 4), bump(12, 12)), *weights_of(2), threshold=value).mask > 0).sum().item()
        for value in (0.1, 0.2, 0.3, 0.6)
    ]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]


def test_stretch_maps_a_constant_picture_to_zero_and_others_to_the_whole_range():
    values = stretch(torch.stack([torch.full((4, 4), 0.3), torch.arange(16.0).view(4, 4)]))
    assert not values[0].any() and values[1].min() == 0 and values[1].max() == 1


def test_the_blur_mirrors_at_the_edges_and_keeps_a_constant():
    """Fails if the border is padded with zeros."""
    assert torch.allclose(blur(torch.ones(1, 8, 8)), torch.ones(1, 8, 8))
    spot = torch.zeros(1, 9, 9)
    spot[0, 4, 4] = 256.0
    assert blur(spot)[0, 4].tolist() == [0, 0, 6.0 * 1, 6.0 * 4, 6.0 * 6, 24.0, 6.0, 0, 0]


def test_diffedit_blurs_with_a_gaussian_of_sigma_one():
    """Not with the method's own kernel. Fails with another width."""
    assert pytest.approx((0.0545, 0.2442, 0.4026, 0.2442, 0.0545), abs=5e-5) == GAUSSIAN
