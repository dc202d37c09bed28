"""The definition of done, line by line, as far as a test can call it; what is particular stays in its own files."""

import torch
from flashsloth_fixtures import AttentionMaps, tiny_inputs, tiny_model
from flashsloth_releases import write_release

from flashsloth.commands.app import main
from flashsloth.configuration import FlashSlothConfig
from flashsloth.evidence.parity import COMPUTATIONS
from flashsloth.evidence.parity.common import TOLERANCES
from flashsloth.evidence.rehearsal import rehearse
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger, properties


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name or a verb's module is imported before it is needed."""
    told = commands.answers_without("flashsloth", ("torch", "transformers", "matplotlib"), ("train", "eval", "bench"))
    assert all(words in told for words in ("TextVQA_0.5.1_val.json", "2412.04317", "Tong"))


def test_d02_the_golden_cases_notice_one_number_a_hair_off_and_one_word(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {("tiny_model", "out/single/logits_last"): "logits", ("tiny_model", "out/single/greedy"): "greedy"}
    goldens.one_number_counts("flashsloth", COMPUTATIONS, TOLERANCES, tmp_path, numbers)


def test_d03_convert_and_check(tmp_path):
    """The command itself, both ways. Fails if a count is off."""
    outcome = commands.run(main, "convert", "--check")
    assert outcome.code == 0 and "905 weights, 3,196,373,985 parameters: all agree" in outcome.out
    write_release(tmp_path / "release")
    outcome = commands.run(main, "convert", tmp_path / "release", tmp_path / "ours")
    assert outcome.code == 0 and "wrote" in outcome.out and (tmp_path / "ours/model.safetensors").exists()


def test_d04_the_dry_run_is_the_papers(tmp_path):
    """Fails if a stage trains something else, or has other steps; or if a plan writes a file."""
    outcome = commands.run(main, "train", "--config", "3.2b-mix665k", "--dry-run", where=tmp_path)
    assert outcome.code == 0 and "10,837,249" in outcome.out and "5,198" in outcome.out and not outcome.made


def test_d07_the_miniature_is_on_record():
    """Fails if a record names no claim or no commit, or one is lost."""
    ledger.records_are_of_claims("flashsloth", least=8)


def test_d08_what_is_counted_comes_out():
    """Fails if a formula moves away from the ledger's value."""
    counted = ("tokens_", "tflops_", "trainable_", "fewer", "reduction_", "language_reduction_", "cache_")
    ledger.counted_claims_hold("flashsloth", *counted)


def test_d09_no_map_of_the_sequence():
    """Fails if a layer makes a tensor of tokens x tokens."""
    model = tiny_model()
    row = tiny_inputs(model)[0]
    with torch.no_grad(), AttentionMaps(row["input_ids"].shape[1]) as maps:
        model(**row)
    assert not [name for name in maps.seen if "arange" not in name]


def test_d09_the_same_on_the_stand_in_device_and_no_wait_while_decoding():
    """A prompt waits ten times. Fails if an index stays on the CPU, or a decoding step of ours asks for a value."""
    properties.generates_alike(tiny_model, tiny_inputs(tiny_model())[0], "flashsloth/", "tenfold/", waits=10)


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind."""
    refusals = {
        "convert missing out": "no such model",
        "convert": "nothing to convert",
        "eval missing --benchmark mini --data .": "no such file",
        "eval --config nonsense": "no such config",
        "train --config mini --set nonsense=1": "nonsense",
        "train --config 3.2b-mix665k --output out": "DeepSpeed",
        "bench --layers many": "layers",
        "tokenizer missing out": "missing",
        "demo --image missing.png --question What?": "missing.png",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check, a verb or an option that README or ledger name is not there."""
    ledger.reads_well("flashsloth", authors=8)


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at a tiny size. Fails if a release of random weights does not come through to an evaluation."""
    config = FlashSlothConfig(
        text_config={"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 8, "num_attention_heads": 4,
                     "vocab_size": 51200, "bos_token_id": 50256, "eos_token_id": 50256},
        vision_config={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 42, "patch_size": 7, "vision_use_head": False},
    )  # fmt: skip
    config.dtype = torch.float16
    found = rehearse(config, tmp_path, done := Steps())
    steps = ["write a release", "convert", "load in bfloat16", "answer", "evaluate"]
    assert [one["step"] for one in done.rows] == steps and found["questions"] == 2
