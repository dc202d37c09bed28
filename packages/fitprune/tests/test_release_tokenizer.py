"""The tokenizer that official LLaVA-1.5 releases carry: `tokenizer.model` of sentencepiece, and no tokenizer.json."""

import importlib.util
import json

import pytest
from transformers import AutoTokenizer

from fitprune.checkpoints.release import IMAGE, PAD, read_tokenizer
from tenfold import UserError

TEXT = "A chat between a user and an assistant. USER: What shape is it?\nAnswer briefly. ASSISTANT: a square\n"
PROMPTS = (
    "USER: <image>\nWhat shape is it?\nAnswer briefly. ASSISTANT:",
    "USER: <image> What  shape?",
    "USER: What shape is it? ∑ ASSISTANT:",
    "USER: <image><image>What shape? ASSISTANT:",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-pair model like Llama's: a space before the text, single bytes for unknown letters, <unk>, <s>, </s>."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("release")
    (folder / "corpus.txt").write_text(TEXT * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    return folder


@pytest.fixture(scope="module")
def pieces(folder):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def official_ids(pieces, prompt, image):
    """The authors' way: <s>, then what stands before, between and behind images, each tokenized apart."""
    ids = [1]
    for number, part in enumerate(prompt.split(IMAGE)):
        ids += ([image] if number else []) + pieces.encode(part)
    return ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_becomes_the_official_ids(folder, pieces, prompt, tmp_path):
    """Fails without legacy=True: the text behind an image then lacks the space that the official one begins with."""
    words = pieces.vocab_size()
    tokenizer = read_tokenizer(folder, words)
    assert tokenizer.convert_tokens_to_ids([IMAGE, PAD]) == [words, words + 1]
    assert tokenizer(prompt)["input_ids"] == official_ids(pieces, prompt, words)
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert saved(prompt)["input_ids"] == official_ids(pieces, prompt, words)
    assert (saved.padding_side, saved.pad_token) == ("left", PAD)


@pytest.mark.parametrize("absent", ["sentencepiece", "google", "google.protobuf"])
def test_what_reads_it_is_named_where_it_is_missing(tmp_path, absent, monkeypatch):
    """Fails if transformers is left to stumble over it."""
    (tmp_path / "tokenizer.model").write_bytes(b"")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else found(name))
    with pytest.raises(UserError, match=r"sentencepiece and protobuf: pip install 'fitprune\[convert\]'"):
        read_tokenizer(tmp_path, 100)
