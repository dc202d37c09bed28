"""How LLaVA-1.5's evaluation asks: the endings of its questions, and how options are listed.

These belong to the benchmarks, not to a model: every package asks the same. What surrounds a question (system text,
roles, the image's place) is the host's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence

# Short answers: VQAv2, GQA, VizWiz, TextVQA, POPE, MME.
SHORT_ANSWER = "Answer the question using a single word or phrase."
# Multiple choice: ScienceQA, MMBench, SEED-Bench.
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
OPTION_LETTER_CN = "请直接回答选项字母。"
# VizWiz: the photo may not show what is asked for.
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."

LETTERS = ("A", "B", "C", "D", "E")


def short_answer(question: str) -> str:
    """The question, then the request for a short answer on a line of its own."""
    return f"{question}\n{SHORT_ANSWER}"


def multiple_choice(question: str, options: Sequence[str], hint: str = "", ending: str = OPTION_LETTER) -> str:
    """Hint (where there is one), question, "A. ..." and so on, ending: a line each."""
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([*([hint] if hint else []), question, *listed, ending])
