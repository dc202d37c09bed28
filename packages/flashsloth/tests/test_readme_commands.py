"""Every command of the README, run once: on tiny releases, and with fewer steps where it would train."""

import shutil
from pathlib import Path

import pytest
from flashsloth_fixtures import tiny_config
from flashsloth_releases import release_config, weights, write_release
from PIL import Image
from safetensors.torch import save_file

from flashsloth.commands.app import main
from flashsloth.miniature.vocabulary import write_vocabulary
from tenfold.data.formats import Picture, TextVQASample, write_textvqa
from tenfold.runs import atomic_write_json, read_json
from tenfold.testing.commands import readme_commands, run

README = Path(__file__).parent.parent / "README.md"
LINES = {" ".join(words[1:]): words[1:] for words in readme_commands(README, "flashsloth")}
TINY_STEPS = ["--set", "data.mini.train=16", "--set", "pretrain.steps=1", "--set", "finetune.steps=1"]
TINY_STEPS += [part for stage in ("pretrain", "finetune") for part in ("--set", f"{stage}.batch=4")]
TINY_STEPS += [part for stage in ("pretrain", "finetune") for part in ("--set", f"{stage}.per_device=2")]
# Command -> what is added to it here, and what it prints.
EXPECTED: dict[str, tuple[list[str], str]] = {
    "demo": (["--output", "demo"], "EmbQ"),
    "eval --config mini --limit 6": (["--output", "runs/mini"], "accuracy"),
    "convert FlashSloth-3.2B flashsloth-3.2b": ([], "wrote"),
    "convert --check": ([], "905 weights, 3,196,373,985 parameters: all agree"),
    "convert FlashSloth_HD-3.2B hd --siglip siglip-so400m-patch14-384": ([], "largest"),
    "tokenizer phi-2 flashsloth-tokenizer": ([], "wrote"),
    "eval flashsloth-3.2b --benchmark textvqa --data playground/data/eval --dtype float16": (
        ["--output", "runs/textvqa", "--dtype", "float32"],
        "accuracy",
    ),
    "train --config mini": ([*TINY_STEPS, "--output", "runs/train"], "finetune"),
    "train --config 3.2b-mix665k --dry-run": ([], "2,798,628,545"),
    "bench": (["--device", "cpu", "--repeats", "1", "--new-tokens", "2"], "time to the first token is"),
    "claims": ([], "reproduced"),
    "cite": ([], "2412.04317"),
    "verify runs/flashsloth-eval-1": ([], "It holds."),
}
SLOW = {"claims", "convert --check"}  # a contract test runs the second


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the README takes for granted: releases, SigLIP, Phi-2's words, a benchmark, a finished run."""
    folder = tmp_path_factory.mktemp("readme")
    write_release(folder / "FlashSloth-3.2B")
    write_release(folder / "FlashSloth_HD-3.2B", views=5)
    tower = "model.vision_tower.vision_tower."
    state = weights(release_config())
    (folder / "siglip-so400m-patch14-384").mkdir()
    theirs = {name.removeprefix(tower): value for name, value in state.items() if name.startswith(tower)}
    save_file(theirs, folder / "siglip-so400m-patch14-384/model.safetensors")
    write_vocabulary(folder / "phi-2")
    picture = Picture(Image.new("RGB", (50, 40), (200, 30, 30)))
    asked = [TextVQASample(1, "a", "What does it say?", ("stop",) * 10, picture)]
    write_textvqa(folder / "playground/data/eval/textvqa", asked)
    assert (
        run(main, "eval", "--config", "mini", "--limit", "3", "--output", folder / "runs/flashsloth-eval-1").code == 0
    )
    return folder


def test_every_command_has_an_expectation():
    """Fails if the README gains a command that nothing runs."""
    assert LINES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("line", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in EXPECTED])
def test_a_command_of_the_readme_runs(line, place, tmp_path, monkeypatch):
    """Fails if it ends in an error, or does not print what it is for."""
    from flashsloth.evidence import speed

    more, said = EXPECTED[line]
    words = LINES[line]
    if "--dtype" in more:  # half precision is slow on a CPU
        at = words.index("--dtype")
        words = words[:at] + words[at + 2 :]
    if line == "bench":
        monkeypatch.setattr(speed.FlashSlothConfig, "named", classmethod(lambda cls, name: tiny_config()))
    if line.startswith("eval flashsloth-3.2b") and not (place / "flashsloth-3.2b").exists():
        assert run(main, "convert", place / "FlashSloth-3.2B", place / "flashsloth-3.2b").code == 0
    if line.startswith("convert FlashSloth-3.2B"):
        shutil.rmtree(place / "flashsloth-3.2b", ignore_errors=True)
    outcome = run(main, *words, *more, where=place)
    assert outcome.code == 0 and said in outcome.out, (outcome.out, outcome.err)


def test_verify_notices_another_score(place, tmp_path):
    """A record whose accuracy was changed by hand. Fails if `verify` looks at the files only."""
    shutil.copytree(place / "runs/flashsloth-eval-1", tmp_path / "run")
    record = read_json(tmp_path / "run/run.json")
    record["metrics"]["scores"]["accuracy"] += 0.3
    atomic_write_json(tmp_path / "run/run.json", record)
    outcome = run(main, "verify", tmp_path / "run")
    assert outcome.code != 0 and "accuracy" in outcome.out + outcome.err
