"""The demonstration: held-out scenes through the real files, or an image of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dtnet_mini import write_untrained
from PIL import Image
from rich.console import Console

from dtnet.evaluation import demo
from dtnet.evaluation.demo import DemoSettings, held_out_scenes, mini_model_path, run_demo
from dtnet.features import MiniFeatures
from dtnet.model import DTNet
from tenfold import UserError
from tenfold.data import mini_captions, miniworld
from tenfold.runs import RunRecord, read_json


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_untrained(tmp_path / "mini")
    monkeypatch.setattr(demo, "mini_model_path", lambda: folder)
    return folder


def test_scenes_are_captioned_beside_what_people_say(mini: Path, tmp_path: Path) -> None:
    """Fails if captions and references come from different scenes, or the picture is missing."""
    shown = run_demo(DemoSettings(scenes=3), tmp_path / "run")
    rows = read_json(tmp_path / "run" / "captions.json")
    assert [row["references"] for row in rows] == [
        list(mini_captions.caption_scene(demo.HELD_OUT, index).captions) for index in (2, 3, 4)
    ]
    model = DTNet.from_pretrained(mini)
    pictures = [miniworld.render(mini_captions.caption_scene(demo.HELD_OUT, index).scene, 56) for index in (2, 3, 4)]
    alone = model.caption(MiniFeatures()(pictures))
    assert [row["caption"] for row in rows] == [one.text for one in alone]
    assert [row["log_prob"] for row in rows] == pytest.approx([one.log_prob for one in alone], abs=1e-4)
    assert RunRecord.load(tmp_path / "run").metrics["captions"] == [one.text for one in shown.captions]
    with Image.open(shown.picture) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (11, 92, 107) in colours  # a passed cell
    console = Console(width=140)
    with console.capture() as captured:
        console.print(shown)
    assert "scene 2" in captured.get() and "references" in captured.get()


def test_an_image_of_ones_own(mini: Path, tmp_path: Path) -> None:
    scene = mini_captions.caption_scene(0, 5).scene
    miniworld.render(scene, 120).save(tmp_path / "own.png")
    shown = run_demo(DemoSettings(images=(str(tmp_path / "own.png"),)), tmp_path / "run")
    assert shown.names == ["own.png"] and shown.references == [()]
    assert set(RunRecord.load(tmp_path / "run").data) == {"model", "image 0"}
    with pytest.raises(UserError, match="no such image"):
        run_demo(DemoSettings(images=("none.png",)), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_held_out_scenes_are_not_those_of_the_training(tmp_path: Path) -> None:
    """Fails if the demonstration shows scenes of the world that the mini model was trained on."""
    data = held_out_scenes(tmp_path / "coco", 5, images=False)
    ids = data.captions.images("test")
    trained = MiniFeatures()([miniworld.render(mini_captions.caption_scene(0, index).scene, 56) for index in range(50)])
    shown = data.features.batch(ids)
    assert torch.cdist(shown.flatten(1), trained.flatten(1)).min() > 0.1


def test_without_a_model_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "evaluation" / "demo.py"))
    with pytest.raises(UserError, match="no mini model in this package"):
        mini_model_path()


def test_the_demonstration_needs_no_optional_dependency(mini: Path, tmp_path: Path) -> None:
    """In a process that cannot import them. Fails if spaCy, pycocoevalcap or torchvision is imported on the way."""
    code = (
        "import sys\n"
        "for name in ('spacy', 'pycocoevalcap', 'torchvision', 'wandb', 'pytest'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from dtnet.evaluation.demo import DemoSettings, run_demo\n"
        f"print(len(run_demo(DemoSettings(model={str(mini)!r}, scenes=1), Path('run')).captions))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
