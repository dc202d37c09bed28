"""D3: at full size on the meta device, names, shapes and number of the released models' weights."""

import copy
import json
from pathlib import Path

import pytest
import torch

from gamma_mod.checkpoints import keys
from gamma_mod.evidence.parity.official import official_keys, official_model
from tenfold import UserError

LISTED = json.loads((Path(__file__).parent / "goldens/official_keys.json").read_text())


def test_every_name_and_shape_of_three_releases_agrees():
    """Fails if a name, a shape, the list of converted layers or the parameter count of a release differs."""
    outcome = official_keys(LISTED)
    assert outcome.passed, outcome.detail
    assert outcome.value.startswith("3598 ") or "names agree" in outcome.value


def test_a_missing_and_an_unexpected_name_are_noticed():
    changed = copy.deepcopy(LISTED)
    shapes = changed["llava_hr_13b"]["keys"]
    shapes["model.layers.3.router.weights"] = shapes.pop("model.layers.3.router.weight")
    outcome = official_keys(changed)
    assert not outcome.passed and outcome.value == "2 differ"


def test_the_router_is_registered_once():
    """7,283,917,995 parameters count the router of 28 layers once."""
    _, total = official_model(keys.RELEASES["llava_hr_7b"])
    assert total == 7_283_917_995


ROUTER = torch.arange(8.0).view(2, 4)


@pytest.mark.parametrize("stored", [(3, 4, 5), (3,)])
def test_a_release_may_store_all_routers_or_the_first(stored):
    routers = {keys.router_key(layer): ROUTER.clone() for layer in stored}
    assert torch.equal(keys.shared_router(routers, (3, 4, 5), "release"), ROUTER)


@pytest.mark.parametrize(
    ("routers", "message"),
    [
        ({}, "no router"),
        ({keys.router_key(9): ROUTER}, "layer 9 is not converted"),
        ({keys.router_key(3): ROUTER, keys.router_key(4): ROUTER}, "layer 5 has no router"),
        ({keys.router_key(layer): ROUTER + layer for layer in (3, 4, 5)}, "routers that differ"),
        ({keys.router_key(3): ROUTER.T}, r"a router of shape \[4, 2\]"),
    ],
)
def test_other_routers_are_refused(routers, message):
    with pytest.raises(UserError, match=message):
        keys.shared_router(routers, (3, 4, 5), "release")
