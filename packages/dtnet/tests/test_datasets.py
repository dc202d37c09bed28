"""What training reads: a pair per caption, an image with its references, and the mini COCO in the official layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dtnet.data.captions import KARPATHY_NAME, SPLITS, read_captions
from dtnet.data.datasets import ImageDataset, PairDataset, collate_images, collate_pairs, pad_ids
from dtnet.data.grid_features import GridFeatures
from dtnet.data.mini import FEATURES, VOCABULARY, draw_mini_coco, scene_kinds, write_mini_coco
from dtnet.features import MiniFeatures
from dtnet.vocabulary import BOS, EOS, PAD, Vocabulary, tokenise
from tenfold import UserError
from tenfold.data.mini_captions import caption_scene
from tenfold.data.miniworld import render
from tenfold.metrics.captions import split_words

TRAIN, VAL, TEST = 40, 6, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mini_coco(tmp_path_factory.mktemp("mini") / "coco", seed=3, train=TRAIN, val=VAL, test=TEST)


@pytest.fixture(scope="module")
def pairs(folder: Path) -> PairDataset:
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    return PairDataset(GridFeatures(folder / FEATURES), read_captions(folder), vocabulary, tokenise=split_words)


def test_the_data_set_in_memory_is_that_of_the_files(folder: Path) -> None:
    """Fails if what the shipped model is judged on is not what it was trained beside."""
    drawn, read, grids = draw_mini_coco(3, TRAIN, VAL, TEST), read_captions(folder / KARPATHY_NAME), folder / FEATURES
    assert drawn.captions == read
    for split in SPLITS:
        ids = read.images(split)
        assert torch.equal(drawn.features.batch(ids), GridFeatures(grids).batch(ids))
    less = draw_mini_coco(3, TRAIN, VAL, TEST, without=("val",)).captions
    assert (less.images("train"), less.images("test")) == (read.images("train"), read.images("test"))
    assert not less.splits["val"]


def test_cross_entropy_sees_every_caption_once(pairs: PairDataset, folder: Path) -> None:
    """The unit is the (image, caption) pair. Fails if an image's features go with another image's caption."""
    captions, vocabulary = read_captions(folder), Vocabulary.load(folder / VOCABULARY)
    grids = GridFeatures(folder / FEATURES)
    assert len(pairs) == 5 * TRAIN
    for index, (image_id, caption) in enumerate(captions.pairs("train")):
        features, ids = pairs[index]
        assert torch.equal(features, grids[image_id])
        assert ids == vocabulary.encode(caption.split())


def test_batches_are_padded_on_the_right(pairs: PairDataset) -> None:
    """Fails if the captions lose `<bos>` or `<eos>`, or are padded with another id than 1."""
    batch = collate_pairs([pairs[0], pairs[3], pairs[64]])
    assert batch.features.shape == (3, 49, 24)
    assert batch.ids.dtype == torch.int64
    for row, index in zip(batch.ids, (0, 3, 64), strict=True):
        ids = pairs[index][1]
        assert (ids[0], ids[-1]) == (BOS, EOS)
        assert row.tolist() == ids + [PAD] * (batch.ids.shape[1] - len(ids))
    assert batch.ids.shape[1] == max(len(pairs[index][1]) for index in (0, 3, 64))
    assert pad_ids([[2, 3], [2, 5, 3]]).tolist() == [[2, 3, 1], [2, 5, 3]]


def test_self_critical_training_sees_an_image_with_all_references(folder: Path) -> None:
    captions = read_captions(folder)
    images = ImageDataset(GridFeatures(folder / FEATURES), captions, split="val")
    assert len(images) == VAL
    batch = collate_images([images[index] for index in range(VAL)])
    assert tuple(batch.image_ids) == captions.images("val")
    assert batch.references == list(captions.references("val").values())
    assert batch.features.shape == (VAL, 49, 24)


def test_a_loaders_worker_reads_the_same(pairs: PairDataset) -> None:
    there = DataLoader(pairs, batch_size=20, num_workers=1, collate_fn=collate_pairs)
    here = DataLoader(pairs, batch_size=20, collate_fn=collate_pairs)
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours.features, theirs.features) and torch.equal(ours.ids, theirs.ids)


def test_missing_features_are_found_before_the_epoch(folder: Path, tmp_path: Path) -> None:
    """Fails if only the access raises: an epoch would die after hours."""
    from dtnet.data.grid_features import write_grid_features

    whole = GridFeatures(folder / FEATURES)
    write_grid_features(tmp_path / "f.h5", ((number, whole[number]) for number in whole.ids() if number != 7))
    with pytest.raises(UserError, match="no features of 1 images, the first is 7"):
        PairDataset(GridFeatures(tmp_path / "f.h5"), read_captions(folder), Vocabulary.load(folder / VOCABULARY))
    with pytest.raises(UserError, match="unknown split"):
        ImageDataset(whole, read_captions(folder), split="dev")


def test_the_mini_world_is_laid_out_like_coco(folder: Path) -> None:
    """Karpathy's json and the annotations with the lists of ids hold the same captions and splits."""
    karpathy, official = read_captions(folder), read_captions(folder / "annotations")
    assert karpathy.captions == official.captions and karpathy.files == official.files
    for split, count in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        assert len(karpathy.images(split)) == count
        assert set(karpathy.images(split)) == set(official.images(split))
    assert set(GridFeatures(folder / FEATURES).ids()) == set(range(TRAIN + VAL + TEST)) == set(scene_kinds(folder))
    # The words of the mini world need no spaCy: its rules would split them alike.
    for texts in karpathy.captions.values():
        assert [split_words(text) for text in texts] == [tokenise(text) for text in texts]


def test_captions_pictures_and_features_are_of_the_same_scene(folder: Path) -> None:
    """Fails if a picture, or its features, show another scene than the captions tell of."""
    captions, features = read_captions(folder), GridFeatures(folder / FEATURES)
    for image_id in (0, 9, TRAIN, TRAIN + VAL):
        one = caption_scene(3, image_id)
        assert captions.captions[image_id] == one.captions
        with Image.open(folder / "images" / captions.files[image_id]) as image:
            assert image.tobytes() == render(one.scene, image.width).tobytes()
            assert torch.equal(MiniFeatures()([image])[0], features[image_id])


def test_the_mini_vocabulary_does_not_count_the_test_split(folder: Path) -> None:
    captions = read_captions(folder)
    known = [text.split() for split in ("train", "val") for _, text in captions.pairs(split)]
    assert Vocabulary.load(folder / VOCABULARY) == Vocabulary.build(known, min_count=5)


def test_the_mini_world_is_the_same_for_the_same_seed(folder: Path, tmp_path: Path) -> None:
    again = write_mini_coco(tmp_path / "again", seed=3, train=TRAIN, val=VAL, test=TEST, images=False)
    assert not (again / "images").exists()
    for name in ("dataset_coco.json", VOCABULARY, "kinds.json", FEATURES):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    other = write_mini_coco(tmp_path / "other", seed=4, train=TRAIN, val=VAL, test=TEST, images=False)
    assert json.loads((other / "kinds.json").read_text()) != json.loads((folder / "kinds.json").read_text())


def test_what_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        write_mini_coco(folder, train=1, val=1, test=1)
    with pytest.raises(UserError, match="an empty split"):
        write_mini_coco(tmp_path / "new", val=0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "kinds.json").write_text("[]")
    with pytest.raises(UserError, match="holds something else"):
        scene_kinds(tmp_path)
