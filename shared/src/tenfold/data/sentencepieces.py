"""A made-up SentencePiece model of Llama's kind and size, for tests and rehearsals: Llama's own is a download.

It reads the mini world's questions in whole pieces and everything else in single bytes.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

from tenfold.runs import atomic_write_json

# What the pieces are made from.
_SAID = "USER: what shape is the object? ASSISTANT: a large red square and a small blue circle on the left"


def write_llama_tokenizer(folder: Path, words: int) -> None:
    """Beside a release's weights: `tokenizer.model` and the two files of settings that Vicuna's releases have.

    Args:
        words: of the vocabulary, as many as the embedding has rows.

    Raises:
        ImportError: no sentencepiece or protobuf.
    """
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(words))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    kind = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    atomic_write_json(folder / "tokenizer_config.json", {**kind, **special, "padding_side": "right"})
    atomic_write_json(folder / "special_tokens_map.json", special)


@functools.cache
def sentencepiece_model(words: int | None = None) -> bytes:
    """The content of a `tokenizer.model`: pairs of pieces, bytes for what has none, <unk>, <s> and </s>.

    Args:
        words: fill up with made-up pieces that no text is split into, as many as a release's embedding has rows; None:
            do not.

    Raises:
        ImportError: no sentencepiece or protobuf. ValueError: more pieces than `words`.
    """
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([_SAID] * 4),
        model_writer=written,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue() if words is None else _filled(written.getvalue(), words)


def _filled(model: bytes, words: int) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # protobuf makes its classes when it is imported
    content = messages.ModelProto.FromString(model)
    missing = words - len(content.pieces)
    if missing < 0:
        raise ValueError(f"{len(content.pieces)} pieces, and only {words} asked for")
    for number in range(missing):
        # The lowest scores; no two pieces of the model make one of these.
        content.pieces.add(piece=f"⟨{number}⟩", score=-1e4 - number)
    content.trainer_spec.vocab_size = words
    return bytes(content.SerializeToString())
