"""D10: what LLaVA-HR reads, damaged at random: refused in one line, or right."""

from pathlib import Path

import pytest
from llava_hr_eval_fixtures import write_model
from llava_hr_releases import write_release
from PIL import Image

from llava_hr.checkpoints.convert import convert
from llava_hr.checkpoints.load import load
from llava_hr.commands.app import main
from llava_hr.image_processing import open_image
from llava_hr.training.settings import TrainSettings
from tenfold.data import write
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    folder.mkdir(parents=True)
    scene, pope = folder / "scene", folder / "pope"
    scene.mkdir()
    pope.mkdir()
    Image.effect_noise((40, 30), 60).convert("RGB").save(scene / "photo.png")
    write.write_pope(pope, 0, 4, 32)
    model, release = write_model(folder / "model"), write_release(folder / "release")
    return [
        *usual(folder / "usual", "llava_hr", main, TrainSettings, "mini.yaml"),
        Reading("model", model, lambda f: load(f)[0].state_dict()),
        Reading("release", release, lambda f: convert(f, f.parent / "made") and None),
        Reading("picture", scene, lambda f: open_image(f / "photo.png").size),
        command("demo", scene, main, "demo", "--image", "{in}/photo.png", "--question", "what?", "--output", "{out}"),
        command(
            "eval", pope, main, "eval", "--benchmark", "pope", "--data", "{in}", "--limit", "1", "--output", "{out}"
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
