"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import pytest
import torch
from dit_sam_tiny import tiny_model

from dit_sam.commands.app import main
from dit_sam.evidence.claims import checks
from dit_sam.evidence.parity import COMPUTATIONS, TOLERANCES
from dit_sam.model import DITSam
from dit_sam.predictor import DitPredictor
from tenfold.testing import commands, goldens, ledger


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    verbs = ("segment", "train", "eval", "convert", "demo", "bench", "claims", "verify")
    told = commands.answers_without("dit_sam", ("torch", "transformers", "matplotlib"), verbs)
    assert told.count("@") >= 2 and "10.1145/3664647.3680571" in told


def test_d02_the_golden_cases_notice_one_number_a_hair_off(tmp_path):
    """A step of training a whole net. Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {("net_e2e", "out/losses"): "loss of step"}
    goldens.one_number_counts("dit_sam", COMPUTATIONS, TOLERANCES, tmp_path, numbers)


def test_d03_released_names_are_this_models():
    """Fails if a name or shape of the ten released nets differed. (Conversion: test_checkpoints.)"""
    ledger.official_names_are_the_models("dit_sam")


def test_d04_the_papers_training_is_counted(tmp_path):
    """Fails if the shipped default were another training than the paper's. (Kills and ranks: test_train.)"""
    outcome = commands.run(main, "train", "--config", "layer_wise", "--dry-run", where=tmp_path)
    assert outcome.code == 0 and "26,480" in outcome.out and "212,867,120" in outcome.out and not outcome.made


def test_d05_d12_an_evaluation_is_verified_and_cited(tiny_folder, mini_data, tmp_path):
    """Fails if predictions, scores or the data's fingerprint are not those of the record."""
    options = ("eval", tiny_folder, "--data", mini_data, "--limit", 2)
    record = commands.verified_and_cited(main, tmp_path / "run", *options, metric="sentences")
    assert {"predictions.jsonl", "metrics.json"} <= set(record.outputs)


@pytest.mark.parametrize("variant", ["layer_wise", "default"])
def test_d06_gradients_or_not_the_mask_is_the_same(variant):
    """Fails if both ways of attention differed by more than 1e-4. (More: test_properties.)"""
    model = tiny_model(variant)
    encoded = model.vocabulary.encode(["the square"], model.config.text_length)
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        by_rows = model(image, encoded.ids, encoded.mask).logits
    assert torch.allclose(model(image, encoded.ids, encoded.mask).logits, by_rows, atol=1e-4)


def test_d08_flops_are_the_papers():
    """Fails if the count of the released net at 512 pixels moved. (Against torch's counter: test_costs.)"""
    assert abs(checks()["flops_l_dit"]().value - 226.35) <= 0.01


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind. (All of them: test_commands.)"""
    refusals = {
        "segment nowhere.png square --output out": "nowhere.png",
        "train --config nonsense --output new": "no such config",
        "bench --device cuda": "cuda",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check, a verb or an option that README or ledger name is not there."""
    ledger.reads_well("dit_sam", authors=7)


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
