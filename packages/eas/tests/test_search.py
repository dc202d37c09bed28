"""The search for what can be skipped, its plan, and the maps of sites."""

import pytest
import torch

from eas.plan import RELEASED, Plan, meter_flags, released
from eas.search import RULES, Search
from tenfold import UserError


def stub_loss(costs, subnet):
    return 0.3 + costs[list(subnet)].mean()


@pytest.mark.parametrize("name", RULES)
def test_the_search_finds_what_costs_least(name):
    """Fails if rewards push preferences the wrong way, or the K smallest are taken."""
    costs = torch.linspace(0, 2, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    search = Search(RULES[name], sites=12, removed=4)
    generator = torch.Generator().manual_seed(2)
    for _ in range(60 if name == "lavin" else 400):
        search.begin()
        subnets = search.distinct(generator)
        search.update(subnets, torch.stack([stub_loss(costs, subnet) for subnet in subnets]))
    cheapest = set(costs.argsort()[:4].tolist())
    assert len(set(search.skip()) & cheapest) >= 3
    assert search.margin() > 0


def test_the_ramp_and_the_calls_of_an_update():
    """Fails if the warm-up skips all at once, updates inside it, or counts from zero."""
    search = Search(RULES["llava"], sites=32, removed=12, warmup=40, ramp=True)
    counts, due = [], []
    for call in range(1, 50):
        counts.append(search.begin())
        if search.due():
            due.append(call)
            search.update([(0,), (1,), (2,), (3,), (4,)], torch.ones(5))
    assert counts[:5] == [1, 2, 2, 3, 4] and counts[19:] == [12] * 30
    assert due == [40, 43, 46, 49]


def test_rewards_are_averaged_over_ranks():
    """Fails if a rank's own baseline or preferences are kept: all ranks end with the same numbers."""
    losses = torch.tensor([[0.1, 0.5, 0.9, 0.2, 0.3], [0.4, 0.1, 0.2, 0.8, 0.3]])
    subnets = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]
    together = Search(RULES["llava"], sites=6, removed=2)
    together.update(subnets, losses)
    alone = [Search(RULES["llava"], sites=6, removed=2) for _ in range(2)]
    baseline = torch.exp(-losses.double()).mean().float()
    for one, own in zip(alone, losses, strict=True):
        for subnet, reward in zip(subnets, torch.exp(-own.double()), strict=True):
            one.preferences[list(subnet)] += (reward - baseline).float() * 0.25
    torch.testing.assert_close(together.preferences, (alone[0].preferences + alone[1].preferences) / 2)


def test_subnets_are_different_and_drawn_by_preference():
    """Fails if subnets repeat within an update, or a site of low preference is drawn as often as one of high."""
    search = Search(RULES["lavin"], sites=8, removed=2)
    search.preferences = torch.tensor([0.5, 0, 0, 0, 0, 0, 0, -0.5])
    generator = torch.Generator().manual_seed(0)
    drawn = [search.sample(generator) for _ in range(300)]
    assert sum(0 in subnet for subnet in drawn) > 280 > 5 > sum(7 in subnet for subnet in drawn)
    assert all(len(set(search.distinct(generator))) == 3 for _ in range(20))
    with pytest.raises(UserError, match="1 different subnets"):
        Search(RULES["lavin"], sites=2, removed=1, preferences=torch.tensor([99.0, -99.0])).distinct(generator)


def test_a_loss_that_is_not_finite_ends_the_search():
    """Fails if a preference becomes not a number."""
    search = Search(RULES["llava"], sites=6, removed=2)
    with pytest.raises(UserError, match="not finite"):
        search.update([(0,)] * 5, torch.tensor([0.1, float("nan"), 0.1, 0.1, 0.1]))
    assert not search.preferences.any()


BAD = [
    ({"skip": (0, 0)}, "each layer once"),
    ({"skip": (4,)}, "from 0 on"),
    ({"skip": (-1,)}, "from 0 on"),
    ({"skip": (0, 1, 2, 3)}, "at least one attention that stays"),
    ({"skip": ("a",)}, "numbers of layers"),
    ({"pia_rank": 7}, "a multiple of groups"),
    ({"adapter_rank": -2}, "a multiple of groups"),
    ({"pia_rank": 0, "skip": (1,)}, "a rank for what replaces"),
    ({"temperature": 0.0}, "temperature above 0"),
    ({"dropout": 1.0}, "dropout in"),
    ({"scale": float("nan")}, "scale"),
]


@pytest.mark.parametrize(("change", "told"), BAD)
def test_a_plan_that_cannot_be_is_refused(change, told):
    """Fails if a wrong list or rank is found out later than at its border."""
    with pytest.raises(UserError, match=told):
        Plan(**{"layers": 4} | change)


def test_released_lists_are_plans_of_32_layers():
    """Fails if a list was mistyped: each names different layers, as many as its name says."""
    for name, skip in RELEASED.items():
        assert len(Plan(layers=32, skip=skip).skip) == int(name.split("-")[2])
    with pytest.raises(UserError, match="unknown skip list: llava-4"):
        released("llava-4")


def test_meter_sites_alias_only_as_released():
    """Fails if image cross-attention cannot be skipped by default, or a list of ten removes ten as released."""
    vqa = (16, 13, 6, 12, 18, 5, 3, 21, 15, 7)
    assert int(meter_flags(vqa).sum()) == 10
    assert int(meter_flags(vqa, as_released=True).sum()) == 8
    assert meter_flags([18])[6].tolist() == [False, True]
    assert meter_flags([18], as_released=True)[6].tolist() == [True, False]
    with pytest.raises(UserError, match="0 to 23"):
        meter_flags([24])
