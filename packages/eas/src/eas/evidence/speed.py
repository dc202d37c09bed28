"""`eas bench`: the decoder of LLaVA-1.5-7B at full width with random weights, with all attentions and without some.

    plain       the host, nothing attached                       (K = 0, no adapters: what folding K = 0 gives)
    adapters    K = 0, adapters beside the host                  (un-merged)
    unmerged    K skipped, adapters and PIAs beside the host
    folded      K skipped, adapters and PIAs folded for the prompt: in decoding nothing is left of them

Speed-ups are against "adapters", what the paper's baseline runs; skipping alone is folded against plain. Prefill is
predicted by MACs, decoding by the bytes that a step reads. Rounds alternate; medians count.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eas import costs
from eas.evidence import lavin_speed
from eas.evidence.settings import BenchSettings
from eas.plan import Plan
from eas.skipper import Skipper
from tenfold.random_weights import random_weight
from tenfold.runs import run
from tenfold.runs.clock import Clock, speedup, spread
from tenfold.runs.ranks import choose_device

PLAIN, ADAPTERS, UNMERGED, FOLDED = "plain", "adapters", "unmerged", "folded"
FULL_LAYERS, CPU_LAYERS, SHARE = 32, 4, 12 / 32


def build(settings: BenchSettings, device: torch.device, layers: int) -> LlamaForCausalLM:
    """The decoder with random weights, drawn on its device."""
    shape = costs.LLAMA_7B
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(getattr(torch, settings.dtype))
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_weight(name, parameter.shape, parameter.dtype))
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its frequencies are no parameters
    return model.eval()


def run_bench(settings: BenchSettings, seed: int, output: Path | None) -> dict[str, Any]:
    """Measure all four; what `eas bench` prints. With `output`, a run record is written there."""
    device = choose_device(settings.device)

    def work() -> dict[str, Any]:
        return lavin_speed.measure(settings, device) if settings.host == "lavin" else measure(settings, device, seed)

    if output is None:
        return work()
    with run("eas", "bench", config=settings.model_dump(), seed=seed, output=output, data={}) as current:
        record = work()
        current.metrics.update(record)
    return record


@torch.inference_mode()
def measure(settings: BenchSettings, device: torch.device, seed: int) -> dict[str, Any]:
    """Seconds of prefill and of a decoded token, medians over alternated rounds."""
    layers = settings.layers or (FULL_LAYERS if device.type == "cuda" else CPU_LAYERS)
    removed = settings.removed or max(1, round(SHARE * layers))
    model = build(settings, device, layers)
    skip = tuple(range(layers - removed, layers))
    ranks = costs.RankSizes(settings.adapter, settings.pia)
    subjects = {
        PLAIN: Subject(model, None, settings),
        ADAPTERS: Subject(model, _skipper(layers, (), settings, seed), settings),
        UNMERGED: Subject(model, _skipper(layers, skip, settings, seed), settings),
        FOLDED: Subject(model, _skipper(layers, skip, settings, seed), settings, folded=True),
    }
    clock = Clock(device)
    seconds: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": [], "fold": []} for name in subjects}
    peaks: dict[str, int | None] = {}
    for number in range(settings.rounds + 1):
        for name, subject in subjects.items():
            found, peak = subject.once(clock)
            if number:
                for part, value in found.items():
                    seconds[name][part].append(value)
                peaks[name] = peak
    shape = replace(costs.LLAMA_7B, layers=layers)
    predicted = _predicted(shape, settings, removed, ranks)
    rows: dict[str, Any] = {}
    for name in subjects:
        rows[name] = {}
        for part in ("prefill", "decode"):
            base = predicted[ADAPTERS][part] / predicted[name][part]
            rows[name][part] = {
                **spread(seconds[name][part]),
                "speedup": speedup(seconds[ADAPTERS][part], seconds[name][part], base),
            }
        if any(seconds[name]["fold"]):
            rows[name]["fold"] = spread(seconds[name]["fold"])
        rows[name]["peak_bytes"] = peaks[name]
    skipping = {
        part: speedup(
            seconds[PLAIN][part] if part == "decode" else seconds[ADAPTERS][part],
            seconds[FOLDED][part],
            predicted[PLAIN][part] / predicted[FOLDED][part]
            if part == "decode"
            else rows[FOLDED][part]["speedup"]["predicted"],
        )
        for part in ("prefill", "decode")
    }
    title = f"7B width, {layers} layers, K = {removed}, {settings.prompt} tokens, {settings.dtype}, {device}"
    return {"title": title, "layers": layers, "removed": removed, "subjects": rows, "skipping_alone": skipping}


def _predicted(shape: costs.Shape, settings: BenchSettings, removed: int, ranks: costs.RankSizes) -> dict[str, Any]:
    """MACs of a prefill, bytes of a decoding step. Prefill is un-merged in all but "plain": folding follows it."""
    size, tokens = torch.finfo(getattr(torch, settings.dtype)).bits // 8, settings.prompt
    kinds = {PLAIN: (0, None, None), ADAPTERS: (0, ranks, ranks), UNMERGED: (removed, ranks, ranks)}
    kinds[FOLDED] = (removed, ranks, None)
    return {
        name: {
            "prefill": costs.prefill_macs(shape, tokens, gone, first),
            "decode": costs.decode_bytes(shape, tokens, gone, later, size),
        }
        for name, (gone, first, later) in kinds.items()
    }


def _skipper(layers: int, skip: tuple[int, ...], settings: BenchSettings, seed: int) -> Skipper:
    plan = Plan(layers=layers, skip=skip, adapter_rank=settings.adapter, pia_rank=settings.pia)
    return Skipper(plan, seed=seed)


class Subject:
    """One of the four: a prompt, then some tokens."""

    def __init__(
        self, model: LlamaForCausalLM, skipper: Skipper | None, settings: BenchSettings, folded: bool = False
    ) -> None:
        self.model, self.skipper, self.settings, self.folded = model, skipper, settings, folded
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(costs.LLAMA_7B.vocabulary, (1, settings.prompt), generator=generator).to(device)

    def once(self, clock: Clock) -> tuple[dict[str, float], int | None]:
        """Seconds of the prefill, of folding, and of one decoded token."""
        if self.skipper is None:
            return self._run(clock)
        with self.skipper(self.model):
            return self._run(clock)

    def _run(self, clock: Clock) -> tuple[dict[str, float], int | None]:
        cache, prefill, peak = clock.time(self._prefill)
        if not self.folded:
            _, decode, later = clock.time(lambda: self._decode(cache))
            return self._seconds(prefill, decode, 0.0), _most(peak, later)
        assert self.skipper is not None
        context = self.skipper.folded(cache)
        _, fold, _ = clock.time(context.__enter__)
        try:
            _, decode, later = clock.time(lambda: self._decode(cache))
        finally:
            context.__exit__(None, None, None)
        return self._seconds(prefill, decode, fold), _most(peak, later)

    def _seconds(self, prefill: float, decode: float, fold: float) -> dict[str, float]:
        return {"prefill": prefill, "decode": decode / self.settings.tokens, "fold": fold}

    def _prefill(self) -> Any:
        return self.model(input_ids=self.ids, use_cache=True, logits_to_keep=1).past_key_values

    def _decode(self, cache: Any) -> None:
        for step in range(self.settings.tokens):
            self.model(input_ids=self.ids[:, step : step + 1], past_key_values=cache, use_cache=True)


def _most(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)
