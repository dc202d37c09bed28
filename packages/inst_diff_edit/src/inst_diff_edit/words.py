"""From a prompt to words: which of the text tower's positions belong to which word (section 3, word maps).

A word is what stands between white space; its map is the mean of the maps of its pieces, punctuation included. The
authors' code walks over decoded pieces until they spell the word, and silently loses words on double spaces, emoji or
line breaks inside a prompt with a word of several pieces. Here every word is tokenised by itself: CLIP's tokenizer
never joins what white space separates, so the pieces follow each other as in the whole prompt, which is checked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold import InputError

logger = logging.getLogger(__name__)

# Of any text tower.
MOST_POSITIONS = 2**16


@dataclass(frozen=True)
class Words:
    """The words of one prompt and their positions in the text tower's sequence.

    Attributes:
        text: the words as written, without the start and end tokens.
        groups: positions of the start token, of every word, of the end token.
        ids: the prompt's token ids, start and end included.
    """

    text: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    ids: tuple[int, ...]

    def weights(self, positions: int) -> Tensor:
        """``[words + 2, positions]`` float32: each row averages over a word's positions."""
        rows = torch.zeros(len(self.groups), positions)
        for row, group in zip(rows, self.groups, strict=True):
            row[list(group)] = 1 / len(group)
        return rows


def split_words(tokenizer: Any, prompt: str, convert: Callable[[str], str] = lambda text: text) -> Words:
    """The words of a prompt.

    Args:
        tokenizer: CLIP's, of transformers.
        prompt: e.g. "a photo of a Husky on a mountain".
        convert: writes a token of textual inversion with several vectors as several tokens; they are one word.

    Raises:
        InputError: no text, no words, or more pieces than the text tower has positions for.
    """
    if not isinstance(prompt, str):
        raise InputError(f"a prompt of type {type(prompt).__name__}", "prompt", "text")
    written = prompt.split()
    if not written:
        raise InputError("an empty prompt", "prompt", 'what the picture shall show, such as "a raccoon"')
    ids = token_ids(tokenizer, convert(prompt))
    pieces = [tuple(tokenizer(convert(word), add_special_tokens=False)["input_ids"]) for word in written]
    if (ids[0], *(piece for word in pieces for piece in word), ids[-1]) != ids:
        # Another tokenizer than CLIP's: every piece counts as a word.
        logger.warning("the tokenizer joins words of %r: every token gets a map of its own", prompt)
        written = [tokenizer.decode([piece]) for piece in ids[1:-1]]
        pieces = [(piece,) for piece in ids[1:-1]]
    text: list[str] = []
    groups: list[tuple[int, ...]] = [(0,)]
    position = 1
    for word, own in zip(written, pieces, strict=True):
        if own:  # nothing is left of a word of control characters
            text.append(word)
            groups.append(tuple(range(position, position + len(own))))
            position += len(own)
    if not text:
        raise InputError("a prompt without a word that the tokenizer knows", "prompt", 'such as "a raccoon"')
    return Words(tuple(text), (*groups, (position,)), ids)


def token_ids(tokenizer: Any, text: str, name: str = "prompt") -> tuple[int, ...]:
    """The ids of a text, start and end included; the tokenizer would cut a long one without a word.

    Raises:
        InputError: no text, more pieces than the text tower has positions for, a tokenizer that puts no start and
            end around a text, or one that does not say how many positions there are.
    """
    if not isinstance(text, str):
        raise InputError(f"a {name} of type {type(text).__name__}", name, "text")
    ids, room = tuple(tokenizer(text)["input_ids"]), tokenizer.model_max_length
    if not 2 < room <= MOST_POSITIONS:  # where a file says nothing, transformers says 10^30
        raise InputError(
            "a tokenizer without model_max_length", "tokenizer_config.json", "the text tower's, such as 77"
        )
    marks = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    if None not in marks and (len(ids) < 2 or (ids[0], ids[-1]) != marks):
        raise InputError("a tokenizer without start and end around a text", type(tokenizer).__name__, "CLIP's")
    if len(ids) > room:
        raise InputError(f"a {name} of {len(ids) - 2} tokens", f'{name} "{text[:40]}..."', f"at most {room - 2} tokens")
    return ids


def given_words(words: Any, count: int, positions: int) -> list[Words]:
    """A caller's words, for every one of ``count`` pictures.

    Args:
        words: for all pictures, or a list, one a picture.
        positions: of the embeddings.

    Raises:
        InputError: something else, or places beyond the embeddings.
    """
    each = [words] * count if isinstance(words, Words) else list(words) if isinstance(words, list | tuple) else [words]
    if len(each) != count or not all(isinstance(one, Words) for one in each):
        raise InputError("no words of every picture", "words", "split_words(tokenizer, prompt), one, or one a picture")
    for one in each:
        places = [place for group in one.groups for place in group]
        if (
            len(one.groups) != len(one.text) + 2
            or not all(one.groups)
            or not 0 <= min(places) <= max(places) < positions
        ):
            expected = f"of the start token, every word, and the end token, below {positions}"
            raise InputError(f"places of {len(one.text)} words", "words", expected)
    return each


def stack_weights(prompts: Sequence[Words], positions: int) -> tuple[Tensor, Tensor]:
    """The averaging weights of several prompts as one tensor.

    Returns:
        ``[prompts, most words + 2, positions]`` float32, and ``[prompts, most words + 2]`` bool: which rows are words
        (not the start token in row 0, not the end token, not padding).
    """
    most = max(len(words.groups) for words in prompts)
    weights = torch.zeros(len(prompts), most, positions)
    is_word = torch.zeros(len(prompts), most, dtype=torch.bool)
    for row, words in enumerate(prompts):
        weights[row, : len(words.groups)] = words.weights(positions)
        is_word[row, 1 : len(words.groups) - 1] = True
    return weights, is_word
