"""`fitprune eval`, and `fitprune verify` of it: what they print, and what they say when something is wrong."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from fitprune.commands.app import app, main
from fitprune.commands.tables import eval_tables
from fitprune.evaluation.questions import PAPER
from fitprune.evaluation.run import Evaluation
from fitprune.recipe import Recipe
from tenfold.cli import package_file
from tenfold.cli.app import console
from tenfold.cli.verbs import shipped_config
from tenfold.data import mini_host, write
from tenfold.data.benchmarks import benchmark
from tenfold.ledger.schema import load_ledger
from tenfold.runs import RunRecord, read_jsonl, run


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fitprune", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code or 0


@pytest.fixture
def fitprune(capsys, monkeypatch):
    """Run the command in this process; its exit code, output and errors."""

    def run(*arguments):
        code = command(monkeypatch, *arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write.write_vqav2(folder / "vqav2", 3, 3, mini_host.IMAGE_SIZE)
    write.write_pope(folder / "pope", 3, 1, mini_host.IMAGE_SIZE)
    write.write_mmvet(folder / "mmvet", 3, 2, mini_host.IMAGE_SIZE)
    layers = mini_host.load()[0].config.text_config.num_hidden_layers
    Recipe.uniform(layers, mini_host.VISUAL_TOKENS, total=24, model="mini_host").save(folder / "recipe.json")
    return folder


@pytest.fixture(scope="module")
def options(data):
    folder = str(data / "vqav2")
    named = {"--benchmark": "vqav2", "--split": "val2014", "--data": folder, "--recipe": str(data / "recipe.json")}
    return [word for pair in named.items() for word in pair]


@pytest.fixture(scope="module")
def evaluated(options, tmp_path_factory):
    """The folder of a finished `fitprune eval`."""
    folder = tmp_path_factory.mktemp("eval") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert command(monkeypatch, "eval", *options, "--output", folder) == 0
    return folder


def test_eval_prints_score_and_cost_and_writes_predictions_and_record(fitprune, options, evaluated, tmp_path):
    code, out, _ = fitprune("eval", *options, "--output", tmp_path / "run")
    assert code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"{100 * metrics['scores']['accuracy']:.2f} %" in out
    assert f"-{metrics['visual_reduction']:.1%}" in out and f"-{metrics['prompt_reduction']:.1%}" in out
    assert "papers" not in out, "the mini host is in no paper"
    record = RunRecord.load(tmp_path / "run")
    assert record.verb == "eval" and record.metrics == metrics
    assert record.data.keys() == {"model", "questions"}
    assert record.outputs == RunRecord.load(evaluated).outputs
    assert record.outputs.keys() >= {"predictions.jsonl", "metrics.json", "recipe.json"}
    rows = read_jsonl(tmp_path / "run" / "predictions.jsonl")
    assert [row["id"] for row in rows] == [one.id for one in benchmark("vqav2").read(options[5])]


@pytest.mark.slow
def test_the_mini_config_works_out_of_the_box(fitprune, tmp_path):
    """Every benchmark of the mini world, nothing downloaded; and `verify` does it again."""
    code, out, err = fitprune("eval", "--config", "mini", "--output", tmp_path / "run")
    assert code == 0, err
    done = {path.name for path in (tmp_path / "run").iterdir()}
    assert done == {name for name in PAPER if name in write.Format.__members__}
    assert all(benchmark(name).title in out for name in done)
    code, out, _ = fitprune("verify", tmp_path / "run" / "mmbench")
    assert code == 0 and "compared bit for bit" in out


def test_verify_notices_another_score_and_other_predictions(fitprune, evaluated, tmp_path):
    """Fails if the verifier returns recorded metrics instead of computing them."""
    record = json.loads((evaluated / "run.json").read_text())
    record["metrics"]["scores"]["accuracy"] += 0.25
    record["outputs"]["predictions.jsonl"] = f"sha256:{'0' * 64}"
    (tmp_path / "run.json").write_text(json.dumps(record))
    code, out, _ = fitprune("verify", tmp_path)
    assert code == 1
    verdicts = {cells[1].strip(): cells[4].strip() for line in out.splitlines() if len(cells := line.split("│")) > 4}
    assert verdicts["scores.accuracy"] == verdicts["predictions.jsonl"] == "differs"
    assert verdicts["visual_gflops"] == "equal"


def test_verify_names_data_that_changed(fitprune, options, data, tmp_path):
    shutil.copytree(data / "vqav2", tmp_path / "vqav2")
    moved = [str(tmp_path / "vqav2") if word == options[5] else word for word in options]
    assert fitprune("eval", *moved, "--output", tmp_path / "run")[0] == 0
    next((tmp_path / "vqav2" / "val2014").iterdir()).write_bytes(
        next((data / "vqav2" / "val2014").glob("*2.png")).read_bytes()
    )
    refused(fitprune("verify", tmp_path / "run"), "questions is not the recorded one")
    shutil.rmtree(tmp_path / "vqav2")
    refused(fitprune("verify", tmp_path / "run"), "no such folder")


def test_papers_numbers_stand_beside_ours():
    """Fails if the table takes another unit or another claim."""
    bench = benchmark("pope")
    metrics = {"benchmark": "pope", "split": "all", "questions": 8910, "scores": {"f1": 0.861, "count": 8910}}
    costs = {"visual_gflops": 3077.0, "visual_unpruned_gflops": 7634.0, "visual_reduction": 0.597}
    costs |= {"prompt_gflops": 4403.0, "prompt_unpruned_gflops": 8998.0, "prompt_reduction": 0.511}
    one = Evaluation(bench, "llava-hf/llava-1.5-7b-hf", Recipe.released("llava-1.5-7b", 60), metrics | costs, [], False)
    terminal = console()
    with terminal.capture() as capture:
        terminal.print(eval_tables([one]))
    row = next(line for line in capture.get().splitlines() if "86.10 %" in line)
    assert "86.5 F1" in row


def test_the_ledgers_full_claims_are_commands_that_this_command_takes():
    """Those of `eval`, word by word. Fails if an option is renamed, or a released recipe's name changes."""
    subcommand = typer.main.get_command(app).commands["eval"]
    claims = load_ledger(package_file("fitprune", "claims.yaml")).claims
    commands = [claim.command for claim in claims if (claim.command or "").startswith("fitprune eval ")]
    assert len(commands) > 30
    for line in commands:
        context = subcommand.make_context("eval", shlex.split(line)[2:])
        assert context.params["model"] and context.params["recipe"] and context.params["benchmark"], line


