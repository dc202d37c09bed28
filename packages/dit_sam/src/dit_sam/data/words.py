"""Left and right in a sentence, for pictures that are flipped (section 6)."""

from __future__ import annotations

import re

_PLACE = {"left": "right", "right": "left"}


def swapped(sentence: str) -> str:
    """Left and right exchanged wherever these letters stand, as the published models were trained.

    "leftmost" becomes "rightmost"; but "bright" becomes "bleft" too: see `swapped_words`.
    """
    return re.sub("left|right", lambda match: _PLACE[match.group()], sentence)


def swapped_words(sentence: str) -> str:
    """Left and right exchanged in words that begin with them ("leftmost", "right-hand"), in either case."""

    def other(match: re.Match[str]) -> str:
        word = _PLACE[match.group().lower()]
        if match.group().isupper():
            return word.upper()
        return word.capitalize() if match.group()[0].isupper() else word

    return re.sub(r"\b(?:left|right)", other, sentence, flags=re.IGNORECASE)


_RELATION = re.compile(
    r"\b(?:(?:left|right|top|bottom|side|front|back) of|above|below|under|over|behind|beside|between|near|next to)\b"
)
_PLACE_WORD = re.compile(
    r"\b(?:left|right|top|bottom|upper|lower|middle|center|centre|corner|first|second|third|last|front|back|far)\w*\b"
)


def kind(sentence: str) -> str:
    """How a sentence finds its object: "relation" (to another), "place" (in the picture), or "look"; by its words."""
    lower = sentence.lower()
    if _RELATION.search(lower):
        return "relation"
    return "place" if _PLACE_WORD.search(lower) else "look"


_OTHER_WAY = {**_PLACE, "top": "bottom", "bottom": "top", "above": "below", "below": "above"}


def turned(sentence: str) -> str:
    """Left and right, top and bottom, above and below exchanged: a control, as another object is meant then."""
    return re.sub(r"\b(left|right|top|bottom|above|below)", lambda match: _OTHER_WAY[match.group()], sentence.lower())
