"""A tokenizer that knows the texts of a golden case, and where its tokens lie in them.

A case lists texts with their ids; the vocabulary itself is not in it. Special tokens have known ids, so a text and its
ids are cut at them; between, the words of GPT-2's pre-tokenisation take one id each, or more, where a text has more ids
than words: which words, the texts show together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


class TableTokenizer:
    """Looks texts up.

    Args:
        chunks: text -> ids.
        special: special token -> its id.
    """

    is_fast = True
    bos_token_id = None
    added_tokens_decoder: Mapping[int, Any] = {}

    def __init__(self, chunks: Mapping[str, list[int]], special: Mapping[str, int]) -> None:
        self.chunks, self.special = chunks, special
        self.pieces = {text: ids for chunk in chunks.items() for text, ids in self._cut(*chunk) if text}
        self.sizes = self._sizes()

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        """Ids and offsets of a text of the table."""
        spans: list[tuple[int, int]] = []
        at = 0
        for piece, ids in self._cut(text, self.chunks[text]):
            spans += self._spans(piece, len(ids), at)
            at += len(piece)
        return {"input_ids": list(self.chunks[text]), "offset_mapping": spans}

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a special token."""
        return self.special.get(token)

    def _cut(self, text: str, ids: list[int]) -> list[tuple[str, list[int]]]:
        """A text and its ids, apart at special tokens, which are pieces of their own."""
        texts = [one for one in re.split("(" + "|".join(map(re.escape, self.special)) + ")", text) if one]
        pieces: list[tuple[str, list[int]]] = []
        left = list(ids)
        marks = set(self.special.values())
        for one in texts:
            end = next((at for at, token in enumerate(left) if token in marks), len(left))
            count = 1 if one in self.special else end
            pieces.append((one, left[:count]))
            left = left[count:]
        return pieces

    def _sizes(self) -> dict[str, int]:
        """Word -> how many ids it takes, as far as the texts tell; a single character takes one."""
        sizes = {word: 1 for text in self.pieces for word in WORDS.findall(text) if len(word.encode()) == 1}
        known = -1
        while known < len(sizes):
            known = len(sizes)
            for text, ids in self.pieces.items():
                words = WORDS.findall(text)
                unknown = [word for word in words if word not in sizes]
                missing = len(ids) - sum(sizes.get(word, 0) for word in words)
                if unknown and missing == len(unknown):
                    sizes |= dict.fromkeys(unknown, 1)
                elif len(set(unknown)) == 1:
                    sizes[unknown[0]] = missing // len(unknown)
        return sizes

    def _spans(self, piece: str, count: int, at: int) -> list[tuple[int, int]]:
        if count == 1:
            return [(at, at + len(piece))]
        words = WORDS.findall(piece)
        sizes = [self.sizes.get(word, 1) for word in words]
        if sizes:  # what the texts do not tell goes to the longest word
            sizes[max(range(len(words)), key=lambda number: len(words[number]))] += count - sum(sizes)
        spans = []
        for word, size in zip(words, sizes, strict=True):
            spans += [(at, at + len(word))] * size
            at += len(word)
        return spans
