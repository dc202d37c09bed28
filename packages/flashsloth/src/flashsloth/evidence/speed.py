"""`flashsloth bench`: what the compression is worth on this machine, part by part.

Full width, random weights, batch 1, one image; on the CPU fewer layers unless all are asked for. Arms, alternated:

    flashsloth     81 visual tokens and 9 queries (HD: 405 and 9)
    uncompressed   the same model with all patches as visual tokens, no SAP, no queries
    shuffle        pixel-shuffle to as many visual tokens, no EmbQ
    llava-1.5      a prompt of 576 visual tokens through the same language model (the tower is not run)

"ttft" is the time to the first token: tower, pooling, projector, EmbQ and prefill, logits of the last position; an
image file's decoding and tokenising are left out. Predicted ratios are those of FLOPs, for decoding of bytes read.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from flashsloth import costs
from flashsloth.configuration import FlashSlothConfig
from flashsloth.evaluation.baselines import replace_pooling, without_embq
from flashsloth.evidence.settings import BenchSettings
from flashsloth.modeling import FlashSlothForConditionalGeneration
from tenfold.runs import atomic_write_json, run
from tenfold.runs.clock import Clock, speedup, spread
from tenfold.runs.ranks import choose_device

LLAVA_TOKENS = 576


def bench_config(settings: BenchSettings, cuda: bool) -> FlashSlothConfig:
    """Full width; as many layers as asked for."""
    config = FlashSlothConfig.named(settings.model)
    few = None if cuda else 2
    if (layers := settings.layers or few) is not None:
        config.text_config.num_hidden_layers = layers
        config.embq_layer = min(config.embq_layer, layers - 1)
    if (layers := settings.vision_layers or few) is not None:
        config.vision_config.num_hidden_layers = layers
    return config


def run_bench(settings: BenchSettings, seed: int, output: Path | None = None) -> dict[str, Any]:
    """Measure all arms.

    Args:
        output: a file for the figures, with the run's record beside it in memory only; None: nothing is written.

    Returns:
        "dimensions", and for each arm and part its seconds, predicted and realised ratio to uncompressed.
    """
    device = choose_device(settings.device)
    config = bench_config(settings, device.type == "cuda")
    name = settings.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    with run("flashsloth", "bench", config=settings.model_dump(), seed=seed, output=None, data={}) as current:
        subjects = _subjects(config, seed, device, getattr(torch, name), settings)
        figures = _measure(subjects, settings, device)
        text, vision = config.text_config, config.vision_config
        figures["dimensions"] = {
            "layers": text.num_hidden_layers,
            "vision_layers": vision.num_hidden_layers,
            "full": text.num_hidden_layers == 32 and vision.num_hidden_layers == 26,
            "dtype": name,
            "device": str(device),
            "question": settings.question,
            "new_tokens": settings.new_tokens,
            "repeats": settings.repeats,
            "ttft": "tower, pooling, projector, EmbQ, prefill and the last position's logits; no file, no tokenizer",
        }
        current.metrics.update(figures)
    assert current.record is not None
    if output is not None:
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return figures


class Subject:
    """One arm: a prompt's tower, time to the first token, and decoding.

    Args:
        model: shared by all arms but for what compresses.
        sizes: for its costs.
        ids: of its prompt, ``[1, tokens]``.
        features: what its tower gives, or None to run no tower.
    """

    def __init__(
        self, model: FlashSlothForConditionalGeneration, sizes: costs.Sizes, ids: Tensor, pixels: Tensor | None
    ) -> None:
        self.model, self.sizes, self.ids, self.pixels = model, sizes, ids, pixels

    def tower(self) -> Any:
        """Pixels to visual tokens."""
        assert self.pixels is not None
        return self.model.encode_images(self.pixels)

    def first(self) -> Any:
        """Pixels and ids to the first token's logits."""
        return self.model(input_ids=self.ids, pixel_values=self.pixels, use_cache=True, logits_to_keep=1)

    def decode(self, cache: Cache, count: int) -> None:
        """``count`` forced tokens behind the prompt whose keys and values the cache holds."""
        token = self.ids[:, :1]
        for _ in range(count):
            self.model(input_ids=token, past_key_values=cache, use_cache=True)


def _subjects(
    config: FlashSlothConfig, seed: int, device: torch.device, dtype: torch.dtype, settings: BenchSettings
) -> dict[str, Subject]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ours = _random_model(config, device, dtype)
        plain, shuffle = (_sharing(ours, pooling) for pooling in ("none", "shuffle"))
        views = (config.views,) if config.views > 1 else ()
        side = config.vision_config.image_size
        pixels = torch.rand(1, *views, 3, side, side).to(device, dtype) * 2 - 1
    compressed, full = costs.Sizes.of(config), costs.Sizes.of(config, compressed=False)
    llava = replace(full, visual_tokens=LLAVA_TOKENS)

    def ids(images: int, queries: int) -> Tensor:
        row = [11] * costs.PROMPT + [config.image_token_id] * images + [config.newline_token_id]
        row += [12] * settings.question + [config.query_token_id] * queries + [13] * costs.ROLE
        return torch.tensor([row], device=device)

    words = ids(0, 0)
    padding = torch.full((1, LLAVA_TOKENS), 11, device=device)
    return {
        "flashsloth": Subject(ours, compressed, ids(config.num_image_tokens, config.query_count), pixels),
        "uncompressed": Subject(plain, full, ids(config.patches_per_image, 0), pixels),
        "shuffle": Subject(shuffle, replace(compressed, queries=0), ids(config.num_image_tokens, 0), pixels),
        "llava-1.5": Subject(plain, llava, torch.cat([padding, words], dim=1), None),
    }


