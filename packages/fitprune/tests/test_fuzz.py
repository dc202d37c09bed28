"""D10: what FitPrune reads, damaged at random: refused in one line, or right."""

import shutil
from pathlib import Path

import pytest
from fitprune_releases import write_release

from fitprune.checkpoints.keys import convert
from fitprune.commands.app import main
from fitprune.data.calibration import calibration_samples
from fitprune.recipe import Recipe, open_recipe
from fitprune.training.settings import FitSettings
from tenfold.cli.settings import HostSettings
from tenfold.data import mini_host, write
from tenfold.hosts.loading import load_host
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    recipe, samples, pope = (folder / name for name in ("recipe", "samples", "pope"))
    for made in (recipe, samples, pope):
        made.mkdir(parents=True)
    open_recipe("llava-1.5-7b:60").save(recipe / "recipe.json")
    write.write_calibration(samples, 0, 3, 32)
    write.write_pope(pope, 0, 4, 32)
    release = write_release(folder / "release")
    host = shutil.copytree(mini_host.path(), folder / "host")
    return [
        *usual(folder / "usual", "fitprune", main, FitSettings, "mini.yaml"),
        Reading("recipe", recipe, lambda f: Recipe.load(f / "recipe.json")),
        Reading("host", host, lambda f: load_host(HostSettings(model=str(f))).model.state_dict()),
        Reading("samples", samples, lambda f: [s.picture.open().size for s in _samples(f)]),
        Reading("release", release, lambda f: convert(f, f.parent / "made", to="hf") and None),
        command(
            "eval", pope, main, "eval", "--benchmark", "pope", "--data", "{in}", "--limit", "2", "--output", "{out}"
        ),
        command(
            "fit",
            samples,
            main,
            "fit",
            "--samples",
            "{in}/calibration.jsonl",
            "--image-folder",
            "{in}/images",
            "--limit",
            "2",
            "--ratio",
            "0.4",
            "--output",
            "{out}",
        ),
    ]


def _samples(folder: Path) -> list:
    return calibration_samples("a model", str(folder / "calibration.jsonl"), str(folder / "images"), None, 0)


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
