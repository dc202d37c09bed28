"""D10: what InstDiffEdit reads, damaged at random: refused in one line, or right."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from inst_diff_edit.checkpoints.load import load_pipeline
from inst_diff_edit.checkpoints.settings import ModelSettings
from inst_diff_edit.commands.app import main
from inst_diff_edit.evaluation.settings import EditSettings
from inst_diff_edit.miniature import model as mini
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual

SHORT = ("--to", "a lemon", "--config", "mini", "--set", "steps=4", "--output", "{out}")


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    model, scene = folder / "model", folder / "scene"
    scene.mkdir(parents=True)
    shutil.copytree(mini.path(), model)
    Image.effect_noise((32, 32), 60).convert("RGB").save(scene / "photo.png")
    return [
        *usual(folder / "usual", "inst_diff_edit", main, EditSettings, "mini.yaml"),
        Reading("model", model, lambda f: load_pipeline(ModelSettings(model=str(f))).unet.state_dict()),
        command("edit", scene, main, "edit", "{in}/photo.png", *SHORT),
        command("edit by", model, main, "edit", str(scene / "photo.png"), "--model", "{in}", *SHORT),
    ]


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
