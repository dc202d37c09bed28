"""The ledger and the miniature's verdicts: complete, consistent with the package, and able to fail."""

from pathlib import Path

import numpy as np
import pytest

from eas import costs
from eas.evidence import claims, findings
from tenfold.cli import package_file
from tenfold.ledger import evaluate, load_ledger
from tenfold.ledger.evidence import failures

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


def counted(ledger):
    checks = {name: check for name, check in claims.checks().items() if name not in (*claims.PARITY, "shipped_folded")}
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


def seeds(**changes):
    values = {"searched": 80, "sensitivity": 70, "reversed": 40, "no_global": 70, "nothing": 75, "equal": 78}
    values |= {"best_single": 82, "worst_single": 50, "random": 60} | changes
    made = []
    for seed in range(3):
        arms = {name: {"accuracy": value + seed, "skip": [1]} for name, value in values.items()}
        arms["random"] = [{"accuracy": values["random"] + seed + part, "skip": [2]} for part in (-1, 0, 1)]
        made.append({"seed": seed, "dense": 0.0, "margin": 0.1, "arms": arms, "preferences": [0.1, 0.3, 0.2],
                     "sensitivity": [3.0, 1.0, 2.0]})  # fmt: skip
    return made


def passed(**changes):
    return {finding.claim: finding.passed for finding in findings.judge(seeds(**changes))}


def test_verdicts_follow_the_rules():
    """Fails if a lead below 2 points counts, a failed gate still gives a verdict, or a loss is called a success."""
    assert passed()["mini-searched-random"] is True and passed()["mini-equal"] is True
    assert passed(random=79)["mini-searched-random"] is False
    assert passed(equal=84)["mini-equal"] is False
    closed = passed(worst_single=75)
    assert closed["mini-gate"] is False
    assert [closed[name] for name in ("mini-searched-random", "mini-global", "mini-equal")] == [None] * 3
    assert passed(equal=30)["mini-searched-random"] is None
    assert findings.rank_correlation([0.1, 0.3, 0.2], [-3.0, -1.0, -2.0]) == pytest.approx(1)


def test_random_lists_count_by_their_mean():
    """Fails if the best or the worst random list stands for all."""
    assert np.allclose(findings.accuracy(seeds(), "random"), [60, 61, 62])
