"""Scenes of flags: the same bytes everywhere, flags that point to one object, and answers that can be read off."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
import pytest

from tenfold import UserError
from tenfold.data.miniworld import COLOURS, COLUMNS, ROWS, SHAPES, flag_questions, flags
from tenfold.data.miniworld.flag_questions import DEEP, KINDS, PLAIN
from tenfold.data.miniworld.flags import EDGE, NOISE, PATCH, SIZE, Flagged, FlagScene

SCENES = [flags.scene(5, index, repeated=index % 4 == 3) for index in range(120)]


def test_scenes_and_pictures_are_pinned() -> None:
    """Fails if a scene, its ground, its noise or its flags change by a bit."""
    digest = hashlib.sha256()
    for index in range(6):
        scene = flags.scene(2026, index, repeated=index % 2 == 1)
        digest.update(repr(scene.things).encode())
        for size, noise, draw in ((SIZE, NOISE, 0), (SIZE, 5, 1), (150, 0, 0)):
            digest.update(flags.render_array(scene, size, noise=noise, draw=draw).tobytes())
    assert digest.hexdigest() == "549739e04ee48856f0f7ec0467708e28f52e9fa79b6d3f8144220ef50d6a442c"


def test_objects_lie_in_ninths_of_their_own_with_their_flags_beside_them() -> None:
    """Fails if two objects share a ninth, or a flag hangs over into the next one."""
    for scene in SCENES:
        ninths = [thing.ninth for thing in scene.things]
        assert len(set(ninths)) == len(ninths) and 4 <= len(ninths) <= 6
        for thing in scene.things:
            assert 3 * (thing.column + 1) // EDGE == thing.ninth[1] and thing.column + 1 < EDGE
            assert thing.patches == (EDGE * thing.row + thing.column, EDGE * thing.row + thing.column + 1)
        colours = [thing.colour for thing in scene.things]
        assert scene.repeated == (len(set(colours)) < len(colours))


def test_flags_form_chains_with_two_ends() -> None:
    """Fails if flags run in a circle, all chains are short, or all end at one object."""
    lengths = Counter()
    for scene in SCENES:
        ends = [place for place, thing in enumerate(scene.things) if thing.next is None]
        assert len(ends) == 2
        chains = [scene.chain(place) for place in range(len(scene.things))]
        assert all(len(set(chain)) == len(chain) and chain[-1] in ends for chain in chains)
        lengths.update(len(chain) for chain in chains)
    assert {1, 2, 3, 4} <= lengths.keys()


def test_a_picture_shows_an_object_and_the_colour_that_its_flag_points_to() -> None:
    """Fails if glyph or flag are drawn in another patch or colour, or an end of a chain has a flag."""
    for scene in SCENES[:40]:
        picture = flags.render_array(scene, noise=0)
        for thing in scene.things:
            top, left = PATCH * thing.row, PATCH * thing.column
            glyph = picture[top : top + PATCH, left : left + PATCH].reshape(-1, 3)
            assert (glyph == COLOURS[thing.colour]).all(-1).sum() >= 6
            flag = picture[top + 2 : top + 6, left + PATCH : left + 2 * PATCH - 1].reshape(-1, 3)
            if thing.next is None:
                assert (np.abs(flag - flag.mean(0)).max() > 0) and len(np.unique(flag, axis=0)) > 1
            else:
                assert (flag == COLOURS[scene.things[thing.next].colour]).all()


def test_noise_is_its_own_draw_of_the_stated_deviation() -> None:
    """Fails if a second draw changes the ground, or noise is not in grey levels."""
    scene = FlagScene((), repeated=False, ground=3, noise=4)
    still = flags.render_array(scene, noise=0).astype(int)
    first, again, second = (flags.render_array(scene, noise=20, draw=draw).astype(int) for draw in (0, 0, 1))
    assert (first == again).all() and (first != second).any()
    grains = [(picture - still)[still < 180] for picture in (first, second)]  # nothing is cut off there
    assert all(abs(grain.std() - 20) < 1.5 and abs(grain.mean()) < 1 for grain in grains)
    assert abs(np.corrcoef((first - still).ravel(), (second - still).ravel())[0, 1]) < 0.05


def test_a_larger_picture_is_the_same_one() -> None:
    """Fails if grain does not grow with the picture."""
    scene = SCENES[0]
    small, large = (flags.render_array(scene, size) for size in (SIZE, 2 * SIZE))
    ground = np.ones((SIZE, SIZE), dtype=bool)
    for thing in scene.things:
        ground[PATCH * thing.row : PATCH * (thing.row + 1), PATCH * thing.column : PATCH * (thing.column + 2)] = False
    assert (large[::2, ::2][ground] == small[ground]).all() and (large[1::2, 1::2][ground] == small[ground]).all()


def find(scene: FlagScene, look: str) -> list[Flagged]:
    """An independent reader of the English that questions are in."""
    words = look.split()
    return [
        thing
        for thing in scene.things
        if all(word == "object" or word in (thing.colour, thing.shape) for word in words)
    ]


def pointed_to(scene: FlagScene, thing: Flagged) -> Flagged:
    """The object of the colour of a flag, as the picture shows it."""
    top, left = PATCH * thing.row + 3, PATCH * (thing.column + 1) + 2
    shown = tuple(flags.render_array(scene, noise=0)[top, left].tolist())
    (colour,) = [name for name, value in COLOURS.items() if value == shown]
    (found,) = find(scene, colour)
    return found


def answer_by_looking(scene: FlagScene, question: str) -> str:
    if match := re.fullmatch(r"What (shape|color) is in the (\w+) (\w+)\?", question):
        ninth = ROWS.index(match[2]), COLUMNS.index(match[3])
        (thing,) = [thing for thing in scene.things if thing.ninth == ninth]
        return thing.shape if match[1] == "shape" else thing.colour
    if match := re.fullmatch(r"What (shape|color) is the (.*)\?", question):
        (thing,) = find(scene, match[2])
        return thing.shape if match[1] == "shape" else thing.colour
    if match := re.fullmatch(r"How many (.*) are there\?", question):
        return str(len(find(scene, next(shape for shape in SHAPES if match[1].startswith(shape)))))
    if match := re.fullmatch(r"Is there a (.*) in the image\?", question):
        return "yes" if find(scene, match[1]) else "no"
    if match := re.fullmatch(r"Find the (.*)\. What (shape|color) is (next|after the next)\?", question):
        (thing,) = find(scene, match[1])
        for _ in range(1 + (match[3] != "next")):
            thing = pointed_to(scene, thing)
        return thing.shape if match[2] == "shape" else thing.colour
    match = re.fullmatch(r"Follow from the (.*) to the end\. What (shape|color) is it\?", question)
    (thing,) = find(scene, match[1])
    while thing.next is not None:
        thing = pointed_to(scene, thing)
    return thing.shape if match[2] == "shape" else thing.colour


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_has_the_answer_that_looking_gives(kind: str) -> None:
    """Fails if an ambiguous question is asked, a flag is not followed, or a count or presence is wrong."""
    asked = 0
    for index, scene in enumerate(SCENES):
        for question in flag_questions.questions(scene, 9, index, 4, (kind,)):
            assert question.kind == kind
            assert answer_by_looking(scene, question.text) == question.answer, question.text
            asked += 1
    assert asked > 150


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_names_the_first_object_of_its_chain_and_its_last_has_the_answer(kind: str) -> None:
    """Fails if the chain, or the word that hints are read at, belongs to another object."""
    for scene, question in flag_questions.asked(kind, 3, 60):
        words = re.findall(r"\w+|[^\w\s]", question.text)
        named = words[question.named]
        things = [scene.things[place] for place in question.chain]
        if kind == "count":
            assert question.answer == str(len(things)) and named.startswith(tuple(SHAPES))
        elif kind == "place":
            assert named == COLUMNS[things[0].ninth[1]]
        elif things:
            assert named in (things[0].colour, things[0].shape)
        if kind in DEEP:
            assert question.chain == scene.chain(question.chain[0])[: len(question.chain)] and not scene.repeated
        if kind not in ("yes_no", "count"):
            assert question.answer in (things[-1].colour, things[-1].shape)


def test_answers_are_balanced() -> None:
    """Fails if a kind is answered by one word: half yes, counts from none to three, follows of every length."""
    answers = {kind: Counter(q.answer for _, q in flag_questions.asked(kind, 1, 400)) for kind in ("yes_no", "count")}
    assert abs(answers["yes_no"]["yes"] - 200) < 40
    assert set(answers["count"]) == {"0", "1", "2", "3"} and max(answers["count"].values()) < 180
    lengths = Counter(len(question.chain) for _, question in flag_questions.asked("follow", 1, 400))
    assert set(lengths) == {2, 3, 4} and min(lengths.values()) > 25


def test_noes_are_as_often_about_a_colour_that_is_there() -> None:
    """Fails if the shape of what is asked for could be ignored."""
    pairs = [(scene, q) for scene, q in flag_questions.asked("yes_no", 2, 400) if q.answer == "no"]
    there = sum(q.text.split()[3] in {thing.colour for thing in scene.things} for scene, q in pairs)
    assert 0.35 < there / len(pairs) < 0.65


def test_every_fourth_scene_of_plain_questions_repeats_colours() -> None:
    """Fails if colours always single out an object, or a flag is followed where they do not."""
    for kind in KINDS:
        repeated = sum(scene.repeated for scene, _ in flag_questions.asked(kind, 4, 80))
        assert (repeated > 5) == (kind in PLAIN) and repeated < 40


@pytest.mark.parametrize("size", [0, 2049])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    """Fails if memory is taken before the size is looked at."""
    with pytest.raises(UserError):
        flags.render(SCENES[0], size)


@pytest.mark.parametrize("kinds", [(), ("why",)])
def test_unknown_kinds_of_question_are_refused(kinds: tuple[str, ...]) -> None:
    """Fails if no question comes back instead."""
    with pytest.raises(UserError):
        flag_questions.questions(SCENES[0], 0, 0, 1, kinds)
