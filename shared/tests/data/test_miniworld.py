"""The mini world: the same bytes everywhere, exact masks, and statements that are true of the scene."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest

from tenfold import UserError
from tenfold.data import miniworld
from tenfold.data.miniworld import COLOURS, SHAPES, Scene, SceneConfig, Thing
from tenfold.data.miniworld.raster import SAMPLES
from tenfold.data.miniworld.world import BACKGROUND

FREE = SceneConfig(layout="free", max_objects=6)
SCENES = [miniworld.scene(5, index, config) for config in (None, FREE) for index in range(60)]

# The bytes of the mini world. Committed results depend on them: a change here needs new results.
PINNED_PICTURES = "84cfd5120177cdf59c2f904b2a4e9f1c3eb7434b15049244babf4811330b266c"
PINNED_WORDS = "870c80ed76837a5de08c637ee457f58cd19162a4410082fdc1e25e0077f85a27"


def test_pictures_and_masks_are_the_pinned_bytes() -> None:
    """Fails if a draw, a colour, a shape's inequality or the blending changes."""
    digest = hashlib.sha256()
    for config, size in itertools.product((SceneConfig(), FREE), (48, 63)):
        for index in range(4):
            scene = miniworld.scene(2026, index, config)
            digest.update(miniworld.render_array(scene, size).tobytes())
            digest.update(np.packbits(miniworld.masks(scene, size)).tobytes())
    assert digest.hexdigest() == PINNED_PICTURES


def test_words_are_the_pinned_ones() -> None:
    """Fails if a question, caption, referring expression or edit of a scene changes."""
    digest = hashlib.sha256()
    for index in range(20):
        scene = miniworld.scene(2026, index)
        said = (
            miniworld.questions(scene, 2026, index, 8),
            miniworld.captions(scene, 2026, index, 3),
            miniworld.referring(scene, 2026, index, 3),
            miniworld.edit_pair(scene, 2026, index).instruction,
        )
        digest.update(repr(said).encode())
    assert digest.hexdigest() == PINNED_WORDS


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    """Fails if scenes share a stream: drawing one would then change another."""
    first = miniworld.scene(1, 2)
    miniworld.scene(1, 3)
    np.random.seed(0)
    assert miniworld.scene(1, 2) == first
    assert len({miniworld.scene(seed, index) for seed in range(5) for index in range(5)}) == 25


def test_a_trainers_streams_never_meet_the_worlds() -> None:
    """Fails if scenes are drawn from the stretch of Philox that `sample_rng` reads: held-out scenes would repeat."""
    from tenfold.runs import sample_rng

    world = {miniworld.scene(0, index) for index in range(30)}
    trainer = {
        miniworld.draw_scene(miniworld.Draws(sample_rng(0, epoch, index).bit_generator), SceneConfig())
        for epoch in range(30)
        for index in range(3)
    }
    assert not world & trainer


def test_draws_are_uniform_within_their_range() -> None:
    """Fails if an end of a range is never drawn."""
    draws = miniworld.Draws(np.random.Philox(key=1))
    seen = [draws.between(2, 5) for _ in range(4000)]
    counts = np.bincount(seen, minlength=6)[2:]
    assert counts.sum() == 4000 and abs(counts - 1000).max() < 150
    assert sorted(draws.shuffled(range(50))) == list(range(50))


def grown(mask: np.ndarray, outside: bool = False) -> np.ndarray:
    """A mask and every pixel that touches it, at an edge or a corner; `outside` says what surrounds the picture."""
    padded = np.pad(mask, 1, constant_values=outside)
    size = len(mask)
    return np.any([padded[y : y + size, x : x + size] for y in range(3) for x in range(3)], axis=0)


@pytest.mark.parametrize("size", [33, 48, 100, 336])
def test_a_picture_shows_each_colour_inside_its_mask_and_ground_far_from_all(size: int) -> None:
    """Fails if masks are shifted against the picture, or drawn at another scale."""
    for scene in SCENES[::7]:
        picture, masks = miniworld.render_array(scene, size), miniworld.masks(scene, size)
        assert picture.shape == (size, size, 3) and masks.shape == (len(scene.things), size, size)
        assert (masks.sum(axis=0) <= 1).all()
        for thing, mask in zip(scene.things, masks, strict=True):
            assert (picture[~grown(grown(~mask, True), True)] == COLOURS[thing.colour]).all()
        assert (picture[~grown(grown(masks.any(axis=0)))] == BACKGROUND).all()


