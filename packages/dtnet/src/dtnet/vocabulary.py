"""Captions into words, words into ids, and back (sheet of DTNet's data: spaCy's rules, 10,201 words).

    vocabulary = Vocabulary.load_pickle("vocab_transformer_grid.pkl")      # or Vocabulary.load("vocabulary.json")
    ids = vocabulary.encode(tokenise("A man's dog, sitting."))             # [2, 4, 12, ..., 3]
    vocabulary.decode(ids[1:])                                             # "a man 's dog sitting"

spaCy (extra `dtnet[train]`) is needed to tokenise with the authors' rules, and only then.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tenfold import UserError
from tenfold.metrics.captions import PUNCTUATION, split_words
from tenfold.runs import atomic_write_json, read_json
from tenfold.runs.files import read_bytes
from tenfold.runs.unpickling import unpickle

logger = logging.getLogger(__name__)

SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>")
UNK, PAD, BOS, EOS = range(4)

# Of `vocab_transformer_grid.pkl`. The vocab.pkl of two sister repositories has as many words, in another order.
OFFICIAL_SIZE = 10_201
OFFICIAL_FINGERPRINT = "be1286b2628634e118bfad39df4fcd0256eff1d1a6d1661172d7467bd8bea374"


@lru_cache(maxsize=1)
def _spacy_tokenizer() -> Callable[[str], Iterable[Any]]:
    try:
        import spacy
    except ImportError as error:
        raise UserError("spaCy is not installed", "tokenise", "pip install 'dtnet[train]'") from error
    # The blank pipeline has the rules of en_core_web_sm's tokenizer, and needs no download.
    return spacy.blank("en").tokenizer


def tokenise(caption: str) -> list[str]:
    """The words of a caption: lower case, without newlines at its end, spaCy's English rules, no punctuation.

    White space that spaCy makes a token of (the second of two spaces) stays one, as in the official vocabulary.

    Raises:
        UserError: spaCy is not installed; names the extra.
    """
    words = _spacy_tokenizer()(caption.lower().rstrip("\n"))
    return [word.text for word in words if word.text not in PUNCTUATION]


def tokenise_all(captions: Iterable[str]) -> list[list[str]]:
    """`tokenise` of many captions; one that occurs again is not split again."""
    known: dict[str, list[str]] = {}
    found = []
    for caption in captions:
        if caption not in known:
            known[caption] = tokenise(caption)
        found.append(known[caption])
    return found


# By the name that a config gives; the mini world's captions need no more than white space, and no spaCy.
TOKENISERS: dict[str, Callable[[str], list[str]]] = {"spacy": tokenise, "whitespace": split_words}


class Vocabulary:
    """Words and their ids; 0 to 3 are `<unk>`, `<pad>`, `<bos>`, `<eos>`.

    Args:
        words: every word once, the four special ones first.

    Raises:
        UserError: another beginning, a word twice, or something that is no string.
    """

    def __init__(self, words: Iterable[str], where: str | Path = "vocabulary") -> None:
        self.words: tuple[str, ...] = tuple(words)
        if any(not isinstance(word, str) for word in self.words):
            raise UserError("a word that is no string", where, "a list of strings")
        if self.words[:4] != SPECIAL:
            raise UserError(f"begins with {list(self.words[:4])}", where, f"{list(SPECIAL)}")
        self.ids: dict[str, int] = {word: number for number, word in enumerate(self.words)}
        if len(self.ids) < len(self.words):
            twice = next(word for number, word in enumerate(self.words) if self.ids[word] != number)
            raise UserError(f"word {twice!r} twice", where, "every word once")

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words, {self.fingerprint[:12]})"

    @classmethod
    def build(cls, token_lists: Iterable[Sequence[str]], min_count: int = 5) -> Vocabulary:
        """The words that occur at least `min_count` times, by descending count, ties in alphabetical order.

        Args:
            token_lists: the words of each caption (`tokenise_all`); the official list counts train and val.
            min_count: 5 in the official list.
        """
        counts = Counter(word for words in token_lists for word in words)
        for word in SPECIAL:
            counts.pop(word, None)
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        return cls((*SPECIAL, *kept))

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """`<bos>` tokens `<eos>` as ids; a word that is not in the list becomes `<unk>`."""
        return [BOS, *(self.ids.get(word, UNK) for word in tokens), EOS]

    def words_of(self, ids: Iterable[int]) -> list[str]:
        """The words of some ids (a list, an array, or a tensor `[length]`) up to the first `<eos>`.

        A finished beam goes on with `<unk>`: what follows `<eos>` means nothing.
        """
        words = []
        for number in ids.tolist() if hasattr(ids, "tolist") else ids:
            if number == EOS:
                break
            words.append(self.words[number])
        return words

    def decode(self, ids: Iterable[int], collapse: bool = True) -> str:
        """The caption of some ids, up to the first `<eos>`.

        Args:
            ids: without the leading `<bos>`.
            collapse: "a a dog" becomes "a dog", as the official evaluation does. The reward of self-critical training
                sees the caption as it is: False there.
        """
        words = self.words_of(ids)
        if collapse:
            words = [word for number, word in enumerate(words) if number == 0 or word != words[number - 1]]
        return " ".join(words).strip()

    def decode_all(self, rows: Iterable[Iterable[int]], collapse: bool = True) -> list[str]:
        """`decode` of every row of ids `[batch, length]`."""
        rows = rows.tolist() if hasattr(rows, "tolist") else rows  # one transfer from the device
        return [self.decode(row, collapse) for row in rows]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the words as a compact ASCII JSON list. Two lists of the same length can differ in ids."""
        return hashlib.sha256(json.dumps(self.words, separators=(",", ":")).encode("ascii")).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the words as a JSON list, whole or not at all."""
        atomic_write_json(path, list(self.words))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote; a name that ends in .pkl is read by `load_pickle`.

        Raises:
            UserError: a missing or broken file, no list, or no vocabulary.
        """
        if Path(path).suffix == ".pkl":
            return cls.load_pickle(path)
        words = read_json(path)
        if not isinstance(words, list):
            raise UserError(f"{type(words).__name__} instead of a list", path, "a JSON list of words")
        return cls(words, path)._checked(path)

    @classmethod
    def load_pickle(cls, path: str | Path) -> Vocabulary:
        """Read `vocab_transformer_grid.pkl`, a pickle of the class `data.vocab.Vocab`, without running anything in it.

        Raises:
            UserError: a missing or broken file, or a pickle that names any class or function but the four of a
                vocabulary.
        """
        return cls(_unpickle_words(read_bytes(path), path), path)._checked(path)

    def _checked(self, path: str | Path) -> Vocabulary:
        if len(self) == OFFICIAL_SIZE and self.fingerprint != OFFICIAL_FINGERPRINT:
            logger.warning(
                "%s: %d words like the official list, but not the same ones in the same order (another repository's "
                "vocab.pkl?): captions of a checkpoint trained with the official list would come out wrong",
                path,
                len(self),
            )
        return self


class _Stub:
    """Stands for `data.vocab.Vocab`; unpickling fills its `__dict__` (freqs, itos, stoi, vectors)."""


def _unpickle_words(data: bytes, path: str | Path) -> list[str]:
    expected = "the pickle of a data.vocab.Vocab, and nothing else"
    # Each name leads to a class of this one reading: a pickle may set attributes of whatever it is given, and must not
    # reach the Counter that the rest of the program uses.
    allowed = {
        ("data.vocab", "Vocab"): type("Vocab", (_Stub,), {}),
        ("data.vocab", "_default_unk_index"): lambda: UNK,
        ("collections", "Counter"): type("Counter", (Counter,), {}),
        ("collections", "defaultdict"): type("defaultdict", (defaultdict,), {}),
    }
    read = unpickle(data, path, allowed, what="a vocabulary", expected=expected)
    # `stoi` is not read: looking up an unknown word once has put it there with id 0.
    words = getattr(read, "itos", None) if isinstance(read, _Stub) else None
    if not isinstance(words, list):
        raise UserError("no list of words in the pickle", path, expected)
    return words
