"""The ledger: complete, consistent with the package, and able to fail."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from gamma_mod.commands.app import app
from gamma_mod.evaluation.questions import find_benchmark
from gamma_mod.evidence import claims, figures, findings
from gamma_mod.evidence.experiments import ARMS, SEEDS
from tenfold.cli import package_file
from tenfold.cli.bibtex import load_citation, paper_bibtex
from tenfold.ledger import evaluate, load_ledger

OWN = Path(__file__).parent / "goldens"
MODELS = ("official", "parity", "shipped_host", "nothing_skipped", *claims.PARITY)


@pytest.fixture(scope="module")
def ledger():
    return load_ledger(package_file("gamma_mod", "claims.yaml"))


def test_every_check_has_a_claim_and_every_computed_claim_a_check(ledger):
    """Fails if a check is forgotten in the ledger, or a parity or analytic claim stands there without evidence."""
    assert {claim.check for claim in ledger.claims if claim.check} == set(claims.checks())
    assert all(claim.check for claim in ledger.claims if claim.kind in ("parity", "analytic"))


def test_every_golden_case_is_a_claim(ledger):
    """Fails if a golden file is missing from the ledger."""
    assert {path.stem for path in OWN.glob("*.json")} <= {claim.check for claim in ledger.claims}


def test_claims_of_formulas_come_out_but_those_known_not_to(ledger):
    """Fails if a formula changes, or a claim that is known not to come out does."""
    cheap = {name: check for name, check in claims.checks().items() if name not in MODELS and "keys" not in name}
    chosen = [claim for claim in ledger.claims if claim.check in cheap]
    for claim, result in zip(chosen, evaluate(ledger.model_copy(update={"claims": chosen}), cheap, None), strict=True):
        assert (result.status == "not reproduced") is not claim.should_hold, claim.id


def test_the_tables_of_the_paper_are_there(ledger):
    """Section 8: rows of ablation, hosts, comparison and efficiency. Fails if a number is left out."""
    counts = {}
    for claim in ledger.claims:
        counts[claim.id.split("-")[0]] = counts.get(claim.id.split("-")[0], 0) + 1
    # 13 rows of four accuracies and an average; 12 of them with four skips and their mean.
    assert counts["ablation"] == 13 * 5 + 12 * 5
    assert counts["host"] == 9 * 5 + 6  # nine models, six of them with a skip
    assert counts["comparison"] == 6 * 10
    assert counts["steps"] == 4 and counts["hours"] == counts["samples"] == counts["memory"] - 1 == 3


def test_the_commands_of_the_ledger_are_commands_of_this_package(ledger):
    """Also those that need official weights. Fails if a verb, an option or a benchmark is renamed."""
    command = typer.main.get_command(app)
    for line in [claim.command for claim in ledger.claims if claim.command]:
        program, verb, *arguments = shlex.split(line)
        if program == "lmms-eval":
            assert "--tasks mmmu_val" in line
            continue
        assert program == "gamma-mod", line
        command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
        if "--benchmark" in arguments and (name := arguments[arguments.index("--benchmark") + 1]) != "all":
            assert find_benchmark(name).name == name


def test_the_citation_is_valid():
    bibtex = paper_bibtex(load_citation(package_file("gamma_mod", "CITATION.cff")), "gamma_mod")
    assert "luo2025gamma" in bibtex and "Exploring Mixture-of-Depth" in bibtex


def runs(oracle=80.0, dense=85.0, **accuracies):
    base = dict.fromkeys(ARMS, 70.0) | {"dense": dense} | accuracies
    found = {}
    for number, seed in enumerate(SEEDS):
        for arm in ARMS:
            curve = [{"threshold": 0.005, "skip": 0.0, "accuracy": 70.0}]
            found[arm, seed] = {"accuracy": base[arm] + 0.5 * number, "curve": curve}
        start = {
            "host": f"sha256:{seed}",
            "oracle": oracle,
            "random": 60.0,
            "anti": 30.0,
            "dense": 86.0,
            "arank": [3.0, 2.0, 1.0, 4.0],
        }
        found["start", seed] = start
    return found


def judged(**changes):
    return {finding.claim: finding for finding in findings.judge(runs(**changes), SEEDS)}


def test_a_comparison_holds_ties_or_fails_by_the_stated_rule():
    """Fails if the least effect, the pairing or the sign is another."""
    found = judged(random=60.0, separate=70.0, unprotected=69.0, **{"random-redraw": 75.0})
    assert found["mini-learned"].passed is True and found["mini-learned"].value == pytest.approx(10.0)
    assert found["mini-shared"].passed is False and found["mini-shared"].detail.startswith("equivalent")
    assert found["mini-protection"].detail.startswith("equivalent")
    assert found["mini-learned-redraw"].passed is False
    assert found["mini-learned-redraw"].detail.startswith("not reproduced")


@pytest.mark.parametrize("gate", [{"oracle": 65.0}, {"dense": 98.0}, {"dense": 20.0}])
def test_a_gate_that_fails_means_no_verdict(gate):
    """Fails if a comparison is judged where there was no headroom, or at the floor or ceiling."""
    found = judged(random=40.0, **gate)
    assert found["mini-gate"].passed is False
    for claim in ("mini-learned", "mini-shared", "mini-protection", "mini-ratio"):
        assert found[claim].passed is None and found[claim].detail.startswith("no verdict")


def test_every_finding_is_a_claim(ledger):
    assert set(judged()) <= {claim.id for claim in ledger.claims if claim.kind == "mini"}


def test_figures_are_drawn(tmp_path):
    """Those of formulas always; those of recorded runs from what `judge` writes."""
    drawn = claims.figures(tmp_path)
    assert drawn and all(figure.path.stat().st_size > 1000 for figure in drawn)
    table = judged()["mini-learned"].more["table"]
    assert figures.arms(table, tmp_path / "arms.png").stat().st_size > 1000
    assert figures.ranks(list(np.arange(4.0)), tmp_path / "ranks.png").exists()
    shutil.rmtree(tmp_path)
