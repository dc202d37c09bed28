"""Pictures in and out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from inst_diff_edit.inputs import as_image, as_images, from_tensor, masks_as, to_tensor
from tenfold import UserError


def noise(height=6, width=4, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_pictures_in_any_mode_become_rgb(mode):
    """Fails if the mode is kept."""
    assert as_image(Image.fromarray(noise()).convert(mode)).mode == "RGB"


def test_arrays_tensors_files_and_pictures_are_the_same_picture(tmp_path):
    """Fails if a tensor is cut off instead of rounded, or rows and columns are exchanged."""
    array = noise()
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
    floats = array.astype(np.float64) / 255
    for given in (
        array,
        floats,
        floats.astype(np.float16),
        tensor,
        tensor.half(),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(array),
    ):
        assert np.array_equal(np.asarray(as_image(given)), array), type(given)
    assert np.asarray(as_image(torch.full((3, 2, 2), 1.001))).min() == 255  # what arithmetic in half precision leaves
    for value in (2.0, -1.0, 255.0):  # another range: no picture, where it would be white or black
        with pytest.raises(UserError, match=r"expected \[0, 1\]"):
            as_image(torch.full((3, 2, 2), value))
    assert np.asarray(as_image(torch.full((3, 2, 2), 0.7 / 255))).max() == 1


def test_batches_and_lists_are_taken_apart():
    """Fails if a batch counts as one picture, or one of floating-point numbers as none."""
    array = np.stack([noise(), noise()[::-1]])
    assert [one.size for one in as_images(array)] == [(4, 6)] * 2
    found = as_images(array.astype(np.float32) / 255)
    assert all(np.array_equal(np.asarray(one), row) for one, row in zip(found, array, strict=True))
    assert len(as_images(torch.zeros(3, 3, 4, 4))) == 3 and len(as_images((Image.fromarray(noise()),))) == 1


def torn():
    """A picture that was opened and whose file breaks off."""
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()[:3000]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "a picture of type int"),
        (lambda: None, "a picture of type NoneType"),
        (lambda: b"GIF89a", "a picture of type bytes"),
        (lambda: [], "no picture"),
        (lambda: noise(channels=1), r"uint8 array of shape \(6, 4\)"),
        (lambda: noise(channels=4), r"uint8 array of shape \(6, 4, 4\)"),
        (lambda: noise().astype(np.float32), r"an array with values from 1 to 248: image \(expected \[0, 1\]\)"),
        (lambda: noise(channels=4).astype(np.float32), r"float32 array of shape \(6, 4, 4\)"),
        (lambda: noise().astype(np.int64), r"int64 array of shape \(6, 4, 3\)"),
        (lambda: np.full((6, 4, 3), np.nan), "an array with values that are not numbers"),
        (lambda: torch.zeros(3, 8, 8, dtype=torch.uint8), r"torch.uint8 tensor of shape \[3, 8, 8\]"),
        (lambda: torch.zeros(8, 8, 3), r"torch.float32 tensor of shape \[8, 8, 3\]"),
        (lambda: torch.full((3, 8, 8), float("nan")), "values that are not numbers"),
        (lambda: Image.new("RGB", (0, 0)), "a picture without pixels"),
        (lambda: np.zeros((0, 4, 3), np.uint8), "a picture without pixels"),
        (torn, "broken image"),
        (lambda: "nowhere.png", "no such image: nowhere.png"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(make, message):
    """Fails if a check is left out."""
    with pytest.raises(UserError, match=message) as refusal:
        as_images(make())
    assert len(str(refusal.value).splitlines()) == 1


def test_a_broken_file_is_refused(tmp_path):
    """Empty, text, cut off, a folder. Fails if an error of another kind comes through."""
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "PNG")
    for number, content in enumerate((b"", b"no picture", whole.getvalue()[:3000])):
        (tmp_path / f"{number}.png").write_bytes(content)
        with pytest.raises(UserError, match=rf"broken image .*{number}\.png"):
            as_images(tmp_path / f"{number}.png")
    with pytest.raises(UserError):
        as_images(tmp_path)


def test_the_model_gets_the_squashed_picture_in_its_range():
    """Fails with another filter or range, with exchanged edges, or with channels last in memory."""
    image = Image.fromarray(noise(9, 5))
    found = to_tensor([image], 6, 4)
    golden = np.asarray(image.resize((4, 6), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert found.shape == (1, 3, 6, 4) and found.is_contiguous()
    assert torch.allclose(found[0], torch.from_numpy(golden.copy()) / 127.5 - 1, atol=1e-6)


def test_what_the_model_says_becomes_pictures():
    """Fails if values are cut off instead of rounded, or leave the range."""
    values = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 2, 6)
    golden = [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]
    assert from_tensor(values, "pt")[0, 0, 0].tolist() == golden
    array = from_tensor(values.bfloat16(), "np")
    assert array.shape == (1, 2, 6, 3) and array[0, 0, :, 0].tolist() == golden
    (picture,) = from_tensor(values, "pil")
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]


def test_a_mask_s_grey_edge_belongs_to_it_from_the_middle_on():
    """As inpainting decides. Fails if any grey, or only more than the middle, counts."""
    masks = torch.tensor([0, 1, 127, 128, 255], dtype=torch.uint8).view(1, 1, 5)
    golden = [False, False, False, True, True]
    assert masks_as(masks, "np")[0, 0].tolist() == masks_as(masks, "pt")[0, 0].tolist() == golden
    (picture,) = masks_as(masks, "pil")
    assert picture.mode == "L" and np.asarray(picture).tolist() == [[0, 1, 127, 128, 255]]
