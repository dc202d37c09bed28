"""Captions into words and ids: the authors' rules and order of words, and their pickle, read without running it."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import logging
import os
import pickle
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from dtnet.evidence.rehearsal import official_pickle
from dtnet.vocabulary import (
    BOS,
    EOS,
    OFFICIAL_FINGERPRINT,
    OFFICIAL_SIZE,
    PAD,
    SPECIAL,
    UNK,
    Vocabulary,
    tokenise,
    tokenise_all,
)
from tenfold import UserError
from tenfold.metrics.captions import split_words
from tenfold.testing.mutations import hostile_pickles


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary([*SPECIAL, "a", "dog", "on", "red", "bench"])


def test_the_rules_of_english_split_words_and_punctuation_is_dropped() -> None:
    """Fails if the text is not lower-cased, or a token is dropped that only contains punctuation."""
    assert tokenise("A man's dog doesn't sit -- on a t.v., (2) \"red\" ... bench!\n") == [
        *("a", "man", "'s", "dog", "does", "n't", "sit", "on", "a", "t.v", "(", "2", ")", '"', "red", '"', "bench"),
    ]
    assert tokenise("two  spaces") == ["two", " ", "spaces"]
    assert tokenise(" . ") == [" "]


def test_many_captions_are_split_like_one() -> None:
    captions = ["A dog.", "a cat", "A dog."]
    assert tokenise_all(captions) == [tokenise(caption) for caption in captions]


def test_a_missing_spacy_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the package imports spaCy elsewhere than in `tokenise`, or lets the ImportError through."""
    from dtnet import vocabulary

    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setattr(vocabulary, "_spacy_tokenizer", vocabulary._spacy_tokenizer.__wrapped__)
    with pytest.raises(UserError, match=r"spaCy is not installed.*dtnet\[train\]"):
        tokenise("a dog")
    assert split_words("A dog , on a bench .") == ["a", "dog", "on", "a", "bench"]


def test_words_are_ordered_by_count_then_alphabet() -> None:
    """Fails if ties keep the order in which words were met, or a word below the count is kept."""
    built = Vocabulary.build([["b", "c", "b"], ["c", "z", "a"], ["a", "b", "<pad>", "<pad>"]], min_count=2)
    assert built.words == (*SPECIAL, "b", "a", "c")


def test_ids_of_a_caption(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode(["a", "red", "fox"]) == [BOS, 4, 7, UNK, EOS]


def test_decoding_ends_at_the_first_end_and_collapses_repeats(vocabulary: Vocabulary) -> None:
    """Finished beams emit `<unk>` for ever. Fails if decoding reads on, or the reward's captions are collapsed too."""
    ids = torch.tensor([4, 4, 5, 6, 4, 4, EOS, UNK, UNK, 7])
    assert vocabulary.decode(ids) == "a dog on a"
    assert vocabulary.decode(ids, collapse=False) == "a a dog on a a"
    assert vocabulary.decode_all(ids[None].repeat(2, 1)) == ["a dog on a"] * 2
    assert vocabulary.decode([4, 5]) == "a dog"
    assert vocabulary.decode([EOS]) == ""


def test_the_fingerprint_tells_lists_of_the_same_words_apart(vocabulary: Vocabulary) -> None:
    other = Vocabulary([*SPECIAL, "dog", "a", "on", "red", "bench"])
    assert other.fingerprint != vocabulary.fingerprint
    text = '["<unk>","<pad>","<bos>","<eos>","a","caf\\u00e9"]'
    assert json.loads(text)[5] == "café"
    assert Vocabulary([*SPECIAL, "a", "café"]).fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_a_json_vocabulary_is_read_back(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["<pad>", "<unk>", "<bos>", "<eos>"], "begins with"),
        ([*SPECIAL, "a", "b", "a"], "word 'a' twice"),
        ([*SPECIAL, 4], "no string"),
        ({"words": []}, "dict instead of a list"),
    ],
)
def test_other_lists_are_refused(words: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=message):
        Vocabulary.load(tmp_path / "vocabulary.json")


def look_alike(count: int = OFFICIAL_SIZE) -> Vocabulary:
    return Vocabulary([*SPECIAL, *(f"word{number}" for number in range(count - 4))])


