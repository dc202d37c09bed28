"""Models whose numbers leave the range of their precision, by every package's own command: one line, and neither an
empty answer, a black picture nor a caption without a word."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tenfold.cli import find_package_file
from tenfold.data import mini_host
from tenfold.testing.commands import refused, run

ASKED = ("--image", "{in}/picture.png", "--question", "What?", "--model", "{in}", "--output", "{out}")
KEYS = r"layers\.3\.self_attn\.[qk]_proj"
# A command of each package, and the weights that are raised, each finite itself, until what is made of them is not.
# (InstDiffEdit's pictures: its own test_precision.py.)
COMMANDS = {
    "dit_sam": (("segment", "{in}/picture.png", "a cup", "--model", "{in}", "--output", "{out}"), r"encoder.*weight"),
    "dtnet": (("caption", "--image", "{in}/picture.png", "--model", "{in}"), r"decoder.*weight"),
    "dyvte": (("demo", *ASKED, "--exit-at", "3"), KEYS),
    "e3_facenet": (("generate", "a face", "--model", "{in}", "--output", "{out}"), r"weight"),
    "eas": (("demo", "--model", "{in}", "--adapters", "{adapters}", "--output", "{out}"), KEYS),
    "fitprune": (("demo", *ASKED, "--recipe", "0.6"), KEYS),
    "flashsloth": (("demo", *ASKED), KEYS),
    "gamma_mod": (("demo", *ASKED), KEYS),
    "llava_hr": (("demo", *ASKED), KEYS),
}
MODELS = ("mini_model", "assets/mini_model", "assets/mini")


def shipped(package: str, names: tuple[str, ...]) -> Path | None:
    """A folder that ships with a package."""
    places = [place for name in names for place in (name, f"src/{package}/{name}")]
    return next(filter(None, (find_package_file(package, place) for place in places)), None)


def overflowing(package: str, folder: Path, names: str) -> Path:
    """A copy of the package's own model, or of the mini host, with some weights raised by 25 orders of magnitude."""
    model = Path(shutil.copytree(shipped(package, MODELS) or mini_host.path(), folder))
    for path in model.rglob("*.safetensors"):
        state = load_file(path)
        raised = [name for name, value in state.items() if re.search(names, name) and value.is_floating_point()]
        save_file(state | {name: state[name] * 1e25 for name in raised}, path, metadata={"format": "pt"})
    Image.effect_noise((48, 48), 60).convert("RGB").save(model / "picture.png")
    return model


@pytest.mark.parametrize("package", sorted(COMMANDS))
def test_what_overflows_is_one_line_and_no_result(package, tmp_path):
    """Fails if scores, pictures or log-probabilities are taken for good without a look: of scores that are no numbers
    the vocabulary's first word is the largest, so the answer is empty, and an evaluation counts it as wrong."""
    words, names = COMMANDS[package]
    model = overflowing(package, tmp_path / "host", names)
    adapters = shipped("eas", ("miniature/adapters/layers-12",))
    named = {"{in}": model, "{out}": tmp_path / "out", "{adapters}": adapters}
    line = [re.sub(r"\{\w+\}", lambda found: str(named[found[0]]), word) for word in words]
    done = run(importlib.import_module(f"{package}.commands.app").main, *line)
    refused(done, "not finite")
    assert not (tmp_path / "out" / "run.json").exists()
