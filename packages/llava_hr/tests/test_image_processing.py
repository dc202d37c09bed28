"""Images to pixel values: bits of the reference, every mode and kind of image, and what is refused."""

import json

import numpy as np
import pytest
import torch
from llava_hr_text_fixtures import GOLDENS
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import llava_hr.auto  # noqa: F401
from llava_hr.image_processing import LlavaHrImageProcessor, crop_to_square, open_image, pad_to_square
from tenfold import UserError

SIZES = [(50, 37), (31, 58), (70, 52), (32, 32), (33, 32), (1, 90), (200, 3)]


def photo(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def pixels(image, **options):
    return LlavaHrImageProcessor(size=32, **options)(image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
def test_golden_pixels_agree_to_the_bit(aspect_ratio):
    """Fails if the image is resized before it is padded, with another filter, or normalised in another precision."""
    case, tensors = json.loads((GOLDENS / "preprocess.json").read_text()), load_file(GOLDENS / "preprocess.safetensors")
    processor = LlavaHrImageProcessor(size=case["config"]["image_size"], image_aspect_ratio=aspect_ratio)
    for number in range(len(case["config"]["sizes_wh"])):
        ours = processor(tensors[f"in/{number}.image"].numpy(), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours, tensors[f"out/{number}.{aspect_ratio}"])


@pytest.mark.parametrize("size", SIZES)
def test_transformers_processor_on_pillow_agrees_to_the_bit(size):
    """Fails if the long side, the crop or the normalisation is rounded otherwise than by CLIP's processor."""
    clip = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ours = pixels(photo(size), image_aspect_ratio="square")
    assert torch.equal(ours, clip(photo(size), return_tensors="pt")["pixel_values"])


def test_padding_is_the_mean_colour_around_the_middle_rounded_down():
    """Fails if the offset is rounded up, the image stays in a corner, or the colour is black."""
    for size, box in (((5, 2), (0, 1, 5, 3)), ((2, 5), (1, 0, 3, 5)), ((4, 1), (0, 1, 4, 2))):
        image = photo(size)
        square = pad_to_square(image, max(size), LlavaHrImageProcessor().pad_colour)  # nothing to resize
        assert square.crop(box).tobytes() == image.tobytes()
        colours = square.getcolors()
        outside = max(size) ** 2 - size[0] * size[1]
        assert (outside, (122, 116, 104)) in [(count, colour) for count, colour in colours if count == outside]


def test_square_cuts_off_both_ends_alike():
    """Fails if the crop begins at the edge."""
    image = photo((9, 4))
    assert crop_to_square(image, 4).tobytes() == image.crop((2, 0, 6, 4)).tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_every_mode_is_read_as_pillow_converts_it(mode):
    """Fails if transparency is laid on white, or if a mode is refused."""
    image = photo((9, 13)).convert(mode) if mode != "I;16" else Image.fromarray(np.full((13, 9), 300, np.uint16))
    assert open_image(image).tobytes() == image.convert("RGB").tobytes()
    assert pixels(image).shape == (1, 3, 32, 32)


def test_transparent_palettes_lose_their_transparency(tmp_path):
    """Fails if transparent pixels get another colour than the palette's (transformers lays them on white)."""
    image = photo((20, 20)).convert("P")
    image.save(tmp_path / "image.png", transparency=3)
    assert open_image(tmp_path / "image.png").tobytes() == image.convert("RGB").tobytes()


def test_a_photograph_given_by_its_path_stands_upright(tmp_path):
    """Fails if EXIF is ignored in a user's file, or turns an image in memory: evaluation keeps those as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo((40, 20))
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (20, 40)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(pixels(tmp_path / "turned.png"), pixels(upright))
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(pixels(opened), pixels(image))


@pytest.mark.parametrize("mode", ["square", "pad"])
def test_a_line_of_pixels_is_refused_before_memory_is_taken(mode):
    """20,000 x 1, its short side resized to R, would be gigabytes. Fails if only the number of pixels is bounded."""
    with pytest.raises(UserError, match=r"an image of 20000 x 1 pixels.*edges"):
        LlavaHrImageProcessor(size=32, image_aspect_ratio=mode)(Image.new("RGB", (20000, 1)))


def test_paths_images_and_arrays_are_one_and_the_same(tmp_path):
    """Fails if one of them goes another way; also if an input is changed in place."""
    image = photo((40, 20))
    image.save(tmp_path / "image.png")
    array = np.array(image)
    before = array.copy()
    batch = pixels([str(tmp_path / "image.png"), tmp_path / "image.png", image, array])
    assert batch.shape == (4, 3, 32, 32) and batch.dtype == torch.float32
    assert all(torch.equal(one, batch[0]) for one in batch)
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"array \[4, 4\] of uint8 \(expected \[height, width, 3\] of uint8\)"),
        (np.zeros((3, 4, 4), np.uint8), r"array \[3, 4, 4\] of uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"array \[4, 4, 4\] of uint8"),
        (np.zeros((4, 4, 3), np.float32), r"array \[4, 4, 3\] of float32"),
        (np.zeros((0, 4, 3), np.uint8), r"array \[0, 4, 3\] of uint8"),
        (torch.zeros(3, 4, 4), "an image of type Tensor"),
        (b"bytes", "an image of type bytes"),
        ("https://example.org/cat.jpg", "a URL instead of a file"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    """Fails if it is guessed which axis holds the channels, or that floats are pixels."""
    with pytest.raises(UserError, match=message):
        pixels(image)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_files_are_named_in_one_line(suffix, tmp_path):
    """Fails if a cut-off file is filled up with grey, or if Pillow's exception comes through."""
    whole = tmp_path / f"whole.{suffix}"
    photo((64, 64)).save(whole)
    contents = {"cut": whole.read_bytes()[:-2000], "empty": b"", "text": b"not an image"}
    for name, content in contents.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"broken image.*{name}\.{suffix}") as caught:
            pixels(path)
        assert "\n" not in str(caught.value)
    with Image.open(tmp_path / f"cut.{suffix}") as lazy, pytest.raises(UserError, match=rf"RGB.*cut\.{suffix}"):
        pixels(lazy)
    with pytest.raises(UserError, match=r"no such image.*gone\.png"):
        pixels(tmp_path / "gone.png")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    """Fails if the aspect ratio, size or statistics are not stored, or if transformers' own class is loaded."""
    ours = LlavaHrImageProcessor(size=64, image_aspect_ratio="square", image_mean=[0.5] * 3, image_std=[0.25] * 3)
    ours.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["size"] == {"shortest_edge": 64} and stored["crop_size"] == {"height": 64, "width": 64}
    assert stored["image_aspect_ratio"] == "square" and stored["resample"] == 3 and stored["do_center_crop"] is True
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is LlavaHrImageProcessor and again.to_dict() == ours.to_dict()
    image = photo((50, 37))
    assert torch.equal(again(image, return_tensors="pt").pixel_values, ours(image, return_tensors="pt").pixel_values)


def test_no_warning_about_torchvision(tmp_path, caplog):
    """Fails if loading warns of a backend that is missing on purpose."""
    LlavaHrImageProcessor(size=32).save_pretrained(tmp_path)
    with caplog.at_level("WARNING"):
        AutoImageProcessor.from_pretrained(tmp_path)
    assert "torchvision" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_aspect_ratio": "anyres"}, r"image_aspect_ratio 'anyres' \(expected pad or square\)"),
        ({"size": 0}, "image size 0"),
        ({"size": {"height": 32, "width": 48}}, "image size"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"resample": 2}, "resample is 2"),
        ({"do_rescale": "no"}, "do_rescale 'no'"),
        ({"rescale_factor": float("nan")}, "rescale_factor nan"),
        ({"do_normalize": 0}, "do_normalize 0"),
        ({"crop_size": {"height": 224, "width": 224}}, "crop_size"),
    ],
)
def test_what_it_cannot_do_is_refused(options, message):
    """Fails if a switch is taken and passed over."""
    with pytest.raises(UserError, match=message):
        LlavaHrImageProcessor(**{"size": 32, **options})


