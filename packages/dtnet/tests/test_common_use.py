"""What users bring besides a plain run: pictures that changed, features of another kind, captions of another model,
checkpoints of wrapped models."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from dtnet_fixtures import tiny_settings, write_tiny_data
from dtnet_models import tiny_features, tiny_model
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from dtnet.checkpoints.keys import export_state, read_official
from dtnet.commands.app import app
from dtnet.commands.tables import routing_tables
from dtnet.data import extract as extraction
from dtnet.data.caption_data import open_data
from dtnet.data.captions import read_captions
from dtnet.data.extract import ExtractSettings, extract, run_extract
from dtnet.data.grid_features import GridFeatures, write_grid_features
from dtnet.evaluation.analysis import report, router_units
from dtnet.evaluation.demo import load_model
from dtnet.evaluation.run import is_papers
from dtnet.evaluation.scoring import run_score
from dtnet.evaluation.settings import ScoreSettings
from dtnet.features import BackboneFeatures, MiniFeatures
from dtnet.training.plan import plan
from dtnet.training.stages import SelfCritical
from dtnet.vocabulary import EOS
from tenfold import UserError
from tenfold.cli.verify import verify_run
from tenfold.data.formats.coco_captions import write_caption_results
from tenfold.metrics.captions.cider import CiderD
from tenfold.metrics.captions.coco import score_captions
from tenfold.runs import RunRecord
from tenfold.runs.ranks import Ranks

WHITE = ("cider", "rouge")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    return folder


class Dying(MiniFeatures):
    """Dies at its third batch."""

    calls = 0

    def __call__(self, given: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls > 2:
            raise KeyboardInterrupt
        return super().__call__(given)


@pytest.mark.parametrize("change", ["content", "size", "name"])
def test_pictures_that_changed_are_not_resumed(
    change: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if an extraction goes on with parts of other pictures because their ids are the same."""
    monkeypatch.setattr(extraction, "PART", 1)
    output = tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt):
        extract(images, output, Dying(), batch_size=1)
    if change == "name":
        (images / "0.png").rename(images / "x_0.png")
    else:
        (picture(9) if change == "content" else picture(0).resize((40, 40))).save(images / "0.png")
    with pytest.raises(UserError, match="begun with other images or settings"):
        extract(images, output, MiniFeatures(), batch_size=1)


