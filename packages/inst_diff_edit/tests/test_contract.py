"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import torch
from safetensors.torch import load_file
from test_costs import TINY

from inst_diff_edit.commands.app import main
from inst_diff_edit.data import scenes
from inst_diff_edit.evidence.parity import COMPUTATIONS
from inst_diff_edit.evidence.rehearsal import rehearse
from inst_diff_edit.miniature import model as mini
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger, properties
from tenfold.testing.weights import same_bits


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    verbs = ("edit", "demo", "train", "eval", "bench", "claims", "verify", "report")
    told = commands.answers_without("inst_diff_edit", ("torch", "diffusers", "transformers", "matplotlib"), verbs)
    assert "Editing-Mask_list.txt" in told and "@inproceedings{zou2024" in told


def test_d02_the_golden_cases_notice_one_role_turned_around(tmp_path):
    """Fails if a decision is compared loosely, or an empty folder passes."""
    numbers = {("instant_mask", "out/case0/position"): "case0 roles"}
    goldens.one_number_counts("inst_diff_edit", COMPUTATIONS, {}, tmp_path, numbers)


def test_d03_official_names_are_the_models():
    """UNets and autoencoder at full size, on the meta device. Fails if a name, a shape or a hooked layer differs."""
    ledger.official_names_are_the_models("inst_diff_edit")


def test_d04_the_mini_model_trains_twice_to_the_same_bits(tmp_path):
    """Training stands for the paper's, which has none. Fails if something is drawn from a global generator."""
    for name in ("one", "two"):
        outcome = commands.run(main, "train", "--steps", 2, "--batch", 2, "--output", tmp_path / name)
        assert outcome.code == 0, outcome.err
    assert same_bits(tmp_path / "one/model/unet", tmp_path / "two/model/unet")


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if masks, scores or the data's fingerprint are not those of the record."""
    options = ("eval", "--limit", 2, "--set", "steps=4")
    commands.verified_and_cited(main, tmp_path / "run", *options, metric="sets")


def test_d06_an_edit_does_not_depend_on_its_batch_and_inputs_stay(double, edits, settings):
    """Fails if noises are drawn from one stream for all pictures, masks are shared, or a picture is written to."""
    pictures, words = [edit.picture() for edit in edits], [edit.prompt for edit in edits]
    together = double(pictures, words, **settings, output_type="latent")
    assert pictures == [edit.picture() for edit in edits]
    for row, (picture, prompt) in enumerate(zip(pictures, words, strict=True)):
        alone = double(picture, prompt, **settings, output_type="latent")
        assert torch.allclose(together.images[row], alone.images[0], atol=1e-4)
        assert torch.equal(together.masks[row], alone.masks[0]) and together.words[row] == alone.words[0]


def test_d08_what_is_counted_comes_out():
    """Fails if a call, a sample or a network's FLOPs are counted otherwise."""
    ledger.counted_claims_hold("inst_diff_edit", "tflops_", "calls_", "samples_", "parameters", "ratio_")


def test_d09_on_the_device_no_step_waits():
    """Seven inputs are copied there at first, two of them texts, by diffusers; one question is asked at the end. Fails
    if a step reads a threshold, a role or a time from the device, or a constant is copied there in every call."""
    edit, options = scenes.edit(0, 0), {"num_masks": 1, "final": "latents", "output_type": "latent"}

    def edited(pipe, steps):
        found = pipe(edit.picture(), edit.prompt, num_inference_steps=steps, **options)
        return found.masks, found.images

    for steps in (2, 4):  # warm: the first call leaves the kernels of resizing and blurring on the device
        waits = {"to the device inst_diff_edit/": 5, "to the device diffusers/": 2, "": 8}
        properties.alike_there(lambda: mini.build(0), edited, steps, waits=waits, warm=True)


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind."""
    refusals = {
        "edit missing.png --to ring": "missing.png",
        "eval --set nonsense=1": "nonsense",
        "train --config coco": "nothing to train",
        "eval --data missing": "missing",
        "bench --device cuda": "cuda",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d07_d11_readme_citation_ledger_and_records_are_whole():
    """Fails if a section, author, check, verb or option that README or ledger name, or a record, is not there."""
    ledger.reads_well("inst_diff_edit", authors=8, unshown=("report", "convert"))
    ledger.records_are_of_claims("inst_diff_edit", least=8)


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at a tiny size. Fails if a folder as it is released is not loaded, or a step does not follow."""
    found = rehearse(tmp_path, steps := Steps(tmp_path), TINY)
    names = [row["step"] for row in steps.rows]
    assert names[:3] == ["write Stable Diffusion", "write the inpainting model", "load in bfloat16"]
    assert names[3:5] == ["a mask, 3 noises", "an edit, then inpainted"]
    assert names[5:] == ["an edit, decoded directly", "evaluate 2 pictures"]
    assert found["mask"] == found["edited"] == [64, 64] and found["evaluated"]["Editing-Mask"]["records"] == 2
    old = load_file(tmp_path / "stable-diffusion-v1-4/vae/diffusion_pytorch_model.safetensors")
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
