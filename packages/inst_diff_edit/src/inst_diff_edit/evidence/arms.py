"""Names and numbers of the miniature: what is compared, on how many scenes, at what cost. No torch here."""

from __future__ import annotations

# A mask stage of the miniature: ten of twenty steps, three noises.
STEPS, STRENGTH, GUIDANCE, NOISES = 20, 0.5, 7.5, 3
# Of the scenes that are recorded: thresholds are chosen on the first ones, the others are tested.
WORLD, CHOOSING, TESTING = 3001, 50, 200
# Of the gates: pictures that are not edited.
GATE_WORLD, GATE_SCENES = 3002, 100

# Rules that make a mask.
METHOD = "method"
PAPER = "method, the paper's threshold"
ONE_NOISE, EVERY_STEP, SHORT = "method, one noise", "method, roles in every step", "method, prompts of noun and ground"
BARRED, UNSUBTRACTED = 'method, "a" and "on" barred', "method, no background subtraction"
START, REFERENCE, LAST = "start token alone", "reference word alone", "last word alone"
MEAN, SUM, NOUN = "mean of words", "sum of words, unstretched", "noun alone, told which"
REPOSITORY, DIFFUSERS = "the repository's DiffEdit", "DiffEdit as in diffusers"
REPOSITORY_BARE, DIFFUSERS_BARE = f"{REPOSITORY}, no source phrase", f"{DIFFUSERS}, no source phrase"
BOX, BOTH, FULL, EMPTY = "box in the middle", "both objects, told", "whole picture", "nothing"
# Ways to edit, beside the method's.
TRUE_MASK, SDEDIT = "true mask", "SDEdit"
VARIANTS = (METHOD, TRUE_MASK, SDEDIT)


def forwards() -> dict[str, int]:
    """Rule -> UNet sample-forwards for one picture's mask, both halves of the guidance counted."""
    stage = 2 * NOISES * int(STEPS * STRENGTH)
    same = (METHOD, PAPER, EVERY_STEP, SHORT, BARRED, UNSUBTRACTED, START, REFERENCE, LAST, MEAN, SUM, NOUN)
    return {
        **dict.fromkeys(same, stage),
        ONE_NOISE: stage // NOISES,
        **dict.fromkeys((REPOSITORY, REPOSITORY_BARE), 2 * stage),
        **dict.fromkeys((DIFFUSERS, DIFFUSERS_BARE), 4 * NOISES),
        **dict.fromkeys((BOX, BOTH, FULL, EMPTY), 0),
    }
