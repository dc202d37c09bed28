"""The miniature's record: trained, measured and judged by the rules that stand in claims.yaml (D7)."""

from pathlib import Path

import pytest

from flashsloth.evidence.experiments import Plan
from flashsloth.evidence.findings import ARMS, SEEDS, conduct, judge
from tenfold.ledger import load_ledger

LEDGER = Path(__file__).parent.parent / "claims.yaml"


def measured(**crowded):
    """Made-up measurements of three seeds: each arm's per cent in crowded scenes, in sparse ones 90."""
    usual = {"average": 30, "sap": 45, "sap+embq": 88, "shuffle": 40, "none": 90} | crowded
    runs = {}
    for arm in ARMS:
        shared = {"sparse shape": 90.0, "tokens": 9, "milliseconds": 1.0, "sharpness": 0.9}
        controls = {"blind": 30.0, "other question": 35.0, "other image": 20.0}
        shared |= {"controls": controls}
        runs[arm] = [{"crowded shape": usual[arm] + noise, **shared} for noise in (-1.0, 0.0, 1.5)]
    return runs


def outcomes(runs):
    return {finding.claim: finding.passed for finding in judge(runs)}


def test_every_finding_is_a_claim_and_may_hold():
    """Fails if a claim of the miniature is judged under another name, or a rule can never hold."""
    found = outcomes(measured())
    claims = {one.id for one in load_ledger(LEDGER).claims if one.kind == "mini" and one.check is None}
    assert found.keys() == claims and all(found.values())


@pytest.mark.parametrize(
    ("crowded", "claim", "passed"),
    [
        ({"none": 40}, "mini-embq", None),  # uncompressed has no headroom: nothing is said
        ({"sap": 20}, "mini-embq", None),  # below 25 %: SAP has not learnt
        ({"average": 17}, "mini-sap", None),
        ({"sap+embq": 47}, "mini-embq", False),  # less than the least effect
        ({"sap+embq": 80}, "mini-near-uncompressed", False),
        ({"sap+embq": 37}, "mini-controls", False),
        ({"sap+embq": 46}, "mini-crowding", False),
        ({"shuffle": 88}, "mini-shuffle", False),
    ],
)
def test_rules(crowded, claim, passed):
    """Fails if a gate is left out, or a threshold is not the one that claims.yaml says."""
    assert outcomes(measured(**crowded))[claim] is passed


def test_a_rule_reads_the_seeds_apart():
    """A mean difference within its spread does not hold. Fails if only means are compared."""
    runs = measured(shuffle=80)
    for run, value in zip(runs["sap+embq"], (60.0, 110.0, 92.0), strict=True):
        run["crowded shape"] = value
    assert outcomes(runs)["mini-shuffle"] is False


def test_a_small_record_goes_on_where_it_stopped(tmp_path):
    """All arms with one seed, a step a stage. Fails if a finished run is trained again, or a figure is missing."""
    plan = Plan(scenes=32, batch=8, captions=1, answers=1)
    found = conduct(tmp_path, plan, per_kind=3, workers=1, seeds=(100,), world=200_003)
    assert len(found) == 8 and len(found[0].more["table"]) == len(ARMS)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(files) == len(ARMS) and not set(SEEDS) & {100}
    again = conduct(tmp_path, plan, per_kind=3, workers=1, seeds=(100,), world=200_003)
    assert [one.value for one in again] == [one.value for one in found]
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
