"""The model as its users see it: generation by the official seeds, edits, files, folders."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from e3_facenet import E3FaceNet, five_views, poses
from e3_facenet.facenet import official_background, official_noise
from tenfold import UserError

TEXT, OTHER = "a face with pale skin and black hair", "a person with green skin , wide mouth and glasses"


@pytest.fixture(scope="module")
def portrait(face):
    return face.generate(TEXT, poses([-0.2, 0.2]), seed=5)


def test_noise_and_background_are_the_official_scripts():
    """Fails if z comes from torch, or the first of the two background draws is taken."""
    assert torch.equal(official_noise(7, 6), torch.from_numpy(np.random.RandomState(7).randn(1, 6)).float())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        draws = [torch.randn(1, 4) for _ in range(8)]
    assert torch.equal(official_background(7, 4), draws[1] * 0.65)
    assert torch.equal(official_background(7, 4, redraw=1), draws[5] * 0.65)


def test_edits_keep_background_and_geometry(face, portrait):
    """Fails if an edit draws a new background by default, or its geometry moves."""
    same = face.edit(portrait, OTHER, strength=0.0)
    assert torch.equal(same.images, portrait.images)
    edited = face.edit(portrait, OTHER, strength=1.0)
    assert torch.equal(edited.depth, portrait.depth) and not torch.equal(edited.images, portrait.images)
    assert torch.equal(edited.face.z_bg, portrait.face.z_bg)
    redrawn = face.edit(portrait, OTHER, strength=0.0, background="official")
    assert not torch.equal(redrawn.face.z_bg, portrait.face.z_bg)


def test_an_edit_of_an_edit_takes_the_last_text_and_the_first_code(face, portrait):
    """Fails if edits pile up: tokens of the last, w of the first."""
    twice = face.edit(face.edit(portrait, "a face with white hair", 1.0), OTHER, 1.0)
    once = face.edit(portrait, OTHER, 1.0)
    assert torch.equal(twice.images, once.images)
    assert [text for text, _ in twice.face.edits] == ["a face with white hair", OTHER]


def test_a_caption_that_is_too_long_is_never_cut(face):
    with pytest.raises(UserError, match=r"23 tokens.*at most 20"):
        face.generate(" ".join(["hair"] * 21))


def test_padding_has_id_zero_and_is_attended_to(face):
    """Fails if the tokenizer's own padding is used or padding is masked."""
    ids = face.encoder.ids([TEXT])
    assert ids[0, -1] == 0 and ids.shape[1] == 20
    changed = face.encoder(ids.clone()).tokens.clone()
    assert changed.shape[1] == 20 and float(changed[0, -1].norm()) > 0


def test_a_portrait_is_saved_with_what_it_is(face, portrait, tmp_path):
    """Fails if a saved picture does not say that it is synthetic, from which words, and edited."""
    edited = face.edit(portrait, OTHER, 0.5)
    files = edited.save(tmp_path / "out")
    info = Image.open(files[0]).text
    assert "synthetic" in info["AI-generated"] and info["Caption"] == TEXT
    assert json.loads(info["Edited"]) == [[OTHER, 0.5]]
    cameras = json.loads((tmp_path / "out" / "cameras.json").read_text())
    assert len(cameras["frames"]) == 2 and np.load(tmp_path / "out" / "depth.npy").shape == (2, 8, 8)
    points, colours = edited.point_cloud(least=0.0)
    assert points.shape == colours.shape == (128, 3)


def test_a_saved_model_gives_the_same_bits(face, model_folder, portrait):
    opened = E3FaceNet.from_pretrained(model_folder)
    assert torch.equal(opened.generate(TEXT, poses([-0.2, 0.2]), seed=5).images, portrait.images)
    assert "misuse" in (model_folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda face: face.generate(TEXT, seed=-1), "seed -1"),
        (lambda face: face.generate(TEXT, psi=9.0), "psi 9.0"),
        (lambda face: face.generate(TEXT, torch.zeros(2, 3)), "cameras of shape"),
        (lambda face: face.generate(TEXT, torch.full((1, 4, 4), torch.nan)), "cameras of shape"),
        (lambda face: face.edit(TEXT, OTHER, strength=2.0), "strength 2.0"),
        (lambda face: face.edit(TEXT, OTHER, background="new"), "background 'new'"),
        (lambda face: face.generate(3), "int instead of a caption"),
        (lambda face: poses([]), "0 yaws"),
        (lambda face: poses([0.0], 0.0), "an angle that gives no camera"),
    ],
)
def test_what_cannot_be_is_refused_by_name(face, call, words):
    with pytest.raises(UserError, match=words):
        call(face)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "not readable"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llava"}'), "not an E3-FaceNet"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "e3_facenet", "generator": {"depth": 3}}'),
            "unknown field",
        ),
        (lambda f: (f / "config.json").write_text("{"), "broken JSON"),
        (lambda f: change(f, lambda s: s.pop("alpha")), "no alpha"),
        (lambda f: change(f, lambda s: s.update(more=torch.ones(1))), "unknown more"),
        (lambda f: change(f, lambda s: s.update(alpha=torch.ones(2))), r"alpha is \[2\]"),
        (lambda f: change(f, lambda s: s.update(alpha=torch.tensor(torch.nan))), "alpha is not finite"),
        (lambda f: (f / "clip" / "config.json").unlink(), "cannot be loaded"),
    ],
)
def test_broken_folders_are_refused_in_one_line(model_folder, tmp_path, spoil, words):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    spoil(folder)
    with pytest.raises(UserError, match=words):
        E3FaceNet.from_pretrained(folder)


def change(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


def test_there_is_no_model_in_nowhere():
    with pytest.raises(UserError, match="no such model"):
        E3FaceNet.from_pretrained("/nowhere/at/all")


def test_five_views_are_the_papers():
    assert five_views().shape == (5, 4, 4)