def test_a_backbone_without_weights_is_refused_unless_random_is_said(images: Path, tmp_path: Path) -> None:
    """Fails if features of a random network come out unmarked, or the file does not say what made it."""
    small = {"name": "backbone", "arch": "resnet18"}
    with pytest.raises(UserError, match="no weights"):
        run_extract(ExtractSettings(images, tmp_path / "f.h5", small))
    run_extract(ExtractSettings(images, tmp_path / "random.h5", {**small, "weights": "random"}))
    made = GridFeatures(tmp_path / "random.h5").extractor
    assert made is not None and (made["weights"], made["weights_sha256"], made["seed"]) == ("random", None, 0)
    weights = tmp_path / "weights.safetensors"
    network = BackboneFeatures("resnet18").network
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    state = {
        f"module.{names[int(name.split('.')[0])]}.{name.partition('.')[2]}": tensor.contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(state, weights)  # of a network that DataParallel wrapped
    run_extract(ExtractSettings(images, tmp_path / "known.h5", {**small, "weights": str(weights)}))
    known = GridFeatures(tmp_path / "known.h5")
    assert known.extractor is not None and known.extractor["weights"] == "weights.safetensors"
    assert len(known.extractor["weights_sha256"].removeprefix("sha256:")) == 64
    assert torch.equal(known[1], GridFeatures(tmp_path / "random.h5")[1])


def test_extract_without_weights_is_one_line(images: Path, tmp_path: Path) -> None:
    """At the command line, with exit code 2 behind it. Fails if the option's default is a random network."""
    done = CliRunner().invoke(app, ["extract", "--images", str(images), "--out", str(tmp_path / "f.h5")])
    assert isinstance(done.exception, UserError) and "--weights" in str(done.exception)
    done = CliRunner().invoke(
        app, ["extract", "--images", str(images), "--out", str(tmp_path / "f.h5"), "--extractor", "mini"]
    )
    assert done.exit_code == 0 and GridFeatures(tmp_path / "f.h5").extractor == {"name": "mini", "grid": 7}


def test_regions_of_as_many_rows_are_known_by_their_boxes(tmp_path: Path) -> None:
    """49 regions look like a grid. Fails if rows alone are counted."""
    path = tmp_path / "regions.h5"
    with h5py.File(path, "w") as file:
        for image in (5, 8):
            file[f"{image}_features"] = np.zeros((49, 6), np.float32)
            file[f"{image}_boxes"] = np.zeros((49, 4), np.float32)
    for key in ("auto", "features"):
        with pytest.raises(UserError, match="has boxes beside it: regions were given instead of grids"):
            GridFeatures(path, key=key)


def test_every_image_is_looked_at_for_the_kind_of_its_array(tmp_path: Path) -> None:
    """Fails if the first image decides for all: the others' grids are then read from elsewhere, or missed."""
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        file["1_features"] = np.zeros((49, 6), np.float32)
        file["2_grids"] = np.ones((49, 6), np.float32)
    with pytest.raises(UserError, match="1 of 2 images have no grids, the first is 1"):
        GridFeatures(path)
    assert GridFeatures(path, key="grids").ids() == (2,) and GridFeatures(path, key="features").ids() == (1,)
    with h5py.File(path, "a") as file:
        file["1_grids"] = np.ones((49, 6), np.float32)
    assert GridFeatures(path).ids() == (1, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("world") / "data")


def test_captions_of_any_model_are_scored_without_one(data: Path, tmp_path: Path) -> None:
    """Fails if a model is needed, the scores are of another set, or the run cannot be verified."""
    references = read_captions(data / "dataset_coco.json").references("val")
    captions = {image: said[0] for image, said in references.items()}
    write_caption_results(tmp_path / "mine.json", captions)
    options = ["--split", "val", "--metrics", ",".join(WHITE), "--tokens", "whitespace"]
    where = ["score", str(tmp_path / "mine.json"), "--data", str(data), "--output", str(tmp_path / "scores")]
    done = CliRunner().invoke(app, [*where, *options])
    assert done.exit_code == 0, done.output
    assert "6 images of val" in done.output and "134.9" not in done.output
    expected = score_captions(captions, references, WHITE, tokens="whitespace").table
    record = RunRecord.load(tmp_path / "scores")
    assert record.metrics["scores"] == expected and set(record.outputs) == {"metrics.json", "per_image.json"}
    from dtnet.commands.verify import VERIFIERS

    assert verify_run(record, VERIFIERS, {}).holds
    del captions[min(captions)]
    write_caption_results(tmp_path / "less.json", captions)
    write_caption_results(tmp_path / "more.json", captions | {99999: "a"})
    for name, message in (("less", "1 images without captions"), ("more", "99999")):
        settings = ScoreSettings(
            results=str(tmp_path / f"{name}.json"), data=str(data), split="val", metrics=WHITE, tokens="whitespace"
        )
        with pytest.raises(UserError, match=message):
            run_score(settings)


def test_the_papers_scores_stand_beside_its_own_split_alone(tmp_path: Path) -> None:
    """Fails if the paper's CIDEr-D of COCO is printed beside the mini world's, or beside a part of the test split."""
    coco, others = {"captions": tmp_path / "dataset_coco.json"}, {"captions": tmp_path / "dataset_flickr8k.json"}
    assert is_papers("test", range(5000), coco)
    assert is_papers("test", range(5000), {"captions_train2014.json": tmp_path})
    for split, count, files in (("test", 4, coco), ("val", 5000, coco), ("test", 5000, others), ("test", 5000, {})):
        assert not is_papers(split, range(count), files)


def test_the_reward_can_count_the_end_of_a_caption(data: Path) -> None:
    """Fails if the end is no word of what is generated, or of the references, or if it is one by default."""
    found, end = {}, ["<eos>"]
    for eos in (False, True):
        training = tiny_settings(data, scst={"eos": eos})
        world = open_data(training.data, data, training.model.grid)
        stage = plan(training, len(world.captions.pairs("train")), len(world.captions.images("train")))[1]
        scst = SelfCritical(stage, training, world, 0, Ranks())
        image = world.captions.images("train")[0]
        words = world.captions.references("train")[image][0].split()
        ids = world.vocabulary.encode(words)[1:]
        assert ids[-1] == EOS
        beams = torch.tensor([[[*ids, 0], [*ids[:-1], 4, 4]]])  # one that ends, one that goes on
        found[eos] = scst.rewards(beams, [image])[0].tolist()
        said = {one: [text.split() for text in texts] for one, texts in world.captions.references("train").items()}
        said = {one: [[*text, *end * eos] for text in texts] for one, texts in said.items()}
        extra = world.vocabulary.words[4]
        by_hand = [[*words, *end * eos], [*words, extra, extra]]
        _, scores = CiderD.from_captions(said.values()).score(by_hand, [said[image]] * 2)
        assert found[eos] == pytest.approx(scores.tolist(), rel=1e-5)
    assert found[True][0] > found[True][1] and found[False] != found[True]


@pytest.mark.parametrize("whole", [True, False])
def test_a_wrapped_models_names_are_its_own(whole: bool, tmp_path: Path) -> None:
    """Fails if DistributedDataParallel's `module.` before every name is taken for another model."""
    model = tiny_model()
    state = {f"module.{name}": tensor for name, tensor in export_state(model.state_dict()).items()}
    torch.save({"state_dict": state} if whole else state, tmp_path / "wrapped.pth")
    read = read_official(tmp_path / "wrapped.pth", model.config).state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())


