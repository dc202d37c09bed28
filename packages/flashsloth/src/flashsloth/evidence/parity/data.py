"""Golden case of the data: preprocessing, prompts with their labels and question ranges, the order of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flashsloth.configuration import HD_VIEWS, FlashSlothConfig
from flashsloth.data.order import modality_order
from flashsloth.evidence.parity.stub import TableTokenizer
from flashsloth.image_processing import FlashSlothImageProcessor
from flashsloth.prompts import END, QUERY, question_prompt, template
from flashsloth.questions import official_spans, placeholders, query_places, rounds, with_placeholders
from tenfold.data.conversation import IMAGE_MARKER, Prompt, conversation_turns, encode, image_places
from tenfold.data.formats import Turn
from tenfold.ledger.goldens import Comparison


def data(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """All parts of a case."""
    _preprocess(case["parts"]["preprocess"]["config"], tensors, compare)
    config = case["parts"]["prompts"]["config"]
    base, hd = FlashSlothConfig(), FlashSlothConfig(views=HD_VIEWS)
    tokenizer = TableTokenizer(config["chunks"], {QUERY: base.query_token_id, END: base.end_token_id})
    for name, sample in config["samples"].items():
        _sft(name, sample, tokenizer, base, tensors, compare)
    _captions(config["stage1_caption"], tokenizer, tensors, compare)
    for name, sample in config["infer"].items():
        _answering(name, sample, tokenizer, (base, hd), tensors, compare)
    sampler = config["sampler"]
    order = modality_order(
        tensors["in/prompts/sampler/lengths"].tolist(),
        sampler["batch_size"],
        sampler["world_size"],
        torch.Generator().manual_seed(sampler["manual_seed"]),
    )
    compare.equal("order of samples", order, tensors["out/prompts/sampler/indices"])


def _preprocess(config: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    ways = {"base": ("square", 1), "pad": ("pad", 1), "hd": ("square", HD_VIEWS)}
    for key in (key for key in tensors if key.startswith("in/preprocess/")):
        name = key.split("/")[2]
        image = Image.fromarray(tensors[key].numpy())
        for way, (ratio, views) in ways.items():
            processor = FlashSlothImageProcessor(config["RES"], views, ratio)
            ours = processor(image, return_tensors="pt")["pixel_values"][0]
            compare.close(f"{name} {way}", ours, tensors[f"out/preprocess/{name}/{way}"], "pixels")


def _sft(
    name: str,
    sample: Mapping[str, Any],
    tokenizer: Any,
    config: FlashSlothConfig,
    tensors: Mapping[str, Tensor],
    compare: Comparison,
) -> None:
    turns = [Turn(turn["from"], turn["value"]) for turn in sample["conversations"]]
    turns = conversation_turns(turns, images=sample["has_image"])
    prompt = template("phi2").render(turns, images=sample["has_image"])
    learnt = "".join(prompt.text[start:end] for start, end in prompt.answers)
    compare.equal(f"{name} learnt text", learnt, sample["supervised_text"])
    encoded = encode(tokenizer, prompt, bos=False)
    out = f"out/prompts/sft/{name}"
    compare.equal(f"{name} ids", encoded.input_ids, tensors[f"{out}/input_ids"])
    compare.equal(f"{name} labels", encoded.labels, tensors[f"{out}/labels"])
    ids, labels = with_placeholders(encoded.input_ids, encoded.labels, placeholders(config, IMAGE_MARKER))
    compare.equal(f"{name} places", query_places(ids, config), tensors[f"{out}/insert_place"])
    golden = tensors[f"{out}/question_ranges"]
    compare.equal(f"{name} official ranges", official_spans(ids, config, 8, labels), _pairs(golden))
    if sample["has_image"]:  # the official rule is one token off without image, where nothing reads it (part two, A1)
        compare.equal(f"{name} ranges by the template", [one.question for one in rounds(ids, config)], _pairs(golden))


def _captions(caption: str, tokenizer: Any, tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    turns = [Turn("human", "<image>"), Turn("gpt", caption)]
    encoded = encode(tokenizer, template("plain").render(turns, images=True), bos=False)
    compare.equal("stage 1 ids", encoded.input_ids, tensors["out/prompts/stage1/input_ids"])
    compare.equal("stage 1 labels", encoded.labels, tensors["out/prompts/stage1/labels"])


def _answering(
    name: str,
    sample: Mapping[str, Any],
    tokenizer: Any,
    configs: tuple[FlashSlothConfig, FlashSlothConfig],
    tensors: Mapping[str, Tensor],
    compare: Comparison,
) -> None:
    text = question_prompt([sample["question"]])
    compare.equal(f"{name} prompt", text, sample["prompt"])
    encoded = encode(tokenizer, Prompt(text, images=tuple(image_places(text))), bos=False)
    out = f"out/prompts/{name}"
    compare.equal(f"{name} ids", encoded.input_ids, tensors[f"{out}/input_ids"])
    for config, suffix in zip(configs, ("", "_hd"), strict=True):
        ids, _ = with_placeholders(encoded.input_ids, encoded.labels, placeholders(config, IMAGE_MARKER))
        golden = _pairs(tensors[f"{out}/question_ranges{suffix}"])
        compare.equal(f"{name} official ranges{suffix}", official_spans(ids, config, 1), golden)
        # With one question after the image, in the usual prompt, both rules find the same (part two, A1).
        compare.equal(f"{name} ranges by the template{suffix}", [one.question for one in rounds(ids, config)], golden)
        if not suffix:
            compare.equal(f"{name} length", len(ids), sample["prefill_length"])
            compare.equal(f"{name} places", query_places(ids, config), tensors[f"{out}/insert_place"])


def _pairs(ranges: Tensor) -> list[tuple[int, int]]:
    return [(start, end) for start, end in ranges.tolist()]
