"""The text side: BERT's word pieces, and the output of BERT's first layer (section 3.1).

The released models take the output of the first of BERT's twelve layers, not of the last: all twelve are in their
files, one is used. `text_layer` of the config says which.

A sentence is always padded to the same number of slots. Padding is masked inside BERT and nowhere after it: padded
slots take part in the image encoder and in the mask decoder, as they did when the models were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn

from dit_sam.config import DITConfig
from tenfold import UserError
from tenfold.runs import read_text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# Longer words are unknown ones, as in BERT's own tokenizer.
_LONGEST_WORD = 100


@dataclass(frozen=True)
class Sentences:
    """Sentences as BERT takes them.

    Attributes:
        ids: int64 [sentences, slots]. mask: the same shape, 1 for pieces and 0 for padding.
        lost: for each sentence the word pieces that found no room, as text; empty where all did.
    """

    ids: Tensor
    mask: Tensor
    lost: list[str]


class Vocabulary:
    """BERT's uncased word pieces.

    Args:
        words: pieces in the order of their numbers; "##" marks a piece inside a word.
        where: the file, for messages.

    Raises:
        UserError: a piece occurs twice, or one of `SPECIAL` is missing.
    """

    def __init__(self, words: Sequence[str], where: str | Path = "vocabulary") -> None:
        numbers = {word: number for number, word in enumerate(words)}
        missing = [word for word in SPECIAL if word not in numbers]
        if missing:
            raise UserError(f"no {missing[0]} among {len(words)} word pieces", where, "BERT's vocab.txt")
        if len(numbers) < len(words):
            twice = next(word for i, word in enumerate(words) if numbers[word] != i)
            raise UserError(f"word piece {twice!r} occurs twice", where, "BERT's vocab.txt")
        self.words = list(words)
        self.pad, self.cls, self.sep = (numbers[word] for word in ("[PAD]", "[CLS]", "[SEP]"))
        self._pieces = Tokenizer(WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))
        self._pieces.normalizer = BertNormalizer(lowercase=True)
        self._pieces.pre_tokenizer = BertPreTokenizer()

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """From a vocab.txt, or the folder of a BERT model that holds one.

        Raises:
            UserError: no such file, not UTF-8, or not a vocabulary.
        """
        path = Path(path)
        path = path / "vocab.txt" if path.is_dir() else path
        text = read_text(path)
        return cls([line.rstrip("\r") for line in text.removesuffix("\n").split("\n")], path)

    def save(self, path: str | Path) -> None:
        """Write vocab.txt."""
        Path(path).write_text("".join(word + "\n" for word in self.words), encoding="utf-8")

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentences: Sequence[str], slots: int) -> Sentences:
        """[CLS], at most slots - 2 pieces, [SEP], then padding. Case and outer blanks do not matter."""
        ids = torch.full((len(sentences), slots), self.pad)
        lost = []
        for row, encoded in zip(ids, self._pieces.encode_batch([one.strip() for one in sentences]), strict=True):
            kept = [self.cls, *encoded.ids[: slots - 2], self.sep]
            row[: len(kept)] = torch.tensor(kept)
            lost.append(" ".join(encoded.tokens[slots - 2 :]).replace(" ##", ""))
        lengths = (ids == self.sep).int().argmax(-1) + 1
        return Sentences(ids, (torch.arange(slots) < lengths[:, None]).long(), lost)


class TextEncoder(nn.Module):
    """BERT, run up to `text_layer`; weights under BERT's own names, those of unused layers and the pooler too."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        self.text_layer = config.text_layer
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.text_depth))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.text_width, config.text_width)})
        self.apply(_init)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """y: [batch, slots, text width], from `Sentences` ids and mask (padding is not attended to)."""
        x = self.embeddings(ids)
        seen = mask.bool()[:, None, None, :]  # [batch, 1, 1, slots]
        for layer in self.encoder["layer"][: self.text_layer]:  # type: ignore[index]
            x = layer(x, seen)
        return x


class _Embeddings(nn.Module):
    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.words, config.text_width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.text_positions, config.text_width)
        self.token_type_embeddings = nn.Embedding(2, config.text_width)
        self.LayerNorm = nn.LayerNorm(config.text_width, eps=config.text_norm_eps)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        types = self.token_type_embeddings.weight[0]  # one segment
        return self.drop(self.LayerNorm(self.word_embeddings(ids) + positions + types))


class _Layer(nn.Module):
    """A post-norm transformer layer."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        width, inner, eps = config.text_width, config.text_mlp, config.text_norm_eps
        self.heads, self.dropout = config.text_heads, config.dropout
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps)})
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        project, merge = self.attention["self"], self.attention["output"]
        q, k, v = (
            project[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[index]
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, seen, dropout_p=self.dropout if self.training else 0.0)
        mixed = mixed.transpose(1, 2).flatten(2)  # [batch, slots, width]
        x = merge["LayerNorm"](x + self.drop(merge["dense"](mixed)))  # type: ignore[index]
        inner = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.drop(self.output["dense"](inner)))


def _init(module: nn.Module) -> None:
    """BERT's own start: N(0, 0.02), no biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
