"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import shlex

import numpy as np
import pytest
import torch

from inst_diff_edit.commands.app import app, main
from inst_diff_edit.data import scenes
from inst_diff_edit.evidence.parity import COMPUTATIONS
from inst_diff_edit.miniature import model as mini
from tenfold.cli import package_file
from tenfold.runs import RunRecord, atomic_write_json, read_json
from tenfold.testing import commands, goldens, ledger
from tenfold.testing.device import stand_in_cuda
from tenfold.testing.processes import apart
from tenfold.testing.weights import same_bits


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    verbs = ("edit", "demo", "train", "eval", "bench", "claims", "verify", "report")
    heavy = ("torch", "diffusers", "transformers", "matplotlib")
    told = commands.answers_without("inst_diff_edit", heavy, verbs)
    assert "Editing-Mask_list.txt" in told and "@inproceedings{zou2024" in told


def test_d02_the_frame_of_the_golden_cases_is_strict(tmp_path):
    """And notices one role turned around. Fails if a decision is compared loosely, or an empty folder passes."""
    goldens.frame_is_strict("inst_diff_edit", COMPUTATIONS, tmp_path)
    case = next(path for path in goldens.cases("inst_diff_edit") if path.stem == "instant_mask")
    goldens.noticed(goldens.altered(case, tmp_path, "out/case0/position"), "case0 roles", COMPUTATIONS, {})


def test_d03_official_names_are_the_models():
    """UNets and autoencoder at full size, on the meta device. Fails if a name, a shape or a hooked layer differs."""
    from inst_diff_edit.evidence import claims

    assert claims.official_keys().passed


def test_d04_the_mini_model_trains_twice_to_the_same_bits(tmp_path):
    """Training stands for the paper's, which has none. Fails if something is drawn from a global generator."""
    for name in ("one", "two"):
        outcome = commands.run(main, "train", "--steps", 2, "--batch", 2, "--output", tmp_path / name)
        assert outcome.code == 0, outcome.err
    assert same_bits(tmp_path / "one/model/unet", tmp_path / "two/model/unet")


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if masks, scores or the data's fingerprint are not those of the record."""
    run = tmp_path / "run"
    outcome = commands.run(main, "eval", "--limit", 2, "--set", "steps=4", "--output", run)
    assert outcome.code == 0, outcome.err
    outcome = commands.run(main, "verify", run)
    assert outcome.code == 0 and "bit for bit" in outcome.out, outcome.err
    record = RunRecord.load(run)
    assert record.id in commands.run(main, "cite", run).out
    atomic_write_json(run / "run.json", {**read_json(run / "run.json"), "metrics": {**record.metrics, "iou": -1.0}})
    assert commands.run(main, "verify", run).code


def test_d06_an_edit_does_not_depend_on_its_batch_and_inputs_stay(double, edits, settings):
    """Fails if noises are drawn from one stream for all pictures, masks are shared, or a picture is written to."""
    pictures, words = [edit.picture() for edit in edits], [edit.prompt for edit in edits]
    kept = [np.asarray(picture).copy() for picture in pictures]
    together = double(pictures, words, **settings, output_type="latent")
    for row, (picture, prompt) in enumerate(zip(pictures, words, strict=True)):
        alone = double(picture, prompt, **settings, output_type="latent")
        assert torch.allclose(together.images[row], alone.images[0], atol=1e-4)
        assert torch.equal(together.masks[row], alone.masks[0]) and together.words[row] == alone.words[0]
    assert all(np.array_equal(np.asarray(picture), before) for picture, before in zip(pictures, kept, strict=True))


def test_d07_the_miniature_is_on_record():
    """Fails if a record names no claim or no commit, or one is lost."""
    ledger.records_are_of_claims("inst_diff_edit", least=6)


def test_d08_what_is_counted_comes_out():
    """Fails if a call, a sample or a network's FLOPs are counted otherwise."""
    ledger.counted_claims_hold("inst_diff_edit", "tflops_", "calls_", "samples_", "parameters", "ratio_")


@apart
def test_d09_on_the_device_no_step_waits():
    """Six inputs are copied there at the start of a call; after its last step it is asked once whether all numbers were
    finite. Fails if a threshold, a role or a time step is read from the device, or a constant is copied there in every
    call."""
    edit, counted = scenes.edit(0, 0), []
    options = {"num_masks": 1, "final": "latents", "output_type": "latent"}
    expected = mini.build(0)(edit.picture(), edit.prompt, num_inference_steps=4, **options)
    with stand_in_cuda() as device:
        pipe = mini.build(0).to("cuda")
        for steps in (4, 4, 8):  # the first call leaves the kernels of resizing and blurring on the device
            device.waits.clear()
            found = pipe(edit.picture(), edit.prompt, num_inference_steps=steps, **options)
            counted.append(device.waits.copy())
            if steps == 4:
                assert torch.equal(device.values(found.masks), expected.masks)
                assert torch.allclose(device.values(found.images), expected.images, atol=1e-4)
        copied = {place for place in counted[1] if place.startswith("to the device inst_diff_edit/")}
        asked = counted[1].keys() - copied
        assert counted[1] == counted[2] and sum(counted[1][place] for place in copied) == 6, counted
        assert [counted[1][place] for place in asked] == [1], counted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("edit", "missing.png", "--to", "a ring"), ("missing.png",)),
        (("eval", "--set", "nonsense=1"), ("nonsense",)),
        (("train", "--config", "coco"), ("nothing to train",)),
        (("eval", "--data", "missing"), ("missing",)),
        (("bench", "--device", "cuda"), ("cuda",)),
    ],
)
def test_d10_one_line_and_exit_code_2(tmp_path, arguments, words):
    """Fails if there is a traceback, a second line, or a file left behind."""
    commands.refused(commands.run(main, *arguments, where=tmp_path), *words)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check or an option that README or ledger name is not there."""
    ledger.readme_and_citation_are_whole("inst_diff_edit", authors=8)
    ledger.claims_have_their_evidence("inst_diff_edit")
    ledger.shipped_files_are_small("inst_diff_edit")
    lines = [shlex.split(claim.command) for claim in ledger.ledger_of("inst_diff_edit").claims if claim.command]
    commands.commands_are_known(app, lines)
    told = commands.readme_commands(package_file("inst_diff_edit", "README.md"), "inst-diff-edit")
    assert commands.commands_are_known(app, told) == commands.verbs(app) - {"report", "convert"}
