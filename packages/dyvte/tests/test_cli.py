"""The command line: verbs work, and what is wrong is one line with exit code 2."""

import json
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dyvte.commands.app import app
from tenfold import UserError

RUNNER = CliRunner()


def run(line):
    return RUNNER.invoke(app, shlex.split(line))


def refused(outcome, *words):
    """A UserError, which `main` prints as one line with exit code 2."""
    assert isinstance(outcome.exception, UserError), outcome.output
    text = str(outcome.exception)
    assert "\n" not in text and all(word in text for word in words), text


def test_help_names_every_verb():
    outcome = run("--help")
    assert outcome.exit_code == 0
    for verb in (
        "train",
        "eval",
        "demo",
        "analyze",
        "calibrate",
        "bench",
        "convert",
        "flops",
        "claims",
        "cite",
        "verify",
    ):
        assert verb in outcome.output


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b"])
def test_a_name_with_a_dot_is_a_shipped_training(name):
    """Fails if the name is looked for among the evaluations, or its last part taken for a file's ending."""
    refused(run(f"train --config {name} --dry-run"), "mix665k")


def test_cite_prints_paper_and_software():
    outcome = run("cite")
    assert outcome.exit_code == 0 and "2411.19628" in outcome.output and "Wu" in outcome.output


def test_dry_run_prints_the_plan():
    outcome = run("train --config mini --dry-run")
    assert outcome.exit_code == 0, outcome.output
    for words in ("trainable parameters", "effective batch: 64", "steps: 400", "expected updates of each gate"):
        assert words in outcome.output


def test_demo_shows_both_answers_and_the_gates(tmp_path):
    outcome = run(f"demo --device cpu --output {tmp_path / 'demo'}")
    assert outcome.exit_code == 0, outcome.output
    for words in ("answer, dense", "answer, with exit", "visual tokens left", "What the gates said"):
        assert words in outcome.output
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["verb"] == "demo"


def test_eval_prints_a_table_and_verify_holds_and_cite_pins_it(tmp_path):
    folder = tmp_path / "eval"
    outcome = run(f"eval --config mini --benchmark gqa --limit 6 --device cpu --output {folder}")
    assert outcome.exit_code == 0 and "GQA" in outcome.output, outcome.output
    verified = run(f"verify {folder}")
    assert verified.exit_code == 0 and "It holds" in verified.output, verified.output
    record = json.loads((folder / "run.json").read_text())
    assert record["config_sha256"].removeprefix("sha256:")[:10] in run(f"cite {folder}").output
    record["metrics"]["mean_exit"] += 1
    (folder / "run.json").write_text(json.dumps(record))
    assert run(f"verify {folder}").exit_code == 1


def test_calibrate_prints_a_threshold():
    outcome = run("calibrate --mean-exit 2 --limit 24 --device cpu")
    assert outcome.exit_code == 0 and "threshold" in outcome.output, outcome.output


def test_convert_both_ways(tmp_path):
    from dyvte_releases import tiny_gates, tiny_host

    tiny_host(tmp_path / "host")
    tiny_gates(tmp_path / "gates")
    made = run(f"convert {tmp_path / 'host'} {tmp_path / 'official'} --to official --gates {tmp_path / 'gates'}")
    assert made.exit_code == 0, made.output
    back = run(f"convert {tmp_path / 'official'} {tmp_path / 'gates2'}")
    assert back.exit_code == 0 and "2 gates" in back.output
    assert (tmp_path / "gates2" / "gates.safetensors").is_file()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval nowhere/at/all", ["no data", "--data"]),
        ("analyze nowhere/at/all", ["no samples", "nowhere/at/all"]),
        ("eval --gates nowhere --device cpu --benchmark gqa", ["no such gates", "nowhere"]),
        ("eval --benchmark nonsense", ["nonsense"]),
        ("eval --set more=1", ["--set without --config"]),
        ("eval --config nonsense", ["no such config", "nonsense"]),
        ("eval --config mini --set more=1", ["unknown setting more"]),
        ("eval --device cuda --benchmark gqa", ["no such CUDA device"]),
        ("eval --batch 0", ["batch", "0"]),
        ("eval llava-hf/llava-1.5-7b-hf --benchmark gqa", ["no data", "gqa"]),
        ("train llava-hf/llava-1.5-7b-hf --dry-run", ["samples"]),
        ("train --config nonsense --dry-run", ["no such config"]),
        ("train --config mini --samples nowhere.json --dry-run", ["nowhere.json"]),
        ("demo --image nowhere.jpg --question What?", ["nowhere.jpg"]),
        ("demo --image nowhere.jpg", ["without a question"]),
        ("demo --exit-at 99 --device cpu", ["exit_at 99"]),
        ("analyze --samples nowhere.json", ["nowhere.json"]),
        ("calibrate --mean-exit 99 --limit 8 --device cpu", ["mean exit 99"]),
        ("bench --layers many", ["layers"]),
        ("bench --exit-layer 9 --layers 2", ["an exit after layer 9"]),
        ("convert nowhere out", ["nowhere"]),
        ("convert nowhere out --to official", ["no gates to put in"]),
        ("convert nowhere out --to elsewhere", ["cannot convert to 'elsewhere'"]),
        ("flops --host gpt", ["unknown host"]),
        ("flops --tokens 10", ["576 visual of 10 tokens"]),
        ("verify nowhere", ["nowhere"]),
    ],
)
def test_what_is_wrong_is_one_line(line, words, tmp_path, monkeypatch):
    """Fails if a traceback, a second line or a partial output comes of it."""
    monkeypatch.chdir(tmp_path)
    refused(run(line), *words)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "checkpoint" not in path.as_posix()]
    assert left == []


def test_broken_instruction_files_are_one_line(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Books"}]
    for content, word in (
        ("{", "samples.json"),
        ("[]", "samples.json"),
        (json.dumps([{"id": 1, "image": "a.jpg"}]), "conversations"),
        (json.dumps([{"id": 1, "image": "b.jpg", "conversations": turns}]), "b.jpg"),
        (
            json.dumps([{"id": 1, "conversations": [{"from": "human", "value": "Hi"}, turns[1]]}]),
            "no record of one round",
        ),
    ):
        (tmp_path / "samples.json").write_text(content)
        refused(run(f"train --config mini --samples {tmp_path / 'samples.json'} --dry-run"), word)


@pytest.mark.slow
def test_the_console_script_ends_with_code_2(tmp_path):
    command = [sys.executable, "-m", "dyvte", "eval", "--benchmark", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
