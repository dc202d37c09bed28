"""Scenes, edits and the measures of the miniature."""

import numpy as np
import pytest
import torch

from inst_diff_edit import drawing, mini_claims, mini_scenes
from inst_diff_edit.experiments import THRESHOLDS, _look, auc, centre_boxes, iou, masks_of, score
from inst_diff_edit.pictures import to_tensor


def test_objects_differ_in_colour_and_shape_and_stand_outside_the_middle():
    for index in range(100):
        first, second = mini_scenes.scene(3, index).things
        assert first.colour != second.colour and first.shape != second.shape
        assert all((thing.x, thing.y) != (mini_scenes.MIDDLE,) * 2 for thing in (first, second))


def test_an_edit_changes_one_attribute_of_one_object_and_its_prompt_fits_no_other():
    for index in range(100):
        edit = mini_scenes.edit(3, index)
        before, after = edit.scene.things[edit.changed], edit.target.things[edit.changed]
        assert (before.colour != after.colour) + (before.shape != after.shape) == 1
        assert edit.scene.things[1 - edit.changed] == edit.target.things[1 - edit.changed]
        other = edit.scene.things[1 - edit.changed]
        assert not {other.colour, other.shape} & set(edit.prompt.split())
        assert edit.mask().any() and not edit.mask()[14:18, 14:18].any()


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
    edits = [mini_scenes.edit(1, index) for index in range(60)]
    truth = np.stack([edit.mask() for edit in edits])
    assert score(centre_boxes(60), truth, 30, None).iou.mean() < 0.1


def test_the_classifier_names_every_object_that_is_really_there():
    """Fails if a rendering is compared at another place."""
    for index in range(20):
        edit = mini_scenes.edit(5, index)
        latent = to_tensor([edit.picture()], 32, 32)[0]
        assert _look(latent, edit) == [(thing.colour, thing.shape) for thing in edit.scene.things]


def seeds(method, others, sdedit=0.04):
    rules = {"method", "start token only", "centre box", *mini_claims.PARTS, *mini_claims.DIFFEDITS}
    values = {"outside": 0.01, "done": 0.5, "kept": 0.9}
    return {
        seed: {
            "gate": 0.9,
            "iou": {rule: (value if rule == "method" else others) for rule in sorted(rules)},
            "edits": {"method": values, "true mask": values, "SDEdit": {**values, "outside": sdedit}},
        }
        for seed, value in enumerate(method)
    }


def test_a_claim_holds_only_beyond_the_spread_of_seeds():
    """Fails if a difference of means is enough."""
    clear = {finding.claim: finding for finding in mini_claims.judge(seeds((0.5, 0.52, 0.51), 0.3))}
    assert clear["mini-iou"].passed and clear["mini-diffedit"].passed and clear["mini-background"].passed
    noisy = {finding.claim: finding for finding in mini_claims.judge(seeds((0.2, 0.5, 0.35), 0.3))}
    assert not noisy["mini-iou"].passed
    behind = {finding.claim: finding for finding in mini_claims.judge(seeds((0.2, 0.21, 0.2), 0.3, sdedit=0.01))}
    assert not behind["mini-parts"].passed and not behind["mini-background"].passed


def test_the_gate_needs_every_seed():
    measured = seeds((0.5, 0.5, 0.5), 0.3)
    measured[1]["gate"] = 0.7
    assert not {finding.claim: finding for finding in mini_claims.judge(measured)}["mini-gate"].passed


def test_the_overlay_tints_the_mask_only(tmp_path):
    picture, mask = mini_scenes.edit(0, 0).picture(), mini_scenes.edit(0, 0).mask()
    shown, plain = np.asarray(drawing.overlay(picture, mask)), np.asarray(picture)
    assert np.array_equal(shown[~mask], plain[~mask]) and (shown[mask] != plain[mask]).any()


def test_figures_can_be_drawn(tmp_path):
    table = [{"rule": "method", "mean": 0.5, "seeds": [0.4, 0.6]}, {"rule": "centre box", "mean": 0.1, "seeds": [0.1]}]
    path = drawing.draw_comparison({"table": table}, tmp_path / "iou.png")
    assert path.stat().st_size > 5000
