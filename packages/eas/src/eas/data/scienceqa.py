r"""ScienceQA's official files as questions of the LLaVA host, in the format QCM-ALE (section 6).

    Question: {question}\nContext: {hint or N/A}\nOptions: (A) .. (B) ..\n

The official reader of problems.json and pid_splits.json is tenfold's; here its problems become prompts. The answer
that is asked for begins with "The answer is X."
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eas.data.records import ALE, Record
from tenfold.data.formats.scienceqa import ScienceQASample, read_scienceqa

LETTERS = "ABCDE"


@dataclass(frozen=True)
class Problem:
    """A question with what its score is split by."""

    record: Record
    sample: ScienceQASample


def question(sample: ScienceQASample) -> str:
    """Question, context and options, as LLaVA's converter writes QCM."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, sample.choices, strict=False))
    return f"Question: {sample.question}\nContext: {sample.hint or 'N/A'}\nOptions: {options}\n"


def read_problems(folder: str | Path, split: str = "test") -> list[Problem]:
    """Read a split. Raises UserError as tenfold's reader does."""
    problems = []
    for sample in read_scienceqa(folder, split):
        image = None if sample.picture is None else Path(str(sample.picture.source))
        answer = f"{ALE}{LETTERS[sample.answer]}."
        problems.append(Problem(Record(sample.id, question(sample), answer, image), sample))
    return problems
