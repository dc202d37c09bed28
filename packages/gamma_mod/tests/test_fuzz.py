"""D10: what gamma-MoD reads, damaged at random: refused in one line, or right."""

from pathlib import Path

import pytest
import torch
from gamma_mod_releases import write_release

from gamma_mod.checkpoints.convert import convert_release
from gamma_mod.commands.app import main
from gamma_mod.config import GammaModConfig
from gamma_mod.storage import read_beside, write_beside
from gamma_mod.training.settings import TrainSettings
from tenfold.data import write
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    beside, pope = folder / "beside", folder / "pope"
    for made in (beside, pope):
        made.mkdir(parents=True)
    write_beside(beside, GammaModConfig((1, 2)), torch.randn(2, 32), 4)
    write.write_pope(pope, 0, 4, 32)
    release = write_release(folder / "release")
    return [
        *usual(folder / "usual", "gamma_mod", main, TrainSettings, "mini.yaml"),
        Reading("conversion", beside, lambda f: read_beside(f)[1]),
        Reading("release", release, lambda f: convert_release(f, f.parent / "made") and None),
        command(
            "eval", pope, main, "eval", "--benchmark", "pope", "--data", "{in}", "--limit", "2", "--output", "{out}"
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
