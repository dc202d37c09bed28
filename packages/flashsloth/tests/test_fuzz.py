"""D10: what FlashSloth reads, damaged at random: refused in one line, or right."""

from pathlib import Path

import pytest
from flashsloth_releases import write_release
from flashsloth_runs import mini_folder
from PIL import Image

from flashsloth.checkpoints.convert import convert
from flashsloth.checkpoints.load import load
from flashsloth.commands.app import main
from flashsloth.evaluation.benchmarks import write_mini_set
from flashsloth.training.settings import TrainSettings
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    folder.mkdir(parents=True)
    scene = folder / "scene"
    scene.mkdir()
    Image.effect_noise((40, 30), 60).convert("RGB").save(scene / "photo.png")
    model, release = mini_folder(folder / "model"), write_release(folder / "release")
    questions = folder / "questions"
    write_mini_set(questions, seed=0, per_kind=1)
    return [
        *usual(folder / "usual", "flashsloth", main, TrainSettings, "mini.yaml"),
        Reading("model", model, lambda f: load(f)[0].state_dict()),
        Reading("release", release, lambda f: convert(f, f.parent / "made") and None),
        command("demo", scene, main, "demo", "--image", "{in}/photo.png", "--question", "what?", "--output", "{out}"),
        command(
            "eval",
            questions,
            main,
            "eval",
            "--benchmark",
            "mini",
            "--data",
            "{in}",
            "--limit",
            "1",
            "--output",
            "{out}",
        ),
    ]


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
