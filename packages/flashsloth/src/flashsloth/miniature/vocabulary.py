"""A vocabulary with the size and the known ids of Phi-2's and made-up words: for tests and rehearsals.

Phi-2's own cannot be shipped. Single bytes and the few words that FlashSloth's rules depend on have their real ids, so
that every check of `checkpoints.tokenizer` runs; the rest are placeholders that no text is tokenised to.
"""

from __future__ import annotations

from pathlib import Path

from tenfold.runs import atomic_write_json, atomic_write_text

# Word -> its id in GPT-2's vocabulary, in the order of the merges that make them ("Ġ" is a space, "Ċ" a newline).
_WORDS = {
    "Ġ.": 764, "US": 2937, "ER": 1137, "USER": 29904, "ĠU": 471, "ĠUS": 1294, "AS": 1921, "ASS": 10705,
    "ĠA": 317, "SS": 5432, "ĠASS": 24994, "ST": 2257, "IST": 8808, "NT": 11251, "ANT": 8643,
}  # fmt: skip
_MERGES = (
    "Ġ .", "S T", "S S", "U S", "E R", "A S", "N T", "Ġ A", "Ġ U", "ĠA SS", "Ġ US", "US ER", "A NT", "I ST", "AS S",
)  # fmt: skip
_WHITE = {"Ċ": 198, "Ġ": 220}
WORDS, END = 50257, "<|endoftext|>"


def write_vocabulary(folder: Path) -> Path:
    """Write vocab.json and merges.txt into a folder, and give it back."""
    folder.mkdir(parents=True, exist_ok=True)
    ids: dict[str, int] = {**_WHITE, **_WORDS, END: WORDS - 1, ":": 25}
    taken = set(ids.values())
    free = iter([number for number in range(WORDS) if number not in taken])
    for symbol in _bytes():
        if symbol not in ids:
            ids[symbol] = next(free)
    for number in free:
        ids[f"<made up {number}>"] = number
    atomic_write_json(folder / "vocab.json", dict(sorted(ids.items(), key=lambda pair: pair[1])))
    atomic_write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{merge}\n" for merge in _MERGES))
    return folder


def _bytes() -> list[str]:
    """The 256 symbols by which byte-level BPE writes bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [number for number in range(256) if number not in shown]
    return [chr(number) for number in shown] + [chr(256 + number) for number in range(len(hidden))]