def test_eval_configs_say_how_they_are_run():
    folder = Path(__file__).parent.parent / "configs" / "eval"
    for config in folder.glob("*.yaml"):
        assert shipped_config("fitprune", config.stem) == config
        assert f"fitprune eval --config {config.stem} " in config.read_text(), config.name


@pytest.mark.slow
def test_torchrun_shares_the_work(options, evaluated, tmp_path):
    """The command of the help text, in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "fitprune", "eval", *options, "--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        out, _ = process.communicate(timeout=600)
    finally:
        process.terminate()  # torchrun takes its workers along; killed, it would leave them
        process.wait()
    assert process.returncode == 0, out
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (evaluated / name).read_bytes()


# What is wrong, one thing at a time (D10). Each case breaks a copy of the data and names what the message says.


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
DATA = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "another benchmark's folder": (lambda folder: (folder / QUESTIONS).unlink(), QUESTIONS),
    "broken json": (lambda folder: (folder / QUESTIONS).write_text('{"questions": [\n{'), "broken JSON"),
    "truncated json": (lambda folder: truncate(folder / QUESTIONS), "broken JSON"),
    "no questions": (lambda folder: (folder / QUESTIONS).write_text('{"questions": []}'), "'questions' is empty"),
    "no images": (lambda folder: shutil.rmtree(folder / "val2014"), "no such image"),
    "a truncated image": (lambda folder: truncate(next((folder / "val2014").glob("*1.png"))), "broken image"),
    "no image at all": (lambda folder: next((folder / "val2014").glob("*1.png")).write_text("x"), "broken image"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used_is_one_line(fitprune, options, data, tmp_path, case):
    change, named = DATA[case]
    shutil.copytree(data / "vqav2", tmp_path / "vqav2")
    change(tmp_path / "vqav2")
    moved = [str(tmp_path / "vqav2") if word == options[5] else word for word in options]
    refused(fitprune("eval", *moved, "--output", tmp_path / "run"), named)
    assert not list(tmp_path.glob("run/*.json*"))


REAL = "llava-hf/llava-1.5-7b-hf"
OPTIONS = {
    "unknown benchmark": (["--benchmark", "imagenet"], "unknown benchmark: imagenet"),
    "unknown split": (["--benchmark", "pope", "--split", "easy"], "easy"),
    "a split for all": (["--split", "test"], "--benchmark NAME"),
    "no data for a real model": ([REAL, "--benchmark", "pope", "--recipe", "llava-1.5-7b:60"], "coco_pope_random.json"),
    "no data for a real model, all": ([REAL, "--recipe", "llava-1.5-7b:60"], "--data FOLDER"),
    "no mini set": (["--benchmark", "mmbench-cn"], "no mini set"),
    "nothing of all": (["--data", "."], "no benchmark's folder in it"),
    "no such model": (["nowhere", "--benchmark", "pope", "--data", "POPE"], "no such model"),
    "no such recipe": (["--benchmark", "vqav2", "--recipe", "llava-1.5-7b"], "NAME:PERCENT"),
    "a recipe for another model": (["--benchmark", "vqav2", "--recipe", "llava-1.5-7b:60"], "32 decoder layers"),
    "unknown rule": (["--benchmark", "vqav2", "--rule", "best"], "unknown rule: best"),
    "unknown protocol": (["--benchmark", "vqav2", "--protocol", "mine"], "protocol: 'mine'"),
    "batch of none": (["--benchmark", "vqav2", "--batch", "0"], "batch"),
    "limit of none": (["--benchmark", "vqav2", "--limit", "0"], "limit"),
    "unknown device": (["--benchmark", "vqav2", "--device", "tpu"], "auto, cpu, cuda or cuda:N"),
    "no such config": (["--config", "maxi"], "llava-1.5-7b-60, mini"),
    "unknown setting": (["--config", "mini", "--set", "ratio=0.5"], "unknown setting ratio"),
    "setting without config": (["--set", "limit=2"], "--config mini"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_served_is_one_line(fitprune, data, tmp_path, monkeypatch, case):
    arguments, named = OPTIONS[case]
    arguments = [str(data / "pope") if word == "POPE" else word for word in arguments]
    monkeypatch.chdir(tmp_path)
    refused(fitprune("eval", *arguments, "--output", tmp_path / "run"), named)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_that_is_not_there_is_one_line(fitprune, options, tmp_path):
    refused(fitprune("eval", *options, "--device", "cuda", "--output", tmp_path / "run"), "no such CUDA device")


def test_a_finished_run_is_not_overwritten(fitprune, options, evaluated):
    before = (evaluated / "run.json").read_bytes()
    refused(fitprune("eval", *options, "--output", evaluated), "holds a finished run")
    assert (evaluated / "run.json").read_bytes() == before


def test_a_run_of_another_verb_is_not_overwritten(fitprune, tmp_path):
    with run("fitprune", "fit", config={}, seed=0, output=tmp_path / "run"):
        pass
    refused(fitprune("eval", "--benchmark", "mmvet", "--output", tmp_path / "run"), "holds a finished run")


def test_several_ranks_need_a_common_folder(fitprune, options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(fitprune("eval", *options), "--output FOLDER")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 of WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "no MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}, "MASTER_PORT=0"),
    ],
)
def test_ranks_that_cannot_meet_are_one_line(fitprune, options, tmp_path, monkeypatch, environment, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(fitprune("eval", *options, "--output", tmp_path / "run"), named)


def refused(outcome, named):
    """Exit code 2, and one line on standard error that names what is wrong."""
    code, _, err = outcome
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert named in err
