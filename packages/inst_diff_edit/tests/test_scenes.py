"""Scenes, edits and the measures of the miniature."""

from collections import Counter

import numpy as np
import pytest
import torch

from inst_diff_edit.data import scenes
from inst_diff_edit.evaluation import picture as drawing
from inst_diff_edit.evidence import findings
from inst_diff_edit.evidence.experiments import THRESHOLDS, _look, auc, centre_boxes, gate, iou, masks_of, score
from inst_diff_edit.inputs import to_tensor
from tenfold.data.miniworld import Draws
from tenfold.data.miniworld.draws import EDIT


def test_objects_differ_in_colour_and_shape_and_stand_outside_the_middle():
    for index in range(100):
        first, second = scenes.scene(3, index).things
        assert first.colour != second.colour and first.shape != second.shape
        assert all((thing.x, thing.y) != (scenes.MIDDLE,) * 2 for thing in (first, second))


def test_a_noun_is_told_by_neither_its_colour_nor_its_shape():
    """Fails if a colour or a shape has one noun only: the picture would then say what the word should."""
    looks = list(scenes.NOUNS.values())
    assert len(set(looks)) == len(looks) == 24
    for place in (0, 1):
        counts = Counter(look[place] for look in looks)
        assert len(set(counts.values())) == 1 and min(counts.values()) >= 3
    assert not [noun for noun in scenes.NOUNS if noun[0] in "aeiou"]  # "a" is always the right article


def test_an_edit_changes_one_attribute_of_one_object_and_its_prompt_fits_no_other():
    kinds = Counter()
    for index in range(100):
        edit = scenes.edit(3, index)
        before, after = edit.scene.things[edit.changed], edit.target.things[edit.changed]
        assert (before.colour != after.colour, before.shape != after.shape) == (
            (True, False) if edit.kind == "recolour" else (False, True)
        )
        assert edit.scene.things[1 - edit.changed] == edit.target.things[1 - edit.changed]
        other = edit.scene.things[1 - edit.changed]
        assert scenes.NOUNS[edit.prompt.removeprefix("a ")] == (after.colour, after.shape)
        assert scenes.NOUNS[edit.source_prompt.removeprefix("a ")] == (before.colour, before.shape)
        assert other.colour != after.colour and other.shape != after.shape
        assert edit.mask().any() and not edit.mask()[14:18, 14:18].any()
        kinds[edit.kind] += 1
    assert min(kinds.values()) > 30


def test_captions_name_both_things_half_of_the_time_and_nothing_now_and_then():
    """Fails if one of the two is always named first, or a caption names what is not there."""
    found, counts, first = scenes.scene(3, 0), Counter(), set()
    names = {scenes.phrase(thing) for thing in found.things}
    for index in range(300):
        caption = scenes.draw_caption(found, Draws.of(3, index, EDIT))
        said = caption.split(" and ") if caption else []
        assert set(said) <= names
        counts[len(said)] += 1
        first |= set(said[:1])
    assert first == names
    assert 0.05 < counts[0] / 300 < 0.15 and 0.4 < counts[2] / 300 < 0.6


def test_iou_by_hand():
    truth = np.zeros((1, 4, 4), bool)
    truth[0, :2] = True
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1:3] = True
    assert iou(mask, truth)[0] == pytest.approx(4 / 12) and iou(truth & False, truth)[0] == 0


def test_auc_by_hand():
    """Fails if ties count whole, or inside and outside are exchanged."""
    values, truth = np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])
    assert auc(values, truth) == pytest.approx((2 + 1.5) / 4)
    assert auc(-values, truth) == pytest.approx(1 - (2 + 1.5) / 4)


def test_thresholds_are_chosen_on_scenes_that_are_not_tested():
    """Fails if the tested scenes take part in the choice."""
    soft = torch.zeros(4, 64, 64)
    soft[:2, 16:48, 16:48] = 0.3
    soft[2:, 16:48, 16:48] = 0.9
    soft[2:] += 0.25
    truth = np.zeros((4, 32, 32), bool)
    truth[:, 8:24, 8:24] = True
    chosen = score(masks_of(soft), truth, 2, None)
    assert chosen.threshold < 0.3 and chosen.iou.shape == (2,) and chosen.iou.max() < 0.3
    assert THRESHOLDS[0] < chosen.threshold + 0.3


