"""`llava-hr train` and `llava-hr verify` of a training, as commands: what they do, and what they say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from llava_hr_training import STEPS, bits, die_after, lines, tiny_settings, write_tiny_data, write_tiny_parts

from llava_hr.commands.app import main
from llava_hr.training.settings import TrainSettings
from tenfold.cli import load_config
from tenfold.runs import RunRecord

Command = Callable[..., tuple[int, str, str]]
ALONE = ("--set", "pretrain.deepspeed=null", "--set", "finetune.deepspeed=null")


@pytest.fixture
def llava_hr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in this process; its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llava-hr", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        output = capsys.readouterr()
        return int(exit.value.code or 0), output.out, output.err

    return run


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def settings(data: Path, parts: dict[str, str]) -> TrainSettings:
    return tiny_settings(data, parts, pretrain={"steps": 2}, finetune={"epochs": 1, "steps": 2})


@pytest.fixture(scope="module")
def config(settings: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file that names neither data nor weights."""
    values = settings.model_dump(mode="json")
    values["data"]["folder"] = None
    values["model"] = {"config": values["model"]["config"]}
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_train_goes_on_after_a_kill_and_is_verified(
    llava_hr: Command, settings: TrainSettings, data: Path, parts: dict[str, str], config: Path, tmp_path: Path
) -> None:
    """Options name what the config leaves open. Fails if the same command with --resume ends with other bits, or if
    `verify`, which trains again from the record alone, finds it unequal."""
    options = ("--config", config, "--data", data, "--lm", parts["language_model"], "--clip", parts["clip"])
    options += ("--convnext", parts["convnext"])
    code, out, err = llava_hr("train", *options, "--output", tmp_path / "whole")
    assert code == 0, err
    rows = lines(tmp_path / "whole")
    assert f"finetune: 2 steps, loss {rows[-1]['loss']:.4f}" in out and out.count("wrote ") == 2
    assert die_after("finetune", 2, settings, tmp_path / "run") and len(rows) == 4 < STEPS
    code, out, err = llava_hr("train", *options, "--output", tmp_path / "run")
    assert (code, out) == (2, "") and "not empty" in err and "--resume" in err and len(err.splitlines()) == 1
    code, _, err = llava_hr("train", *options, "--output", tmp_path / "run", "--resume")
    assert code == 0, err
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    code, out, err = llava_hr("verify", tmp_path / "run")
    assert code == 0, out + err
    record = RunRecord.load(tmp_path / "whole")
    assert record.verb == "train" and record.metrics["ranks"] == 1
    record.metrics["ranks"] = 2
    (tmp_path / "run" / "run.json").write_text(record.model_dump_json())
    code, _, err = llava_hr("verify", tmp_path / "run")
    assert code == 2 and "trained by 2 ranks" in err


def test_a_dry_run_prints_stages_steps_rates_and_parameters(llava_hr: Command, data: Path, tmp_path: Path) -> None:
    """Of the miniature, from its data. Fails if a number of the plan is left out, or something is written."""
    code, out, err = llava_hr("train", "--config", "mini", "--dry-run", "--data", data, "--set", "finetune.epochs=3")
    assert code == 0, err
    words = " ".join(out.split())
    rate = load_config(TrainSettings, "mini").finetune.learning_rate
    for text in ("counted in the data", "502,880", "16,640", "562,403", "modality", f"0 → {rate:g} → 0", "8 x 2 x 1"):
        assert text in words, text
    assert "Official" not in words


def test_help_shows_the_tree_of_the_data(llava_hr: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a user cannot learn how the data must lie."""
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = llava_hr("train", "--help")
    assert code == 0
    for text in ("blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json", "coco/train2017", "textvqa/train_images"):
        assert text in out, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "9b"), "no such config"),
        (("--set", "finetune.lr=1"), "unknown setting finetune.lr"),
        (("--stages", "finetune,pretrain"), "stages should be"),
        (("--stages", "sft"), "stages"),
        (("--data", "/nowhere"), "no such folder"),
        (("--config", "7b"), "DeepSpeed without a launcher"),
        (("--config", "7b", *ALONE), "no data"),
        (("--resume",), "no folder"),
        (("--start", "/nowhere"), "no such model"),
        (("--projector", "/nowhere.bin", "--stages", "finetune"), "no such file"),
        (("--config", "7b", *ALONE, "--data", ".", "--lm", "/nowhere"), "no such model"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], message: str, llava_hr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, nothing on stdout, no folder. Fails if one of them shows as a traceback or trains all the same."""
    monkeypatch.chdir(tmp_path)
    code, out, err = llava_hr("train", *arguments)
    assert (code, out) == (2, "") and message in err and len(err.strip().splitlines()) == 1, err
    assert not any(tmp_path.rglob("*.jsonl"))


@pytest.mark.slow
def test_a_command_of_its_own_says_one_line(tmp_path: Path) -> None:
    """Fails if a library speaks up while it is loaded."""
    command = [
        sys.executable,
        "-m",
        "llava_hr",
        "train",
        "--data",
        "/nowhere",
        "--output",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.strip().splitlines()) == 1, done
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_miniature_trains_in_both_stages(llava_hr: Command, tmp_path: Path) -> None:
    """`--config mini`, shortened: draws its data, starts from what ships. Fails if either is not found, or the loss of
    a stage does not fall."""
    short = ("data.mini.train=400", "pretrain.steps=20", "finetune.steps=25", "finetune.epochs=1")
    options = [option for setting in short for option in ("--set", setting)]
    code, _, err = llava_hr("train", "--config", "mini", "--output", tmp_path / "run", *options)
    assert code == 0, err
    for stage in ("pretrain", "finetune"):
        losses = [row["loss"] for row in lines(tmp_path / "run") if row["stage"] == stage]
        assert sum(losses[-5:]) < sum(losses[:5])
