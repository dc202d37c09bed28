"""NLVR2 and Flickr30k in their official layouts."""

import json

import pytest
from PIL import Image

from tenfold import UserError
from tenfold.data import formats
from tenfold.data.formats import KarpathyImage, NLVR2Sample, Picture


def picture(grey):
    return Picture(Image.new("RGB", (8, 6), (grey, 0, 0)))


@pytest.mark.parametrize("split", ["train", "dev", "test1"])
def test_nlvr2_is_read_as_it_is_written(split, tmp_path):
    """Fails if left and right change places, the label is inverted, or the pictures lie elsewhere."""
    samples = [
        NLVR2Sample(f"{split}-7-{one}-0", f"{split}-7-{one}", f"is it {one}", bool(one), (picture(10), picture(90)))
        for one in (0, 1)
    ]
    formats.write_nlvr2(tmp_path, samples, split)
    read = formats.read_nlvr2(tmp_path, split)
    assert [(one.identifier, one.pair, one.sentence, one.answer) for one in read] == [
        (one.identifier, one.pair, one.sentence, one.answer) for one in samples
    ]
    assert [side.open().getpixel((0, 0))[0] for side in read[1].pictures] == [10, 90]
    lines = tmp_path / "nlvr2" / "data" / f"{split}.json"
    broken = [line | {"label": "true"} for line in map(json.loads, lines.read_text().splitlines())]
    lines.write_text("".join(json.dumps(line) + "\n" for line in broken))
    with pytest.raises(UserError, match="label"):
        formats.read_nlvr2(tmp_path, split)


def test_flickr30k_by_split(tmp_path):
    """Fails if a photograph of another split is among those of the test, or a missing one is taken."""
    (tmp_path / "flickr30k-images").mkdir()
    (tmp_path / "karpathy").mkdir()
    images = []
    for number, split in enumerate(("train", "test", "val", "test")):
        Image.new("RGB", (4, 4)).save(tmp_path / "flickr30k-images" / f"{number}.png")
        images.append(KarpathyImage(number, f"{number}.png", split, ("a dog", "a cat"), (2 * number, 2 * number + 1)))
    formats.write_karpathy(tmp_path / "karpathy" / "dataset_flickr30k.json", images, "flickr30k")
    read = formats.read_flickr30k(tmp_path, "test")
    assert [one.image_id for one in read] == [1, 3] and read[0].captions == ("a dog", "a cat")
    (tmp_path / "flickr30k-images" / "3.png").unlink()
    with pytest.raises(UserError, match="no such image"):
        formats.read_flickr30k(tmp_path)
    with pytest.raises(UserError, match="no split"):
        formats.read_flickr30k(tmp_path, "restval")
