"""The ledger: complete, consistent, and what it recomputes holds."""

from pathlib import Path

import pytest

from dyvte.evidence.claims import checks, figures
from tenfold import UserError
from tenfold.ledger.schema import load_ledger

LEDGER = load_ledger(Path(__file__).parent.parent / "claims.yaml")
FAST = {claim.check for claim in LEDGER.claims if claim.check and claim.kind == "analytic"}
MODELS = {"dense_rows", "blind", "budget"}


def test_every_check_has_a_claim_and_every_claims_check_exists():
    assert {claim.check for claim in LEDGER.claims if claim.check} == set(checks())


def test_every_golden_case_is_a_claim():
    cases = {path.stem for path in (Path(__file__).parent / "goldens").glob("*.json")} - {"official_keys"}
    assert cases <= {claim.check for claim in LEDGER.claims if claim.kind == "parity"}


def test_the_tables_of_the_paper_are_there():
    """Tables 1 and 2: five hosts, nine benchmarks; 3 and 5: five methods; 4/7: fifteen states; 8: seven; figure 3."""
    ids = [claim.id for claim in LEDGER.claims if claim.kind == "full"]
    count = {
        prefix: sum(i.startswith(prefix) for i in ids)
        for prefix in ("score-", "latency-", "table5-", "states-", "attention-", "manual-", "transfer-")
    }
    assert count == {
        "score-": 63,
        "latency-": 5,
        "table5-": 5,
        "states-": 15,
        "attention-": 7,
        "manual-": 8,
        "transfer-": 4,
    }


@pytest.mark.parametrize("claim", [c for c in LEDGER.claims if c.check in FAST - MODELS], ids=lambda claim: claim.id)
def test_closed_formulas_give_the_papers_numbers(claim):
    """Fails if a formula, a shape or a prompt length changes."""
    outcome = checks()[claim.check]()
    assert outcome.passed is not False
    if claim.tolerance is not None:
        assert abs(outcome.value - claim.value) <= claim.tolerance


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_the_mini_host_shows_holds(name):
    assert checks()[name]().passed


def test_figures_are_drawn(tmp_path):
    drawn = figures(tmp_path)
    assert drawn and all(figure.path.stat().st_size > 5000 for figure in drawn)
    with pytest.raises(UserError, match="no such folder"):
        figures(tmp_path / "nowhere")


def test_every_command_of_a_full_claim_has_the_options_it_is_given():
    """Fails if an option is renamed."""
    import shlex

    import typer

    from dyvte.commands.app import app

    command = typer.main.get_command(app)
    for claim in LEDGER.claims:
        if claim.kind == "full":
            name, verb, *arguments = shlex.split(claim.command)
            assert name == "dyvte"
            command.commands[verb].make_context(verb, arguments, resilient_parsing=False).close()
