"""D10: what EAS reads, damaged at random: refused in one line, or right."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from eas_fixtures import skipper
from lavin_fixtures import lavin
from meter_fixtures import meter
from PIL import Image
from safetensors.torch import save_file

from eas.checkpoints.folder import About, load_folder, save_folder, weights_of
from eas.checkpoints.lavin import open_lavin
from eas.checkpoints.lightning import read_lightning
from eas.checkpoints.meter import MeterAbout, open_meter, write_meter
from eas.commands.app import main
from eas.data.records import Record, read_records, write_records
from eas.data.scienceqa import read_problems
from eas.training.settings import TrainSettings
from tenfold.data import write
from tenfold.testing.fuzz import FEW, INPUTS, Reading, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    adapters, records, problems = (folder / name for name in ("adapters", "records", "problems"))
    for made in (records, problems):
        made.mkdir(parents=True)
    save_folder(skipper(), adapters, About(width=32))
    Image.effect_noise((24, 24), 60).convert("RGB").save(records / "a.png")
    asked = [Record("1", "what is it?", "a cup", records / "a.png"), Record("2", "how many?", "two")]
    write_records(records / "records.json", asked, records)
    write.write_scienceqa(problems, 0, 8, 32)
    model = meter()
    write_meter(folder / "meter", model.config, model.state_dict(), MeterAbout(left_out={}), answers=["a", "b", "c"])
    (folder / "lavin").mkdir()
    decoder = lavin()
    said = {
        "format": "eas-lavin",
        "config": asdict(decoder.config),
        "about": {"prompt_format": "QCM-ALE", "skipped": []},
    }
    (folder / "lavin" / "lavin.json").write_text(json.dumps(said))
    save_file(decoder.state_dict(), folder / "lavin" / "model.safetensors")
    (folder / "lightning").mkdir()
    small = {name: value for name, value in model.state_dict().items() if name.startswith("cross_modal_text_pooler")}
    torch.save({"state_dict": small, "epoch": 3}, folder / "lightning" / "a.ckpt")
    return [
        *usual(folder / "usual", "eas", main, TrainSettings, "mini.yaml"),
        Reading("adapters", adapters, lambda f: weights_of(load_folder(f)[0])),
        Reading("records", records, _pictures),
        Reading("METER", folder / "meter", lambda f: open_meter(f)[0].state_dict()),
        Reading("LaVIN", folder / "lavin", lambda f: open_lavin(f)[0].state_dict()),
        Reading("Lightning", folder / "lightning", lambda f: read_lightning(f / "a.ckpt")[0]),
        Reading("problems", problems, lambda f: [one.record.question for one in read_problems(f)]),
    ]


def _pictures(folder: Path) -> list[tuple[int, int] | None]:
    found = read_records(folder / "records.json", folder)
    return [None if one.image is None else one.picture().size for one in found]


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
