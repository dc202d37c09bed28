"""The ledger: complete, consistent with the package, and able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from llava_hr import costs
from llava_hr.evidence import claims
from tenfold.cli import package_file
from tenfold.ledger import evaluate, load_ledger
from tenfold.ledger.evidence import failures

OWN = Path(__file__).parent / "goldens"
COUNTED = ("parameters", "trainable", "tokens", "tflops", "adapters_share")


@pytest.fixture(scope="module")
def ledger():
    return load_ledger(package_file("llava_hr", "claims.yaml"))


def counted(ledger):
    checks = {name: check for name, check in claims.checks().items() if name.startswith(COUNTED)}
    chosen = ledger.model_copy(update={"claims": [one for one in ledger.claims if one.check in checks]})
    results = evaluate(chosen, checks, None)
    return chosen, results


def test_the_published_tables_are_complete(ledger):
    """Eleven benchmarks of three models, four of three other sizes, ten ablations, four other ways."""
    ids = [claim.id for claim in ledger.claims if claim.kind == "full"]
    parts = {
        part: sum(one.startswith(part) for one in ids) for part in ("7b-", "13b-", "x-13b-", "ablation-", "other-")
    }
    assert parts == {"7b-": 11 + 12, "13b-": 11, "x-13b-": 11, "ablation-": 10, "other-": 4}


def test_what_is_counted_holds(ledger):
    """Fails if a size, a number of tokens or FLOPs leaves its published value by more than its rounding."""
    chosen, results = counted(ledger)
    assert failures(chosen, results) == []
    ours = {result.claim: result.value for result in results}
    assert ours["tflops-7b-1024"] == pytest.approx(16.89, abs=0.005)
    assert ours["tflops-ratio"] == pytest.approx(91.27 / 16.89, abs=0.005)


def test_a_wrong_count_fails(ledger, monkeypatch):
    """Fails if the published values are not compared."""
    monkeypatch.setattr(costs, "visual_tokens", lambda shape, size: 1025)
    chosen, results = counted(ledger)
    assert {"tokens-384", "tokens-1024", "tokens-llava-1022"} <= set(failures(chosen, results))


def test_official_names_and_the_shipped_model_hold():
    """Fails if a name differs from the releases', or if what ships does not see."""
    assert claims.official_keys().passed and claims.shipped_model().passed


def test_the_reports_pictures_are_drawn(tmp_path):
    """Fails if a picture is missing or empty."""
    drawn = claims.figures(tmp_path / "new")
    assert len(drawn) == 2
    for figure in drawn:
        with Image.open(figure.path) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").resize((60, 60)).getcolors(3600)) > 10
