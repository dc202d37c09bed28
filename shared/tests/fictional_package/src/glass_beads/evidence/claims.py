"""Checks of the fictional ledger: one of each outcome."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tenfold import UserError
from tenfold.ledger import Figure, Outcome

BEADS = 128


def beads_per_box() -> Outcome:
    return Outcome(BEADS, None)


def golden_shadows() -> Outcome:
    return Outcome("3 cases", True, "largest difference 2e-7 in 9 tensors")


def shadows_in_rain() -> Outcome:
    return Outcome(0.31, False, "below the baseline's 0.40 in 3 of 3 seeds")


def needs_weights() -> Outcome:
    raise UserError("no weights", "weights/", "the official release")


def checks() -> Mapping[str, Callable[[], Outcome]]:
    return {check.__name__: check for check in (beads_per_box, golden_shadows, shadows_in_rain, needs_weights)}


def figures(folder: Path) -> list[Figure]:
    picture = folder / "beads.svg"
    circles = "".join(f'<circle cx="{60 + 80 * i}" cy="60" r="{12 + 3 * i}" fill="#0b5c6b"/>' for i in range(7))
    picture.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 120">{circles}</svg>')
    return [Figure(picture, "Beads by size: a < b & c.")]
