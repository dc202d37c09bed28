"""Tokenizers of every kind that the processor must work with, a processor, and official counting of labels."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llava_hr.conversation import IGNORE, IMAGE, IMAGE_MARKER
from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.processing import LlavaHrProcessor
from tenfold.data import mini_host

GOLDENS = Path(__file__).parent / "goldens"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# Llama's with the legacy splitting and without, as fast tokenizer and in Python, as older releases of transformers
# converted it (a normalizer in front), and two of other families.
TOKENIZERS = ("fast", "fast legacy", "slow", "slow legacy", "prepend", "bytes", "words")


@functools.cache
def sentencepiece_model() -> bytes:
    """The golden tokenizer: 420 pieces, bytes for what has none."""
    return load_file(GOLDENS / "conversation.safetensors")["in/tokenizer_model"].numpy().tobytes()


def tokenizer(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    """A new one, so that tests may add tokens to it."""
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
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    if kind.startswith("slow"):
        return SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"), legacy="legacy" in kind, **SPECIAL)
    fast = LlamaTokenizer.from_pretrained(folder, legacy=kind != "fast", local_files_only=True)
    if kind == "prepend":
        inner = Tokenizer.from_str(fast.backend_tokenizer.to_str())
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        inner.pre_tokenizer = pre_tokenizers.Sequence([])
        return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIAL)
    return fast


def processor(folder: Path, kind: str = "fast legacy", **options) -> LlavaHrProcessor:
    """At 32 pixels, with 4 visual tokens."""
    options = {"num_image_tokens": 4, **options}
    return LlavaHrProcessor(LlavaHrImageProcessor(size=32), tokenizer(kind, folder), **options)


def learnt(tokenizer: PreTrainedTokenizerBase, labels: list[int] | torch.Tensor) -> list[str]:
    """The text of each stretch of labels, without spaces (tokenizers differ in how they give them back)."""
    stretches: list[list[int]] = [[]]
    for label in labels.tolist() if isinstance(labels, torch.Tensor) else labels:
        if label == IGNORE:
            stretches += [[]] if stretches[-1] else []
        else:
            stretches[-1].append(label)
    return ["".join(_decoded(tokenizer, stretch).split()) for stretch in stretches if stretch]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    if tokenizer.is_fast:
        return tokenizer.decode(ids)
    # transformers' decoding in Python leaves byte tokens as they are.
    tokens = tokenizer.convert_ids_to_tokens(ids)
    data = [bytes([int(one[3:5], 16)]) if one.startswith("<0x") else one.replace("▁", " ").encode() for one in tokens]
    return b"".join(data).decode()


def count_labels(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Labels of a `vicuna_v1` conversation by counting the tokens of each turn, as the official code does."""

    def ids(words: str) -> list[int]:
        found: list[int] = []
        for number, piece in enumerate(words.split(IMAGE)):
            found += [IMAGE_MARKER] * (number > 0) + tokenizer(piece, add_special_tokens=False)["input_ids"]
        return [tokenizer.bos_token_id, *found]

    whole = ids(text)
    labels, at = [IGNORE] * len(whole), 1
    for turn in text.split("</s>")[:-1]:
        asked, *said = turn.split(" ASSISTANT: ")
        if len(said) != 1:
            break
        # BOS stands for the </s> that splitting took away; the question ends before the space.
        first, last = at + len(ids(f"{asked} ASSISTANT: ")) - 2, at + len(ids(turn))
        labels[first:last] = whole[first:last]
        at = last
    return labels if at == len(whole) else [IGNORE] * len(whole)
