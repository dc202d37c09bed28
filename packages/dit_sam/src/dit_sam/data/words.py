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
