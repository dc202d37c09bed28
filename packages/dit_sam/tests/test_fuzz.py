"""D10: what DIT reads, damaged at random: refused in one line, or right."""

import json
from pathlib import Path

import pytest
from dit_sam_tiny import tiny_model
from PIL import Image

from dit_sam.checkpoints.convert import convert, convert_back
from dit_sam.commands.app import main
from dit_sam.data.mini import write_mini
from dit_sam.data.own import read_own
from dit_sam.data.refer import read_annotations, read_references
from dit_sam.data.settings import MiniSettings
from dit_sam.model import DITSam
from dit_sam.training.settings import TrainSettings
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    model, data, own, release = (folder / name for name in ("model", "data", "own", "release"))
    tiny = tiny_model("layer_wise")
    tiny.save_pretrained(model, trained="nothing")
    write_mini(data, MiniSettings(train=2, val=2, test=1, seed=9))
    own.mkdir()
    picture = sorted(data.rglob("COCO*"))[0]
    Image.open(picture).save(own / "a.jpg")
    mask_picture(picture, own / "mask.png")
    (own / "train.jsonl").write_text(json.dumps({"image": "a.jpg", "sentence": "the cup", "mask": "mask.png"}) + "\n")
    release.mkdir()
    convert_back(model, release / "seg.pth")
    tiny.vocabulary.save(release / "vocab.txt")
    (release / "dims.json").write_text(json.dumps(tiny.config.to_dict()))
    refs = sorted(data.rglob("refs*.p"))[0].relative_to(data)
    return [
        *usual(folder / "usual", "dit_sam", main, TrainSettings, "mini.yaml"),
        Reading("model", model, lambda f: DITSam.from_pretrained(f).state_dict()),
        Reading("refs", data, lambda f: read_references(f / refs), (str(refs),)),
        Reading("instances", data, lambda f: _masks(f / refs.parent / "instances.json"), ("**/instances.json",)),
        Reading("own", own, _own),
        Reading(
            "release",
            release,
            lambda f: convert(
                f / "seg.pth", f / "made", bert=f / "vocab.txt", variant="layer_wise", dims=f / "dims.json"
            ),
        ),
        command(
            "segment",
            own,
            main,
            "segment",
            "{in}/a.jpg",
            "the cup",
            "--model",
            str(model),
            "--output",
            "{out}",
            files=("a.jpg",),
        ),
        command("eval", data, main, "eval", str(model), "--data", "{in}", "--limit", "1", "--output", "{out}"),
    ]


def mask_picture(picture: Path, path: Path) -> None:
    """A mask of the size of a picture."""
    size = Image.open(picture).size
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1] // 2))
    mask.save(path)


def _converted(folder: Path) -> None:
    dims = folder / "dims.json"
    convert(folder / "seg.pth", folder / "made", bert=folder / "vocab.txt", variant="layer_wise", dims=dims)


def _own(folder: Path) -> list[int]:
    samples = read_own(folder, "train")
    return [sample.picture.open().width + int(sample.read_mask().sum()) for sample in samples if sample.read_mask]


def _masks(path: Path) -> list[int]:
    return [int(one.mask(str(path)).sum()) for one in read_annotations(path).values()]


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
