"""Tokenizers of every kind that labels and prompts must come out right with, made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, LlavaProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from tenfold.data import mini_host
from tenfold.data.conversation import IGNORE
from tenfold.data.sentencepieces import sentencepiece_model

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# Llama's with the legacy splitting and without, as fast tokenizer and in Python, as older releases of transformers
# converted it (a normalizer in front), and two of other families.
TOKENIZERS = ("fast", "fast legacy", "slow", "slow legacy", "prepend", "bytes", "words")


def tokenizer(kind: str, folder: Path, model: bytes | None = None) -> PreTrainedTokenizerBase:
    """A new one, so that tests may add tokens to it.

    Args:
        kind: of `TOKENIZERS`.
        folder: where the SentencePiece model is written.
        model: the bytes of such a model; None: `sentencepiece_model`.
    """
    if kind == "words":
        return mini_host.tokenizer()
    if kind == "bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(["USER: what is there? ASSISTANT: a large red square"] * 3, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model() if model is None else model)
    if kind.startswith("slow"):
        return SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"), legacy="legacy" in kind, **SPECIAL)
    fast = LlamaTokenizer.from_pretrained(folder, legacy=kind != "fast", local_files_only=True)
    if kind == "prepend":
        inner = Tokenizer.from_str(fast.backend_tokenizer.to_str())
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.pre_tokenizer = pre_tokenizers.Sequence([])
        return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)
    return fast


#: Visual tokens of an image in `host_processor`.
VISUAL = 4


def host_processor(kind: str, folder: Path) -> LlavaProcessor:
    """A LLaVA host's processor with such a tokenizer: 24 pixels, `VISUAL` placeholders an image, `<pad>`."""
    base, words = mini_host.processor(side=24, patch=12), tokenizer(kind, folder)
    words.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    return LlavaProcessor(
        image_processor=base.image_processor,
        tokenizer=words,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=mini_host.CHAT_TEMPLATE,
    )


def learnt(tokenizer: PreTrainedTokenizerBase, labels: Any) -> list[str]:
    """The text of each stretch of labels, without spaces (tokenizers differ in how they give them back)."""
    stretches: list[list[int]] = [[]]
    for label in labels.tolist() if hasattr(labels, "tolist") else labels:
        if label == IGNORE:
            stretches += [[]] if stretches[-1] else []
        else:
            stretches[-1].append(label)
    return ["".join(_decoded(tokenizer, stretch).split()) for stretch in stretches if stretch]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    if tokenizer.is_fast:
        return str(tokenizer.decode(ids))
    # transformers' decoding in Python leaves byte tokens as they are.
    tokens = tokenizer.convert_ids_to_tokens(ids)
    data = [bytes([int(one[3:5], 16)]) if one.startswith("<0x") else one.replace("▁", " ").encode() for one in tokens]
    return b"".join(data).decode()
