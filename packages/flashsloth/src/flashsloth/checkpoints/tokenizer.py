"""Phi-2's tokenizer with FlashSloth's two tokens (sheet section 6, part two A10).

Releases have the files of a slow CodeGen tokenizer: vocab.json, merges.txt, added_tokens.json. From them, or from a
folder of Phi-2's own, the same tokenizer is built here:

    50,257 words and bytes of GPT-2 · 30 runs of spaces and 8 of tabs · <learnable> 50295 · </s> 50296 · <image> 50297
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flashsloth.configuration import END, IMAGE, QUERY
from flashsloth.prompts import END as END_TOKEN
from flashsloth.prompts import QUERY as QUERY_TOKEN
from tenfold import UserError
from tenfold.data.conversation import IMAGE as IMAGE_TOKEN
from tenfold.hosts.loading import loading_from
from tenfold.runs import atomic_write_json, atomic_write_text, read_json

VOCABULARY, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
FILES = (VOCABULARY, MERGES, ADDED, "special_tokens_map.json", "tokenizer_config.json")
WORDS = 50257  # of GPT-2
PAD = "<|endoftext|>"
MOST = 3072  # tokens that the models were trained on
# Runs of white space that Phi-2 adds to GPT-2's words, the longest first.
SPACES = (*(" " * count for count in range(31, 1, -1)), *("\t" * count for count in range(9, 1, -1)))
# What shows that a vocabulary is Phi-2's: text -> ids.
KNOWN = {" .": [764], "\n": [198], " ": [220], "USER": [29904], " ASSISTANT:": [24994, 8808, 8643, 25]}


def build(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer from vocab.json and merges.txt, Phi-2's or a release's.

    Raises:
        UserError: a file is missing or broken, or the vocabulary is not Phi-2's (names the text that shows it).
    """
    folder = Path(folder)
    added = {text: WORDS + number for number, text in enumerate(SPACES)}
    if (folder / ADDED).is_file():
        added |= _numbers(folder / ADDED)
    added |= {QUERY_TOKEN: QUERY, END_TOKEN: END, IMAGE_TOKEN: IMAGE}
    numbers = _numbers(folder / VOCABULARY)
    with loading_from(folder / VOCABULARY, "Phi-2's vocabulary and merges"):
        inner = Tokenizer(models.BPE(numbers, _merges(folder / MERGES, numbers)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = (QUERY_TOKEN, END_TOKEN, IMAGE_TOKEN, PAD)
    for text, number in sorted({**added, PAD: WORDS - 1}.items(), key=lambda pair: pair[1]):
        token = AddedToken(text, special=text in special, normalized=False)
        (inner.add_special_tokens if text in special else inner.add_tokens)([token])
        if (found := inner.token_to_id(text)) != number:
            raise UserError(f"{text!r} has the id {found}", folder / VOCABULARY, f"{number}, as Phi-2's has it")
    for text, ids in KNOWN.items():
        if (found := inner.encode(text).ids) != ids:  # type: ignore[assignment]
            raise UserError(f"{text!r} is {found}", folder / VOCABULARY, f"{ids}: Phi-2's vocabulary")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END_TOKEN,
        unk_token=PAD,
        pad_token=PAD,
        padding_side="left",
        model_max_length=MOST,
        clean_up_tokenization_spaces=False,
    )


def write_official(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """vocab.json, merges.txt and added_tokens.json of a tokenizer of `build`, without `<image>`, as releases have them.

    Raises:
        UserError: a tokenizer of another kind.
    """
    import json

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE":
        raise UserError(f"a tokenizer of type {state['model']['type']}", type(tokenizer).__name__, "Phi-2's BPE")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["model"]["merges"]]
    added = {
        token["content"]: token["id"]
        for token in state["added_tokens"]
        if token["content"] not in (PAD, IMAGE_TOKEN) and token["content"] not in state["model"]["vocab"]
    }
    atomic_write_json(folder / VOCABULARY, state["model"]["vocab"])
    atomic_write_text(folder / MERGES, "#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges))
    atomic_write_json(folder / ADDED, added)
    names = {"bos_token": PAD, "eos_token": END_TOKEN, "unk_token": PAD, "pad_token": PAD}
    atomic_write_json(folder / "special_tokens_map.json", names)
    settings: dict[str, Any] = {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False}
    settings |= {"model_max_length": MOST, "padding_side": "right", **names}
    atomic_write_json(folder / "tokenizer_config.json", settings)


def _numbers(path: Path) -> dict[str, int]:
    content = read_json(path)
    if not isinstance(content, Mapping) or not all(
        isinstance(number, int) and not isinstance(number, bool) for number in content.values()
    ):
        raise UserError("not a vocabulary", path, "word -> id")
    return dict(content)


def _merges(path: Path, words: Mapping[str, int]) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"not readable ({error})", path, "GPT-2's merges") from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version") or not line:
            continue
        left, space, right = line.partition(" ")
        if not space or not right or " " in right:
            raise UserError(f"line {number} is {line[:40]!r}", path, "two pieces and a space between them")
        if not {left, right, left + right} <= words.keys():
            raise UserError(f"line {number} is {line[:40]!r}", path, f"words of {VOCABULARY}, the joined one included")
        merges.append((left, right))
    return merges
