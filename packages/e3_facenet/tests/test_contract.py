"""The lines of the definition of done that a test can call, one each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from e3_facenet.commands.app import app
from e3_facenet.evidence import claims
from e3_facenet.evidence.claims import checks
from e3_facenet.evidence.settings import BenchSettings
from e3_facenet.evidence.speed import run_bench
from e3_facenet.miniature.model import mini_generator
from tenfold.ledger.schema import load_ledger

ROOT = Path(__file__).parents[1]
LEDGER = load_ledger(ROOT / "claims.yaml")


def test_d01_import_takes_no_torch_and_no_optional_dependency():
    code = (
        "import sys\nfor name in ('skimage', 'imageio_ffmpeg', 'matplotlib', 'wandb'): sys.modules[name] = None\n"
        "import e3_facenet\nassert 'torch' not in sys.modules\ne3_facenet.E3FaceNet, e3_facenet.extract_mesh\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_d02_every_golden_case_is_a_claim():
    cases = {path.stem for path in (ROOT / "tests" / "goldens").glob("*.json")}
    assert cases == {claim.check for claim in LEDGER.claims if claim.kind == "parity"}


def test_d03_official_names():
    assert checks()["official_keys"]().passed


@pytest.mark.parametrize(
    "name", [n for n in checks() if n.startswith(("parameters", "gflops", "iterations", "folding"))]
)
def test_d08_counted_claims_hold(name):
    """Fails if a formula, a dimension or a module changes."""
    outcome = checks()[name]()
    claim = next(claim for claim in LEDGER.claims if claim.check == name)
    assert outcome.passed, outcome.detail
    if claim.value is not None:
        assert abs(outcome.value - claim.value) <= claim.tolerance


def test_d09_the_bench_compares_two_ways_of_the_same_pictures():
    found = run_bench(BenchSettings(views=5, repeats=1, device="cpu"), 0, None, mini_generator())
    assert found["largest_difference"] < 1e-4 and found["predicted"] > 1 and found["realised"] > 0


def test_d09_a_view_waits_for_nothing(monkeypatch):
    """Fails if rendering asks the device for a number: only the progressive state is read, twice a call."""
    from e3_facenet_fixtures import TINY, make_generator

    from e3_facenet.camera import poses

    generator, waits = make_generator(), []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, name=name, original=original, **k: waits.append(name) or original(self, *a, **k),
        )
    pose = poses([0.0, 0.2])
    waits.clear()
    with torch.no_grad():
        generator(torch.zeros(1, TINY.num_ws, TINY.w_dim), torch.zeros(1, 9, 32), pose, torch.zeros(2, TINY.bg_dim))
    assert waits == ["__float__"] * 2


def test_d11_every_check_is_a_claim_and_the_citation_is_there():
    assert set(checks()) == {claim.check for claim in LEDGER.claims if claim.check}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["year"] == 2024 and len(citation["preferred-citation"]["authors"]) == 8


def test_d11_the_papers_tables_are_complete():
    """Fails if a row of the ablation, the speeds or the study is left out."""
    ids = {claim.id for claim in LEDGER.claims}
    full = [one for one in ids if one.startswith("ablation-")]
    assert len(full) == 25 and {"speed-latent3d", "speed-describe3d", "speed-edit", "user-ip", "user-eq"} <= ids


def test_d12_verbs_are_there():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {
        "train",
        "eval",
        "bench",
        "claims",
        "demo",
        "convert",
        "cite",
        "verify",
        "generate",
        "edit",
        "turntable",
        "mesh",
    } <= names


def test_recorded_results_name_claims_and_verdicts():
    """Fails if a recorded result has no claim, or shows a verdict that its gates do not allow."""
    ids = {claim.id for claim in LEDGER.claims}
    for path in (ROOT / "results").glob("*.json"):
        record = json.loads(path.read_text())
        assert record["claim"] in ids
        if record.get("verdict") == "no verdict":
            assert record["passed"] is None
    assert claims.PARITY


def test_d13_the_rehearsal_walks_the_whole_path(tmp_path):
    """At tiny size. Fails if a step of the way from a pickle to an evaluated face breaks."""
    from e3_facenet_fixtures import TINY, TINY_D

    from e3_facenet.evidence.rehearsal import rehearse

    rows = rehearse(tmp_path / "r", TINY, TINY_D)
    assert [row["step"] for row in rows][-1] == "evaluate two faces" and (tmp_path / "r" / "face.glb").is_file()