def test_a_look_alike_of_the_official_list_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two released lists have 10,201 words in different orders. Fails if only the number of words is compared."""
    look_alike().save(tmp_path / "v.json")
    look_alike(OFFICIAL_SIZE - 1).save(tmp_path / "shorter.json")
    with caplog.at_level(logging.WARNING):
        Vocabulary.load(tmp_path / "shorter.json")
        assert not caplog.records
        Vocabulary.load(tmp_path / "v.json")
    assert "not the same ones" in caplog.text
    assert look_alike().fingerprint != OFFICIAL_FINGERPRINT


@pytest.mark.parametrize("name", ["vocab.pkl", "vocab_transformer_grid.pkl"])
def test_the_official_pickle_is_read_without_its_module(name: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(official_pickle(list(vocabulary.words)))
    assert "data.vocab" not in sys.modules
    assert Vocabulary.load_pickle(tmp_path / name) == vocabulary
    assert Vocabulary.load(tmp_path / name) == vocabulary


class Command:
    """What a malicious file does: call something when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("where", ["whole", "inside", "factory"])
def test_a_malicious_pickle_runs_nothing(where: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Fails if `find_class` imports what a pickle names."""
    witness, path = tmp_path / "witness", tmp_path / "vocab.pkl"
    command = Command(os.system, f"touch {witness}")
    if where == "whole":
        path.write_bytes(pickle.dumps(command))
    elif where == "inside":
        path.write_bytes(official_pickle(list(vocabulary.words), other=command))
    else:
        path.write_bytes(pickle.dumps(defaultdict(eval, {"a": 1})))
    with pytest.raises(UserError, match=r"refused as a vocabulary \(names (posix|nt|builtins)\.") as error:
        Vocabulary.load_pickle(path)
    assert "\n" not in str(error.value)
    assert not witness.exists()
    # The same bytes do run it where nothing is refused: the test would notice.
    if where == "whole":
        pickle.loads(path.read_bytes())
        assert witness.exists()


@pytest.mark.parametrize("name", ["Counter.__init__.__globals__", "Counter.fromkeys", "abc.sys"])
def test_names_below_an_allowed_one_are_refused(name: str, tmp_path: Path) -> None:
    """Protocol 4 lets a pickle walk along attributes. Fails if only the first part of a name is checked."""
    written = io.BytesIO()
    written.write(b"\x80\x04" + b"\x8c\x0bcollections" + bytes([0x8C, len(name)]) + name.encode() + b"\x93.")
    path = tmp_path / "vocab.pkl"
    path.write_bytes(written.getvalue())
    with pytest.raises(UserError, match="refused as a vocabulary"):
        Vocabulary.load_pickle(path)


def test_a_pickle_cannot_change_a_class_of_the_program(tmp_path: Path) -> None:
    """BUILD with a pair sets attributes, of a class too. Fails if the real Counter is handed out."""
    # Counter, then the state (None, {"most_common": "gone"}), then BUILD.
    state = b"N}X\x0b\x00\x00\x00most_commonX\x04\x00\x00\x00gones\x86b."
    (tmp_path / "vocab.pkl").write_bytes(b"\x80\x03ccollections\nCounter\n" + state)
    with pytest.raises(UserError, match="no list of words"):
        Vocabulary.load_pickle(tmp_path / "vocab.pkl")
    assert callable(collections.Counter.most_common)


@pytest.mark.parametrize("kept", [0, 3, 40, -1])
def test_broken_pickles_are_refused_in_one_line(kept: int, vocabulary: Vocabulary, tmp_path: Path) -> None:
    whole = official_pickle(list(vocabulary.words))
    (tmp_path / "vocab.pkl").write_bytes(whole[:kept])
    with pytest.raises(UserError, match="refused as a vocabulary"):
        Vocabulary.load_pickle(tmp_path / "vocab.pkl")


@pytest.mark.parametrize("value", [[*SPECIAL], {"itos": [*SPECIAL]}, Counter("aab")])
def test_pickles_of_something_else_are_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match="no list of words in the pickle"):
        Vocabulary.load_pickle(tmp_path / "vocab.pkl")


def test_padding_is_id_1() -> None:
    """The decoder masks and the loss ignores this id."""
    assert (UNK, PAD, BOS, EOS) == (0, 1, 2, 3)


@pytest.mark.parametrize("name", sorted(hostile_pickles(Path("x")).keys() - {"other values", "nested"}))
def test_a_pickle_that_hangs_or_fills_the_memory_is_one_line_at_once(name: str, tmp_path: Path) -> None:
    """One is 492 bytes of tuples that share their parts. Fails if it is followed: it would take years."""
    (tmp_path / "vocab.pkl").write_bytes(hostile_pickles(tmp_path / "called")[name])
    start = time.process_time()
    with pytest.raises(UserError) as refusal:
        Vocabulary.load_pickle(tmp_path / "vocab.pkl")
    assert "\n" not in str(refusal.value) and time.process_time() - start < 10
    assert not (tmp_path / "called").exists()