def test_size_and_aspect_ratio_of_one_call():
    """Fails if a call's options are passed over, or stay."""
    processor = LlavaHrImageProcessor(size=32)
    image = photo((50, 37))
    assert processor(image, size=64, return_tensors="np")["pixel_values"].shape == (1, 3, 64, 64)
    square = processor(image, image_aspect_ratio="square", return_tensors="pt")["pixel_values"]
    assert torch.equal(square, pixels(image, image_aspect_ratio="square"))
    assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], pixels(image))
    assert not torch.equal(square, pixels(image))


def test_rescaling_and_normalising_as_asked(tmp_path):
    """At the start, in a call and after saving. Fails if a switch is taken and passed over, or stays after a call."""
    image = photo((32, 32))
    grey = torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32)).permute(2, 0, 1)
    processor = LlavaHrImageProcessor(size=32)

    def made(by=processor, **options):
        return by(image, return_tensors="pt", **options)["pixel_values"][0]

    assert torch.equal(made(do_rescale=False, do_normalize=False), grey)
    assert torch.allclose(made(rescale_factor=-1.0, do_normalize=False), -grey)
    assert torch.equal(made(), pixels(image)[0])
    LlavaHrImageProcessor(size=32, do_normalize=False, rescale_factor=0.5).save_pretrained(tmp_path)
    assert torch.allclose(made(AutoImageProcessor.from_pretrained(tmp_path)), grey / 2)
