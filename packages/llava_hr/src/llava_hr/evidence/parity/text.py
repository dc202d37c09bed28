"""Golden cases of images and text: `preprocess`, `conversation`, and the sampler's order of `metrics`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llava_hr.checkpoints.release import read_tokenizer
from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold.data.conversation import Encoded, conversation_turns, get_conversation
from tenfold.data.formats import Turn
from tenfold.data.sampler import modality_length_order

if TYPE_CHECKING:
    from tenfold.ledger.goldens import Comparison, Computation

# Pillow's pixels agree to the bit; the cases allow 1e-4.
EXACT = (0.0, 0.0)
# What the official code calls the templates of a case's groups (`--version`).
VERSIONS = {"samples": ("v1", ""), "plain": ("plain", "plain")}
# Any number does: the official form has one id for an image.
VISUAL_TOKENS = 3


def _preprocess(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    processor = LlavaHrImageProcessor(
        size=config["image_size"], image_mean=config["image_mean"], image_std=config["image_std"]
    )
    compare.equal("pad colour", list(processor.pad_colour), config["pad_colour"])
    for name in sorted(name for name in tensors if name.startswith("out/")):
        number, aspect_ratio = name.removeprefix("out/").split(".")
        image = tensors[f"in/{number}.image"].numpy()
        ours = processor.preprocess(image, image_aspect_ratio=aspect_ratio, return_tensors="pt")["pixel_values"][0]
        compare.close(name, ours, tensors[name], EXACT)


def _conversation(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """With a fast tokenizer and one in Python: each has its own way to tell where a token stands in the text."""
    config = case["config"]
    for kind, tokenizer in golden_tokenizers(tensors["in/tokenizer_model"]).items():
        processor = LlavaHrProcessor(LlavaHrImageProcessor(size=32), tokenizer, num_image_tokens=VISUAL_TOKENS)
        for group, samples in config["cases"].items():
            if group not in VERSIONS:
                raise UserError(f"unknown group of cases {group!r}", case.get("case"), ", ".join(VERSIONS))
            version, prefix = VERSIONS[group]
            for number, sample in enumerate(samples):
                name, out = f"{kind} {group} {number}", f"out/{prefix}{number}"
                image = np.zeros((8, 8, 3), np.uint8) if "image" in sample["record"] else None
                turns = [Turn(turn["from"], turn["value"]) for turn in sample["record"]["conversations"]]
                encoded = processor.encode_conversation(
                    turns, image, conversation=version, max_length=config["model_max_length"]
                )
                ours = _official(processor, encoded["input_ids"].tolist(), encoded["labels"].tolist())
                compare.equal(f"{name} ids", ours.input_ids, tensors[f"{out}.input_ids"])
                compare.equal(f"{name} labels", ours.labels, tensors[f"{out}.labels"])
                if "prompt" in sample:
                    _compare_text(name, sample, turns, image is not None, version, compare)
                if "eval_prompt" in sample:
                    text = processor.prompt(turns[0].text, image=image is not None)
                    compare.equal(f"{name} generation prompt", text, sample["eval_prompt"])
                    ids = processor(image, text)["input_ids"][0]
                    ours = _official(processor, ids, [0] * len(ids))
                    compare.equal(f"{name} generation ids", ours.input_ids, tensors[f"{out}.eval_input_ids"])


def _official(processor: LlavaHrProcessor, ids: list[int], labels: list[int]) -> Encoded:
    return Encoded(ids, labels).collapsed(processor.image_token_id, processor.num_image_tokens)


def _compare_text(
    name: str, sample: Mapping[str, Any], turns: list[Turn], image: bool, version: str, compare: Comparison
) -> None:
    prompt = get_conversation(version).render(conversation_turns(turns, images=image), images=image)
    compare.equal(f"{name} text", prompt.text, sample["prompt"])
    learnt = "".join(prompt.text[start:end] for start, end in prompt.answers)
    compare.equal(f"{name} learnt text", learnt, sample["target_text"])


def golden_tokenizers(model: Tensor) -> dict[str, PreTrainedTokenizerBase]:
    """A case's tokenizer as official folders are read, and as transformers' own in Python, with legacy splitting.

    Args:
        model: the SentencePiece model, `[bytes]`, uint8.

    Raises:
        UserError: SentencePiece is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(model.numpy().tobytes())
        ours = read_tokenizer(Path(folder), vocabulary=sys.maxsize)
        special = {name: getattr(ours, name) for name in ("bos_token", "eos_token", "unk_token")}
        return {"fast": ours, "slow": SentencePieceBackend(vocab_file=str(file), legacy=True, **special)}


def compare_sampler(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """The sampler's part of `metrics`, which `parity_metrics` calls."""
    config = case["config"]["sampler"]
    order = modality_length_order(
        tensors["in/sampler.lengths"].tolist(),
        config["per_device_batch"],
        config["world_size"],
        torch.Generator().manual_seed(config["seed"]),
    )
    compare.equal("sampler order", order, tensors["out/sampler.indices"])


COMPUTATIONS: dict[str, Computation] = {"preprocess": _preprocess, "conversation": _conversation}