def test_a_dead_router_is_said() -> None:
    """Fails if a router none of whose units fires passes for one that weighs cells, or the other way round."""
    model = tiny_model()
    features = tiny_features(model, 6)
    alive = router_units(model, features)
    assert {(one["layer"], one["cells"]) for one in alive} >= {(0, "spatial"), (0, "channel")}
    assert all(one["firing"] > 0 for one in alive)
    router = model.encoder.layers[0].channel_router
    with torch.no_grad():
        router.joint[0].weight.zero_()
        router.joint[0].bias.fill_(-1)
    found = report(model, features)
    dead = [(one["layer"], one["cells"]) for one in found["routers"] if not one["firing"]]
    assert dead == [(0, "channel")]
    console = Console(width=200, record=True)
    console.print(routing_tables(found))
    said = console.export_text()
    assert "channel router of layer 0 is dead" in said and "spatial router of layer 0 is dead" not in said


def test_the_model_that_ships_says_which_routers_are_dead() -> None:
    """What its report found: three of its four have no unit that fires. Fails if the report does not look."""
    model, _ = load_model(None, "cpu")
    features = torch.rand(20, model.config.positions, model.config.d_in, generator=torch.Generator().manual_seed(0))
    firing = {(row["layer"], row["cells"]): bool(row["firing"]) for row in router_units(model, features)}
    assert firing == {(0, "spatial"): True, (0, "channel"): False, (1, "spatial"): False, (1, "channel"): False}


def test_a_models_files_can_be_read_by_others(tmp_path: Path) -> None:
    """Fails if what safetensors writes for its owner alone is published so."""
    before = os.umask(0o022)
    try:
        tiny_model().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o644}, modes


def test_features_with_a_broken_note_are_one_line(tmp_path: Path) -> None:
    """Fails if the file's own words about its extractor are trusted."""
    path = tmp_path / "f.h5"
    write_grid_features(path, [(1, np.zeros((49, 6), np.float32))], extractor={"name": "mini"})
    assert GridFeatures(path).extractor == json.loads('{"name": "mini"}')
    for note in ("[1]", "{", 3):
        with h5py.File(path, "a") as file:
            file.attrs["extractor"] = note
        with pytest.raises(UserError, match="extractor"):
            GridFeatures(path)