def _slow_pixel(thing: Thing, size: int, row: int, column: int) -> int:
    """Samples of one pixel inside a thing, in floating point from the shapes' definitions."""
    inside = 0
    for i, j in itertools.product(range(SAMPLES), repeat=2):
        x = (column + (i + 0.5) / SAMPLES) / size * miniworld.UNITS - thing.x
        y = (row + (j + 0.5) / SAMPLES) / size * miniworld.UNITS - thing.y
        x, y = x / thing.radius, y / thing.radius
        inside += {
            "circle": np.hypot(x, y) <= 1,
            "ring": 5 / 9 <= np.hypot(x, y) <= 1,
            "square": max(abs(x), abs(y)) <= 0.85,
            "diamond": abs(x) + abs(y) <= 1,
            "triangle": -1 <= y <= 0.8 and abs(x) <= (y + 1) / 1.8,
            "cross": (abs(x) <= 1 / 3 and abs(y) <= 1) or (abs(y) <= 1 / 3 and abs(x) <= 1),
        }[thing.shape]
    return inside


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [17, 31])
def test_coverage_equals_sampling_by_hand(shape: str, size: int) -> None:
    """Fails if a sample is taken elsewhere in its pixel, or the window of a sprite cuts the shape."""
    thing = Thing(shape, "red", "large", x=2011, y=2897, radius=1303)
    scene = Scene((thing,), cell=1680)
    expected = np.array([[_slow_pixel(thing, size, row, column) for column in range(size)] for row in range(size)])
    total = SAMPLES**2
    red, ground = COLOURS["red"][0], BACKGROUND[0]
    blended = (ground * (total - expected) + red * expected + total // 2) // total
    assert (miniworld.render_array(scene, size)[..., 0] == blended).all()
    assert (miniworld.masks(scene, size)[0] == (2 * expected > total)).all()


def test_objects_never_overlap_and_stay_in_the_picture() -> None:
    """Fails if free positions are accepted without room, or centres may lie at the edge."""
    for scene in SCENES:
        for thing in scene.things:
            assert thing.radius <= min(thing.x, thing.y)
            assert max(thing.x, thing.y) <= miniworld.UNITS - thing.radius
        for one, other in itertools.combinations(scene.things, 2):
            assert max(abs(one.x - other.x), abs(one.y - other.y)) > one.radius + other.radius


def test_rendering_leaves_scene_and_cache_unchanged() -> None:
    """Fails if a cached sprite can be written to."""
    scene = miniworld.scene(0, 0)
    first = miniworld.render_array(scene, 48)
    miniworld.render_array(scene, 48)[:] = 0
    miniworld.masks(scene, 48)[:] = True
    assert (miniworld.render_array(scene, 48) == first).all()


# An independent reader of the English that the mini world writes.
LOOK = rf"(?:(small|large) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|object)"
STEPS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def find(scene: Scene, look: str) -> list[Thing]:
    size, colour, shape = re.fullmatch(LOOK, look).groups()
    return [
        thing
        for thing in scene.things
        if size in (None, thing.size) and colour in (None, thing.colour) and shape in ("object", thing.shape)
    ]


def beside(scene: Scene, anchor: Thing, direction: str) -> Thing | None:
    """The nearest object on that side whose centre lies within half a cell of the anchor's row or column."""
    dx, dy = STEPS[direction]
    ahead = []
    for thing in scene.things:
        along, across = (thing.x - anchor.x, thing.y - anchor.y) if dx else (thing.y - anchor.y, thing.x - anchor.x)
        if along * (dx + dy) > 0 and abs(across) < scene.cell / 2:
            ahead.append((abs(along), thing))
    return min(ahead, key=lambda pair: pair[0])[1] if ahead else None


def answer_by_reading(scene: Scene, question: str) -> str:
    if match := re.fullmatch(r"What shape is the (\w+ object)\?", question):
        (thing,) = find(scene, match[1])
        return thing.shape
    if match := re.fullmatch(r"What color is the (\w+)\?", question):
        (thing,) = find(scene, match[1])
        return thing.colour
    if match := re.fullmatch(r"What (shape|color) is in the (\w+) (\w+)\?", question):
        third = miniworld.UNITS / 3
        left = ["left", "center", "right"].index(match[3]) * third
        top = ["top", "middle", "bottom"].index(match[2]) * third
        (thing,) = [t for t in scene.things if left <= t.x < left + third and top <= t.y < top + third]
        return thing.shape if match[1] == "shape" else thing.colour
    if match := re.fullmatch(r"Find the (.*)\. What (shape|color) is the object (.*) it\?", question):
        (anchor,) = find(scene, match[1])
        thing = beside(scene, anchor, match[3])
        return thing.shape if match[2] == "shape" else thing.colour
    if match := re.fullmatch(r"How many (.*) are there\?", question):
        noun = match[1]
        look = noun.removesuffix("s") if noun.endswith("objects") else next(s for s in SHAPES if noun.startswith(s))
        return str(len(find(scene, look)))
    match = re.fullmatch(r"Is there a (.*) in the image\?", question)
    return "yes" if find(scene, match[1]) else "no"


@pytest.mark.parametrize("kind", miniworld.KINDS)
def test_every_question_has_the_answer_that_reading_it_gives(kind: str) -> None:
    """Fails if an ambiguous question is asked, or a neighbour, count or presence is wrong."""
    asked = 0
    for index, scene in enumerate(SCENES):
        for question in miniworld.questions(scene, 9, index, 6, (kind,)):
            assert question.kind == kind
            assert answer_by_reading(scene, question.text) == question.answer, question.text
            asked += 1
    assert asked > 200


def test_a_question_leads_to_the_object_that_has_its_answer() -> None:
    """Fails if a hop goes to another object, is left out, or comes in another order."""
    for index, (scene, kind) in enumerate(itertools.product(SCENES, ("shape", "colour", "place", "two_hop"))):
        for question in miniworld.questions(scene, 5, index, 4, (kind,)):
            things = miniworld.led_to(scene, question)
            assert len(things) == (2 if kind == "two_hop" else 1)
            assert question.answer in (things[-1].colour, things[-1].shape)
            if kind == "two_hop":
                assert f"the {things[0].colour} {things[0].shape}." in question.text
                direction = question.text.split("object ")[1].removesuffix(" it?")
                assert miniworld.neighbour(scene, things[0], direction) == things[1]
    scene = SCENES[0]
    assert miniworld.led_to(scene, miniworld.questions(scene, 0, 0, 1, ("count",))[0]) == ()
    for question in miniworld.questions(scene, 0, 0, 9, ("yes_no",)):
        there = miniworld.led_to(scene, question)
        assert (question.answer == "yes") == bool(there)
        assert all(f"a {thing.colour} {thing.shape} in" in question.text for thing in there)


def test_yes_and_no_are_balanced_and_counts_vary() -> None:
    """Fails if a constant answer would do well."""
    yes_no = [q.answer for i, s in enumerate(SCENES) for q in miniworld.questions(s, 9, i, 6, ("yes_no",))]
    assert 0.42 < yes_no.count("yes") / len(yes_no) < 0.58
    counts = [q.answer for i, s in enumerate(SCENES) for q in miniworld.questions(s, 9, i, 6, ("count",))]
    assert max(counts.count(c) for c in set(counts)) / len(counts) < 0.55


def test_questions_of_a_scene_differ() -> None:
    """Fails if the same question can be drawn twice."""
    for index, scene in enumerate(SCENES):
        texts = [question.text for question in miniworld.questions(scene, 0, index, 12)]
        assert len(texts) == len(set(texts)) == 12


def test_a_scene_that_admits_no_question_gets_none() -> None:
    """Fails if a question about an object that is not there is made up, or the search never ends."""
    empty = miniworld.scene(0, 0, SceneConfig(min_objects=0, max_objects=0))
    assert miniworld.questions(empty, 0, 0, 5, ("shape", "colour", "place", "two_hop")) == ()
    twins = miniworld.scene(0, 0, SceneConfig(shapes=("circle",), colours=("red",)))
    assert miniworld.questions(twins, 0, 0, 5, ("shape", "colour", "two_hop")) == ()


def test_captions_are_true() -> None:
    """Fails if a relation is turned round, or an object is described that is not there."""
    relations = 0
    for index, scene in enumerate(SCENES):
        for text in (miniworld.caption(scene), *miniworld.captions(scene, 3, index, 4)):
            body = re.fullmatch(r"There (?:is|are) (.*)\.", text)[1]
            if match := re.fullmatch(rf"a ({LOOK}) (left of|right of|above|below) a ({LOOK})", body):
                first, direction, second = match[1], match[5], match[6]
                assert any(beside(scene, anchor, direction) in find(scene, first) for anchor in find(scene, second))
                relations += 1
            else:
                assert all(find(scene, look.removeprefix("a ")) for look in re.split(r", | and ", body))
    assert relations > 50
    assert miniworld.caption(SCENES[0]).count(" a ") == len(SCENES[0].things)


def test_a_referring_expression_fits_its_object_and_no_other() -> None:
    """Fails if an expression is kept that two objects share, or the mask belongs to another object."""
    kinds = set()
    for index, scene in enumerate(SCENES):
        for expression in miniworld.referring(scene, 3, index, 6):
            if match := re.fullmatch(r"the object directly (left of|right of|above|below) the (.*)", expression.text):
                (anchor,) = find(scene, match[2])
                assert beside(scene, anchor, match[1]) is scene.things[expression.target]
                kinds.add("place")
            else:
                assert find(scene, expression.text.removeprefix("the ")) == [scene.things[expression.target]]
                kinds.add("look")
    assert kinds == {"place", "look"}


def test_an_edit_changes_one_object_and_only_pixels_under_its_mask() -> None:
    """Fails if another object moves, or the mask misses a pixel that is more than half changed."""
    seen = set()
    for index, scene in enumerate(SCENES):
        pair = miniworld.edit_pair(scene, 4, index)
        seen.add(pair.kind)
        thing = scene.things[pair.changed]
        assert pair.source_prompt == f"a {miniworld.describe(thing)}" and miniworld.describe(thing) in pair.instruction
        others = [t for t in scene.things if t is not thing]
        kept = [t for t in pair.target.things if t in others]
        assert kept == others
        before, after = miniworld.render_array(pair.source, 96), miniworld.render_array(pair.target, 96)
        # A pixel that is covered by less than half belongs to no mask, yet touches one.
        far = ~grown(grown(pair.mask(96)))
        assert (before[far] == after[far]).all() and (before != after).any()
        if pair.kind == "remove":
            assert len(pair.target.things) == len(scene.things) - 1
            assert (after[pair.mask(96)] == BACKGROUND).all()
        else:
            new = pair.target.things[pair.changed]
            assert pair.target_prompt == f"a {miniworld.describe(new)}"
            assert (new.x, new.y, new.size) == (thing.x, thing.y, thing.size) and new != thing
    assert seen == set(miniworld.EDITS)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: miniworld.scene(-1, 0),
        lambda: miniworld.scene(0, 2**64),
        lambda: miniworld.render(SCENES[0], 0),
        lambda: miniworld.masks(SCENES[0], 2049),
        lambda: SceneConfig(layout="ring"),  # type: ignore[arg-type]
        lambda: SceneConfig(grid=0),
        lambda: SceneConfig(max_objects=10),
        lambda: SceneConfig(min_objects=5, max_objects=4),
        lambda: SceneConfig(layout="free", max_objects=7),
        lambda: SceneConfig(shapes=("star",)),
        lambda: SceneConfig(colours=()),
        lambda: miniworld.questions(SCENES[0], 0, 0, 1, ("why",)),
        lambda: miniworld.questions(SCENES[0], 0, 0, 1, ()),
        lambda: miniworld.edit_pair(Scene((), 1680), 0, 0),
    ],
)
def test_impossible_requests_are_errors_of_one_line(wrong: object) -> None:
    """Fails if a request out of range is answered, or fails otherwise than with a UserError."""
    with pytest.raises(UserError) as caught:
        wrong()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
