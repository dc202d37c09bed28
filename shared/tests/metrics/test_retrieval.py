"""Recall at k by hand: two photographs, three captions."""

import pytest

from tenfold import UserError
from tenfold.metrics import retrieval_recall

OWNERS = (0, 0, 1)


def test_recall_at_k_by_hand():
    """Fails if texts and images change places, an image's second caption does not count, or k is one off."""
    scores = [[0.1, 0.9, 0.8], [0.5, 0.2, 0.7]]
    found = retrieval_recall(scores, OWNERS, (1, 2))
    # Caption 0 finds photograph 1 first, caption 1 its own, caption 2 photograph 0.
    assert found == {"IR@1": pytest.approx(1 / 3), "IR@2": 1.0, "TR@1": 1.0, "TR@2": 1.0}


def test_of_equal_scores_the_earlier_is_first():
    """Fails if a table of one value gives everybody his partner."""
    found = retrieval_recall([[1.0] * 3] * 2, OWNERS, (1,))
    assert found == {"IR@1": pytest.approx(2 / 3), "TR@1": 0.5}


@pytest.mark.parametrize(
    ("scores", "owners", "told"),
    [([[1.0, 2.0]], (0,), "1 texts"), ([[1.0, float("nan")]], (0, 0), "finite"), ([[1.0], [2.0]], (0,), "without")],
)
def test_what_is_no_table_is_refused(scores, owners, told):
    with pytest.raises(UserError, match=told):
        retrieval_recall(scores, owners)
