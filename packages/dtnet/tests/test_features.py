"""From images to grid features, and from a folder to an h5 file: any image, resumable, whole or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision import models

from dtnet.data import extract as extraction
from dtnet.data.extract import ExtractSettings, convert_maps, extract, run_extract
from dtnet.data.grid_features import GridFeatures
from dtnet.features import BackboneFeatures, MiniFeatures, build_extractor
from tenfold import UserError
from tenfold.data.formats.coco_captions import KarpathyImage, write_karpathy


def picture(seed: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images with COCO's names, in two folders."""
    for number in range(5):
        path = tmp_path / "images" / ("train2014" if number % 2 else "val2014")
        path.mkdir(parents=True, exist_ok=True)
        picture(number).save(path / f"COCO_{path.name}_{100 - number:012d}.png")
    return tmp_path / "images"


def test_mini_features_are_block_means_and_edges() -> None:
    """A cell's first three numbers are the mean colour of its first quarter, 4 x 4 pixels.

    Fails if rows and columns are exchanged, or another quarter comes first.
    """
    image = picture(0)
    (features,) = MiniFeatures()([image])
    assert features.shape == (49, 24) and features.dtype == torch.float32
    pixels = np.asarray(image) / 255
    row, column = 2, 5
    cell = features[7 * row + column]
    corner = pixels[8 * row : 8 * row + 4, 8 * column : 8 * column + 4]
    assert cell[:3].tolist() == pytest.approx(corner.mean((0, 1)).tolist(), abs=1e-6)
    right = pixels[8 * row : 8 * row + 4, 8 * column + 4 : 8 * column + 8]
    assert cell[3:6].tolist() == pytest.approx(right.mean((0, 1)).tolist(), abs=1e-6)
    steps = abs(np.diff(pixels, axis=0))[:, :-1] + abs(np.diff(pixels, axis=1))[:-1]
    edges = 4 * steps[8 * row : 8 * row + 4, 8 * column : 8 * column + 4].mean((0, 1))
    assert cell[12:15].tolist() == pytest.approx(edges.tolist(), abs=1e-6)


def test_a_plain_image_has_no_edges() -> None:
    (features,) = MiniFeatures()([Image.new("RGB", (56, 56), (255, 0, 51))])
    assert (features[:, 12:] == 0).all()
    assert features[:, :3].unique(dim=0).tolist() == [pytest.approx([1, 0, 0.2])]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(56, 56), (31, 200), (1, 1)])
def test_images_of_any_mode_and_size(mode: str, size: tuple[int, int]) -> None:
    """Fails if an image is not converted to RGB, or not resized."""
    image = picture(3, size).convert("L").convert(mode) if mode == "I;16" else picture(3, size).convert(mode)
    features = MiniFeatures()([image, picture(4)])
    assert features.shape == (2, 49, 24) and bool(features.isfinite().all())
    assert torch.equal(features[1], MiniFeatures()([picture(4)])[0])


@pytest.fixture(scope="module")
def backbone() -> BackboneFeatures:
    return BackboneFeatures("resnet18", size=64, seed=1)


def test_a_backbone_gives_its_last_map_averaged_to_the_grid(backbone: BackboneFeatures) -> None:
    """C5 of a torchvision ResNet, row by row. Fails if another layer is taken, or rows and columns are exchanged."""
    assert (backbone.d_in, backbone.grid) == (512, 7)
    images = [picture(0, (80, 40)), picture(1)]
    features = backbone(images)
    assert features.shape == (2, 49, 512) and features.dtype == torch.float32

    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = models.resnet18(weights=None).eval()
    pixels = torch.from_numpy(np.stack([np.asarray(image.resize((64, 64), 2)) for image in images]))
    x = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = getattr(network, name)(x)
    expected = F.adaptive_avg_pool2d(x, 7)  # [2, 512, 7, 7]
    assert torch.allclose(features.view(2, 7, 7, 512).permute(0, 3, 1, 2), expected, atol=1e-5)


