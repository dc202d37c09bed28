"""The mini world's MME, MMBench, SEED-Bench and VizWiz say what is so in the scenes."""

from __future__ import annotations

import re
from collections import defaultdict

from tenfold.data import mini_sets
from tenfold.data.miniworld import SHAPES, flags

COUNT = 40


def test_mme_pairs_are_one_true_and_one_false_sentence_about_the_scene() -> None:
    """Every question is judged from the scene's coordinates. Fails if a label, a direction or a number is wrong."""
    steps = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    seen = defaultdict(list)
    for sample in mini_sets.mme(1, COUNT, 8):
        things = flags.scene(1, int(sample.image_name[:12])).things
        text = sample.question.removesuffix(" Please answer yes or no.")
        if found := re.fullmatch(r"Is there a (\w+) (\w+) in the image\?", text):
            truth = any((thing.colour, thing.shape) == found.groups() for thing in things)
        elif found := re.fullmatch(r"Are there (\d+) (\w+) in the image\?", text):
            (shape,) = [shape for shape in SHAPES if found[2].startswith(shape)]
            truth = sum(thing.shape == shape for thing in things) == int(found[1])
        elif found := re.fullmatch(r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", text):
            (one,) = [thing for thing in things if (thing.colour, thing.shape) == found.group(1, 2)]
            (two,) = [thing for thing in things if (thing.colour, thing.shape) == found.group(4, 5)]
            dx, dy = steps[found[3]]
            truth = (one.column - two.column) * dx + (one.row - two.row) * dy > 0
        else:
            found = re.fullmatch(r"Is the (\w+) (\w+)\?", text)
            assert found, text
            (thing,) = [thing for thing in things if thing.shape == found[1]]
            truth = thing.colour == found[2]
        assert sample.label == ("yes" if truth else "no"), text
        seen[sample.subtask].append(sample.label)
    assert set(seen) == {"existence", "count", "position", "color"}
    for labels in seen.values():
        assert labels == ["yes", "no"] * (len(labels) // 2) and len(labels) > COUNT


def test_mmbench_rows_turn_the_options_and_keep_the_right_one() -> None:
    """Fails if a turn is missing, or the letter does not turn with the options."""
    circles = defaultdict(list)
    for sample in mini_sets.mmbench(1, COUNT, 8):
        circles[sample.index % 1_000_000].append(sample)
    assert len(circles) == COUNT
    for rows in circles.values():
        first = rows[0].options
        assert [row.index // 1_000_000 for row in rows] == list(range(len(first)))
        assert [row.options for row in rows] == [first[turn:] + first[:turn] for turn in range(len(first))]
        assert len({row.question for row in rows}) == 1 and len(set(first)) == len(first)
        assert len({row.options["ABCD".index(row.answer)] for row in rows}) == 1
    assert {len(rows) for rows in circles.values()} == {2, 3, 4}


def test_seed_questions_have_four_choices_and_the_right_one_in_any_place() -> None:
    """Fails if the right answer keeps one place, or occurs twice."""
    samples = list(mini_sets.seed(1, COUNT, 8))
    assert {sample.answer for sample in samples} == set("ABCD")
    assert all(len(set(sample.choices)) == 4 for sample in samples)
    assert len({sample.question_type for sample in samples}) == 4
    for sample in samples:
        if found := re.fullmatch(r"How many (\w+) are there\?", sample.question):
            things = flags.scene(1, int(sample.id) - 1).things
            right = sample.choices["ABCD".index(sample.answer)]
            assert right == str(sum(found[1].startswith(thing.shape) for thing in things))


def test_vizwiz_asks_in_vain_for_colours_that_are_not_there() -> None:
    """Fails if an unanswerable question has an answer in the image."""
    samples = list(mini_sets.vizwiz(1, COUNT, 8))
    unanswerable = [(number, sample) for number, sample in enumerate(samples) if not sample.answerable]
    assert len(unanswerable) == COUNT // 5
    for number, sample in unanswerable:
        assert sample.answers == ("unanswerable",) * 10 and sample.answer_type == "unanswerable"
        assert sample.question.split()[4] not in {thing.colour for thing in flags.scene(1, number).things}
