"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

from dataclasses import astuple

import torch
from dtnet_fixtures import tiny_settings, write_tiny_data
from dtnet_mini import write_untrained
from dtnet_models import tiny_features, tiny_model

from dtnet.beam import beam_search
from dtnet.commands.app import main
from dtnet.evidence.parity import COMPUTATIONS, TOLERANCES
from dtnet.evidence.rehearsal import Size, rehearse
from dtnet.training.run import run_train
from dtnet.training.settings import ModelSettings
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger, properties
from tenfold.testing.weights import same_bits


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    verbs = ("train", "eval", "caption", "extract", "convert")
    told = commands.answers_without("dtnet", ("torch", "h5py", "spacy", "matplotlib"), verbs)
    assert "10.1109/TNNLS.2024.3409354" in told


def test_d02_the_golden_cases_notice_one_number_a_hair_off_and_one_word(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {("beam_search", "out/beam5_log_probs"): "5 beams, log-probs", ("scst", "out/tokens"): "tokens"}
    goldens.one_number_counts("dtnet", COMPUTATIONS, TOLERANCES, tmp_path, numbers, factor=1.001)


def test_d03_official_names_are_the_models():
    """At full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    ledger.official_names_are_the_models("dtnet")


def test_d04_trains_twice_to_the_same_bits(tmp_path):
    """Both stages, in a second. Fails if something is drawn from a global generator, or a step is left out."""
    settings = tiny_settings(write_tiny_data(tmp_path / "data"))
    for name in ("one", "two"):
        assert run_train(settings, 0, tmp_path / name).metrics["steps"] == 16
    assert same_bits(tmp_path / "one/model", tmp_path / "two/model")


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if captions, scores or the data's fingerprint are not those of the record."""
    model, data = write_untrained(tmp_path / "model"), write_tiny_data(tmp_path / "data")
    options = ("eval", model, "--data", data, "--split", "val", "--tokens", "whitespace", "--metrics", "bleu,cider")
    commands.verified_and_cited(main, tmp_path / "run", *options, metric="images")


def test_d06_a_batch_is_its_images_one_by_one_and_inputs_stay():
    """Fails if images share a maximum, or a search writes into its features."""
    model = tiny_model()
    features = tiny_features(model)
    with properties.unchanged({"features": features}):
        together = beam_search(model, features, 3, 8)
    for row in range(3):
        alone = beam_search(model, features[row : row + 1], 3, 8)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-4, rtol=1e-4)


def test_d08_what_is_counted_comes_out():
    """Fails if a size or a formula changes."""
    ledger.counted_claims_hold("dtnet", "parameters", "macs_")


def test_d09_on_the_device_a_search_waits_for_nothing():
    """Fails if a step asks whether a caption has ended, or a beam's index goes through the host."""
    features = tiny_features(tiny_model())
    properties.alike_there(tiny_model, lambda *there: astuple(beam_search(*there, 5, 12, 5)), features, waits={"": 0})


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind."""
    refusals = {
        "caption --model nowhere --image missing.png": "nowhere",
        "eval nowhere --data .": "nowhere",
        "train --config nonsense --output new": "no such config",
        "train --config mini --set nonsense=1 --output new": "nonsense",
        "convert missing.pth out": "missing.pth",
        "bench --device cuda": "cuda",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d07_d11_readme_citation_ledger_and_records_are_whole():
    """Fails if a section, author, check, verb or option that README or ledger name, or a record, is not there."""
    ledger.reads_well("dtnet", authors=7)
    ledger.records_are_of_claims("dtnet", least=11)


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at a tiny size. Fails if an official file is not read, or a step does not follow."""
    model = ModelSettings(d_in=512, d_model=16, heads=2, d_ff=16, encoder_layers=1, decoder_layers=1, max_len=20)
    size = Size(model, 200, "resnet18", 64, "whitespace", ("bleu", "cider"))
    found = rehearse(tmp_path, steps := Steps(tmp_path), size)
    names = [row["step"] for row in steps.rows]
    assert names[:4] == ["write a data set", "write the backbone", "write a checkpoint", "extract 28 images"]
    assert names[4:6] == ["convert", "evaluate 4 images"] and names[-1] == "caption a picture" and len(names) == 10
    assert found["features"] == [28, 49, 512] and found["evaluated"] == 4 and found["steps_trained"] == 1