def test_the_box_in_the_middle_overlaps_little_with_any_object():
    """The control must not win by geometry."""
    edits = [scenes.edit(1, index) for index in range(60)]
    truth = np.stack([edit.mask() for edit in edits])
    assert score(centre_boxes(60), truth, 30, None).iou.mean() < 0.1


def test_the_classifier_names_every_object_that_is_really_there():
    """Fails if a rendering is compared at another place."""
    for index in range(20):
        edit = scenes.edit(5, index)
        latent = to_tensor([edit.picture()], 32, 32)[0]
        assert _look(latent, edit) == [(thing.colour, thing.shape) for thing in edit.scene.things]


def seeds(method, others, sdedit=0.04):
    rules = {"method", "start token only", "centre box", *findings.PARTS, *findings.DIFFEDITS}
    values = {"outside": 0.01, "done": 0.5, "kept": 0.9}
    return {
        seed: {
            "gate": 0.9,
            "gate_both": 0.9,
            "gate_other": 0.6,
            "gate_both_other": 0.6,
            "iou": {rule: (value if rule == "method" else others) for rule in sorted(rules)},
            "edits": {"method": values, "true mask": values, "SDEdit": {**values, "outside": sdedit}},
        }
        for seed, value in enumerate(method)
    }


def test_a_claim_holds_only_beyond_the_spread_of_seeds():
    """Fails if a difference of means is enough."""
    clear = {finding.claim: finding for finding in findings.judge(seeds((0.5, 0.52, 0.51), 0.3))}
    assert clear["mini-iou"].passed and clear["mini-diffedit"].passed and clear["mini-background"].passed
    noisy = {finding.claim: finding for finding in findings.judge(seeds((0.2, 0.5, 0.35), 0.3))}
    assert not noisy["mini-iou"].passed
    behind = {finding.claim: finding for finding in findings.judge(seeds((0.2, 0.21, 0.2), 0.3, sdedit=0.01))}
    assert not behind["mini-parts"].passed and not behind["mini-background"].passed


@pytest.mark.parametrize("name", ["gate", "gate_both"])
def test_the_gate_needs_every_seed_and_both_kinds_of_prompts(name):
    """Fails if a mean over seeds is enough, or prompts that name both things do not count."""
    measured = seeds((0.5, 0.5, 0.5), 0.3)
    assert {finding.claim: finding for finding in findings.judge(measured)}["mini-gate"].passed
    measured[1][name] = 0.7
    assert not {finding.claim: finding for finding in findings.judge(measured)}["mini-gate"].passed


@pytest.mark.parametrize("both", [False, True])
def test_the_gate_asks_for_the_last_word_of_a_true_caption(pipe, monkeypatch, both):
    """Fails if the prompt names what is not there, or ends in the other thing."""
    asked = []
    plain = type(pipe).__call__

    def listen(self, pictures, prompts, *args, **options):
        asked.extend(prompts)
        return plain(self, pictures, prompts, *args, **options)

    monkeypatch.setattr(type(pipe), "__call__", listen)
    rest, other = gate(pipe, 3, 2, both=both)
    assert 0 < rest < 1 and 0 < other < 1 and rest != other
    for index, prompt in enumerate(asked):
        edit = scenes.edit(3, index)
        things = {scenes.phrase(thing) for thing in edit.scene.things}
        said = prompt.split(" and ")
        assert said[-1] == edit.source_prompt
        assert set(said) == (things if both else {edit.source_prompt})


def test_the_overlay_tints_the_mask_only(tmp_path):
    picture, mask = scenes.edit(0, 0).picture(), scenes.edit(0, 0).mask()
    shown, plain = np.asarray(drawing.overlay(picture, mask)), np.asarray(picture)
    assert np.array_equal(shown[~mask], plain[~mask]) and (shown[mask] != plain[mask]).any()


def test_figures_can_be_drawn(tmp_path):
    table = [{"rule": "method", "mean": 0.5, "seeds": [0.4, 0.6]}, {"rule": "centre box", "mean": 0.1, "seeds": [0.1]}]
    path = drawing.draw_comparison({"table": table}, tmp_path / "iou.png")
    assert path.stat().st_size > 5000
