"""MME scores: accuracy per question and per image in fourteen subtasks (Fu et al. 2023, `calculation.py`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tenfold.errors import UserError

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION


@dataclass(frozen=True)
class MMEAnswer:
    """One answered question of a subtask about an image; `label` is "yes" or "no", `prediction` the model's text."""

    subtask: str
    image: str
    prediction: str
    label: str


@dataclass(frozen=True)
class MMEScores:
    """Scores by subtask, of those that have questions.

    Args:
        accuracy: right answers over questions, in [0, 1].
        accuracy_plus: images whose questions are all answered rightly over images, in [0, 1].
        points: 100 times the sum of the two, at most 200.
        perception, cognition: sums of points, at most 2000 and 800; None without questions.
        other: questions whose prediction is neither yes nor no.
        count: questions.
    """

    accuracy: dict[str, float]
    accuracy_plus: dict[str, float]
    points: dict[str, float]
    perception: float | None
    cognition: float | None
    other: int
    count: int


def mme_answer(text: str) -> str:
    """A model's text as "yes", "no" or "other": what its first four characters contain."""
    beginning = text.lower()[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def mme_scores(answers: Iterable[MMEAnswer]) -> MMEScores:
    """The official scores. What is neither yes nor no is wrong.

    Raises:
        UserError: no answers, an unknown subtask or label.
    """
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    other = 0
    for one in answers:
        if one.subtask not in SUBTASKS:
            raise UserError("unknown MME subtask", one.subtask, " or ".join(SUBTASKS))
        if one.label not in ("yes", "no"):
            raise UserError("unknown MME label", repr(one.label), '"yes" or "no"')
        said = mme_answer(one.prediction)
        other += said == "other"
        hits[one.subtask][one.image].append(said == one.label)
    if not hits:
        raise UserError("no predictions to score", "MME", "at least one")
    accuracy, plus = {}, {}
    for subtask in (subtask for subtask in SUBTASKS if subtask in hits):
        images = hits[subtask].values()
        accuracy[subtask] = sum(map(sum, images)) / sum(map(len, images))
        plus[subtask] = sum(map(all, images)) / len(images)
    points = {subtask: 100 * accuracy[subtask] + 100 * plus[subtask] for subtask in accuracy}
    return MMEScores(
        accuracy=accuracy,
        accuracy_plus=plus,
        points=points,
        perception=_sum(points, PERCEPTION),
        cognition=_sum(points, COGNITION),
        other=other,
        count=sum(len(questions) for images in hits.values() for questions in images.values()),
    )


def _sum(points: dict[str, float], subtasks: tuple[str, ...]) -> float | None:
    found = [points[subtask] for subtask in subtasks if subtask in points]
    return sum(found) if found else None
