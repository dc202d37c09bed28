"""VQA accuracy as VQAv2's official evaluation computes it (Antol et al. 2015, section 5.1; `vqaEval.py`).

An answer scores min(1, matches / 3) against each nine of the ten human answers, averaged over the ten ways to
leave one out. Answers are normalised (punctuation, articles, number words, contractions) when the humans disagree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tenfold.errors import UserError

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'

# A full stop that no digit follows. The official pattern, `(?!<=\d)(\.)(?!\d)`, means to ask for a digit before it too,
# but its first group is a look-ahead for the characters "<=" and a digit, which a full stop always passes.
_FULL_STOP = re.compile(r"\.(?!\d)")
# The official call passes re.UNICODE (32) where `sub` takes the number of replacements.
_MOST_FULL_STOPS = 32
_COMMA_IN_NUMBER = re.compile(r"\d,\d")

# Every form is also written with any one of its apostrophes left out: "couldnt've" and "couldn'tve" both mean
# "couldn't've".
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_CONTRACTED = {
    form[:place] + form[place + 1 :]: form
    for form in _CONTRACTIONS
    for place, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this pair the wrong way round


def normalise_answer(answer: str) -> str:
    """An answer in the form in which VQA compares them.

    Marks are removed where they stand beside a space (or anywhere in an answer with a comma between digits), else
    replaced by a space; full stops that no digit follows are removed; then: lower case, number words to digits,
    articles dropped, missing apostrophes restored, single spaces.
    """
    text = answer
    comma_in_number = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in _MARKS:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or comma_in_number else " ")
    text = _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How well one prediction agrees with the human answers, in [0, 1].

    Args:
        prediction: the model's answer.
        answers: the human answers, ten in VQAv2. Fewer are scored by the same rule, as the official code does: the
            full score then needs four that agree, and a single answer can never be matched.

    Returns:
        The mean over left-out answers of min(1, matches among the others / 3).

    Raises:
        UserError: no answers.
    """
    if not answers:
        raise UserError("no human answers to compare with", f"prediction {prediction!r}", "at least one, VQAv2 has ten")
    given = [_plain(answer) for answer in answers]
    predicted = _plain(prediction)
    # Officially, answers that all agree are compared as they stand: "2" does not match ten times "two".
    if len(set(given)) > 1:
        given = [normalise_answer(answer) for answer in given]
        predicted = normalise_answer(predicted)
    matches = [answer == predicted for answer in given]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def _plain(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def exact_match(prediction: str, answer: str) -> bool:
    """GQA's comparison: equal after a trailing full stop is taken off the prediction, in lower case."""
    return prediction.strip().rstrip(".").strip().lower() == answer.strip().lower()
