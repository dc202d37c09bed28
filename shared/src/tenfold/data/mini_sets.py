"""The mini world as data sets: the samples that `tenfold.data.write` puts into the official formats.

Image number `index` of every set shows scene `index` of the world `seed`, as `tenfold.data.miniworld.flags` draws it,
with the noise that the mini host is asked at. The mini host's trainer draws from other streams, so all of these are
held out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tenfold.data import miniworld
from tenfold.data.formats import (
    CalibrationSample,
    GQASample,
    LlavaInstructSample,
    MMBenchSample,
    MMESample,
    MMVetSample,
    Picture,
    PopeSample,
    ScienceQASample,
    SeedSample,
    TextVQASample,
    Turn,
    VizWizSample,
    VQAv2Annotation,
    VQAv2Sample,
)
from tenfold.data.formats.mme import YES_OR_NO
from tenfold.data.formats.prompts import LETTERS, SHORT_ANSWER
from tenfold.data.miniworld import flag_questions, flags
from tenfold.data.miniworld.draws import DATASET, Draws
from tenfold.data.miniworld.flag_questions import FlagQuestion
from tenfold.data.miniworld.flags import FlagScene
from tenfold.data.miniworld.language import (
    ONE_HOP,
    PLURALS,
    absent_pairs,
    adversarial_pairs,
    presence_question,
    sentence,
)
from tenfold.metrics.pope import SUBSETS

_HUMANS = 10  # answers per question in VQAv2, TextVQA and VizWiz
_ANSWER_TYPES = {"yes_no": "yes/no", "count": "number"}
_SUBJECTS = ("natural science", "social science", "language science")
_SPLITS = ("train", "train", "train", "val", "test")
# The kinds of question that have a word or a number for an answer, and SEED-Bench's and MMBench's types for them.
_WITH_CHOICES = ("shape", "colour", "place", "count")
_SEED_TYPES = {
    "shape": "Instance Identity",
    "colour": "Instance Attributes",
    "place": "Instance Location",
    "count": "Instances Counting",
}
_MMBENCH_TYPES = {
    "shape": ("object_recognition", "finegrained_perception (instance-level)"),
    "colour": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "place": ("object_localization", "finegrained_perception (instance-level)"),
    "count": ("object_counting", "coarse_perception"),
}
_CIRCLE = 1_000_000
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def llava_instruct(seed: int, count: int, size: int, turns: int = 4) -> Iterator[LlavaInstructSample]:
    """`count` conversations of up to `turns` questions and answers about one image each."""
    for index in range(count):
        scene = flags.scene(seed, index)
        said = []
        for number, question in enumerate(flag_questions.questions(scene, seed, index, turns)):
            asked = f"<image>\n{question.text}\n{SHORT_ANSWER}" if number == 0 else question.text
            said += [Turn("human", asked), Turn("gpt", question.answer)]
        yield LlavaInstructSample(f"{index:012d}", tuple(said), f"miniworld/{index:012d}.png", _picture(scene, size))


def calibration(seed: int, count: int, size: int) -> Iterator[CalibrationSample]:
    """`count` questions about one image each; the category is the kind of question."""
    for index in range(count):
        scene = flags.scene(seed, index)
        (question,) = flag_questions.questions(scene, seed, index, 1)
        text = f"{question.text}\n{SHORT_ANSWER}"
        name = f"miniworld/{index:012d}.png"
        yield CalibrationSample(f"{index:06d}", text, name, _picture(scene, size), question.kind)


def vqav2(seed: int, count: int, size: int, questions: int = 3) -> Iterator[VQAv2Sample]:
    """Up to `questions` questions about each of `count` images; the ten humans agree."""
    for index in range(count):
        scene = flags.scene(seed, index)
        picture = _picture(scene, size)
        for number, question in enumerate(flag_questions.questions(scene, seed, index, questions)):
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
    scenes = [flags.scene(seed, index) for index in range(count)]
    frequency = Counter(look for scene in scenes for look in _looks(scene))
    subsets: dict[str, list[PopeSample]] = {subset: [] for subset in SUBSETS}
    for index, scene in enumerate(scenes):
        picture = _picture(scene, size)
        draws = Draws.of(seed, index, DATASET)
        there = draws.sample(sorted(_looks(scene)), pairs)
        absent = draws.shuffled(absent_pairs(scene))
        adversarial = draws.shuffled(adversarial_pairs(scene))
        wanted = {
            "random": absent,
            "popular": sorted(absent, key=lambda look: -frequency[look]),
            # A scene of one colour or one shape has no such combination: fill up with anything absent.
            "adversarial": adversarial + [look for look in absent if look not in adversarial],
        }
        for subset, samples in subsets.items():
            for pair in zip(there, wanted[subset], strict=False):
                for look, label in zip(pair, ("yes", "no"), strict=True):
                    text = presence_question(look, label).text
                    name = f"COCO_val2014_{index:012d}.png"
                    samples.append(PopeSample(len(samples) + 1, text, label, name, picture))
    return subsets


def scienceqa(seed: int, count: int, size: int, max_choices: int = 4) -> Iterator[ScienceQASample]:
    """`count` multiple-choice problems: of every eight, five show an image, two say in a hint what is there, one is
    about words alone. Subjects and grades take turns; of every five problems three train, one validates, one tests.
    """
    for index in range(count):
        scene = flags.scene(seed, index)
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
            hint=_caption(scene) if place in (5, 6) else "",
            subject=_SUBJECTS[index % len(_SUBJECTS)],
            grade=f"grade{index % 12 + 1}",
            topic=question.kind,
            split=_SPLITS[index % len(_SPLITS)],
            picture=_picture(scene, size) if place < 5 else None,
        )


def textvqa(seed: int, count: int, size: int, questions: int = 2) -> Iterator[TextVQASample]:
    """Up to `questions` one-hop questions about each of `count` images without text; the ten humans agree."""
    for index in range(count):
        scene = flags.scene(seed, index)
        picture = _picture(scene, size)
        for number, question in enumerate(flag_questions.questions(scene, seed, index, questions, ONE_HOP)):
            answers = (question.answer,) * _HUMANS
            yield TextVQASample(index * 1000 + number, f"{index:016x}", question.text, answers, picture)


def gqa(seed: int, count: int, size: int, questions: int = 3) -> Iterator[GQASample]:
    """Up to `questions` questions about each of `count` images: open ones ("query") and some for yes or no."""
    for index in range(count):
        scene = flags.scene(seed, index)
        picture = _picture(scene, size)
        for number, question in enumerate(flag_questions.questions(scene, seed, index, questions)):
            structural = "verify" if question.kind == "yes_no" else "query"
            identity = f"{index * 1000 + number:09d}"
            yield GQASample(identity, question.text, question.answer, f"n{index}", picture, structural)


def vizwiz(seed: int, count: int, size: int) -> Iterator[VizWizSample]:
    """One question about each of `count` images; every fifth asks for a colour that is not there."""
    for index in range(count):
        scene = flags.scene(seed, index)
        (question,) = flag_questions.questions(scene, seed, index, 1)
        text, answer, kind = question.text, question.answer, _ANSWER_TYPES.get(question.kind, "other")
        absent = [colour for colour in miniworld.COLOURS if colour not in {thing.colour for thing in scene.things}]
        if index % 5 == 4 and absent:
            colour = Draws.of(seed, index, DATASET).choice(absent)
            text, answer, kind = f"What shape is the {colour} object?", "unanswerable", "unanswerable"
        name = f"VizWiz_val_{index:08d}.png"
        answers, picture = (answer,) * _HUMANS, _picture(scene, size)
        yield VizWizSample(name, text, answers, picture, kind, kind != "unanswerable")


def mme(seed: int, count: int, size: int) -> Iterator[MMESample]:
    """Up to four pairs of questions, one answered "yes" and one "no", about each of `count` images: what there is, of
    which colour, how many, and where.
    """
    for index in range(count):
        scene = flags.scene(seed, index)
        picture = _picture(scene, size)
        for subtask, pair in _mme_pairs(scene, Draws.of(seed, index, DATASET)).items():
            for number, (text, label) in enumerate(zip(pair, ("yes", "no"), strict=True), start=1):
                name = f"{index:012d}.png"
                yield MMESample(subtask, name, number, f"{text} {YES_OR_NO}", label, picture)


def _mme_pairs(scene: FlagScene, draws: Draws) -> dict[str, tuple[str, str]]:
    """Subtask -> what is so, and what is not; without the subtasks that the scene does not admit."""
    looks = [(thing.colour, thing.shape) for thing in scene.things]
    there, absent = draws.choice(sorted(set(looks))), draws.choice(absent_pairs(scene))
    pairs = {"existence": (presence_question(there, "").text, presence_question(absent, "").text)}

    shapes = [shape for _, shape in looks]
    counted = draws.choice(sorted(set(shapes)))
    number = shapes.count(counted)
    other_number = draws.choice([other for other in (number - 1, number + 1) if other > 0])
    text = f"Are there {{}} {PLURALS[counted]} in the image?"
    pairs["count"] = text.format(number), text.format(other_number)

    # Two objects in different columns of ninths or, where all are in one, in different rows.
    (one, look), (other, other_look) = draws.sample(list(zip(scene.things, looks, strict=True)), 2)
    (row, column), (other_row, other_column) = one.ninth, other.ninth
    if column != other_column:
        direction = "left of" if column < other_column else "right of"
    else:
        direction = "above" if row < other_row else "below"
    text = f"Is the {' '.join(look)} {{}} the {' '.join(other_look)}?"
    pairs["position"] = text.format(direction), text.format(_OPPOSITE[direction])

    single = [look for look in looks if shapes.count(look[1]) == 1]
    if single:
        right, shape = draws.choice(single)
        wrong = draws.choice([one for one in miniworld.COLOURS if one != right])
        pairs["color"] = f"Is the {shape} {right}?", f"Is the {shape} {wrong}?"
    return pairs


def mmbench(seed: int, count: int, size: int) -> Iterator[MMBenchSample]:
    """One question with two to four options about each of `count` images, once for every turn of its options."""
    for index in range(count):
        scene = flags.scene(seed, index)
        draws = Draws.of(seed, index, DATASET)
        question, options = _with_choices(scene, seed, index, draws, draws.between(2, 4))
        category, l2_category = _MMBENCH_TYPES[question.kind]
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            yield MMBenchSample(
                index=turn * _CIRCLE + index,
                question=question.text,
                hint="",
                options=turned,
                answer=LETTERS[turned.index(question.answer)],
                category=category,
                l2_category=l2_category,
                picture=_picture(scene, size),
            )


def seed(seed: int, count: int, size: int) -> Iterator[SeedSample]:
    """One question with four choices about each of `count` images."""
    for index in range(count):
        scene = flags.scene(seed, index)
        question, choices = _with_choices(scene, seed, index, Draws.of(seed, index, DATASET), 4)
        answer = LETTERS[choices.index(question.answer)]
        kind, picture = _SEED_TYPES[question.kind], _picture(scene, size)
        yield SeedSample(str(index + 1), question.text, choices, answer, kind, f"miniworld_{index:012d}", picture)


def mmvet(seed: int, count: int, size: int) -> Iterator[MMVetSample]:
    """One open question about each of `count` images; the reference names all objects."""
    for index in range(count):
        scene = flags.scene(seed, index)
        name = f"v1_{index}.png"
        text, answer, picture = "What is in the image?", _caption(scene), _picture(scene, size)
        yield MMVetSample(f"v1_{index}", text, answer, name, ("rec",), picture)


def _with_choices(
    scene: FlagScene, seed: int, index: int, draws: Draws, options: int
) -> tuple[FlagQuestion, tuple[str, ...]]:
    """A question and `options` answers in random order, the right one among them."""
    (question,) = flag_questions.questions(scene, seed, index, 1, _WITH_CHOICES)
    kinds = (miniworld.SHAPES, tuple(miniworld.COLOURS), tuple(str(number) for number in range(10)))
    alternatives = next(words for words in kinds if question.answer in words)
    wrong = [word for word in alternatives if word != question.answer]
    return question, tuple(draws.shuffled([question.answer, *draws.sample(wrong, options - 1)]))


def _choice_question(scene: FlagScene, seed: int, index: int) -> FlagQuestion:
    """A question whose answer is a shape or a colour: colours single out every object."""
    return flag_questions.questions(scene, seed, index, 1, ONE_HOP)[0]


def _looks(scene: FlagScene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene.things}


def _picture(scene: FlagScene, size: int) -> Picture:
    return Picture(flags.render(scene, size))


def _caption(scene: FlagScene) -> str:
    """Colours and shapes of all objects, row by row."""
    things = sorted(scene.things, key=lambda thing: (thing.row, thing.column))
    return sentence([f"a {thing.colour} {thing.shape}" for thing in things])
