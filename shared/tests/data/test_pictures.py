"""Pictures: every mode by value, upright, bounded, and refused in one line."""

import logging
import tracemalloc

import numpy as np
import PIL
import pytest
from PIL import Image

from tenfold import UserError
from tenfold.data import pictures
from tenfold.data.formats import Picture
from tenfold.data.pictures import MAX_ASPECT, decode_picture, open_picture, require_size
from tenfold.testing.pictures import announced


def photo(size=(9, 6)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def saved(folder, image, name="a.png", **options):
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGB", "a.png"), ("L", "a.png"), ("1", "a.png"), ("P", "a.png"), ("LA", "a.png"), ("RGBA", "a.png"),
     ("CMYK", "a.tif"), ("YCbCr", "a.tif"), ("RGB", "a.gif"), ("RGB", "a.webp"), ("RGB", "a.jpg")],
)  # fmt: skip
@pytest.mark.parametrize("raw", [True, False])
def test_modes_of_eight_bits_are_rgb_by_value(mode, name, raw, tmp_path):
    """Fails if transparency is laid on white, or a mode is refused."""
    path = saved(tmp_path, photo().convert(mode), name)
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        with pytest.raises(UserError, match="broken image"):  # that Pillow writes it, and cannot read it back
            open_picture(path, raw=raw)
        return
    with Image.open(path) as image:
        assert np.array_equal(open_picture(path, raw=raw), image.convert("RGB"))
    assert open_picture(str(path), raw=raw).mode == "RGB"


@pytest.mark.parametrize(
    ("values", "name", "golden"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), "a.png", [0, 1, 128, 255]),
        (np.array([[0, 257, 32896, 65535]], np.uint16), "a.tif", [0, 1, 128, 255]),
        (np.array([[0, 257, 32896, 65535]], np.int32), "a.tif", [0, 1, 128, 255]),
        (np.array([[-100, 0, 100, 69900]], np.int32), "a.tif", [0, 0, 1, 255]),
        (np.array([[0, 0.25, 0.5, 1]], np.float32), "a.tif", [0, 64, 128, 255]),
        (np.array([[0, 1, 100.4, 255]], np.float32), "a.tif", [0, 1, 100, 255]),
        (np.array([[-1, 0, 0.5, 1]], np.float32), "a.tif", [0, 128, 191, 255]),
        (np.array([[7, 7, 7, 7]], np.float32) * 100, "a.tif", [0, 0, 0, 0]),
    ],
    ids=["16 bit", "16 bit tif", "I", "I beyond", "F to 1", "F to 255", "F beyond", "F alike"],
)
def test_more_than_eight_bits_are_scaled_and_not_clipped(values, name, golden, tmp_path):
    """Fails if 16 bits come out white, or numbers from 0 to 1 black."""
    path = saved(tmp_path, Image.fromarray(values), name)
    assert np.asarray(open_picture(path))[0].tolist() == [[one] * 3 for one in golden]


def test_values_that_are_no_numbers_are_refused(tmp_path):
    values = np.array([[0, np.nan]], np.float32)
    with pytest.raises(UserError, match="not numbers"):
        open_picture(saved(tmp_path, Image.fromarray(values), "a.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(orientation, tmp_path):
    """Fails if a phone's picture is shown lying, or evaluation's is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo()
    path = saved(tmp_path, stored, exif=exif)
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # of Pillow's transpositions
    upright = stored.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else stored
    assert np.array_equal(open_picture(path), upright)
    assert np.array_equal(open_picture(path, raw=True), stored)
    assert np.array_equal(Picture(path).open(), stored)


def test_a_damaged_note_costs_the_orientation_and_not_the_picture(tmp_path, caplog):
    path = saved(tmp_path, photo(), "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert np.array_equal(open_picture(path), photo())


def test_transparency_is_warned_of_once(tmp_path, caplog):
    """Fails if every picture of a folder warns, an opaque one does, or evaluation does."""
    pictures._warn_of_transparency.cache_clear()
    opaque = saved(tmp_path, photo().convert("RGBA"), "opaque.png")
    image = photo().convert("RGBA")
    image.putalpha(40)
    clear = saved(tmp_path, image, "clear.png")
    palette = saved(tmp_path, photo().convert("P"), "palette.png", transparency=3)
    with caplog.at_level(logging.WARNING, "tenfold.data.pictures"):
        open_picture(opaque)
        open_picture(clear, raw=True)
        assert caplog.messages == []
        for path in (clear, palette, clear):
            open_picture(path)
    assert len(caplog.messages) == 1 and "transparency" in caplog.messages[0]
    pictures._warn_of_transparency.cache_clear()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("size", [(13_000, 13_000), (20_000, 1), (1, 20_000), (40_000, 40_000)])
def test_large_pictures_are_refused_before_memory_is_taken(size, raw, tmp_path, recwarn):
    """169 megapixels, a line, 1.6 gigapixels. Fails if pixels are decoded first, or Pillow's warning gets through."""
    path = tmp_path / "large.png"
    path.write_bytes(announced(*size))
    open_picture(saved(tmp_path, photo()))  # Pillow's readers are loaded
    tracemalloc.start()
    with pytest.raises(UserError, match=r"pixels: .*large\.png") as error:
        open_picture(path, raw=raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000 and len(recwarn) == 0 and "\n" not in str(error.value)


def test_a_picture_in_memory_is_bounded_by_the_same_rule():
    require_size((MAX_ASPECT, 1), None)
    for size in ((MAX_ASPECT + 1, 1), (13_000, 13_000), (0, 5)):
        with pytest.raises(UserError, match="pixels"):
            require_size(size, "image")


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "HTTP://x/a", "s3://bucket/a.png", "file:///a.png", "data:image/png;base64,AA"]
)
def test_a_url_is_refused_as_one(url):
    """Fails if it is reported as a missing file."""
    with pytest.raises(UserError, match=r"a URL instead of a file.*download it"):
        open_picture(url)


def test_what_is_no_picture_is_refused_in_one_line(tmp_path):
    """Missing, a folder, text, empty, cut off, PostScript. Fails if an error of another kind comes through."""
    whole = saved(tmp_path, photo((64, 64)), "whole.png").read_bytes()
    (tmp_path / "folder.png").mkdir()
    for name, content in {
        "text": b"no picture\n", "empty": b"", "cut": whole[:3000], "header": whole[:20],
        "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) print\n%%EOF\n",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.png").write_bytes(content)
    expected = {"absent": "no such image", "folder": "a folder instead of an image"}
    for name in ("absent", "folder", "text", "empty", "cut", "header", "script"):
        for raw in (True, False):
            with pytest.raises(UserError, match=rf"{expected.get(name, 'broken image')}.*{name}\.png") as error:
                open_picture(tmp_path / f"{name}.png", raw=raw)
            assert "\n" not in str(error.value)


def test_bytes_are_read_as_files_are(tmp_path):
    path = saved(tmp_path, photo())
    assert np.array_equal(decode_picture(path.read_bytes(), "row 3"), photo())
    with pytest.raises(UserError, match=r"broken image .*row 3"):
        decode_picture(b"GIF89a", "row 3")
