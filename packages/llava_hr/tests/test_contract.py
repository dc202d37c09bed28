"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

import shlex

import pytest
import torch
from llava_hr_eval_fixtures import write_model
from llava_hr_fixtures import MIXED, batched, tiny_inputs, tiny_model

from llava_hr.commands.app import app, main
from llava_hr.evidence import claims
from llava_hr.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold.cli import package_file
from tenfold.data import write
from tenfold.runs import RunRecord, atomic_write_json, read_json
from tenfold.testing import commands, goldens, ledger
from tenfold.testing.device import stand_in_cuda
from tenfold.testing.processes import apart


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    told = commands.answers_without("llava_hr", ("torch", "transformers", "pycocoevalcap"), ("train", "eval"))
    assert "TextVQA_0.5.1_val.json" in told and "2403.03003" in told


@pytest.mark.parametrize(
    ("name", "tensor", "detail"),
    [
        ("mr_adapter", "out/up.fused", "up fused"),
        ("mr_adapter", "out/equal.grad/model.vision_tower.align_stages_latent.0.gate.0.weight", "gradient of gate.0"),
        ("vision_tower", "out/r1024.features", "r1024 features"),
        ("tiny_llava_hr", "out/gen.prefill_logits", "prefill logits"),
    ],
)
def test_d02_the_frame_of_the_golden_cases_is_strict(tmp_path, name, tensor, detail):
    """And notices one number a hair off. Fails if a tolerance is widened, or a case that compares nothing passes."""
    goldens.frame_is_strict("llava_hr", COMPUTATIONS, tmp_path)
    case = next(path for path in goldens.cases("llava_hr") if path.stem == name)
    goldens.noticed(goldens.altered(case, tmp_path, tensor), detail, COMPUTATIONS, TOLERANCES)


def test_d02_a_case_without_outputs_is_no_agreement(tmp_path):
    """Fails if an empty comparison passes."""
    case = next(path for path in goldens.cases("llava_hr") if path.stem == "final_align")
    empty = {"config": {**read_json(case)["config"], "subcases": {}}}
    goldens.compares_nothing(case, tmp_path, empty, COMPUTATIONS)


def test_d03_official_names_are_the_models():
    """All three, at full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    assert claims.official_keys().passed
    outcome = commands.run(main, "convert", "--check", "7b")
    assert "7b: 1,072 weights, 7,283,909,803 parameters: all agree by name and shape" in outcome.out, outcome.err


def test_d04_the_dry_run_is_the_papers(tmp_path):
    """Fails if a stage trains something else, or has other steps or another rate; or if a plan writes a file."""
    outcome = commands.run(main, "train", "--config", "7b", "--dry-run", where=tmp_path)
    assert outcome.code == 0 and not outcome.made, outcome.err
    for number in ("23,603,200", "2,181", "5,198", "0.001", "2e-05"):
        assert number in outcome.out, number


def test_d05_d12_an_evaluation_is_verified_and_cited(tmp_path):
    """Fails if predictions, scores or the data's fingerprint are not those of the record."""
    model, run = write_model(tmp_path / "model"), tmp_path / "run"
    write.write_vqav2(tmp_path / "data", 3, 2, 48)
    options = ("--benchmark", "vqav2", "--split", "val2014", "--data", tmp_path / "data", "--output", run)
    outcome = commands.run(main, "eval", model, *options)
    assert outcome.code == 0, outcome.err
    outcome = commands.run(main, "verify", run)
    assert outcome.code == 0 and "bit for bit" in outcome.out, outcome.err
    record = RunRecord.load(run)
    assert record.id in commands.run(main, "cite", run).out
    atomic_write_json(run / "run.json", {**read_json(run / "run.json"), "metrics": {**record.metrics, "score": -1.0}})
    assert commands.run(main, "verify", run).code


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_d06_a_batch_is_its_rows_one_by_one_and_inputs_stay(side):
    """Rows of one, no and two images. Fails if images go to other rows or padding shifts positions."""
    model = tiny_model()
    rows = tiny_inputs(model, MIXED)
    batch = batched(rows, side=side)
    kept = {name: value.clone() for name, value in batch.items()}
    logits = model(**batch).logits
    for index, row in enumerate(rows):
        own = logits[index][batch["attention_mask"][index].bool()]
        torch.testing.assert_close(own, model(**row).logits[0], atol=1e-5, rtol=1e-4)
    assert all(torch.equal(batch[name], kept[name]) for name in kept)


def test_d07_the_miniature_is_on_record():
    """Fails if a record names no claim or no commit, or one is lost."""
    ledger.records_are_of_claims("llava_hr", least=9)


def test_d08_what_is_counted_comes_out():
    """Fails if a size, a number of tokens or FLOPs leaves its published value by more than its rounding."""
    ledger.counted_claims_hold("llava_hr", "parameters", "trainable", "tokens", "tflops", "adapters_share")


@apart
@torch.no_grad()
def test_d09_on_the_device_the_prefill_waits_once_and_decoding_never():
    """It counts placeholders. Fails if positions are made on the CPU, or a decoding step reads from the device."""
    model, there = tiny_model(), tiny_model()
    batch, step = batched(tiny_inputs(model, MIXED)), torch.full((len(MIXED), 1), 7)
    first = model(**batch, use_cache=True)
    mask = torch.cat((batch["attention_mask"], torch.ones_like(step)), dim=1)
    after = model(input_ids=step, attention_mask=mask, past_key_values=first.past_key_values).logits
    with stand_in_cuda() as device:
        there.to("cuda")
        batch, step, mask = device.move((batch, step, mask))
        output = there(**batch, use_cache=True)
        assert sum(device.waits_in("llava_hr/").values()) == 1, device.waits
        decoded = there(input_ids=step, attention_mask=mask, past_key_values=output.past_key_values).logits
        assert sum(device.waits_in("llava_hr/").values()) == 1, device.waits
        torch.testing.assert_close(device.values(output.logits), first.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(device.values(decoded), after, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "--benchmark", "pope", "--data", "missing"), ("missing",)),
        (("eval", "--config", "nonsense"), ("no such config",)),
        (("train", "--config", "mini", "--set", "nonsense=1"), ("nonsense",)),
        (("convert", "missing", "out"), ("missing",)),
        (("bench", "--device", "cuda"), ("cuda",)),
    ],
)
def test_d10_one_line_and_exit_code_2(tmp_path, arguments, words):
    """Fails if there is a traceback, a second line, or a file left behind."""
    commands.refused(commands.run(main, *arguments, where=tmp_path), *words)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check or an option that README or ledger name is not there."""
    ledger.readme_and_citation_are_whole("llava_hr", authors=6)
    ledger.claims_have_their_evidence("llava_hr")
    ledger.shipped_files_are_small("llava_hr")
    lines = [shlex.split(claim.command) for claim in ledger.ledger_of("llava_hr").claims if claim.command]
    commands.commands_are_known(app, lines)
    told = commands.readme_commands(package_file("llava_hr", "README.md"), "llava-hr")
    assert commands.commands_are_known(app, told) == commands.verbs(app) - {"report"}
