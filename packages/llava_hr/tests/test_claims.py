"""The ledger: complete, consistent with the package, and able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from llava_hr import costs
from llava_hr.evidence import claims, figures
from llava_hr.evidence.findings import ARMS
from tenfold.cli import find_package_file, package_file
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
    results = find_package_file("llava_hr", "results")
    recorded = [] if results is None else [path.stem for path in results.glob("mini-*.json")]
    assert len(drawn) == 1 + 2 * ("mini-gates" in recorded) + ("mini-fine" in recorded)
    for figure in drawn:
        looks_drawn(figure.path)


def looks_drawn(path):
    with Image.open(path) as picture:
        assert min(picture.size) > 200 and len(picture.convert("RGB").resize((60, 60)).getcolors(3600)) > 10


def test_gates_and_curves_are_drawn(tmp_path):
    """Fails if a gate that was missed looks like one that was passed, or an arm has no curve."""
    gates = {
        "one": {"values": [80.0, 90.0, 85.0], "passed": True, "least": 75.0, "most": 92.0},
        "two": {"values": [30.0, 41.0, 20.0], "passed": False, "most": 40.0},
    }
    looks_drawn(figures.draw_gates(gates, tmp_path / "gates.png"))
    passed = gates | {"two": {**gates["two"], "passed": True}}
    figures.draw_gates(passed, tmp_path / "passed.png")
    assert (tmp_path / "gates.png").read_bytes() != (tmp_path / "passed.png").read_bytes()
    runs = [{"arm": arm, "loss": [1.0, 0.5, 0.4 + 0.1 * seed]} for arm in ARMS for seed in range(2)]
    looks_drawn(figures.draw_curves(runs, tmp_path / "curves.png"))
    figures.draw_curves(runs[:-2], tmp_path / "fewer.png")
    assert (tmp_path / "curves.png").read_bytes() != (tmp_path / "fewer.png").read_bytes()
    rows = [{"name": arm, "tokens": 36} | {name: {"mean": 80.0, "spread": 2.0, "seeds": [78.0, 82.0]}
            for name in ("fine", "coarse")} for arm in ARMS]  # fmt: skip
    looks_drawn(figures.draw_variants({"table": rows}, tmp_path / "variants.png"))
