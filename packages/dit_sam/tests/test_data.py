"""What is read from disk: REFER, its converted form, gRefCOCO, own masks, all three segmentations, the mini world."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from dit_sam.data.conversion import convert_refer
from dit_sam.data.general import parse_general, union
from dit_sam.data.mini import CONFIG, WORDS, expressions
from dit_sam.data.own import read_mask
from dit_sam.data.refer import Annotation, read_pickle
from dit_sam.data.segmentation import decode
from dit_sam.data.sets import ReferringSet
from dit_sam.data.words import kind, swapped, swapped_words, turned
from dit_sam.scores import Overlap, general_scores, overlap, referring_scores
from tenfold import UserError
from tenfold.data import miniworld


class Evil:
    def __reduce__(self):
        return os.system, ("false",)


def test_a_pickle_that_calls_is_refused(tmp_path):
    """Fails if any global were allowed."""
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UserError, match=r"names posix\.system"):
        read_pickle(path)


def test_python_2_pickles_are_read(tmp_path):
    """Fails if texts of Python 2 beyond ASCII were not read as latin1."""
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"(lp0\nS'caf\\xe9'\np1\na.")
    assert read_pickle(path) == ["caf\xe9"]
    path.write_bytes(b"garbage")
    with pytest.raises(UserError, match="plain pickle"):
        read_pickle(path)


def test_all_forms_of_a_mask_agree():
    """Fails if run lengths were read row by row, or compressed text wrongly; pycocotools is the judge."""
    rng = np.random.default_rng(0)
    mask = (rng.random((13, 17)) > 0.5).astype(np.uint8)
    packed = coco.encode(np.asfortranarray(mask))
    text = {"size": [13, 17], "counts": packed["counts"].decode()}
    assert (decode(text, 13, 17, "here") == mask).all()
    flat, counts, value = mask.T.ravel(), [], 0
    start = 0
    for i in range(len(flat) + 1):
        if i == len(flat) or flat[i] != value:
            counts.append(i - start)
            start, value = i, 1 - value
    assert (decode({"size": [13, 17], "counts": counts}, 13, 17, "here") == mask).all()
    square = [[2.0, 2.0, 9.0, 2.0, 9.0, 9.0, 2.0, 9.0]]
    theirs = coco.decode(coco.frPyObjects(square, 13, 17))[:, :, 0]
    assert (decode(square, 13, 17, "here") == theirs).all()
    assert decode(square * 2, 13, 17, "here").max() == 2


@pytest.mark.parametrize(
    "segmentation",
    [[], "text", [[1, 2, 3]], {"size": [2, 2], "counts": [1]}, {"size": [2, 2], "counts": "\x00"}, [[None] * 6], None],
)
def test_broken_masks_are_refused(segmentation):
    """Fails if one of these were taken for a mask."""
    with pytest.raises(UserError):
        decode(segmentation, 2, 2, "here")


def test_refer_and_its_converted_form_give_the_same(mini_data, tmp_path):
    """Fails if a sentence, a mask or the order of records differed between both forms."""
    convert_refer(mini_data, tmp_path / "converted", "refcoco")
    # The authors' form knows pictures by number alone, as .jpg.
    (tmp_path / "converted" / "train2014").mkdir()
    for path in (mini_data / "train2014").iterdir():
        (tmp_path / "converted" / "train2014" / path.with_suffix(".jpg").name).write_bytes(path.read_bytes())
    for part in ("train", "val"):
        ours = ReferringSet(mini_data, "mini").samples(part)
        theirs = ReferringSet(tmp_path / "converted", "refcoco").samples(part)
        assert [one.sentences for one in ours] == [one.sentences for one in theirs]
        image = ours[0].image()
        assert (ours[0].mask(image) == theirs[0].mask(theirs[0].image())).all()
    assert all(len(one.sentences) == 1 for one in ReferringSet(mini_data, "mini").samples("test"))


def test_what_is_missing_is_named(tmp_path, mini_data):
    """Fails if a missing folder, split or part were not named in one line."""
    for name, split, part, words in (
        ("refcoco", None, "val", "no data set refcoco"),
        ("refcocog", "google", "test", "no test part"),
        ("refcoco+", "google", "val", "no split 'google'"),
        ("grefcoco", None, "test", "unknown part"),
    ):
        with pytest.raises(UserError, match=words):
            ReferringSet(tmp_path, name, split).samples(part)
    with pytest.raises(UserError, match=r"no such image|no pictures"):
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "refcoco").symlink_to(mini_data / "refcoco")
        ReferringSet(broken, "refcoco").samples("val")


def test_general_references_mean_several_objects_or_none(tmp_path):
    """Fails if lists of ids were not united, clipped to one, or [-1] not taken for none."""
    square = [[2.0, 2.0, 9.0, 2.0, 9.0, 9.0, 2.0, 9.0]]
    annotations = {i: Annotation((0, 0, 0, 0), 1, square, 16, 16) for i in (1, 2)}
    refs = [
        {"ref_id": 1, "image_id": 1, "split": "val", "ann_id": [1, 2], "sentences": [{"sent": "both"}]},
        {"ref_id": 2, "image_id": 1, "split": "val", "ann_id": [-1], "sentences": [{"sent": "the dragon"}]},
    ]
    both, none = parse_general(refs, "grefs")
    assert both.ann_ids == (1, 2) and none.ann_ids == ()
    assert union(both.ann_ids, annotations, "here").max() == 1
    folder = tmp_path / "grefcoco"
    folder.mkdir()
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "train2014" / "a.png")
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    instances = {
        "images": [{"id": 1, "file_name": "a.png", "height": 16, "width": 16}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "segmentation": square} for i in (1, 2)],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    samples = ReferringSet(tmp_path, "grefcoco").samples("val")
    assert [one.read_mask is None for one in samples] == [False, True]
    assert samples[0].mask(samples[0].image()).sum() > 0 and samples[1].mask(samples[1].image()).sum() == 0


def test_masks_of_any_kind_are_the_same(tmp_path):
    """Fails if 0 / 255, palettes or colours were not foreground as 0 / 1 is."""
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[2:4, 3:6] = 1
    paletted = Image.fromarray(mask, "P")
    paletted.putpalette([0, 0, 0, 10, 200, 30])
    coloured = np.zeros((6, 8, 4), dtype=np.uint8)
    coloured[..., 3] = 255
    coloured[mask > 0, 1] = 7
    kinds = {
        "one": Image.fromarray(mask),
        "grey": Image.fromarray(mask * 255),
        "palette": paletted,
        "bit": Image.fromarray(mask * 255).convert("1"),
        "rgba": Image.fromarray(coloured),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        assert (read_mask(tmp_path / f"{name}.png") == mask).all(), name


def test_left_and_right():
    """Fails if the published swap changed, or the one by words reached into "bright"."""
    assert swapped("the bright leftmost upright one") == "the bleft rightmost upleft one"
    assert swapped_words("the bright leftmost upright one, Right-hand") == "the bright rightmost upright one, Left-hand"
    assert turned("the leftmost red one above") == "the rightmost red one below"
    assert [kind(one) for one in ("red cup", "leftmost cup", "cup left of the plate")] == ["look", "place", "relation"]


def test_every_mini_expression_fits_one_object():
    """Fails if an expression were ambiguous, or said the wrong end of an axis; decided here from the words alone."""
    for index in range(30):
        scene = miniworld.scene(5, index, CONFIG)
        for one in expressions(scene):
            words = one.text.split()[1:]
            assert set(words) <= set(WORDS)
            alike = [
                thing
                for thing in scene.things
                if all(w in (thing.colour, thing.shape) for w in words if w in CONFIG.colours + CONFIG.shapes)
            ]
            order = {
                "leftmost": lambda t: t.x,
                "rightmost": lambda t: -t.x,
                "top": lambda t: t.y,
                "bottom": lambda t: -t.y,
            }
            if words[0] in order:
                assert len(alike) > 1
                alike = sorted(alike, key=order[words[0]])
            else:
                assert len(alike) == 1
            assert alike[0] is scene.things[one.target]


def test_scores_agree_with_plain_counting():
    """Fails if IoU, its mean, the overall one or a strict threshold were counted otherwise; sklearn-free, by sets."""
    rng = np.random.default_rng(3)
    pairs = [(rng.random((9, 7)) > 0.4, rng.random((9, 7)) > 0.5) for _ in range(20)]
    found = referring_scores([overlap(a, b) for a, b in pairs])
    sets = [({*map(tuple, np.argwhere(a))}, {*map(tuple, np.argwhere(b))}) for a, b in pairs]
    ious = [len(a & b) / len(a | b) for a, b in sets]
    assert found["mIoU"] == pytest.approx(100 * sum(ious) / 20, abs=1e-6)
    total = 100 * sum(len(a & b) for a, b in sets) / sum(len(a | b) for a, b in sets)
    assert found["oIoU"] == pytest.approx(total, abs=1e-6)
    assert referring_scores([Overlap(1, 2, 1, 2)])["P@0.5"] == 0.0 or Overlap(1, 2, 1, 2).iou > 0.5


def test_general_scores_of_the_worked_example():
    """Fails if a sentence without target, or a missed one, counted otherwise: 37.5, 27.27, 0.5, 0.5."""
    samples = [Overlap(30, 60, 45, 45), Overlap(0, 40, 0, 40), Overlap(0, 0, 0, 0), Overlap(0, 10, 10, 0)]
    scores = general_scores(samples)
    assert scores["gIoU"] == 37.5 and round(scores["cIoU"], 2) == 27.27
    assert scores["N-acc"] == 50.0 and scores["T-acc"] == 50.0
