"""Damaged files: whatever bytes are changed, a reader gives data or one line, never a traceback (D10)."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dit_sam.data.own import read_mask
from dit_sam.data.sets import ReferringSet
from dit_sam.model import DITSam
from dit_sam.predictor import open_upright
from tenfold import UserError


def damaged(content, rng):
    """Bytes with a few changed, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(data)))
        kind = rng.integers(4)
        if kind == 0:
            data[place] = int(rng.integers(256))
        elif kind == 1:
            del data[place : place + int(rng.integers(1, 40))]
        elif kind == 2:
            data[place:place] = data[place : place + int(rng.integers(1, 40))]
        else:
            data[place:place] = rng.integers(0, 256, int(rng.integers(1, 8)), dtype=np.uint8).tobytes()
        if not data:
            data = bytearray(b"x")
    return bytes(data)


def read_all(folder):
    """Every sample's picture and mask of a small set."""
    for sample in ReferringSet(folder, "refcoco").samples("val"):
        sample.mask(sample.image())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["refcoco/refs(unc).p", "refcoco/instances.json"])
def test_damaged_annotations(name, mini_data, tmp_path):
    """Fails if one of 300 damaged files gave anything but data or a UserError."""
    folder = tmp_path / "data"
    shutil.copytree(mini_data, folder)
    content, rng = (folder / name).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        (folder / name).write_bytes(damaged(content, rng))
        try:
            read_all(folder)
        except UserError:
            refused += 1
    assert refused > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "model.safetensors"])
def test_damaged_models(name, tiny_folder, tmp_path):
    """Fails if one of 300 damaged files gave anything but a model or a UserError."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    content, rng = (folder / name).read_bytes(), np.random.default_rng(1)
    for _ in range(300):
        (folder / name).write_bytes(damaged(content, rng))
        try:
            DITSam.from_pretrained(folder)
        except UserError:
            continue


@pytest.mark.slow
def test_damaged_pictures(tmp_path):
    """Fails if one of 300 damaged PNGs gave anything but a picture or a UserError."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    content, rng = (tmp_path / "a.png").read_bytes(), np.random.default_rng(2)
    for _ in range(300):
        (tmp_path / "b.png").write_bytes(damaged(content, rng))
        for read in (open_upright, read_mask):
            try:
                read(tmp_path / "b.png")
            except UserError:
                continue
