"""CLIP's tokenizer as folders hold it: words keep their positions, and what is none of CLIP's kind is refused."""

import json

import pytest
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from inst_diff_edit.miniature import model as mini
from inst_diff_edit.words import split_words
from tenfold import UserError

PROMPT = "a  ring-cat"
WORDS = ("a", "ring-cat")


def saved(folder):
    """As transformers writes it today: everything in tokenizer.json."""
    mini.tokenizer().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def released(folder):
    """As Stable Diffusion's releases have it: vocab.json and merges.txt, special tokens spelt out."""
    mini.tokenizer().save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    end = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False}
    settings = {
        "add_prefix_space": False, "bos_token": {**end, "content": "<|startoftext|>"}, "do_lower_case": True,
        "eos_token": end, "errors": "replace", "model_max_length": mini.POSITIONS, "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer", "unk_token": end,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def changed(folder, **parts):
    """tokenizer.json with other parts, and no class of its own."""
    mini.tokenizer().save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | parts))
    return content


def anonymous(folder):
    """Opened as nobody's."""
    changed(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def by_auto(folder):
    return AutoTokenizer.from_pretrained(saved(folder) and folder, trust_remote_code=False)


def prefixed(folder):
    """A space in front of every word, as older byte-level tokenizers have it."""
    pre = json.loads(mini.tokenizer().backend_tokenizer.to_str())["pre_tokenizer"]
    pre["pretokenizers"][-1]["add_prefix_space"] = True
    changed(folder, pre_tokenizer=pre)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("kind", [saved, released, anonymous, by_auto, prefixed])
def test_every_word_has_its_positions(kind, tmp_path):
    """Fails if a folder's kind changes which positions belong to which word: maps would be of other words."""
    tokenizer = kind(tmp_path / "words")
    words = split_words(tokenizer, PROMPT)
    assert words.text == WORDS
    assert [place for group in words.groups for place in group] == list(range(len(words.ids)))
    for word, group in zip(words.text, words.groups[1:-1], strict=True):
        spelt = "".join(tokenizer.convert_ids_to_tokens([words.ids[place] for place in group]))
        assert spelt.replace("</w>", "").replace("\u0120", "") == word.lower()


def test_without_start_and_end_a_tokenizer_is_refused(tmp_path):
    """Fails if the first and the last word are taken for them, and have no map."""
    changed(tmp_path / "bare", post_processor=None)
    with pytest.raises(UserError, match="a tokenizer without start and end"):
        split_words(PreTrainedTokenizerFast.from_pretrained(tmp_path / "bare"), PROMPT)
