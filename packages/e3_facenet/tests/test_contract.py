"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import json
from pathlib import Path

import torch
from e3_facenet_fixtures import TINY, TINY_D, make_generator

from e3_facenet.camera import poses
from e3_facenet.commands.app import main
from e3_facenet.evidence.parity import COMPUTATIONS
from e3_facenet.evidence.rehearsal import rehearse
from e3_facenet.evidence.settings import BenchSettings
from e3_facenet.evidence.speed import run_bench
from e3_facenet.miniature.model import mini_generator
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger

ROOT = Path(__file__).parents[1]


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    heavy = ("torch", "transformers", "skimage", "imageio_ffmpeg", "matplotlib", "wandb")
    commands.answers_without("e3_facenet", heavy, ("train", "eval", "generate"))


def test_d02_the_golden_cases_notice_one_number_a_hair_off(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {("mapping", "out/ws"): "ws: off"}
    goldens.one_number_counts("e3_facenet", COMPUTATIONS, {}, tmp_path, numbers)


def test_d03_official_names_are_the_models():
    """At full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    ledger.official_names_are_the_models("e3_facenet")


def test_d07_recorded_results_name_claims_and_verdicts():
    """Fails if a recorded result has no claim, or shows a verdict that its gates do not allow."""
    ledger.records_are_of_claims("e3_facenet", least=0)
    for path in (ROOT / "results").glob("*.json"):
        record = json.loads(path.read_text())
        assert record.get("verdict") != "no verdict" or record["passed"] is None


def test_d08_what_is_counted_comes_out():
    """Fails if a formula, a dimension or a module changes."""
    counted = ("parameters", "gflops_view", "gflops_folded", "gflops_edit", "gflops_enhancers", "iterations", "folding")
    ledger.counted_claims_hold("e3_facenet", *counted, "gflops_counter")


def test_d09_the_bench_compares_two_ways_of_the_same_pictures():
    """Fails if the fast way makes another picture than the official one."""
    found = run_bench(BenchSettings(views=5, repeats=1, device="cpu"), 0, None, mini_generator())
    assert found["largest_difference"] < 1e-4 and found["predicted"] > 1 and found["realised"] > 0


def test_d09_a_view_waits_for_nothing(monkeypatch):
    """Fails if rendering asks the device for a number: only the progressive state is read, twice a call."""
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


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind. (All of them: test_commands.)"""
    refusals = {
        "generate beard --model nowhere --output new": "nowhere",
        "train --config nonsense --output new": "no such config",
        "convert missing.pkl out": "missing.pkl",
        "bench --device cuda": "cuda",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check, a verb or an option that README or ledger name is not there, or a row of
    the paper's ablation, speeds or study."""
    ledger.reads_well("e3_facenet", authors=8, unshown=("report", "invert"))
    ids = {claim.id for claim in ledger.ledger_of("e3_facenet").claims}
    full = [one for one in ids if one.startswith("ablation-")]
    assert len(full) == 25 and {"speed-latent3d", "speed-describe3d", "speed-edit", "user-ip", "user-eq"} <= ids


def test_d13_the_rehearsal_walks_the_whole_path(tmp_path):
    """At tiny size. Fails if a step of the way from a pickle to an evaluated face breaks."""
    rehearse(tmp_path, steps := Steps(), TINY, TINY_D)
    assert [row["step"] for row in steps.rows][-1] == "evaluate two faces" and (tmp_path / "face.glb").is_file()
