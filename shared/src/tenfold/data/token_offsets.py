"""Text to token ids, each with the stretch of the text that it stands for.

Label masks are cut at positions in the text, so they need these stretches. A tokenizer of the `tokenizers` library
reports them; for one in Python (SentencePiece) they are found by walking along the text with its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tenfold import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How SentencePiece writes a space, and a byte that has no piece of its own.
_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Span = tuple[int, int]


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, literal: str = "") -> tuple[list[int], list[Span]]:
    """Ids of a text, without BOS or EOS around it, and the characters `[start, end)` of each.

    Args:
        tokenizer: of any kind.
        text: special tokens in it (`</s>`) become their id.
        literal: a special token that is ordinary words here, wherever the text has it.

    Raises:
        UserError: a tokenizer in Python whose tokens cannot be laid along the text.
    """
    ids: list[int] = []
    spans: list[Span] = []
    for start, part in _parts(text, literal):
        new_ids, new_spans = _tokenize(tokenizer, part, split=bool(literal) and part == literal)
        ids += new_ids
        spans += [(start + first, start + last) for first, last in new_spans]
    return ids, spans


def _parts(text: str, literal: str) -> Iterator[tuple[int, str]]:
    if not literal or literal not in text:
        yield 0, text
        return
    start = 0
    for part in re.split(f"({re.escape(literal)})", text):
        yield start, part
        start += len(part)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str, split: bool) -> tuple[list[int], list[Span]]:
    if not text:
        return [], []
    fast = tokenizer.is_fast
    # verbose=False: a conversation longer than the model is cut by the caller, who knows what the images add to it.
    encoding = tokenizer(
        text,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=fast,
        split_special_tokens=split,
        verbose=False,
    )
    ids = encoding["input_ids"]
    return ids, encoding["offset_mapping"] if fast else _walk(tokenizer, text, ids)


def _walk(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[Span]:
    """The stretches of a SentencePiece tokenizer's tokens, in characters."""
    text = text.replace(_SPACE, " ")  # where the text has the mark itself, a token cannot tell
    data = text.encode()
    # Which character a byte belongs to: byte tokens cut characters into pieces.
    character = [number for number, one in enumerate(text) for _ in one.encode()] + [len(text)]
    spans, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        byte = _BYTE.fullmatch(token)
        surface = bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()
        if not data.startswith(surface, at):
            # The space that SentencePiece puts in front of a text is not in the text.
            surface = surface.removeprefix(b" ")
            if not data.startswith(surface, at):
                raise UserError(
                    f"token {token!r} is not what the text has at {text[character[at] :][:20]!r}",
                    type(tokenizer).__name__,
                    "a tokenizer that leaves the text as it is, or a fast one, which reports offsets",
                )
        end = at + len(surface)
        spans.append((character[at], character[end - 1] + 1 if surface else character[at]))
        at = end
    return spans