def _random_model(
    config: FlashSlothConfig, device: torch.device, dtype: torch.dtype
) -> FlashSlothForConditionalGeneration:
    """Random weights, without drawing them one by one: their values do not change what is timed."""
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration._from_config(config, dtype=dtype)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        if parameter.ndim > 1:
            parameter.data[: 64 if parameter.shape[0] > 64 else None].normal_(std=0.02)
    fresh = FlashSlothForConditionalGeneration._from_config(_tiny(config)).model
    rotary = model.model.language_model.rotary_emb
    rotary.load_state_dict(fresh.language_model.rotary_emb.state_dict())
    for name, buffer in fresh.language_model.rotary_emb.named_buffers():
        setattr(rotary, name, buffer.to(device))
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).expand(1, -1)
    return model.eval()


def _tiny(config: FlashSlothConfig) -> FlashSlothConfig:
    small = FlashSlothConfig.from_dict(config.to_dict())
    small.text_config.num_hidden_layers, small.embq_layer, small.text_config.vocab_size = 1, 0, 8
    small.text_config.intermediate_size = 8
    small.vision_config.num_hidden_layers = 1
    return small


def _sharing(ours: FlashSlothForConditionalGeneration, pooling: str) -> FlashSlothForConditionalGeneration:
    """Another pooling over the same weights."""
    config = FlashSlothConfig.from_dict(ours.config.to_dict())
    config.pool = 1 if pooling == "none" else config.pool
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration._from_config(config, dtype=ours.dtype)
    for name in ("vision_tower", "multi_modal_projector", "query_tokens", "language_model"):
        setattr(model.model, name, getattr(ours.model, name))
    model.lm_head = ours.lm_head
    replace_pooling(model, pooling)
    without_embq(model)
    return model.eval()


@torch.inference_mode()
def _measure(subjects: dict[str, Subject], settings: BenchSettings, device: torch.device) -> dict[str, Any]:
    clock = Clock(device)
    times: dict[str, dict[str, list[float]]] = {part: {name: [] for name in subjects} for part in PARTS}
    peaks: dict[str, int | None] = {}
    held: dict[str, int] = {}
    for number in range(settings.repeats + 1):
        for name, subject in subjects.items():
            seconds = {}
            output, seconds["ttft"], peaks[name] = clock.time(subject.first)
            cache = output.past_key_values
            held[name] = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            del output
            if subject.pixels is not None:
                _, seconds["tower"], _ = clock.time(subject.tower)
            _, seconds["decode"], _ = clock.time(partial(subject.decode, cache, settings.new_tokens))
            for part, value in seconds.items():
                if number:  # the first round warms up
                    times[part][name].append(value)
    figures: dict[str, Any] = {}
    for part, of_part in times.items():
        base = of_part["uncompressed"]
        figures[part] = {
            name: spread(values) | speedup(base, values, _predicted(part, subjects, name, settings))
            for name, values in of_part.items()
            if values
        }
    for name, subject in subjects.items():
        row = figures["ttft"][name]
        row["tokens"] = subject.ids.shape[1]
        row["tflops"] = _flops(subject, settings) / 1e12
        row["peak_bytes"] = peaks[name]
        row["cache_bytes"] = held[name]
    ours, plain = figures["ttft"]["flashsloth"], figures["ttft"]["uncompressed"]
    measured, counted = ours["seconds"] / plain["seconds"], ours["tflops"] / plain["tflops"]
    figures["ttft_ratio"] = {"measured": measured, "flops": counted, "over": measured / counted}
    return figures


PARTS = ("ttft", "tower", "decode")


def _flops(subject: Subject, settings: BenchSettings) -> int:
    cost = costs.prefill(subject.sizes, settings.question, logits=1, late_values=True)
    return cost.total if subject.pixels is not None else cost.language


def _predicted(part: str, subjects: dict[str, Subject], name: str, settings: BenchSettings) -> float:
    base, one = subjects["uncompressed"], subjects[name]
    if part == "decode":
        past = [subject.ids.shape[1] + settings.new_tokens // 2 for subject in (base, one)]
        return costs.decode_bytes(base.sizes, past[0]) / costs.decode_bytes(one.sizes, past[1])
    if part == "tower":
        both = [costs.prefill(subject.sizes, settings.question) for subject in (base, one)]
        before = [cost.vision + cost.sap + cost.projector for cost in both]
        return before[0] / before[1]
    return _flops(base, settings) / _flops(one, settings)


def summary(figures: dict[str, Any]) -> str:
    """One line: how near the time comes to what FLOPs promise."""
    ratio = figures["ttft_ratio"]
    rate = median([figures["decode"]["flashsloth"]["seconds"] / figures["dimensions"]["new_tokens"]])
    return (
        f"time to the first token is {ratio['measured']:.3f} of uncompressed; FLOPs promise {ratio['flops']:.3f}; "
        f"{1 / rate:.1f} tokens/s behind it"
    )
