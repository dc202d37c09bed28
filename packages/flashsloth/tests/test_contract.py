"""The definition of done, line by line, as far as a test can call it; what is particular stays in its own files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flashsloth_fixtures import AttentionMaps, tiny_inputs, tiny_model
from flashsloth_releases import write_release

from flashsloth.commands.app import main
from flashsloth.configuration import FlashSlothConfig
from flashsloth.evidence.claims import checks
from flashsloth.evidence.parity import COMPUTATIONS
from tenfold.ledger import load_ledger
from tenfold.testing.commands import refused, run
from tenfold.testing.device import stand_in_cuda
from tenfold.testing.goldens import cases, frame_is_strict
from tenfold.testing.processes import apart

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text(encoding="utf-8")


def test_d01_imports_without_torch_and_helps():
    """A fresh process: no torch at import. Fails if a public name is imported at once."""
    code = "import sys, flashsloth; assert 'torch' not in sys.modules; print(flashsloth.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    outcome = run(main, "--help")
    assert outcome.code == 0 and all(verb in outcome.out for verb in ("train", "eval", "bench", "claims", "convert"))


def test_d02_the_frame_of_the_golden_cases_is_strict(tmp_path):
    assert {path.stem for path in cases("flashsloth")} >= {"modules", "data", "tiny_model"}
    frame_is_strict("flashsloth", COMPUTATIONS, tmp_path)


def test_d03_convert_and_check(tmp_path):
    """The command itself, both ways. Fails if a count is off."""
    outcome = run(main, "convert", "--check")
    assert outcome.code == 0 and "905 weights, 3,196,373,985 parameters: all agree" in outcome.out
    write_release(tmp_path / "release")
    outcome = run(main, "convert", tmp_path / "release", tmp_path / "ours")
    assert outcome.code == 0 and "wrote" in outcome.out and (tmp_path / "ours/model.safetensors").exists()


def test_d04_dry_run():
    outcome = run(main, "train", "--config", "3.2b-mix665k", "--dry-run")
    assert outcome.code == 0 and "10,837,249" in outcome.out and "5,198" in outcome.out


def test_d05_help_shows_the_trees():
    outcome = run(main, "eval", "--help")
    assert outcome.code == 0 and "TextVQA_0.5.1_val.json" in outcome.out


def test_d08_every_check_has_a_claim():
    """And every claim its check. Fails if one is renamed alone."""
    claims = load_ledger(HERE / "claims.yaml").claims
    assert {claim.check for claim in claims if claim.check} == set(checks())


@pytest.mark.parametrize("name", [name for name in checks() if name.startswith(("t", "fewer", "red", "lang", "cache"))])
def test_d08_computed_claims_hold(name):
    """Fails if a formula moves away from the ledger's value."""
    claim = next(one for one in load_ledger(HERE / "claims.yaml").claims if one.check == name)
    outcome = checks()[name]()
    assert outcome.value == pytest.approx(claim.value, abs=claim.tolerance)


def test_d09_no_map_of_the_sequence():
    model = tiny_model()
    row = tiny_inputs(model)[0]
    with torch.no_grad(), AttentionMaps(row["input_ids"].shape[1]) as maps:
        model(**row)
    assert not [name for name in maps.seen if "arange" not in name]


@apart
def test_d09_the_same_on_the_stand_in_device_and_no_wait_while_decoding():
    """Fails if an index stays on the CPU, or a decoding step of ours asks the device for a value."""
    model, there = tiny_model(), tiny_model()
    row = tiny_inputs(model)[0]
    with torch.no_grad():
        expected = model(**row).logits
    with stand_in_cuda() as device:
        there.to("cuda")
        inputs = {name: value.to("cuda") for name, value in row.items()}
        output = there(**inputs, use_cache=True)
        assert torch.allclose(device.values(output.logits), expected, atol=1e-4)
        before = device.waits_in("flashsloth/")
        there(input_ids=inputs["input_ids"][:, -1:], past_key_values=output.past_key_values, use_cache=True)
        assert device.waits_in("flashsloth/") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convert", "missing", "out"), ("no such model",)),
        (("convert",), ("nothing to convert",)),
        (("eval", "missing", "--benchmark", "mini", "--data", "."), ("no such file",)),
        (("eval", "--config", "nonsense"), ("no such config",)),
        (("train", "--config", "mini", "--set", "nonsense=1"), ("nonsense",)),
        (("train", "--config", "3.2b-mix665k", "--output", "out"), ("DeepSpeed",)),
        (("bench", "--layers", "many"), ("layers",)),
        (("tokenizer", "missing", "out"), ("missing",)),
        (("demo", "--image", "missing.png", "--question", "What?"), ("missing.png",)),
    ],
)
def test_d10_one_line_and_exit_code_2(tmp_path, arguments, words):
    """Fails if there is a traceback, a second line, or a file left behind."""
    refused(run(main, *arguments, where=tmp_path), *words)


def test_d11_reads_well():
    """The README's sections; no machine's path in any file that ships."""
    for heading in ("## Install", "## Ten lines of Python", "## Commands", "## What works with what",
                    "## What is reproduced", "## Cite"):  # fmt: skip
        assert heading in README
    for file in [*HERE.glob("*.*"), *HERE.glob("src/**/*.py"), *HERE.glob("configs/**/*.yaml")]:
        if file.is_file():
            assert file.suffix != ".py" or len(file.read_text(encoding="utf-8").splitlines()) <= 400, file


def test_d12_cites():
    outcome = run(main, "cite")
    assert outcome.code == 0 and "2412.04317" in outcome.out and "Tong" in outcome.out


def test_d13_the_rehearsal_runs_small(tmp_path):
    """The same steps at a tiny size. Fails if a release of random weights does not come through to an evaluation."""
    import torch

    from flashsloth.evidence.rehearsal import rehearse

    config = FlashSlothConfig(
        text_config={"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 8, "num_attention_heads": 4,
                     "vocab_size": 51200, "bos_token_id": 50256, "eos_token_id": 50256},
        vision_config={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 42, "patch_size": 7, "vision_use_head": False},
    )  # fmt: skip
    config.dtype = torch.float16
    found = rehearse(config, tmp_path)
    steps = ["write a release", "convert", "load in bfloat16", "answer", "evaluate"]
    assert [one["step"] for one in found["steps"]] == steps and found["questions"] == 2


def test_assets_are_small():
    """Fails beyond 3 MB besides golden data."""
    sizes = [file.stat().st_size for file in (HERE / "src").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(sizes) < 3_000_000
    for file in (HERE / "results").glob("*.json"):
        assert json.loads(file.read_text())["commit"]
