"""Questions for the miniature: of kinds that need one look at the picture, several, or as many as it says."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from tenfold.data import mini_host
from tenfold.data.miniworld import flag_questions, flags

# One look, one look at everything, one hop, two hops; and flags to follow to their end: the picture knows how many.
KINDS = ("shape", "colour", "yes_no", "two_hop", "three_hop", "follow")


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        kind: one of `KINDS`.
        image: the picture, with the noise that the host is asked at.
        prompt: as the host reads it.
        answer: one word.
    """

    kind: str
    image: Image.Image
    prompt: str
    answer: str


def asked(seed: int, count: int) -> list[Asked]:
    """``count`` questions of each kind, one a scene, of the world ``seed``; kind after kind."""
    return [
        Asked(kind, flags.render(scene), mini_host.prompt(question.text), question.answer)
        for kind in KINDS
        for scene, question in flag_questions.asked(kind, seed, count)
    ]
