"""The ledger: every check has a claim, counted claims hold, the miniature is judged as claims.yaml says (D7, D8,
D11).
"""

import shlex
from pathlib import Path

import pytest
from dit_sam_tiny import ROOT, run
from typer.main import get_command

from dit_sam.commands.app import app
from dit_sam.evidence import experiments, findings
from dit_sam.evidence.claims import PARITY, checks
from dit_sam.evidence.experiments import ARMS, DEEPER, DEFAULT, E_DIT, L_DIT, POINTS
from tenfold.ledger import load_ledger
from tenfold.ledger.evidence import evaluate

LEDGER = load_ledger(ROOT / "claims.yaml")
LIVE = ("shipped_model",)


def test_every_check_has_a_claim_and_every_golden_is_one():
    """Fails if a check were never shown, or a golden case claimed by nobody."""
    named = {claim.check for claim in LEDGER.claims if claim.check}
    assert named == set(checks())
    cases = {path.stem for path in (ROOT / "tests" / "goldens").glob("*.json")} - {"official_keys"}
    assert cases == set(PARITY)


def test_counted_claims_hold():
    """Fails if a formula, a count of parameters or a key differed from the paper's numbers."""
    counted = [claim for claim in LEDGER.claims if claim.kind == "analytic" or claim.check == "official_keys"]
    ledger = LEDGER.model_copy(update={"claims": counted})
    results = evaluate(ledger, checks(), None)
    bad = [result for result in results if result.status == "not reproduced"]
    assert not bad
    assert sum(result.status == "reproduced" for result in results) >= 1


def test_numbers_of_the_ledger_are_the_checks():
    """Fails if a counted number were off by more than the claim's tolerance, which the ledger alone would not say."""
    outcomes = checks()
    for claim in LEDGER.claims:
        if claim.kind == "analytic" and claim.value is not None:
            value = outcomes[claim.check]().value
            assert abs(value - claim.value) <= (claim.tolerance or 0), (claim.id, value)


def measured(**changes):
    """Made-up measurements of three seeds, changed by arm."""
    base = {DEFAULT: 40.0, DEEPER: 44.0, E_DIT: 55.0, L_DIT: 58.0, **changes}

    def seed(arm, i):
        score = {name: base[arm] + i for name in ("P@0.5", "mIoU", "oIoU")}
        other = {name: changes.get("other", 9.0) for name in ("P@0.5", "mIoU", "oIoU")}
        turned = {name: base[arm] - 30 for name in score}
        return {"all": score, "look": score, "place": score, "other": other, "place_turned": turned} | {
            "trainable": 1,
            "sentences": 1000,
        }

    points = [{"point_mIoU": changes.get("points", 87.0)} for _ in range(3)]
    return {POINTS: points} | {arm: [seed(arm, i) for i in range(3)] for arm in ARMS}


def test_findings_hold_where_differences_are_large():
    """Fails if the rule of claims.yaml were judged otherwise, or a finding had no claim."""
    found = {one.claim: one for one in findings.judge(measured())}
    assert found.keys() <= {claim.id for claim in LEDGER.claims}
    assert found["mini-layer-wise"].passed and found["mini-layer-wise"].value == 18.0
    assert found["mini-end-to-end"].passed and found["mini-depth"].passed and found["mini-directions"].passed
    assert found["mini-order"].passed is None


@pytest.mark.parametrize("gate", [{"points": 80.0}, {DEFAULT: 10.0}, {"other": 25.0}])
def test_a_gate_that_fails_leaves_no_verdict(gate):
    """Fails if a comparison were judged although a gate failed."""
    found = {one.claim: one for one in findings.judge(measured(**gate))}
    assert found["mini-gates"].passed is False and "failed" in found["mini-gates"].detail
    for claim in ("mini-layer-wise", "mini-end-to-end", "mini-depth"):
        assert found[claim].passed is None and "no verdict" in found[claim].detail


def test_a_small_difference_is_not_reproduced():
    """Fails if less than five points, or a difference the other way, held."""
    found = {one.claim: one for one in findings.judge(measured(**{L_DIT: 43.0, E_DIT: 30.0}))}
    assert found["mini-layer-wise"].passed is False and found["mini-end-to-end"].passed is False


def test_experiments_go_on_and_share_their_start(tmp_path):
    """Fails if an arm started elsewhere than the others of its seed, or what is measured were measured again."""
    changes = (
        *("data.mini={train: 30, val: 4, test: 4, size: 48, seed: 50}", "steps=2", "epochs=2", "batch=8"),
        *("start.point_steps=2", "validation.limit=4", "warmup_epochs=0.5"),
    )
    experiments.measure(tmp_path, [0], changes, workers=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    found = experiments.conduct(tmp_path, [0], changes, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == before
    assert len(found) == 6
    starts = {experiments.arm_settings(arm, tmp_path, 0, changes).start.model for arm in ARMS}
    assert starts == {str(tmp_path / "points-0")}


def test_commands_of_the_ledger_have_the_options_they_are_given():
    """What a claim says would check it. Fails if a verb renames an option."""
    command = get_command(app)
    for line in {claim.command for claim in LEDGER.claims if claim.command}:
        _, verb, *arguments = shlex.split(line)
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()


def test_bench_measures_both_ways(tmp_path):
    """Fails if a way, a ratio or the seconds an expression were missing from the bench's record."""
    code, said, _ = run(
        *("bench", "--size", "64", "--layers", "1", "--repeats", "1", "--threads", "1", "--device", "cpu"),
        *("--output", tmp_path / "bench.json"),
    )
    assert code == 0 and "times less" in said and Path(tmp_path / "bench.json").exists()
