"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import shlex

import pytest
import torch
from dtnet_fixtures import tiny_settings, write_tiny_data
from dtnet_mini import write_untrained
from dtnet_models import tiny_features, tiny_model

from dtnet.beam import beam_search
from dtnet.commands.app import app, main
from dtnet.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold.cli import package_file
from tenfold.runs import RunRecord, atomic_write_json, read_json
from tenfold.testing import commands, goldens, ledger
from tenfold.testing.device import stand_in_cuda
from tenfold.testing.processes import apart
from tenfold.testing.weights import same_bits


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    verbs = ("train", "eval", "caption", "extract", "convert")
    told = commands.answers_without("dtnet", ("torch", "h5py", "spacy", "matplotlib"), verbs)
    assert "10.1109/TNNLS.2024.3409354" in told


@pytest.mark.parametrize(
    ("name", "tensor", "detail"),
    [("beam_search", "out/beam5_log_probs", "5 beams, log-probs"), ("scst", "out/tokens", "tokens")],
)
def test_d02_the_frame_of_the_golden_cases_is_strict(tmp_path, name, tensor, detail):
    """And notices one number a hair off, and one word. Fails if a tolerance is widened, or an empty folder passes."""
    goldens.frame_is_strict("dtnet", COMPUTATIONS, tmp_path)
    case = next(path for path in goldens.cases("dtnet") if path.stem == name)
    goldens.noticed(goldens.altered(case, tmp_path, tensor, 1.001), detail, COMPUTATIONS, TOLERANCES)


def test_d03_official_names_are_the_models():
    """At full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    from dtnet.evidence import claims

    assert claims.official_keys().passed


def test_d04_trains_twice_to_the_same_bits(tmp_path):
    """Both stages, in a second. Fails if something is drawn from a global generator, or a step is left out."""
    from dtnet.training.run import run_train

    settings = tiny_settings(write_tiny_data(tmp_path / "data"))
    for name in ("one", "two"):
        assert run_train(settings, 0, tmp_path / name).metrics["steps"] == 16
    assert same_bits(tmp_path / "one/model", tmp_path / "two/model")


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if captions, scores or the data's fingerprint are not those of the record."""
    model, data, run = write_untrained(tmp_path / "model"), write_tiny_data(tmp_path / "data"), tmp_path / "run"
    options = ("--split", "val", "--tokens", "whitespace", "--metrics", "bleu,cider", "--output", run)
    outcome = commands.run(main, "eval", model, "--data", data, *options)
    assert outcome.code == 0, outcome.err
    outcome = commands.run(main, "verify", run)
    assert outcome.code == 0 and "bit for bit" in outcome.out, outcome.err
    record = RunRecord.load(run)
    assert record.id in commands.run(main, "cite", run).out
    atomic_write_json(run / "run.json", {**read_json(run / "run.json"), "metrics": {**record.metrics, "images": -1}})
    assert commands.run(main, "verify", run).code


@torch.no_grad()
def test_d06_a_batch_is_its_images_one_by_one_and_inputs_stay():
    """Fails if images share a maximum, or a search writes into its features."""
    model = tiny_model()
    features = tiny_features(model)
    kept = features.clone()
    together = beam_search(model, features, 3, 8)
    for row in range(3):
        alone = beam_search(model, features[row : row + 1], 3, 8)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], atol=1e-4, rtol=1e-4)
    assert torch.equal(features, kept)


def test_d07_the_miniature_is_on_record():
    """Fails if a record names no claim or no commit, or one is lost."""
    ledger.records_are_of_claims("dtnet", least=6)


def test_d08_what_is_counted_comes_out():
    """Fails if a size or a formula changes."""
    ledger.counted_claims_hold("dtnet", "parameters", "macs_")


@apart
def test_d09_on_the_device_a_search_waits_for_nothing():
    """Fails if a step asks whether a caption has ended, or a beam's index goes through the host."""
    model, there = tiny_model(), tiny_model()
    features = tiny_features(model)
    with torch.no_grad():
        expected = beam_search(model, features, 5, 12, 5)
    with stand_in_cuda() as device:
        there.to("cuda")
        found = beam_search(there, device.move(features), 5, 12, 5)
        assert sum(device.waits.values()) == 0, device.waits
        assert torch.equal(device.values(found.tokens), expected.tokens)
        torch.testing.assert_close(device.values(found.log_probs), expected.log_probs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("caption", "--model", "nowhere", "--image", "missing.png"), ("nowhere",)),
        (("eval", "nowhere", "--data", "."), ("nowhere",)),
        (("train", "--config", "nonsense", "--output", "new"), ("no such config",)),
        (("train", "--config", "mini", "--set", "nonsense=1", "--output", "new"), ("nonsense",)),
        (("convert", "missing.pth", "out"), ("missing.pth",)),
        (("bench", "--device", "cuda"), ("cuda",)),
    ],
)
def test_d10_one_line_and_exit_code_2(tmp_path, arguments, words):
    """Fails if there is a traceback, a second line, or a file left behind."""
    commands.refused(commands.run(main, *arguments, where=tmp_path), *words)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check or an option that README or ledger name is not there."""
    ledger.readme_and_citation_are_whole("dtnet", authors=7)
    ledger.claims_have_their_evidence("dtnet")
    ledger.shipped_files_are_small("dtnet")
    lines = [shlex.split(claim.command) for claim in ledger.ledger_of("dtnet").claims if claim.command]
    commands.commands_are_known(app, lines)
    verbs = commands.commands_are_known(app, commands.readme_commands(package_file("dtnet", "README.md"), "dtnet"))
    assert verbs == commands.verbs(app) - {"report"}
