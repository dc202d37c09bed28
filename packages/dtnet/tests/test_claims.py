"""The ledger: complete, consistent with the package, and able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from dtnet_mini import write_untrained
from PIL import Image

from dtnet.data import mini
from dtnet.evaluation import demo
from dtnet.evidence import claims
from tenfold.cli import package_file
from tenfold.ledger import evaluate, load_ledger
from tenfold.ledger.evidence import failures
from tenfold.runs import atomic_write_json

OWN = Path(__file__).parent / "goldens"
COUNTED = ("official_keys", "parameters", "macs_")


@pytest.fixture(scope="module")
def ledger():
    return load_ledger(package_file("dtnet", "claims.yaml"))


@pytest.fixture(scope="module")
def standing(ledger):
    """Claim id -> result of every claim that is counted, without weights."""
    counted = {name: check for name, check in claims.checks().items() if name.startswith(COUNTED)}
    chosen = ledger.model_copy(update={"claims": [one for one in ledger.claims if one.check in counted]})
    results = evaluate(chosen, counted, None)
    assert failures(chosen, results) == []
    return {result.claim: result for result in results}


def test_the_published_tables_are_complete(ledger):
    """Six metrics of the main table, seven of each row of the online one, with the command of each."""
    full = [claim for claim in ledger.claims if claim.kind == "full"]
    assert [sum(claim.id.startswith(part) for claim in full) for part in ("karpathy", "online-101", "online-152")] == [
        6, 7, 7,
    ]  # fmt: skip
    values = {claim.id: claim.value for claim in full}
    assert values["karpathy-cider"] == 134.9 and values["karpathy-bleu4"] == 40.0
    assert values["online-152-cider"] == "133.9 / 136.1"
    assert all(claim.command.startswith("dtnet eval ") for claim in full)


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("parameters", 36_179_384),
        ("parameters-trainable", 36_151_224),
        ("parameters-encoder", 13_087_160),
        ("parameters-decoder", 23_092_224),
        ("parameters-dynamic", 2_570_160),
        ("macs-encoder", 638.0),
        ("macs-static-encoder", 521.2),
        ("macs-caption", 1653.1),
        ("macs-caption-official", 10469.0),
        ("macs-ratio", 4.8),
    ],
)
def test_a_count_comes_out(standing, claim, value):
    """Fails if a formula, a dimension or a layer changes."""
    found = standing[claim]
    assert (round(found.value, 1) if isinstance(value, float) else found.value) == value


def test_a_figure_without_a_number_of_the_paper_is_not_called_reproduced(ledger, standing):
    """Fails if our own figures stand in the paper's column."""
    printed = {claim.id for claim in ledger.claims if claim.value is not None}
    numbers = {claim for claim, result in standing.items() if isinstance(result.value, int | float)}
    assert {claim for claim in numbers if standing[claim].status == "reproduced"} == numbers & printed
    assert numbers - printed == {
        *("parameters-dynamic", "macs-encoder", "macs-static-encoder", "macs-caption", "macs-caption-official"),
        "macs-ratio",
    }


def test_the_dynamic_parts_are_three_layers_of_cells_and_routers():
    """As the notes count them: spatial branches, channel branch, two routers."""
    assert claims.parameters_dynamic().value == 3 * (789_142 + 33_792 + 16_922 + 16_864)


def test_official_keys_can_fail(tmp_path, monkeypatch):
    """Fails if the check does not notice a golden name, shape or count that differs."""
    assert claims.official_keys().value == "439 names agree"
    folder = tmp_path / "dtnet"
    folder.mkdir()
    text = (OWN / "official_keys.json").read_text()
    monkeypatch.setenv("TENFOLD_GOLDENS", str(tmp_path))
    for old, new in (("WGs.3.bias", "WGs.9.bias"), ("10201,", "10200,"), ("36151224", "36151225")):
        assert old in text
        (folder / "official_keys.json").write_text(text.replace(old, new))
        assert claims.official_keys().passed is False


def test_the_swap_control_can_fail(monkeypatch):
    """Fails if given weights are ignored. A router that says the same of every image must not pass."""
    found = claims.swap_control()
    assert found.passed and found.value > 0.05
    monkeypatch.setattr(claims, "PLANTED", 0.0)
    planted = claims.planted_router
    monkeypatch.setattr(claims, "planted_router", lambda: planted(0.0))
    assert claims.swap_control().passed is False


def test_the_counter_can_fail(monkeypatch):
    """Fails if the formulas are compared with themselves."""
    from dtnet import costs

    assert claims.macs_counter().passed
    monkeypatch.setattr(costs, "step_macs", lambda *args, **options: 1)
    found = claims.macs_counter()
    assert found.passed is False and "beam_search" in found.detail


def test_the_shipped_model_must_beat_its_baseline(tmp_path, monkeypatch):
    """An untrained one does not. Fails if captions and references get mixed up, or the baseline is left out."""
    folder = write_untrained(tmp_path / "model")
    monkeypatch.setattr(demo, "mini_model_path", lambda: folder)
    draw = mini.draw_mini_coco
    monkeypatch.setattr(mini, "draw_mini_coco", lambda *_, **options: draw(0, 60, 1, 8, **options))
    found = claims.shipped_model()
    assert found.passed is False and found.value < 50
    assert "nearest caption" in found.detail


def test_without_golden_data_or_model_nothing_is_claimed(ledger, monkeypatch, tmp_path):
    monkeypatch.delenv("TENFOLD_GOLDENS", raising=False)
    for place in ("tenfold.ledger.goldens", "dtnet.evidence.claims"):
        monkeypatch.setattr(f"{place}.find_package_file", lambda module, name: None)
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "evaluation" / "demo.py"))
    chosen = [one for one in ledger.claims if one.kind == "parity" or one.check == "shipped_model"]
    results = evaluate(ledger.model_copy(update={"claims": chosen}), claims.checks(), None)
    assert {result.status for result in results} == {"not run here"}
    assert claims.figures(tmp_path) == []


def test_figures_are_pictures(tmp_path, monkeypatch):
    folder = write_untrained(tmp_path / "model")
    monkeypatch.setattr(demo, "mini_model_path", lambda: folder)
    table = [{"name": "joint router", "mean": 3.0, "seeds": [2.0, 4.0], "ours": True}]
    table += [{"name": "plain", "mean": 2.0, "seeds": [2.0]}]
    record = {
        "signal": {"pooled": 0.9, "single": 0.6},
        "right": [70.0, 75.0],
        "blind": [40.0, 41.0],
        "headroom": [0.1, -0.1],
    }
    record |= {"curves": {"joint": [3.0, 2.0, 1.0], "plain": [3.0, 2.0, 1.5]}, "table": table}
    monkeypatch.setattr(claims, "find_package_file", lambda module, name: tmp_path)
    atomic_write_json(tmp_path / "mini-gates.json", record)
    atomic_write_json(tmp_path / "mini-caption.json", {"table": table})
    (tmp_path / "figures").mkdir()
    figures = claims.figures(tmp_path / "figures")
    assert len(figures) == len({figure.path for figure in figures}) == 6
    for figure in figures:
        with Image.open(figure.path) as image:
            assert image.width >= 500 and len(image.convert("RGB").getcolors(1 << 20)) > 20
