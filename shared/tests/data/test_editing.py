"""Lists of image edits: written, read, and refused when broken."""

import numpy as np
import pytest
from PIL import Image

from tenfold.data.formats.editing import (
    EditSample,
    list_file,
    parse_edit_record,
    read_edit_list,
    read_edits,
    write_edits,
)
from tenfold.data.formats.records import Picture
from tenfold.errors import UserError

IMAGENET = "ILSVRC2012_val_00012345.JPEG <> mug cup <> tea pot"
IMAGEN = "12 <> A photo of a brown bear on a hill. <> brown bear <> a grey wolf"


def sample(line, mask=True):
    picture = Image.new("RGB", (16, 12), (10, 200, 30))
    painted = Image.new("L", (16, 12), 0)
    painted.paste(255, (4, 2, 10, 8))
    return EditSample(parse_edit_record(line, "here"), Picture(picture), Picture(painted) if mask else None)


def test_an_imagenet_record():
    """Fails if the id takes other digits than the last five, or the article is forgotten."""
    record = parse_edit_record(IMAGENET, "here")
    assert (record.id, record.file_name) == ("12345", "ILSVRC2012_val_00012345.JPEG")
    assert (record.edit_prompt, record.source, record.target_sentence) == ("a tea pot", "mug cup", "a tea pot")


def test_an_imagen_record():
    """Fails if the edit prompt is the rewritten sentence: the authors use the phrase alone."""
    record = parse_edit_record(IMAGEN, "here")
    assert (record.id, record.file_name, record.edit_prompt) == ("12", "12.jpg", "a grey wolf")
    assert record.target_sentence == "A photo of a a grey wolf on a hill."


def test_a_set_survives_writing_and_reading(tmp_path):
    write_edits(tmp_path, "Editing-Mask", [sample(IMAGEN), sample(IMAGENET)])
    assert list_file(tmp_path, "Editing-Mask").read_text() == f"{IMAGEN}\n{IMAGENET}"
    first, second = read_edits(tmp_path, "Editing-Mask")
    assert [first.record.id, second.record.id] == ["12", "12345"]
    assert first.image().size == (16, 12) and first.mask().sum() == 36
    assert np.asarray(second.mask_picture.open()).shape == (12, 16, 3)


def test_pictures_may_lie_beside_the_list_without_an_image_folder(tmp_path):
    write_edits(tmp_path, "Imagen", [sample(IMAGEN, mask=False)])
    (tmp_path / "Imagen/image/12.jpg").rename(tmp_path / "Imagen/12.jpg")
    (tmp_path / "Imagen/image").rmdir()
    (found,) = read_edits(tmp_path, "Imagen")
    assert found.mask_picture is None
    with pytest.raises(UserError, match="no mask"):
        found.mask()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no records"),
        ("just text", "1 fields"),
        ("a <> b <> c <> d <> e", "5 fields"),
        ("12 <>  <> bear <> wolf", "an empty field"),
        ("picture.jpg <> mug <> pot", "picture name 'picture.jpg'"),
        (f"{IMAGEN}\n{IMAGEN}", r"edit \('12.jpg', 'a grey wolf'\) twice: .*line 2"),
    ],
)
def test_a_broken_list_is_one_line_naming_the_place(tmp_path, content, message):
    path = tmp_path / "Imagen_list.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_edit_list(path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_edits(tmp_path, "Imagen")
    with pytest.raises(UserError, match="unknown editing set: Flickr"):
        read_edits(tmp_path, "Flickr")
    write_edits(tmp_path, "Editing-Mask", [sample(IMAGEN)])
    (tmp_path / "Editing-Mask/mask/12.png").unlink()
    with pytest.raises(UserError, match=r"no such image: .*12.png"):
        read_edits(tmp_path, "Editing-Mask")
    (tmp_path / "Editing-Mask/image/12.jpg").unlink()
    with pytest.raises(UserError, match=r"no such image: .*12.jpg"):
        read_edits(tmp_path, "Editing-Mask")


def test_a_list_that_is_no_text_or_a_name_that_leaves_its_folder(tmp_path):
    (tmp_path / "Imagen_list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text"):
        read_edits(tmp_path, "Imagen")
    (tmp_path / "Imagen_list.txt").write_text("../12 <> A bear. <> bear <> wolf")
    with pytest.raises(UserError, match="leaves the image folder"):
        read_edits(tmp_path, "Imagen")


def test_a_truncated_picture_is_named(tmp_path):
    write_edits(tmp_path, "Imagen", [sample(IMAGEN, mask=False)])
    file = tmp_path / "Imagen/image/12.jpg"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"broken image .*12.jpg"):
        read_edits(tmp_path, "Imagen")[0].image()
