"""Placement of converted layers and the budget k, against the released code's lists (selection_tables.json)."""

import json
from pathlib import Path

import pytest
import torch

from gamma_mod import place, select_layers
from gamma_mod.placement import PLACEMENTS
from gamma_mod.routing import budget, choose_top_k
from tenfold import UserError

TABLES = json.loads((Path(__file__).parent / "goldens/selection_tables.json").read_text())


@pytest.mark.parametrize("num_layers", TABLES["mod_layers_idx"])
def test_placements_are_the_released_lists(num_layers):
    """Fails if one bound of one placement is off by a layer."""
    lists = TABLES["mod_layers_idx"][num_layers]
    assert set(lists) <= set(PLACEMENTS)
    assert {name: list(place(name, int(num_layers))) for name in lists} == lists


@pytest.mark.parametrize("pair", TABLES["train_top_k"])
def test_budgets_are_the_released_ones(pair):
    """Fails if k is rounded otherwise; at most the prefix is all kept."""
    prefix, ratio = int(pair.split("/")[0]), float(pair.split("/")[1])
    expected = {int(tokens): k for tokens, k in TABLES["train_top_k"][pair].items()}
    assert {tokens: budget(tokens, prefix if tokens > prefix else 0, ratio) for tokens in expected} == expected


@pytest.mark.parametrize("pair", TABLES["float_off_by_one"])
def test_rounding_in_float64_keeps_one_token_more_where_it_did(pair):
    """Fails if the formula is rearranged, or evaluated in another precision or order."""
    prefix, ratio = int(pair.split("/")[0]), float(pair.split("/")[1])
    lengths = range(prefix + 1, 4097)
    found = [tokens for tokens in lengths if budget(tokens, prefix, ratio) != tokens - int(prefix * ratio)]
    assert found == TABLES["float_off_by_one"][pair]


def test_the_four_highest_ranks_stay_dense():
    """Section 3.2 with Vicuna's pattern: the first three and the last layer stand out."""
    ranks = [140, 130, 120, *[60 + layer / 10 for layer in range(28)], 115]
    assert select_layers(ranks) == place("arank_mod", 32) == tuple(range(3, 31))
    assert select_layers(ranks, threshold=110) == select_layers(ranks)


def test_of_equal_ranks_the_earlier_layer_stays_dense():
    """Fails if ties go to the later layer."""
    assert select_layers([5.0] * 6) == (4, 5)
    assert select_layers([5.0, 7.0, 7.0, 7.0], num_dense=2) == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": []}, "no ranks"),
        ({"ranks": [1.0, float("nan")]}, "not finite"),
        ({"ranks": [1.0, 2.0], "num_dense": 2}, "num_dense 2"),
        ({"ranks": [1.0, 2.0], "threshold": 1.0}, "no layer is left"),
        ({"ranks": [1.0, 2.0], "threshold": 1.0, "num_dense": 1}, "one of the two"),
    ],
)
def test_what_cannot_be_selected_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        select_layers(**arguments)


def test_top_k_prefers_protected_tokens_and_then_the_more_probable():
    """Fails if the mask m is left out or padding competes."""
    p = torch.tensor([[0.9, 0.1, 0.5, 0.2, 0.99]])
    protected = torch.tensor([[False, True, False, False, False]])
    real = torch.tensor([[True, True, True, True, False]])
    assert choose_top_k(p, protected, (3,), real).tolist() == [[True, True, True, False, False]]
    assert choose_top_k(p, protected, (2,)).tolist() == [[False, True, False, False, True]]


def test_of_equal_probabilities_the_earlier_token_is_kept():
    assert choose_top_k(torch.full((1, 4), 0.5), torch.zeros(1, 4), (2,)).tolist() == [[True, True, False, False]]
