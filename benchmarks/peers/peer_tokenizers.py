"""Tokenizers made here: those that the libraries' tests name are on the hub."""

import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, CLIPTokenizer

from tenfold.testing.tokenizers import tokenizer

PACKAGES = Path(__file__).resolve().parents[2] / "packages"


def llama():
    """Llama's kind, with 420 pieces and single bytes; it puts BOS in front, as Vicuna's does."""
    pieces = load_file(PACKAGES / "llava_hr" / "tests" / "goldens" / "conversation.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        made = tokenizer("fast legacy", Path(folder), pieces["in/tokenizer_model"].numpy().tobytes())
        made.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, add_bos_token=True)


def clip(length=77):
    """CLIP's kind, with 514 pieces: single bytes, within a word and at its end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{one}</w>" for one in alphabet), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
        merges.write_text("#version: 0.2\n")
        CLIPTokenizer(str(vocabulary), str(merges), model_max_length=length).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)
