"""D10: what DyVTE reads, damaged at random: refused in one line, or right."""

from pathlib import Path

import pytest
from dyvte_releases import tiny_gates, tiny_host

from dyvte.checkpoints.load import load_gates
from dyvte.checkpoints.release import to_official
from dyvte.commands.app import main
from dyvte.data.samples import read_samples
from dyvte.training.settings import TrainSettings
from tenfold.data import write
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    samples, pope = folder / "samples", folder / "pope"
    for made in (samples, pope):
        made.mkdir(parents=True)
    gates, host = folder / "gates", folder / "host"
    tiny_gates(gates)
    tiny_host(host)
    write.write_llava_instruct(samples, 0, 3, 32)
    write.write_pope(pope, 0, 4, 32)
    return [
        *usual(folder / "usual", "dyvte", main, TrainSettings, "mini.yaml"),
        Reading("gates", gates, lambda f: load_gates(f).state_dict()),
        Reading("samples", samples, _pictures),
        Reading("host", host, lambda f: to_official(f, gates, f.parent / "made")),
        command(
            "eval", pope, main, "eval", "--benchmark", "pope", "--data", "{in}", "--limit", "2", "--output", "{out}"
        ),
    ]


def _pictures(folder: Path) -> list[tuple[int, int]]:
    found = read_samples(folder / "llava_instruct.json", folder / "images", rounds="split")
    return [sample.picture.open().size for sample in found if sample.picture is not None]


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
