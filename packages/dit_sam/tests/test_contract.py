"""One test for each line of what makes a package done that can be called here; what is particular stands in its own
files.
"""

import subprocess
import sys

import pytest
import torch
from dit_sam_tiny import ROOT, environment, run, tiny_model

from dit_sam.evidence.claims import checks
from dit_sam.evidence.parity import COMPUTATIONS, TOLERANCES
from dit_sam.model import DITSam
from dit_sam.predictor import DitPredictor
from tenfold.cli import bibtex
from tenfold.ledger.goldens import check_case
from tenfold.runs import RunRecord


def test_d1_runs_as_a_module_and_needs_no_extra():
    """Fails if `python -m dit_sam` did not answer, or a verb's help needed an optional dependency."""
    done = subprocess.run(
        [sys.executable, "-m", "dit_sam", "--version"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("dit-sam "), done.stderr
    for verb in ("segment", "train", "eval", "convert", "demo", "bench", "claims", "cite", "verify"):
        assert run(verb, "--help")[0] == 0


def test_d2_a_whole_net_gives_the_references_numbers():
    """Fails if loss, gradients or weights after a step differed. (All cases: test_parity.)"""
    assert check_case(ROOT / "tests" / "goldens" / "net_e2e.json", COMPUTATIONS, TOLERANCES).passed


def test_d3_released_names_are_this_models():
    """Fails if a name or shape of the ten released nets differed. (Conversion: test_checkpoints.)"""
    assert checks()["official_keys"]().passed


def test_d4_the_papers_training_is_counted():
    """Fails if the shipped default were another training than the paper's. (Kills and ranks: test_train.)"""
    code, said, _ = run("train", "--config", "layer_wise", "--dry-run")
    assert code == 0 and "26,480" in said and "212,867,120" in said


def test_d5_an_evaluation_writes_its_record(tiny_folder, mini_data, tmp_path):
    """Fails if predictions, metrics or the record were missing."""
    output = tmp_path / "eval"
    assert run("eval", tiny_folder, "--data", mini_data, "--limit", 2, "--output", output)[0] == 0
    record = RunRecord.load(output)
    assert record.metrics["sentences"] == 2 and {"predictions.jsonl", "metrics.json"} <= set(record.outputs)


@pytest.mark.parametrize("variant", ["layer_wise", "default"])
def test_d6_gradients_or_not_the_mask_is_the_same(variant):
    """Fails if both ways of attention differed by more than 1e-4. (More: test_properties.)"""
    model = tiny_model(variant)
    encoded = model.vocabulary.encode(["the square"], model.config.text_length)
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        by_rows = model(image, encoded.ids, encoded.mask).logits
    assert torch.allclose(model(image, encoded.ids, encoded.mask).logits, by_rows, atol=1e-4)


def test_d8_flops_are_the_papers():
    """Fails if the count of the released net at 512 pixels moved. (Against torch's counter: test_costs.)"""
    assert abs(checks()["flops_l_dit"]().value - 226.35) <= 0.01


def test_d10_a_missing_picture_is_one_line(tmp_path):
    """Fails if it were a traceback. (All of them: test_commands.)"""
    code, _, line = run("segment", tmp_path / "nowhere.png", "the square", "--output", tmp_path / "out")
    assert code == 2 and "\n" not in line and not (tmp_path / "out").exists()


def test_d11_the_citation_is_valid():
    """Fails if CITATION.cff could not be read, or named another paper."""
    citation = bibtex.load_citation(ROOT / "CITATION.cff")
    assert "Deep Instruction Tuning for Segment Anything Model" in bibtex.paper_bibtex(citation, "dit_sam")


def test_d12_a_run_is_cited():
    """Fails if `cite` gave no BibTeX of the paper and the software."""
    code, said, _ = run("cite")
    assert code == 0 and said.count("@") >= 2 and "10.1145/3664647.3680571" in said


def test_d15_a_saved_model_has_a_card_and_comes_back(tiny, tmp_path):
    """Fails if a folder without its card were written, or other masks came back."""
    tiny.save_pretrained(tmp_path / "model", trained="mini scenes", run="run-1")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "run_id: run-1" in card and "Trained on: mini scenes." in card
    one, two = DitPredictor(tiny), DitPredictor(DITSam.from_pretrained(tmp_path / "model"))
    image = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8).numpy()
    for predictor in (one, two):
        predictor.set_image(image)
    assert (one.predict(text="the square").masks == two.predict(text="the square").masks).all()
