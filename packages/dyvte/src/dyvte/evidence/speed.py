"""`dyvte bench`: prefill and decoding at the full width of LLaVA-1.5-7B, dense and with an exit, in one run.

Weights are random; the gates are real ones whose weights make them decide at a given layer, so every gate up to it is
asked and the decision takes its usual way. Prefill is predicted by FLOPs, a decoding step by the bytes that it reads:
its weights, which an exit does not touch, and the KV cache, which it shortens, so decoding gains little at batch 1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from dyvte.costs import DecoderShape, decode_bytes, kv_bytes, prefill_flops
from dyvte.evidence.settings import BenchSettings
from dyvte.exits import VisualExit
from dyvte.gates import GateConfig, Gates
from tenfold import UserError
from tenfold.runs import atomic_write_json, run
from tenfold.runs.clock import Clock, speedup, spread
from tenfold.runs.provenance import hardware
from tenfold.runs.ranks import choose_device

FULL_LAYERS, CPU_LAYERS = 32, 4


def run_bench(settings: BenchSettings, seed: int, output: Path | None = None) -> dict[str, Any]:
    """Measure; returns the figures, and writes the run's record with them into a file where one is named.

    Raises:
        UserError: no such device, an exit beyond the last layer, or a file that cannot be written.
    """
    with run("dyvte", "bench", config=settings.model_dump(mode="json"), seed=seed, output=None) as current:
        current.metrics.update(_measure(settings, seed))
    if output is not None and current.record is not None:
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics


def _measure(settings: BenchSettings, seed: int) -> dict[str, Any]:
    device = choose_device(settings.device)
    layers = settings.layers or (FULL_LAYERS if device.type == "cuda" else CPU_LAYERS)
    layers = FULL_LAYERS if layers == "all" else layers
    exit_layer = layers // 2 if settings.exit_layer is None else settings.exit_layer
    if exit_layer >= layers:
        raise UserError(f"an exit after layer {exit_layer}", f"{layers} layers", f"at most {layers - 1}")
    dtype = getattr(torch, settings.dtype)
    model = bench_host(settings, layers, device, dtype, seed)
    gates = deciding_gates(GateConfig(layers, settings.hidden, settings.width), exit_layer, device, dtype)
    embeds, visual = prompt(settings, device, dtype, seed)
    shape = DecoderShape.of(model.config)
    exit = VisualExit(gates, compact_every=settings.compact_every)

    def attached(which: str) -> AbstractContextManager[Any]:
        return exit(model, visual_mask=visual) if which == "exit" else nullcontext()

    clock = Clock(device)
    seconds: dict[str, dict[str, list[float]]] = {part: {"dense": [], "exit": []} for part in ("prefill", "decode")}
    peaks: dict[str, int | None] = {}
    for number in range(settings.repeats + 1):
        for which in ("dense", "exit") if number % 2 else ("exit", "dense"):
            with torch.inference_mode(), attached(which):
                (cache, left), prefill, peak = clock.time(_prefill(model, embeds, exit if which == "exit" else None))
                if which == "exit" and left != [exit_layer] * settings.batch:
                    raise UserError(f"exits {left}", "the gates of the bench", f"{exit_layer}")
                _, decode, _ = clock.time(_decode(model, cache, settings))
            if number:  # the first round warms up
                seconds["prefill"][which].append(prefill)
                seconds["decode"][which].append(decode / settings.decode_tokens)
                peaks[which] = peak
    tokens, rows = embeds.shape[1], [exit_layer] * settings.batch
    flops = [
        settings.batch * prefill_flops(tokens, settings.visual, e, shape, g)
        for e, g in ((None, None), (exit_layer, gates.config))
    ]
    read = [decode_bytes(tokens, settings.visual, exits, shape) for exits in ([None] * settings.batch, rows)]
    found: dict[str, Any] = {
        "layers": layers,
        "exit_layer": exit_layer,
        "tokens": tokens,
        "device": hardware().gpu or hardware().cpu,
        "prefill": _report(seconds["prefill"], flops[0] / flops[1]),
        "decode": _report(seconds["decode"], read[0] / read[1]),
        "kv_bytes": {"dense": kv_bytes(tokens, settings.visual, None, shape) * settings.batch},
        "peak_bytes": peaks,
    }
    found["kv_bytes"]["exit"] = kv_bytes(tokens, settings.visual, exit_layer, shape) * settings.batch
    return found


def bench_host(
    settings: BenchSettings, layers: int, device: torch.device, dtype: torch.dtype, seed: int
) -> LlavaForConditionalGeneration:
    """LLaVA-1.5-7B's decoder with random weights, so many layers deep, under a vision tower that is not used."""
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision)).to(dtype)  # type: ignore[arg-type]
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.uniform_(-0.03, 0.03, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    # Its buffers are computed from the configuration: they were left empty with the weights.
    decoder = model.model.language_model
    decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config).to(device)
    return model


def deciding_gates(config: GateConfig, exit_layer: int, device: torch.device, dtype: torch.dtype) -> Gates:
    """Gates that all keep but at one layer, and exit there: equal logits keep, and GELU(h) + GELU(-h) is positive."""
    gates = Gates(config, dtype=torch.float32).initialise(0).requires_grad_(False)
    half = config.width // 2
    for layer, gate in enumerate(gates):
        (first,) = gate.w1.parameters()
        first[half : 2 * half] = -first[:half]
        gate.w2.weight.zero_()
        if layer == exit_layer:
            gate.w2.weight[1, : 2 * half] = 1.0
    return gates.to(device, dtype)


def prompt(settings: BenchSettings, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A batch of prompts as embeddings, and where their visual tokens are."""
    tokens = settings.prefix + settings.visual + settings.text
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(settings.batch, tokens, settings.hidden, generator=generator).to(device, dtype)
    visual = torch.zeros(settings.batch, tokens, dtype=torch.bool, device=device)
    visual[:, settings.prefix : settings.prefix + settings.visual] = True
    return embeds, visual


def _prefill(model: nn.Module, embeds: Tensor, exit: VisualExit | None) -> Callable[[], tuple[Any, list[Any]]]:
    def work() -> tuple[Any, list[Any]]:
        cache = model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1).past_key_values
        return cache, [] if exit is None else exit.exit_layers()

    return work


def _decode(model: nn.Module, cache: Any, settings: BenchSettings) -> Callable[[], None]:
    token = torch.ones(settings.batch, 1, dtype=torch.int64, device=next(model.parameters()).device)

    def work() -> None:
        for _ in range(settings.decode_tokens):
            model(input_ids=token, past_key_values=cache, use_cache=True)

    return work


def _report(seconds: dict[str, list[float]], predicted: float) -> dict[str, Any]:
    pairs = [dense / exited for dense, exited in zip(seconds["dense"], seconds["exit"], strict=True)]
    found: dict[str, Any] = {which: spread(values) for which, values in seconds.items()}
    return found | speedup(seconds["dense"], seconds["exit"], predicted) | {"median_of_pairs": median(pairs)}
