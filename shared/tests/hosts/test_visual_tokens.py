"""What vision-language models do alike around their language model: places, positions, loss, copies for beams."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tenfold.errors import InputError
from tenfold.hosts.visual_tokens import (
    expanded_images,
    forwarded,
    head_outputs,
    own_positions,
    place_visual_tokens,
    require_one_input,
    require_placeholders,
)

IMAGE = 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, None, None), "one of two inputs"),
        ((torch.ones(1), torch.ones(1), None, None), "one of two inputs"),
        ((torch.ones(1), None, torch.ones(1), torch.ones(1)), "given twice"),
    ],
)
def test_inputs_that_exclude_each_other_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        require_one_input(*given, "visual_tokens")
    require_one_input(torch.ones(1), None, torch.ones(1), None, "visual_tokens")


def test_a_wrong_number_of_placeholders_says_both_numbers():
    with pytest.raises(InputError, match=r"8 placeholders in input_ids, 4 visual tokens"):
        require_placeholders(8, 4, 4)
    with pytest.raises(InputError, match="4 placeholders in input_ids, 8 visual tokens"):
        require_placeholders(4, 8, 4)
    require_placeholders(8, 8, 4)


def test_visual_tokens_stand_in_reading_order_over_the_batch():
    """Fails if images are placed row by row from the start of each row's own."""
    ids = torch.tensor([[1, IMAGE, IMAGE, 2], [IMAGE, IMAGE, IMAGE, IMAGE]])
    embeds = torch.zeros(2, 4, 3, dtype=torch.float64)
    tokens = torch.arange(1.0, 7.0).repeat_interleave(3).view(3, 2, 3)  # three images of two tokens, float32
    placed = place_visual_tokens(embeds, ids == IMAGE, tokens)
    assert placed.dtype == torch.float64 and embeds.abs().sum() == 0
    assert placed[..., 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 6]]
    assert place_visual_tokens(embeds, ids == IMAGE, None) is embeds
    assert place_visual_tokens(embeds, ids == IMAGE, tokens[:0]) is embeds


def test_positions_count_a_rows_own_tokens_wherever_its_padding_is():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert own_positions(None, mask, 4).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert own_positions(None, mask, 1).tolist() == [[1], [2]]  # a later step
    given = torch.zeros(2, 4, dtype=torch.long)
    assert own_positions(given, mask, 4) is given
    assert own_positions(None, None, 4) is None and own_positions(None, mask[None, None], 4) is None


class Head:
    """A model's head with transformers' loss of a causal language model."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=7))
        self.lm_head = nn.Linear(4, 7)

    @staticmethod
    def loss_function(logits, labels, vocab_size, **_):
        shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
        return nn.functional.cross_entropy(logits.view(-1, vocab_size), shifted.flatten(), ignore_index=-100)


def test_no_loss_is_taken_at_placeholders():
    """Trainers copy input_ids into labels. Fails if a placeholder is a class: it may lie outside the vocabulary."""
    model, hidden = Head(), torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, IMAGE, IMAGE, 3, 4]])
    loss, logits = head_outputs(model, hidden, labels, 0, [IMAGE])
    masked, _ = head_outputs(model, hidden, torch.tensor([[1, -100, -100, 3, 4]]), 0, [])
    assert torch.equal(loss, masked) and logits.shape == (1, 5, 7)
    assert labels[0, 1] == IMAGE  # the caller's stay


@pytest.mark.parametrize(("keep", "expected"), [(0, [0, 1, 2]), (1, [2]), (torch.tensor([0, 2]), [0, 2])])
def test_logits_are_those_of_the_positions_asked_for(keep, expected):
    model, hidden = Head(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    loss, logits = head_outputs(model, hidden, None, keep, [IMAGE])
    assert loss is None
    assert torch.allclose(logits, model.lm_head(hidden)[:, expected], atol=1e-6)


def test_beams_get_copies_of_their_own_rows_images_and_the_tower_runs_once():
    """Fails if images are repeated one by one, as transformers does: row 1 has none, row 2 has two."""
    runs = []

    class Model:
        def encode_images(self, pixels):
            runs.append(len(pixels))
            return pixels[:, 0] * 10

    kwargs = {"pixel_values": torch.tensor([[1.0], [2.0], [3.0]]), "attention_mask": "stays"}
    images = expanded_images(Model(), "visual_tokens", 2, kwargs, lambda _: [1, 0, 2])
    assert list(images) == ["visual_tokens"] and kwargs == {"attention_mask": "stays"} and runs == [3]
    assert images["visual_tokens"].tolist() == [10, 10, 20, 30, 20, 30]


def test_without_beams_pixels_go_through_as_they_are():
    pixels = torch.ones(1, 1)
    images = expanded_images(None, "visual_tokens", 1, {"pixel_values": pixels}, lambda _: [1])
    assert images == {"pixel_values": pixels}


def test_an_attribute_is_that_of_the_inner_module():
    class Outer:
        dummy_image = forwarded("model", "dummy_image")

    outer = Outer()
    outer.model = SimpleNamespace(dummy_image=False)
    outer.dummy_image = True
    assert outer.model.dummy_image is True and outer.dummy_image is True
