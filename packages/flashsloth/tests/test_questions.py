"""Which tokens are the question (sheet section 3.5, part two A1 to A3)."""

import pytest
import torch
from flashsloth_fixtures import COLON, END, IMAGE, NEWLINE, QUERY, USER, tiny_config, tiny_images, tiny_model, turn

from flashsloth.questions import official_spans, query_places, rounds
from tenfold import UserError

CONFIG = tiny_config()
Q = [QUERY] * 3
PICTURE = [IMAGE] * 4
PROMPT = list(range(10, 42))  # 32 ids, as the official rule wants them


def questions(ids):
    return [ids[slice(*one.question)] for one in rounds(ids, CONFIG)]


def test_a_question_stands_behind_its_image():
    """Fails if the newline, the role or the prompt before it is read."""
    assert questions([*PROMPT, *PICTURE, NEWLINE, 20, 21, *Q, 7]) == [[20, 21]]
    assert questions([10, USER, COLON, *PICTURE, NEWLINE, *PICTURE, NEWLINE, 20, *Q]) == [[20]]
    assert questions([*PICTURE, 20, 21, *Q]) == [[20, 21]]  # a caption of stage 1: no newline


def test_later_rounds_have_their_own_questions():
    """With the space before it, as in training (golden). Fails if the answer before, or its name, is read."""
    ids = [*PROMPT, *PICTURE, NEWLINE, 20, *Q, 7, 30, END, USER, COLON, 22, 23, *Q, 7]
    assert questions(ids) == [[20], [22, 23]]
    assert [one.images for one in rounds(ids, CONFIG)] == [1, 1]
    with_image = [*PROMPT, 20, *Q, 7, 30, END, USER, COLON, *PICTURE, NEWLINE, 22, *Q]
    assert questions(with_image)[1] == [22] and [one.images for one in rounds(with_image, CONFIG)] == [0, 1]


def test_the_official_rule_where_it_agrees_and_where_not():
    """Equal for one round with the image first; different for later rounds at inference, for batches of 20, for
    another prompt (A1). Fails if either rule changes."""
    one = [*PROMPT, *PICTURE, NEWLINE, 20, 21, *Q, 7]
    ours = [span.question for span in rounds(one, CONFIG)]
    assert official_spans(one, CONFIG, 1) == ours
    assert official_spans(one, CONFIG, 20) == [(5, 39)]
    assert official_spans(one[1:], CONFIG, 1) != [span.question for span in rounds(one[1:], CONFIG)]
    two = [*PROMPT, *PICTURE, NEWLINE, 20, 21, *Q, 7, 45, END, USER, COLON, 22, 23, *Q, 7]
    first, second = (span.question for span in rounds(two, CONFIG))
    assert official_spans(two, CONFIG, 1) == [first, first]
    labels = [-100] * len(two)
    labels[two.index(45) : two.index(END) + 1] = [45, END]
    assert official_spans(two, CONFIG, 8, labels) == [first, second]


def test_an_empty_answer_shifts_nothing():
    """The official search counts labels and would give round 3 the span of round 2 (A3)."""
    ids = [*PICTURE, NEWLINE, 20, *Q, 7, END, USER, COLON, 21, *Q, 7, 30, END, USER, COLON, 22, *Q]
    assert questions(ids) == [[20], [21], [22]]


def test_half_a_group_is_refused():
    with pytest.raises(UserError, match="whole groups of 3"):
        query_places([20, QUERY, QUERY, 21], CONFIG)


@torch.no_grad()
def test_two_images_in_another_order():
    """A5: a round reads all images before it; batch = single, and the order of images matters only by place."""
    model = tiny_model()
    pixels = tiny_images(2)
    ids = torch.tensor([[10, *turn(CONFIG, 2, [20, 21])]])
    rows = [model(input_ids=ids, pixel_values=pixels).logits, model(input_ids=ids, pixel_values=pixels.flip(0)).logits]
    both = model(input_ids=ids.repeat(2, 1), pixel_values=torch.cat([pixels, pixels.flip(0)])).logits
    assert torch.allclose(both, torch.cat(rows), atol=1e-4) and not torch.allclose(*rows, atol=1e-3)
