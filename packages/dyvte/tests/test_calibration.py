"""A threshold for a budget."""

import pytest
import torch
from dyvte_fixtures import host, rows

from dyvte import VisualExit, calibrate
from dyvte.calibration import exits_at, margins, threshold_for
from dyvte.exits import mean_exit
from tenfold import UserError


@pytest.fixture(scope="module")
def measured():
    model, gates = host()
    return margins(model, gates, [rows(lengths=(6, 3, 9, 5, 4, 12, 7, 8)), rows(lengths=(3, 10, 11, 5))])


def test_margins_of_a_dense_pass_give_the_exits_under_any_threshold(measured):
    """Fails if an exit of calibration touches the states that later gates read."""
    model, gates = host()
    for threshold in (-5.0, 0.0, 8.0):
        with VisualExit(gates, threshold)(model) as exit, torch.no_grad():
            model(**rows(lengths=(6, 3, 9, 5, 4, 12, 7, 8)))
            found = [3 if e is None else e for e in exit.exit_layers()]
        assert found == exits_at(measured[:8], threshold).tolist()


def test_the_mean_exit_layer_is_reached_within_a_quarter_of_a_layer(measured):
    """Fails if the bisection takes the wrong side, or the mean counts another set."""
    for wanted in (0.5, 1.0, 1.5):
        threshold = threshold_for(measured, wanted)
        assert abs(float(exits_at(measured, threshold).double().mean()) - wanted) <= 0.25


def test_calibrate_is_the_threshold_of_its_samples():
    model, gates = host()
    threshold = calibrate(model, gates, [rows(lengths=(6, 3, 9, 5))], mean_exit=1.0)
    with VisualExit(gates, threshold)(model) as exit, torch.no_grad():
        model(**rows(lengths=(6, 3, 9, 5)))
        assert abs(mean_exit(exit.exit_layers(), 4) - 1.0) <= 0.25


def test_a_budget_out_of_reach_is_refused(measured):
    same = torch.zeros(3, 4) + torch.tensor([0.0, 1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="out of reach"):
        threshold_for(same, 1.5)
    with pytest.raises(UserError, match="mean exit 4"):
        threshold_for(measured, 4)
    with pytest.raises(UserError, match="not finite"):
        threshold_for(torch.full((2, 4), torch.nan), 1.0)


def test_no_samples_and_samples_without_an_image_are_refused():
    from tenfold.testing.hosts import Prompts

    model, gates = host()
    with pytest.raises(UserError, match="no calibration samples"):
        margins(model, gates, [])
    with pytest.raises(UserError, match="without an image"):
        margins(model, gates, [Prompts("llava").batch([[("image", 4), 4], [9]])])


def test_a_row_whose_image_stays_counts_as_the_last_layer():
    assert mean_exit([1, None, 3], 6) == 3.0
