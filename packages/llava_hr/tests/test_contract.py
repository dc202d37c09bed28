"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import pytest
import torch
from llava_hr_eval_fixtures import write_model
from llava_hr_fixtures import MIXED, batched, tiny_config, tiny_inputs, tiny_model

from llava_hr import LlavaHrConfig
from llava_hr.commands.app import main
from llava_hr.evidence.parity import COMPUTATIONS, TOLERANCES
from llava_hr.evidence.rehearsal import rehearse
from tenfold.data import write
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger, properties


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    told = commands.answers_without("llava_hr", ("torch", "transformers", "pycocoevalcap"), ("train", "eval"))
    assert "TextVQA_0.5.1_val.json" in told and "2403.03003" in told


def test_d02_the_golden_cases_notice_one_number_a_hair_off(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {
        ("mr_adapter", "out/up.fused"): "up fused",
        ("mr_adapter", "out/equal.grad/model.vision_tower.align_stages_latent.0.gate.0.weight"): "gradient of gate.0",
        ("vision_tower", "out/r1024.features"): "r1024 features",
        ("tiny_llava_hr", "out/gen.prefill_logits"): "prefill logits",
    }
    goldens.one_number_counts("llava_hr", COMPUTATIONS, TOLERANCES, tmp_path, numbers)


def test_d03_official_names_are_the_models():
    """All three, at full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    ledger.official_names_are_the_models("llava_hr")
    outcome = commands.run(main, "convert", "--check", "7b")
    assert "7b: 1,072 weights, 7,283,909,803 parameters: all agree by name and shape" in outcome.out, outcome.err


def test_d04_the_dry_run_is_the_papers(tmp_path):
    """Fails if a stage trains something else, or has other steps or another rate; or if a plan writes a file."""
    outcome = commands.run(main, "train", "--config", "7b", "--dry-run", where=tmp_path)
    assert outcome.code == 0 and not outcome.made, outcome.err
    assert all(number in outcome.out for number in ("23,603,200", "2,181", "5,198", "0.001", "2e-05")), outcome.out


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if predictions, scores or the data's fingerprint are not those of the record."""
    write.write_vqav2(tmp_path / "data", 3, 2, 48)
    model, data = write_model(tmp_path / "model"), tmp_path / "data"
    options = ("eval", model, "--benchmark", "vqav2", "--split", "val2014", "--data", data)
    commands.verified_and_cited(main, tmp_path / "run", *options, metric="questions")


@pytest.mark.parametrize("side", ["left", "right"])
def test_d06_a_batch_is_its_rows_one_by_one_and_inputs_stay(side):
    """Rows of one, no and two images. Fails if images go to other rows or padding shifts positions."""
    batch = batched(rows := tiny_inputs(model := tiny_model(), MIXED), side=side)
    with properties.unchanged(batch):
        logits = model(**batch).logits
    for index, row in enumerate(rows):
        own = logits[index, batch["attention_mask"][index].bool()]
        torch.testing.assert_close(own, model(**row).logits[0], atol=1e-5, rtol=1e-4)


def test_d08_what_is_counted_comes_out():
    """Fails if a size, a number of tokens or FLOPs leaves its published value by more than its rounding."""
    ledger.counted_claims_hold("llava_hr", "parameters", "trainable", "tokens", "tflops", "adapters_share")


def test_d09_on_the_device_the_prefill_waits_once_and_decoding_never():
    """It counts placeholders. Fails if positions are made on the CPU, or a decoding step reads from the device."""
    properties.generates_alike(tiny_model, batched(tiny_inputs(tiny_model(), MIXED)), "llava_hr/", "tenfold/", waits=1)


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind."""
    refusals = {
        "eval --benchmark pope --data missing": "missing",
        "eval --config nonsense": "no such config",
        "train --config mini --set nonsense=1": "nonsense",
        "convert missing out": "missing",
        "bench --device cuda": "cuda",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d07_d11_readme_citation_ledger_and_records_are_whole():
    """Fails if a section, author, check, verb or option that README or ledger name, or a record, is not there."""
    ledger.reads_well("llava_hr", authors=6)
    ledger.records_are_of_claims("llava_hr", least=10)


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at a tiny size. Fails if one does not follow from the one before, or the release stays."""
    tiny = tiny_config(vocab_size=420)
    vision, text = tiny.vision_config.to_dict() | {"min_low_size": 336}, tiny.text_config.to_dict()
    vision["low_res_config"] |= {"image_size": 336, "patch_size": 28}
    config = LlavaHrConfig(text_config=text | {"max_position_embeddings": 1024}, vision_config=vision)
    found = rehearse(tmp_path, steps := Steps(tmp_path), config, shard_bytes=80_000)
    names = [row["step"] for row in steps.rows]
    assert names[:3] == ["write a release", "convert", "load in bfloat16"]
    assert names[3:] == ["encode the picture", "answer", "answer a further question", "evaluate 4 questions"]
    assert found["shards"] == 3 and found["kept_aside"] == 11
    assert found["visual_tokens"] == config.num_image_tokens and found["evaluated"]["questions"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "ours", "scienceqa"]
