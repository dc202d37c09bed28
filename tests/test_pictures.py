"""Pictures as users give them, through every door of every package: upright, by value, and bounded before memory is
taken. (What `tenfold.data.pictures.open_picture` makes of each kind of file: shared/tests/data/test_pictures.py.)"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from house import ROOT
from PIL import Image

from tenfold import UserError
from tenfold.testing.commands import run
from tenfold.testing.pictures import announced, lying, of_16_bits, photograph


def settings(package: str, name: str, path: Path):
    kind = getattr(importlib.import_module(f"{package}.evaluation.settings"), name)
    return kind(image=str(path), question="What?")


def demo(package: str, function: str):
    """The picture that a `demo` asks about."""

    def opened(path: Path) -> np.ndarray:
        found = getattr(importlib.import_module(f"{package}.evaluation.demo"), function)(
            settings(package, "DemoSettings", path), 0
        )
        return np.asarray(found[0] if isinstance(found, tuple) else found.image)

    return opened


def called(package: str, module: str, function: str):
    """The picture that a call in Python takes."""

    def opened(path: Path) -> np.ndarray:
        return np.asarray(getattr(importlib.import_module(f"{package}.{module}"), function)(path))

    return opened


def processed(package: str, name: str):
    """The pixels that a model is given."""

    def opened(path: Path) -> np.ndarray:
        kind = getattr(importlib.import_module(f"{package}.image_processing"), name)
        return kind(32)([str(path)], return_tensors="np")["pixel_values"]

    return opened


def captioned(path: Path) -> str:
    """What `dtnet caption` says, without the file's name: a caption and its log-probability."""
    from dtnet.commands.app import main
    from dtnet.evaluation.demo import mini_model_path

    done = run(main, "caption", "--model", mini_model_path(), "--image", path)
    if done.code:
        raise UserError(done.err.removeprefix("error: ").strip())
    return done.out.replace(str(path), "")


DOORS = {
    "dit_sam set_image": called("dit_sam", "predictor", "as_rgb"),
    "dtnet caption": captioned,
    "dyvte demo": demo("dyvte", "_asked"),
    "fitprune demo": demo("fitprune", "ask"),
    "flashsloth demo": demo("flashsloth", "_asked"),
    "flashsloth processor": processed("flashsloth", "FlashSlothImageProcessor"),
    "gamma_mod demo": demo("gamma_mod", "_ask"),
    "inst_diff_edit pipeline": called("inst_diff_edit", "inputs", "as_image"),
    "llava_hr demo": demo("llava_hr", "ask"),
    "llava_hr processor": processed("llava_hr", "LlavaHrImageProcessor"),
}


def of_a_record(path: Path) -> np.ndarray:
    return np.asarray(importlib.import_module("eas.data.records").Record("1", "?", "!", path).picture())


def of_a_face(path: Path) -> np.ndarray:
    return importlib.import_module("e3_facenet.data.captioned").read_picture(path, 40).permute(1, 2, 0).numpy()


def of_a_sample(path: Path) -> np.ndarray:
    return np.asarray(importlib.import_module("tenfold.data.formats").Picture(path).open())


# What data sets hold is read as it is stored: so were the pictures of published numbers.
STORED = {"e3_facenet train": of_a_face, "eas eval": of_a_record, "every format": of_a_sample}
EVERY = DOORS | STORED


@pytest.mark.parametrize("door", DOORS)
def test_a_phones_picture_is_shown_upright(door, tmp_path):
    """Fails if one way in opens files by itself: the picture is edited, captioned or answered sideways."""
    upright = photograph(40, 56)
    upright.save(tmp_path / "upright.png")
    turned, stored = lying(upright, tmp_path / "lying.png"), tmp_path / "stored.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(stored)
    seen = DOORS[door](turned)
    assert np.array_equal(seen, DOORS[door](tmp_path / "upright.png"))
    assert not np.array_equal(seen, DOORS[door](stored))


@pytest.mark.parametrize("door", STORED)
def test_a_data_sets_picture_is_taken_as_it_is_stored(door, tmp_path):
    """Fails if published numbers would be computed from other pixels."""
    upright = photograph(40, 40)
    turned = lying(upright, tmp_path / "lying.png")
    assert np.array_equal(STORED[door](turned), upright.transpose(Image.Transpose.ROTATE_90))


@pytest.mark.parametrize("door", DOORS)
def test_sixteen_bits_are_scaled_to_eight(door, tmp_path):
    """Fails if they are clipped, which leaves all but the darkest 256th of the values white."""
    grey = photograph(40, 56).convert("L")
    grey.save(tmp_path / "grey.png")
    assert np.array_equal(DOORS[door](of_16_bits(grey, tmp_path / "deep.png")), DOORS[door](tmp_path / "grey.png"))


@pytest.mark.parametrize(
    ("size", "reason"),
    [((20_000, 1), "edges that differ by 200 times"), ((13_000, 13_000), "at most 89,478,485 pixels")],
)
@pytest.mark.parametrize("door", EVERY)
def test_lines_and_posters_are_refused_by_their_header(door, size, reason, tmp_path):
    """Resized by its short side, 20,000 x 1 takes all memory; 169 megapixels take 2 GB. The file holds nothing but its
    header: fails if a pixel of it is read, or another bound is found."""
    (tmp_path / "large.png").write_bytes(announced(*size))
    with pytest.raises(UserError, match=rf"{size[0]} x {size[1]} pixels.*{reason}"):
        EVERY[door](tmp_path / "large.png")


@pytest.mark.parametrize("door", DOORS)
def test_a_url_is_refused_as_one(door):
    """Fails if it is reported as a missing file, or under a name without its second slash."""
    url = "https://example.org/cat.png"
    with pytest.raises(UserError, match=rf"a URL instead of a file: {re.escape(url)} "):
        DOORS[door](url)


@pytest.mark.parametrize("door", ["dit_sam set_image", "inst_diff_edit pipeline"])
def test_a_line_in_memory_is_refused_too(door):
    """(The processors of FlashSloth and LLaVA-HR: one function, in llava_hr's test_image_processing.)"""
    with pytest.raises(UserError, match="20000 x 1 pixels"):
        DOORS[door](Image.new("RGB", (20_000, 1)))


def test_nobody_opens_pictures_by_themselves():
    """Fails if a module of a package calls Pillow's `open`: what it takes is neither turned, scaled nor bounded."""
    sources = [
        path for path in ROOT.glob("packages/*/src/**/*.py") if "Image.open(" in path.read_text(encoding="utf-8")
    ]
    assert sources == []
