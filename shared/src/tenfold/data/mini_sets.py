"""The mini world as data sets: the samples that `tenfold.data.write` puts into the official formats.

Image number `index` of every set shows scene `index` of the world `seed`. The mini host's trainer draws from other
streams, so all of these are held out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tenfold.data import miniworld
from tenfold.data.formats import (
    CalibrationSample,
    LlavaInstructSample,
    Picture,
    PopeSample,
    ScienceQASample,
    Turn,
    VQAv2Annotation,
    VQAv2Sample,
)
from tenfold.data.miniworld.draws import DATASET, Draws
from tenfold.metrics.pope import SUBSETS

# The ending that LLaVA's training data and evaluations add to questions with short answers.
SHORT_ANSWER = "Answer the question using a single word or phrase."

_HUMANS = 10  # answers per question in VQAv2
_ANSWER_TYPES = {"yes_no": "yes/no", "count": "number"}
_SUBJECTS = ("natural science", "social science", "language science")
_SPLITS = ("train", "train", "train", "val", "test")


def llava_instruct(seed: int, count: int, size: int, turns: int = 4) -> Iterator[LlavaInstructSample]:
    """`count` conversations of up to `turns` questions and answers about one image each."""
    for index in range(count):
        scene = miniworld.scene(seed, index)
        said = []
        for number, question in enumerate(miniworld.questions(scene, seed, index, turns)):
            asked = f"<image>\n{question.text}\n{SHORT_ANSWER}" if number == 0 else question.text
            said += [Turn("human", asked), Turn("gpt", question.answer)]
        yield LlavaInstructSample(f"{index:012d}", tuple(said), f"miniworld/{index:012d}.png", _picture(scene, size))


def calibration(seed: int, count: int, size: int) -> Iterator[CalibrationSample]:
    """`count` questions about one image each; the category is the kind of question."""
    for index in range(count):
        scene = miniworld.scene(seed, index)
        (question,) = miniworld.questions(scene, seed, index, 1)
        text = f"{question.text}\n{SHORT_ANSWER}"
        name = f"miniworld/{index:012d}.png"
        yield CalibrationSample(f"{index:06d}", text, name, _picture(scene, size), question.kind)


def vqav2(seed: int, count: int, size: int, questions: int = 3) -> Iterator[VQAv2Sample]:
    """Up to `questions` questions about each of `count` images; the ten humans agree."""
    for index in range(count):
        scene = miniworld.scene(seed, index)
        picture = _picture(scene, size)
        for number, question in enumerate(miniworld.questions(scene, seed, index, questions)):
            annotation = VQAv2Annotation(
                answers=(question.answer,) * _HUMANS,
                multiple_choice_answer=question.answer,
                question_type=" ".join(question.text.lower().split()[:2]),
                answer_type=_ANSWER_TYPES.get(question.kind, "other"),
            )
            yield VQAv2Sample(index * 1000 + number, index, question.text, picture, annotation)


def pope(seed: int, count: int, size: int, pairs: int = 3) -> dict[str, list[PopeSample]]:
    """The three subsets: up to `pairs` questions with "yes" and as many with "no" about each of `count` images.

    What is asked for in vain: in "random" anything absent, in "popular" what is absent here and most frequent in the
    other scenes, in "adversarial" an absent combination of a colour and a shape that are both there.
    """
    scenes = [miniworld.scene(seed, index) for index in range(count)]
    frequency = Counter(look for scene in scenes for look in _looks(scene))
    subsets: dict[str, list[PopeSample]] = {subset: [] for subset in SUBSETS}
    for index, scene in enumerate(scenes):
        picture = _picture(scene, size)
        draws = Draws.of(seed, index, DATASET)
        there = draws.sample(sorted(_looks(scene)), pairs)
        absent = draws.shuffled(miniworld.absent_pairs(scene))
        adversarial = draws.shuffled(miniworld.adversarial_pairs(scene))
        wanted = {
            "random": absent,
            "popular": sorted(absent, key=lambda look: -frequency[look]),
            # A scene of one colour or one shape has no such combination: fill up with anything absent.
            "adversarial": adversarial + [look for look in absent if look not in adversarial],
        }
        for subset, samples in subsets.items():
            for pair in zip(there, wanted[subset], strict=False):
                for look, label in zip(pair, ("yes", "no"), strict=True):
                    text = miniworld.presence_question(look, label).text
                    name = f"COCO_val2014_{index:012d}.png"
                    samples.append(PopeSample(len(samples) + 1, text, label, name, picture))
    return subsets


def scienceqa(seed: int, count: int, size: int, max_choices: int = 4) -> Iterator[ScienceQASample]:
    """`count` multiple-choice problems: of every eight, five show an image, two say in a hint what is there, one is
    about words alone. Subjects and grades take turns; of every five problems three train, one validates, one tests.
    """
    for index in range(count):
        scene = miniworld.scene(seed, index)
        draws = Draws.of(seed, index, DATASET)
        question = _choice_question(scene, seed, index)
        alternatives = miniworld.SHAPES if question.answer in miniworld.SHAPES else tuple(miniworld.COLOURS)
        place = index % 8
        if place == 7:
            asked = "shape" if question.answer in miniworld.SHAPES else "color"
            others = tuple(miniworld.COLOURS) if asked == "shape" else miniworld.SHAPES
            text, alternatives = f"What is a {asked}?", others
        else:
            text = question.text
        wrong = [word for word in alternatives if word != question.answer]
        choices = draws.shuffled([question.answer, *draws.sample(wrong, draws.between(1, max_choices - 1))])
        yield ScienceQASample(
            id=str(index + 1),
            question=text,
            choices=tuple(choices),
            answer=choices.index(question.answer),
            hint=miniworld.caption(scene) if place in (5, 6) else "",
            subject=_SUBJECTS[index % len(_SUBJECTS)],
            grade=f"grade{index % 12 + 1}",
            topic=question.kind,
            split=_SPLITS[index % len(_SPLITS)],
            picture=_picture(scene, size) if place < 5 else None,
        )


def _choice_question(scene: miniworld.Scene, seed: int, index: int) -> miniworld.Question:
    """A question whose answer is a shape or a colour; about the first object's looks where no look is unique."""
    found = miniworld.questions(scene, seed, index, 1, miniworld.ONE_HOP)
    if found:
        return found[0]
    thing = scene.things[0]
    return miniworld.Question("shape", f"What shape is the first {thing.colour} object?", thing.shape)


def _looks(scene: miniworld.Scene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene.things}


def _picture(scene: miniworld.Scene, size: int) -> Picture:
    return Picture(miniworld.render(scene, size))
