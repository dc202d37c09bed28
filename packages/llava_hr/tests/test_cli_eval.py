"""`llava-hr eval`, and `llava-hr verify` of it: what they print, and what they say when something is wrong."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
import yaml
from llava_hr_eval_fixtures import write_model

from llava_hr.commands.app import app, main
from llava_hr.commands.tables import eval_tables
from llava_hr.evaluation import model as hosts
from llava_hr.evaluation.benchmarks import PAPER, find_benchmark
from llava_hr.evaluation.published import TABLES
from llava_hr.evaluation.run import Evaluation
from llava_hr.evaluation.settings import EvalSettings
from tenfold.cli import load_config, package_file
from tenfold.cli.app import console
from tenfold.cli.verbs import new_folder, shipped_config
from tenfold.data import write
from tenfold.data.benchmark_answers import spread
from tenfold.ledger.schema import load_ledger
from tenfold.runs import RunRecord, read_jsonl, run


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["llava-hr", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code or 0


@pytest.fixture
def llava_hr(capsys, monkeypatch):
    """Run the command in this process; its exit code, output and errors."""

    def run(*arguments):
        code = command(monkeypatch, *arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("vqav2", "pope"):
            patch.setitem(PAPER, name, replace(PAPER[name], max_new_tokens=6))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write.write_vqav2(folder / "vqav2", 3, 2, 48)
    write.write_pope(folder / "pope", 3, 1, 48)
    return folder


@pytest.fixture(scope="module")
def options(model, data):
    named = {"--benchmark": "vqav2", "--split": "val2014", "--data": str(data / "vqav2"), "--device": "cpu"}
    return [str(model), *(word for pair in named.items() for word in pair)]


DATA = 6  # where the folder stands among the options


@pytest.fixture(scope="module")
def evaluated(options, tmp_path_factory):
    """The folder of a finished `llava-hr eval`."""
    folder = tmp_path_factory.mktemp("eval") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert command(monkeypatch, "eval", *options, "--output", folder) == 0
    return folder


def test_eval_prints_a_table_and_writes_predictions_metrics_and_record(llava_hr, options, evaluated, tmp_path):
    code, out, _ = llava_hr("eval", *options, "--output", tmp_path / "run", "--batch", "2", "--limit", "4")
    assert code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"{100 * metrics['scores']['accuracy']:.2f} %" in out and "4, spread" in out and "paper" in out
    assert "predictions.jsonl" in out and "run.json" in out
    record = RunRecord.load(tmp_path / "run")
    assert record.verb == "eval" and record.metrics == metrics and record.package == "llava_hr"
    assert record.data.keys() == {"model", "questions"}
    assert (record.config["batch"], record.config["limit"], record.config["benchmark"]) == (2, 4, "vqav2")
    assert record.outputs.keys() >= {"predictions.jsonl", "metrics.json", "submission/vqav2_submission.json"}
    rows, whole = (read_jsonl(folder / "predictions.jsonl") for folder in (tmp_path / "run", evaluated))
    assert rows == spread(whole, 4) and len(whole) > 4


def test_verify_notices_another_score_and_other_predictions(llava_hr, evaluated, tmp_path):
    """Fails if the verifier returns recorded metrics instead of computing them."""
    record = json.loads((evaluated / "run.json").read_text())
    record["metrics"]["scores"]["accuracy"] += 0.25
    record["outputs"]["predictions.jsonl"] = f"sha256:{'0' * 64}"
    (tmp_path / "run.json").write_text(json.dumps(record))
    code, out, _ = llava_hr("verify", tmp_path)
    assert code == 1
    verdicts = {cells[1].strip(): cells[4].strip() for line in out.splitlines() if len(cells := line.split("│")) > 4}
    assert verdicts["scores.accuracy"] == verdicts["predictions.jsonl"] == "differs"
    assert verdicts["new_tokens"] == "equal"


def test_verify_names_data_that_changed(llava_hr, options, data, tmp_path):
    shutil.copytree(data / "vqav2", tmp_path / "vqav2")
    moved = [*options[:DATA], str(tmp_path / "vqav2"), *options[DATA + 1 :]]
    assert llava_hr("eval", *moved, "--limit", "2", "--output", tmp_path / "run")[0] == 0
    images = sorted((tmp_path / "vqav2" / "val2014").iterdir())
    images[0].write_bytes(images[1].read_bytes())
    refused(llava_hr("verify", tmp_path / "run"), "questions is not the recorded one")
    shutil.rmtree(tmp_path / "vqav2")
    refused(llava_hr("verify", tmp_path / "run"), "no such folder")


def test_the_papers_numbers_stand_beside_ours():
    """Fails if the table takes another model's, another unit, or another split's number."""

    def row(name, split, scores, model="LLaVA-HR-7B"):
        metrics = {"benchmark": name, "split": split, "questions": 5000, "scores": scores}
        metrics |= {"visual_tokens": 1024.0, "new_tokens": 3.5}
        one = Evaluation(find_benchmark(name), "llava-hr-7b-sft-1024", model, 1024, metrics, [], False)
        terminal = console()
        terminal.width = 160
        with terminal.capture() as capture:
            terminal.print(eval_tables([one, one]))
        return capture.get()

    table = row("textvqa", "val_ocr", {"accuracy": 0.6706, "count": 5000})
    assert "67.06 %" in table and "67.11 % (table 1 [v1])" in table and "67.1 % (tables 4 and 5 [v1])" in table
    assert "67.1 %" not in row("textvqa", "val", {"accuracy": 0.5, "count": 5000})
    assert "70.9 %" in row("textvqa", "val_ocr", {"accuracy": 0.7}, "LLaVA-HR-X-13B")
    assert "1554.9 points" in row("mme", "test", {"perception": 1550.0})
    judged = row("mmvet", "test", {})
    assert "by its judge" in judged and "31.5 % (README [readme])" in judged
    assert "%" not in row("textvqa", "val_ocr", {"accuracy": 0.7}, None).replace("70.00 %", "")


def test_the_ledgers_full_claims_are_commands_that_this_command_takes():
    """Word by word, and each about a number of the tables. Fails if an option or a benchmark is renamed, or a claim's
    value is another one than `published` puts beside ours."""
    subcommand = typer.main.get_command(app).commands["eval"]
    claims = load_ledger(package_file("llava_hr", "claims.yaml")).claims
    claims = [claim for claim in claims if (claim.command or "").startswith("llava-hr eval ") and claim.kind == "full"]
    assert len(claims) > 30
    for claim in claims:
        context = subcommand.make_context("eval", shlex.split(claim.command)[2:])
        name = find_benchmark(context.params["benchmark"]).name
        rows = [row for row in TABLES if row.table == claim.source]
        assert claim.value in [row.scores.get(name) for row in rows], claim.id


def test_eval_configs_say_how_they_are_run():
    """And hold settings that `eval` takes. Fails if a config names a setting that is gone."""
    folder = Path(__file__).parent.parent / "configs" / "eval"
    assert {config.stem for config in folder.glob("*.yaml")} >= {"mini", "7b", "x-13b"}
    for config in folder.glob("*.yaml"):
        assert shipped_config("llava_hr", config.stem) == config
        assert f"llava-hr eval --config {config.stem} " in config.read_text(), config.name
        assert load_config(EvalSettings, config).model == yaml.safe_load(config.read_text())["model"]


def test_help_of_eval_answers_without_torch():
    """And lists every benchmark's files. Fails if cli_eval.py imports a module of the method at its top."""
    code = (
        "import sys; from llava_hr.commands.app import main; sys.argv = ['llava-hr', 'eval', '--help']\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code\n"
        "print('loaded:', sorted({'torch', 'transformers', 'pycocoevalcap'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = {line.strip() for line in done.stdout.splitlines()}
    assert "loaded: []" in lines
    assert all(line.strip() in lines for one in PAPER.values() for line in one.bench.tree.splitlines())


def test_the_mini_model_is_asked_its_own_questions(llava_hr, model, tmp_path, monkeypatch):
    """Without --data: the miniature's held-out questions, in VQAv2's files; by name another benchmark's format. A tiny
    model stands for the one that ships. Fails if the kinds of questions are lost on the way."""
    monkeypatch.setattr(hosts, "mini_folder", lambda: model)
    code, _, err = llava_hr("eval", "--set", "limit=40", "--config", "mini", "--output", tmp_path / "run")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["scores"].keys() > {"accuracy", "coarse", "fine", "coarse/shape", "fine/letter", "count"}
    assert metrics["questions"] == 40 and metrics["images"] < 40
    code, _, err = llava_hr("eval", "--benchmark", "pope", "--limit", "2", "--output", tmp_path / "pope")
    assert code == 0, err
    assert json.loads((tmp_path / "pope" / "metrics.json").read_text())["benchmark"] == "pope"


def test_the_shipped_model_reads_its_marks_out_of_the_box(llava_hr, tmp_path):
    """`eval --config mini` and `demo` as a user runs them first. Fails if prompts are not those of its training (half
    of the words would be right at most), or another model ships."""
    code, _, err = llava_hr("eval", "--config", "mini", "--output", tmp_path / "run")
    assert code == 0, err
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert scores["fine"] > 0.8 and scores["coarse"] > 0.8 and scores["count"] == 200
    code, _, err = llava_hr("demo", "--output", tmp_path / "demo")
    assert code == 0, err
    assert RunRecord.load(tmp_path / "demo").metrics["right"] == [True, True]


@pytest.mark.slow
def test_torchrun_shares_the_work(options, evaluated, tmp_path):
    """The command of the help text, in two processes."""
    script = tmp_path / "cli.py"
    script.write_text(
        "from dataclasses import replace; from llava_hr.evaluation.benchmarks import PAPER\n"
        "PAPER['vqav2'] = replace(PAPER['vqav2'], max_new_tokens=6)\n"
        "from llava_hr.commands.app import main; main()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    process = subprocess.Popen(
        [*command, "eval", *options, "--output", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
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
FAULTS = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "another benchmark's folder": (lambda folder: (folder / QUESTIONS).unlink(), QUESTIONS),
    "broken json": (lambda folder: (folder / QUESTIONS).write_text('{"questions": [\n{'), "broken JSON"),
    "truncated json": (lambda folder: truncate(folder / QUESTIONS), "broken JSON"),
    "no questions": (lambda folder: (folder / QUESTIONS).write_text('{"questions": []}'), "'questions' is empty"),
    "no images": (lambda folder: shutil.rmtree(folder / "val2014"), "no such image"),
    "a truncated image": (lambda folder: truncate(next((folder / "val2014").glob("*1.png"))), "broken image"),
    "no image at all": (lambda folder: next((folder / "val2014").glob("*1.png")).write_text("x"), "broken image"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_data_that_cannot_be_used_is_one_line(llava_hr, options, data, tmp_path, case):
    change, named = FAULTS[case]
    shutil.copytree(data / "vqav2", tmp_path / "vqav2")
    change(tmp_path / "vqav2")
    moved = [*options[:DATA], str(tmp_path / "vqav2"), *options[DATA + 1 :]]
    refused(llava_hr("eval", *moved, "--output", tmp_path / "run"), named)
    assert not list(tmp_path.glob("run/*.json*"))


REAL = "favor123/llava-hr-7b-sft-1024"
OPTIONS = {
    "unknown benchmark": (["--benchmark", "imagenet"], "unknown benchmark: imagenet"),
    "unknown split": (["MODEL", "--benchmark", "pope", "--split", "easy", "--data", "DATA"], "easy"),
    "a split for all": (["--split", "test"], "--benchmark NAME"),
    "no data for a real model": ([REAL, "--benchmark", "pope"], "coco_pope_random.json"),
    "no data for a real model, all": ([REAL], "--data FOLDER"),
    "no mini set": (["--benchmark", "ocrvqa"], "no mini set"),
    "nothing of all": (["MODEL", "--data", "."], "no benchmark's folder in it"),
    "no such model": (["nowhere", "--benchmark", "pope", "--data", "DATA"], "no such model"),
    "a folder that is no model": (["EMPTY", "--benchmark", "pope", "--data", "DATA"], "config.json"),
    "another model": (["OTHER", "--benchmark", "pope", "--data", "DATA"], "not a LLaVA-HR"),
    "truncated weights": (["CUT", "--benchmark", "pope", "--data", "DATA"], "CUT"),
    "batch of none": (["--batch", "0"], "batch"),
    "limit of none": (["--limit", "0"], "limit"),
    "unknown device": (["--device", "tpu"], "auto, cpu, cuda or cuda:N"),
    "unknown dtype": (["--dtype", "int8"], "float16"),
    "no such config": (["--config", "maxi"], "7b, mini"),
    "unknown setting": (["--config", "mini", "--set", "beams=5"], "unknown setting beams"),
    "setting without config": (["--set", "limit=2"], "--config mini"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_served_is_one_line(llava_hr, model, data, tmp_path, monkeypatch, case):
    arguments, named = OPTIONS[case]
    if "EMPTY" in arguments:
        (tmp_path / "EMPTY").mkdir()
    if "OTHER" in arguments:
        (tmp_path / "OTHER").mkdir()
        (tmp_path / "OTHER" / "config.json").write_text('{"model_type": "llama"}')
    if "CUT" in arguments:
        shutil.copytree(model, tmp_path / "CUT")
        truncate(tmp_path / "CUT" / "model.safetensors")
    places = {"DATA": str(data), "MODEL": str(model)}
    arguments = [places.get(word, word) for word in arguments]
    monkeypatch.chdir(tmp_path)
    refused(llava_hr("eval", *arguments, "--output", tmp_path / "run"), named)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_that_is_not_there_is_one_line(llava_hr, options, tmp_path):
    changed = [*options[:-1], "cuda"]
    refused(llava_hr("eval", *changed, "--output", tmp_path / "run"), "no such CUDA device")


def test_an_installation_without_the_mini_model_says_so(llava_hr, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "mini_model_path", lambda: tmp_path)
    refused(llava_hr("eval", "--output", tmp_path / "run"), "no mini model in this installation")


def test_a_finished_run_is_not_overwritten(llava_hr, options, evaluated):
    before = (evaluated / "run.json").read_bytes()
    refused(llava_hr("eval", *options, "--output", evaluated), "holds a finished run")
    assert (evaluated / "run.json").read_bytes() == before


def test_a_run_of_another_verb_is_not_overwritten(llava_hr, options, tmp_path):
    with run("llava_hr", "train", config={}, seed=0, output=tmp_path / "run"):
        pass
    refused(llava_hr("eval", *options, "--output", tmp_path / "run"), "holds a finished run")


def test_folders_of_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "llava-hr-eval-1").mkdir(parents=True)
    assert new_folder("llava-hr", "eval") == Path("runs", "llava-hr-eval-2")


def test_several_ranks_need_a_common_folder(llava_hr, options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(llava_hr("eval", *options), "--output FOLDER")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 of WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "no MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}, "MASTER_PORT=0"),
    ],
)
def test_ranks_that_cannot_meet_are_one_line(llava_hr, options, tmp_path, monkeypatch, environment, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(llava_hr("eval", *options, "--output", tmp_path / "run"), named)


def refused(outcome, named):
    """Exit code 2, and one line on standard error that names what is wrong."""
    code, _, err = outcome
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert named in err
