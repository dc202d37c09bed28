"""The mini world: scenes, edits, captions."""

from collections import Counter

import numpy as np
import pytest

from inst_diff_edit.data import scenes
from inst_diff_edit.evaluation import picture as drawing
from inst_diff_edit.evidence import edits as looks
from inst_diff_edit.inputs import to_tensor
from tenfold.data.miniworld import Draws
from tenfold.data.miniworld.draws import EDIT

MANY = [scenes.edit(3, index) for index in range(200)]


def test_things_differ_in_colour_and_never_touch():
    """Fails if a distractor shares the colour, or things stand in neighbouring cells."""
    for edit in MANY:
        first, second = edit.scene.things
        assert first.colour != second.colour
        grown = np.pad(edit.area(0), 1)
        near = grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]
        assert not (near & edit.area(1)).any() and edit.area(0).sum() > 30


def test_distractors_share_the_pattern_or_the_shape_in_four_of_ten_scenes_each():
    """Fails if the two never share what the noun must tell apart."""
    pairs = [edit.scene.things for edit in MANY]
    pattern = np.mean([a.pattern == b.pattern for a, b in pairs])
    shape = np.mean([a.shape == b.shape for a, b in pairs])
    assert 0.3 < pattern < 0.5 and 0.3 < shape < 0.5
    assert not any(a.pattern == b.pattern and a.shape == b.shape for a, b in pairs)


def test_every_colour_has_two_nouns_of_two_shapes():
    counts = Counter(colour for colour, _ in scenes.NOUNS.values())
    assert len(scenes.NOUNS) == len(set(scenes.NOUNS.values())) == 16 and set(counts.values()) == {2}
    assert {scenes.NOUNS[scenes.twin(noun)][0] == scenes.NOUNS[noun][0] for noun in scenes.NOUNS} == {True}
    assert not [word for word in (*scenes.NOUNS, *scenes.PATTERNS) if word[0] in "aeiou"]  # "a" is always right


def test_an_edit_changes_pattern_or_shape_of_one_thing_and_its_prompt_says_so():
    """Fails if the colour changes, or the prompt fits the other thing too."""
    kinds = Counter(edit.kind for edit in MANY)
    for edit in MANY:
        before, after = edit.scene.things[edit.changed], edit.target.things[edit.changed]
        other = edit.scene.things[1 - edit.changed]
        assert (before.pattern != after.pattern, before.noun != after.noun) == (
            (True, False) if edit.kind == "repattern" else (False, True)
        )
        assert before.colour == after.colour and edit.target.things[1 - edit.changed] == other
        assert edit.prompt == f"a {after.pattern} {after.noun} on {edit.scene.ground}"
        assert edit.source_prompt == f"a {before.pattern} {before.noun} on {edit.scene.ground}"
        assert edit.caption() == f"a {other.pattern} {other.noun} and {edit.source_prompt}"
        assert other.noun != after.noun and (edit.kind == "reshape" or other.pattern != after.pattern)
    assert min(kinds.values()) > 60


def test_the_mask_is_what_the_edit_changes():
    """Fails if pixels change that lie more than two beside it, where a shape's tip is thin."""
    for edit in MANY[:40]:
        changed = (scenes.render(edit.scene) != scenes.render(edit.target)).any(-1)
        mask, wide = edit.mask(), np.pad(edit.mask(), 2)
        grown = np.any([wide[y : y + 32, x : x + 32] for y in range(5) for x in range(5)], 0)
        assert (changed & mask).any() and not (changed & ~grown).any() and not mask[15:17, 15:17].any()
        assert np.array_equal(edit.mask(64)[::2, 1::2], mask) and edit.picture(64).size == (64, 64)


@pytest.mark.parametrize("name", scenes.GROUNDS)
def test_a_ground_is_its_mean_colour_with_a_texture_that_moves(name):
    one, two = (scenes.ground(name, grain) for grain in (1, 2))
    assert not np.array_equal(one, two) and np.array_equal(one, scenes.ground(name, 1))
    assert abs(one.mean((0, 1)) - np.array(scenes.GROUNDS[name])).max() < 4 * scenes.STRAY
    assert 0.5 * scenes.TEXTURE < one.std((0, 1)).mean() < 1.6 * scenes.TEXTURE


def test_captions_come_in_their_shares():
    """Fails if one thing is always named first, a caption names what is not there, or none is empty."""
    found, counts, first, bare = MANY[0].scene, Counter(), Counter(), 0
    for index in range(600):
        caption = scenes.draw_caption(found, Draws.of(3, index, EDIT))
        said, _, ground = caption.partition(" on ")
        named = [one.split()[-1] for one in said.split(" and ") if one]
        assert set(named) <= {thing.noun for thing in found.things} and ground in ("", found.ground)
        counts[len(named), bool(ground)] += 1
        first[named[0] if named else ""] += 1
        bare += bool(caption) and not any(pattern in caption for pattern in scenes.PATTERNS)
    shares = {kind: count / 600 for kind, count in counts.items()}
    expected = {(2, True): 0.57, (1, True): 0.30, (1, False): 0.05, (0, False): 0.08}
    assert shares == pytest.approx(expected, abs=0.06) and 0.08 < bare / 600 < 0.22
    assert min(first[thing.noun] for thing in found.things) > 200


def test_every_object_is_recognised_on_the_true_picture():
    """Fails if a rendering is compared at another place, or on another ground."""
    for edit in MANY[:12]:
        latent = to_tensor([edit.picture()], 32, 32)[0]
        assert looks.look(latent, edit) == [(thing.noun, thing.pattern) for thing in edit.scene.things]


def test_the_overlay_tints_the_mask_only():
    picture, mask = MANY[0].picture(), MANY[0].mask()
    shown, plain = np.asarray(drawing.overlay(picture, mask)), np.asarray(picture)
    assert np.array_equal(shown[~mask], plain[~mask]) and (shown[mask] != plain[mask]).any()