def test_random_weights_come_from_the_seed_alone(backbone: BackboneFeatures) -> None:
    state = torch.get_rng_state()
    for seed in (1, 2):
        again = BackboneFeatures("resnet18", size=64, seed=seed)
        assert torch.equal(again.network[0].weight, backbone.network[0].weight) == (seed == 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A torchvision state dict with a classifier of three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return models.resnet18(weights=None, num_classes=3).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_read_from_a_file(suffix: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A torchvision state dict, with its classifier or without. Fails if the weights stay random."""
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file({name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, path)
    loaded = BackboneFeatures("resnet18", path, size=64)
    assert torch.equal(loaded.network[0].weight, state["conv1.weight"])
    assert torch.equal(loaded.network[7][1].conv2.weight, state["layer4.1.conv2.weight"])
    if suffix == ".pth":
        # The settings make the same extractor again, and refuse other weights under the same name.
        settings = json.loads(json.dumps(loaded.settings()))
        assert torch.equal(build_extractor(settings)([picture(0)]), loaded([picture(0)]))
        torch.save({**state, "bn1.bias": state["bn1.bias"] + 1}, path)
        with pytest.raises(UserError, match=r"weights sha256:.*expected the file with sha256:"):
            build_extractor(settings)


def test_other_weights_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Fails if a file is unpickled without restriction, or weights that do not fit stay random in silence."""
    path = tmp_path / "w.pth"
    torch.save({**state, "layer1.0.conv1.weight": torch.zeros(2, 3)}, path)
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight has shape \[2, 3\]: .*w.pth .*\[64, 64, 3, 3\]"):
        BackboneFeatures("resnet18", path)
    torch.save({name: tensor for name, tensor in state.items() if name != "bn1.running_mean"}, path)
    with pytest.raises(UserError, match=r"bn1.running_mean is missing"):
        BackboneFeatures("resnet18", path)
    for value in ([1, 2], {"a": 1}):
        torch.save(value, path)
        with pytest.raises(UserError, match="holds something else"):
            BackboneFeatures("resnet18", path)
    torch.save({"a": Path("x")}, path)
    with pytest.raises(UserError, match=r"cannot read|broken, truncated"):
        BackboneFeatures("resnet18", path)
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(UserError, match=r"cannot read|broken, truncated"):
            BackboneFeatures("resnet18", tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        BackboneFeatures("resnet18", tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "unknown feature extractor: None.*mini or backbone"),
        ({"name": "clip"}, "unknown feature extractor: clip"),
        ({"name": "mini", "size": 3}, "unknown setting 'size': feature extractor mini"),
        ({"name": "mini", "grid": 0}, "grid out of range"),
        ({"name": "backbone", "arch": "vgg16"}, "unknown architecture: vgg16.*resnext101_32x8d"),
        ({"name": "backbone", "size": 3}, "size or grid out of range"),
        ({"name": "backbone", "arch": "resnet18", "device": "tpu:99"}, "no device 'tpu:99'"),
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_extractor(settings)


def test_settings_of_the_mini_extractor_make_it_again() -> None:
    made = build_extractor(json.loads(json.dumps(MiniFeatures(grid=5).settings())))
    assert torch.equal(made([picture(0)]), MiniFeatures(grid=5)([picture(0)]))


def test_a_missing_torchvision_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"torchvision is not installed.*dtnet\[extract\]"):
        BackboneFeatures("resnet18")


def test_ids_are_the_integers_after_the_last_underscore(folder: Path, tmp_path: Path) -> None:
    """Fails if the running number is stored under an image's id, or the folders below are not searched."""
    settings = ExtractSettings(folder, tmp_path / "f.h5", {"name": "mini"}, batch_size=2)
    report = run_extract(settings)
    assert report == {"images": 5, "d_in": 24, "output": str(tmp_path / "f.h5"), "resumed": 0, "ids": None}
    features = GridFeatures(tmp_path / "f.h5")
    assert features.ids() == (96, 97, 98, 99, 100)
    assert torch.equal(features[97], MiniFeatures()([picture(3)])[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5", "images"]


def test_images_without_ids_are_numbered_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("b", "a", "c")):
        picture(number).save(tmp_path / f"{name}.png")
    with caplog.at_level(logging.INFO):
        report = extract(tmp_path, tmp_path / "out" / "f.h5", MiniFeatures())
    assert json.loads(Path(report["ids"]).read_text()) == {"a.png": 0, "b.png": 1, "c.png": 2}
    assert "numbered from 0" in caplog.text
    assert torch.equal(GridFeatures(tmp_path / "out" / "f.h5")[1], MiniFeatures()([picture(0)])[0])


def test_captions_give_the_ids_of_flickr(tmp_path: Path) -> None:
    """Flickr's names end in hexadecimal numbers. Only the images of the captions are taken."""
    for number in range(3):
        picture(number).save(tmp_path / f"100026820{number}_693b08cb0e.png")
    images = [
        KarpathyImage(number, f"100026820{2 - number}_693b08cb0e.png", "train", ("a",), (number,)) for number in (0, 1)
    ]
    write_karpathy(tmp_path / "flickr.json", images, "flickr8k")
    settings = ExtractSettings(tmp_path, tmp_path / "f.h5", {"name": "mini"}, captions=tmp_path / "flickr.json")
    assert run_extract(settings)["images"] == 2
    assert torch.equal(GridFeatures(tmp_path / "f.h5")[0], MiniFeatures()([picture(2)])[0])
    (tmp_path / "1000268202_693b08cb0e.png").unlink()
    (tmp_path / "f.h5").unlink()
    with pytest.raises(UserError, match=r"no such image: 1000268202_693b08cb0e\.png"):
        run_extract(settings)


class Dying:
    """An extractor that dies at its third batch."""

    d_in, grid = 24, 7

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.after:
            raise KeyboardInterrupt
        return MiniFeatures()(images)

    def settings(self) -> dict[str, Any]:
        return MiniFeatures().settings()


def test_a_killed_extraction_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the parts are thrown away, or half a part is taken for a whole one."""
    monkeypatch.setattr(extraction, "PART", 2)
    dying, output = Dying(after=3), tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt):
        extract(folder, output, dying, batch_size=1)
    assert not output.exists()
    with pytest.raises(UserError, match="begun with other images or settings"):
        extract(folder, output, MiniFeatures(), batch_size=1, dtype="float16")
    second = Dying(after=9)
    report = extract(folder, output, second, batch_size=1)
    assert (report["resumed"], second.calls, report["images"]) == (2, 3, 5)
    whole = tmp_path / "whole.h5"
    extract(folder, whole, MiniFeatures(), batch_size=5)
    ours, theirs = GridFeatures(output), GridFeatures(whole)
    assert torch.equal(ours.batch(theirs.ids()), theirs.batch(theirs.ids()))
    assert not Path(f"{output}.parts").exists()


def test_what_cannot_be_extracted_is_refused(folder: Path, tmp_path: Path) -> None:
    """One line each, and no output. Fails if a broken image is passed over."""
    output = tmp_path / "f.h5"
    with pytest.raises(UserError, match="no such folder"):
        extract(tmp_path / "nowhere", output, MiniFeatures())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        extract(tmp_path / "empty", output, MiniFeatures())
    extra = folder / "val2014" / "cat.png"
    picture(9).save(extra)
    with pytest.raises(UserError, match=r"no image id in the name: .*cat.png"):
        extract(folder, output, MiniFeatures())
    extra.rename(folder / "x_100.png")
    with pytest.raises(UserError, match="image id 100 twice"):
        extract(folder, output, MiniFeatures())
    (folder / "x_100.png").unlink()
    whole = next(folder.rglob("*98.png")).read_bytes()
    next(folder.rglob("*98.png")).write_bytes(whole[:60])
    with pytest.raises(UserError, match="broken image") as error:
        extract(folder, output, MiniFeatures())
    assert "\n" not in str(error.value) and not output.exists()
    output.write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        extract(folder, output, MiniFeatures())
    assert output.read_text() == "mine"


def test_maps_of_grid_feats_are_averaged_to_the_grid(tmp_path: Path) -> None:
    """`<id>.pth`, (1, width, H, W) -> 49 rows, row by row. Fails if width and cells are exchanged."""
    maps = {42: torch.randn(1, 16, 19, 29), 7: torch.randn(1, 16, 7, 7)}
    for image_id, values in maps.items():
        torch.save(values, tmp_path / f"{image_id}.pth")
    report = run_extract(ExtractSettings(tmp_path, tmp_path / "f.h5"))
    assert (report["images"], report["d_in"]) == (2, 16)
    features = GridFeatures(tmp_path / "f.h5")
    assert torch.equal(features[7].T.view(16, 7, 7), maps[7][0])
    assert torch.equal(features[42].T.view(16, 7, 7), F.adaptive_avg_pool2d(maps[42], 7)[0])


@pytest.mark.parametrize("value", [torch.zeros(2, 16, 7, 7), torch.zeros(49, 16), {"map": 1}, Path("x")])
def test_other_maps_are_refused(value: Any, tmp_path: Path) -> None:
    """Fails if a file is unpickled without restriction: the last one names a class."""
    torch.save(value, tmp_path / "42.pth")
    with pytest.raises(UserError, match=r"42.pth.*expected a tensor \[1, width, rows, columns\]"):
        convert_maps(tmp_path, tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
