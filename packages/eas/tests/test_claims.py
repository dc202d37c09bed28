"""The ledger and the miniature's verdicts: complete, consistent with the package, and able to fail."""

from pathlib import Path

import numpy as np
import pytest

from eas import costs
from eas.evidence import claims, findings
from tenfold.cli import package_file
from tenfold.ledger import evaluate, load_ledger
from tenfold.ledger.evidence import failures
from tenfold.runs import read_json

OWN = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def ledger():
    return load_ledger(package_file("eas", "claims.yaml"))


def test_every_check_has_a_claim_and_every_computed_claim_a_check(ledger):
    """Fails if a check is forgotten in the ledger, or a parity or analytic claim stands there without evidence."""
    assert {claim.check for claim in ledger.claims if claim.check} == set(claims.checks())
    assert all(claim.check for claim in ledger.claims if claim.kind in ("parity", "analytic"))


def test_every_golden_case_is_a_claim(ledger):
    """Fails if a golden file is missing from the ledger."""
    assert {path.stem for path in OWN.glob("*.json")} <= {claim.check for claim in ledger.claims}


def test_every_finding_is_a_claim(ledger):
    """Fails if the miniature judges what the ledger does not state."""
    ids = {claim.id for claim in ledger.claims if claim.kind == "mini"} - {"mini-folded"}
    assert {finding.claim for finding in findings.judge(seeds())} == ids


def test_the_published_numbers_are_there(ledger):
    """Fails if a number of the abstracts or of the read-me that EAS is compared with is missing."""
    values = {claim.id: claim.value for claim in ledger.claims}
    assert (values["lavin-eas-average"], values["llava-scienceqa"], values["speed-lavin"]) == (89.98, 96.2, 2.2)
    tables = [one for one in values if one.startswith(("lavin-7b-", "das-")) and not one.startswith("lavin-7b-trained")]
    assert len(tables) == 4 * 10
    assert len([one for one in values if one.startswith("lavin-13b-") and "trained" not in one]) == 9
    published = [one for one in ledger.claims if one.id.startswith("meter-") and one.kind == "full"]
    assert len([one for one in published if one.value is not None]) == 5 * 4 + 1
    assert values["meter-das-flops"] == -11.97 and values["meter-das-4-vqa"] == 74.8


def counted(ledger):
    apart = (*claims.PARITY, "shipped_folded")
    checks = {name: check for name, check in claims.checks().items() if name not in apart and "official" not in name}
    chosen = ledger.model_copy(update={"claims": [one for one in ledger.claims if one.check in checks]})
    return chosen, evaluate(chosen, checks, None)


def test_what_is_counted_holds(ledger):
    """Fails if a parameter, MACs or bytes leave their published value by more than its rounding."""
    chosen, results = counted(ledger)
    assert failures(chosen, results) == []


def test_a_wrong_count_fails(ledger, monkeypatch):
    """Fails if the published values are not compared."""
    monkeypatch.setattr(costs, "lavin_parameters", lambda shape, removed, ranks=costs.LAVIN: 1)
    monkeypatch.setattr(costs, "attention_macs", lambda shape, tokens: 0)
    chosen, results = counted(ledger)
    assert {"lavin-7b-trained-12", "gmacs-7b-0", "llava-saved-636"} <= set(failures(chosen, results))


def seeds(pairs=None, **changes):
    values = {"searched": 80, "sensitivity": 70, "reversed": 40, "no_global": 70, "equal": 78, "random": 60} | changes
    made = []
    for seed in range(4):
        arms = {name: {"accuracy": value + seed, "skip": [1]} for name, value in values.items()}
        arms["random"] = [{"accuracy": values["random"] + seed + part, "skip": [2]} for part in (-1, 0, 1)]
        # Four layers: pairs 01 02 03 12 13 23, and preferences that choose 1 and 3.
        made.append({"host": str(seed % 2), "seed": seed, "dense": 25.0, "margin": 0.1, "arms": arms, "layers": 4,
                     "pairs": pairs or [90, 90, 90, 40, 70 + seed, 30], "preferences": [0.1, 0.3, 0.2, 0.4],
                     "sensitivity": [3.0, 1.0, 2.0, 0.5]})  # fmt: skip
    return made


def passed(**changes):
    return {finding.claim: finding.passed for finding in findings.judge(seeds(**changes))}


def test_verdicts_follow_the_rules():
    """Fails if a lead below 2 points counts, a failed gate still gives a verdict, or a loss is called a success."""
    assert passed()["mini-searched-random"] is True and passed()["mini-equal"] is True
    assert passed(random=79)["mini-searched-random"] is False
    assert passed(equal=84)["mini-equal"] is False
    closed = passed(pairs=[0, 0, 0, 40, 45, 40])
    assert closed["mini-gate"] is False
    names = ("mini-searched-random", "mini-global", "mini-equal", "mini-pairs")
    assert [closed[name] for name in names] == [None] * 4
    assert passed(equal=30)["mini-searched-random"] is None
    assert findings.rank_correlation([0.1, 0.3, 0.2], [-3.0, -1.0, -2.0]) == pytest.approx(1)


def test_random_lists_count_by_their_mean():
    """Fails if the best or the worst random list stands for all."""
    assert np.allclose(findings.accuracy(seeds(), "random"), [60, 61, 62, 63])


def test_the_searchs_pair_is_ranked_among_those_that_leave_layer_0():
    """Fails if beating a pair with layer 0 counts, ties count as won, or another pair than the two highest is taken."""
    assert [findings.percentile(one) for one in seeds()] == [100] * 4 and passed()["mini-pairs"] is True
    tied = [0, 0, 0, 70, 70, 30]
    assert [findings.percentile(one) for one in seeds(tied)] == [75] * 4
    worst = [0, 0, 0, 70, 20, 60]
    assert [findings.percentile(one) for one in seeds(worst)] == [0] * 4 and passed(pairs=worst)["mini-pairs"] is False


@pytest.mark.slow
def test_the_miniature_runs_small(tmp_path):
    """Fails if an arm of the record, a second host or the continuation of a killed record does not run."""
    from eas.evidence.experiments import Design, smaller
    from tenfold.data import mini_host

    (tmp_path / "hosts").mkdir()
    for number in range(2):
        (tmp_path / "hosts" / str(number)).symlink_to(mini_host.path())
    design = smaller(Design(), 0.06)
    found = {finding.claim: finding for finding in findings.conduct(tmp_path, design, workers=1)}
    assert len(found) == 8 and "4 runs" in found["mini-searched-random"].detail
    first = read_json(tmp_path / "host-0-seed-0.json")
    assert len(first["pairs"]) == 66 and len(first["arms"]["searched"]["skip"]) == 4
    searched, equal = (first["arms"][name]["parameters"] for name in ("searched", "equal"))
    assert abs(equal / searched - 1) < 0.2
    (tmp_path / "host-1-seed-1.json").unlink()
    again = {finding.claim: finding for finding in findings.conduct(tmp_path, design, workers=1)}
    assert {name: one.value for name, one in again.items()} == {name: one.value for name, one in found.items()}
