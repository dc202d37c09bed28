"""`gamma-mod bench`: a dense decoder against the same one converted, at equal weights, beside FLOPs and bytes.

Full width of Vicuna-7B, random weights, the prompt as embeddings. In converted layers a drawn choice of tokens of the
wanted size is kept, through the path that the threshold takes: the router runs, its choice is counted on the host,
tokens are gathered, computed and put back. Decoding skips by the router's own probabilities, as they come. Dense and
converted alternate; speed-ups are ratios of medians. Prefill is predicted by FLOPs, decoding by bytes read.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from gamma_mod import costs
from gamma_mod.cache import kv_lengths
from gamma_mod.conversion import convert
from gamma_mod.costs import VICUNA_7B, DecoderShape
from gamma_mod.evidence.settings import BenchSettings
from gamma_mod.forward_pass import ForwardPass, choosing
from gamma_mod.placement import place
from gamma_mod.report import Skips, measure_skips
from tenfold.runs import atomic_write_json, run, track
from tenfold.runs.clock import Clock, speedup, spread
from tenfold.runs.ranks import choose_device

CPU_LAYERS, SHARPNESS = 8, 4.0
DENSE, CONVERTED = "dense", "converted"


def run_bench(
    settings: BenchSettings, seed: int, output: Path | None, shape: DecoderShape = VICUNA_7B
) -> dict[str, Any]:
    """Measure, and write the run's record with all figures to the file ``output``.

    Args:
        shape: dimensions other than Vicuna-7B's.

    Raises:
        UserError: no CUDA device when asked for, or too few layers to convert any.
    """
    device = choose_device(settings.device)
    wanted = settings.layers or ("all" if device.type == "cuda" else str(min(CPU_LAYERS, shape.layers)))
    layers = shape.layers if wanted == "all" else min(int(wanted), shape.layers)
    small = replace(shape, layers=layers)
    with run("gamma_mod", "bench", config=settings.model_dump(mode="json"), seed=seed, output=None) as current:
        bench = Bench(settings, small, device, seed)
        current.metrics |= {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "host": {"layers": layers, "of": shape.layers, "tokens": settings.tokens, "dtype": settings.dtype},
            "converted": list(bench.layers),
            "batch": settings.batch,
        }
        current.metrics |= bench.measure()
        if settings.training:
            current.metrics["training"] = bench.train()
    if output is not None and current.record is not None:
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics


@dataclass
class _Rounds:
    """Seconds of every round that counts, and the peak memory on CUDA."""

    prefill: list[float]
    decode: list[float]
    peak: int | None = None


class Bench:
    """One decoder, one prompt, dense and converted in turn."""

    def __init__(self, settings: BenchSettings, shape: DecoderShape, device: torch.device, seed: int) -> None:
        self.settings, self.shape, self.device, self.seed = settings, shape, device, seed
        self.clock = Clock(device)
        self.layers = place("arank_mod", shape.layers)
        self.model: Any = build(shape, getattr(torch, settings.dtype), device, seed)
        generator = torch.Generator().manual_seed(seed)
        embeds = torch.randn(settings.batch, settings.tokens, shape.hidden, generator=generator)
        self.embeds = embeds.to(device, self.model.dtype)
        kept = max(1, int(settings.tokens * (1 - settings.skip)))
        order = torch.rand(settings.batch, settings.tokens, generator=generator).argsort(1)
        self.mask = (order < kept).to(device)
        self.skips = Skips()

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        """Prefill and decoding; the first round does not count."""
        rounds = {DENSE: _Rounds([], []), CONVERTED: _Rounds([], [])}
        lengths: list[list[int]] = []
        for number in track(range(1 + self.settings.repeats), "rounds"):
            for variant, found in rounds.items():
                self._become(variant)
                self.skips = Skips()
                prefill, decode, peak, cache = self._once()
                if variant == CONVERTED:
                    lengths = kv_lengths(cache)
                if number:
                    found.prefill.append(prefill)
                    found.decode.append(decode)
                    found.peak = peak
        self._become(DENSE)
        return self._figures(rounds, [row[0] for row in lengths])

    def train(self) -> dict[str, Any]:
        """Forward and backward passes at a routing ratio of 0.5, with gradient checkpointing; dense and converted."""
        seconds: dict[str, list[float]] = {DENSE: [], CONVERTED: []}
        tokens = self.settings.tokens
        routable = torch.zeros_like(self.mask)
        routable[:, : round(tokens * 1059 / 1400)] = True
        labels = torch.full(self.mask.shape, -100, device=self.device)
        labels[:, -8:] = 1
        for number in range(1 + self.settings.repeats):
            for variant in seconds:
                self._become(variant)
                self.model.train()
                self.model.gradient_checkpointing_enable({"use_reentrant": False})
                extra = {"routable": routable} if variant == CONVERTED else {}

                def step(extra: dict[str, Tensor] = extra) -> None:
                    self.model(inputs_embeds=self.embeds, labels=labels, use_cache=False, **extra).loss.backward()

                _, taken, _ = self.clock.time(step)
                self.model.zero_grad(set_to_none=True)
                if number:
                    seconds[variant].append(taken)
        self.model.gradient_checkpointing_disable()
        self.model.eval()
        self._become(DENSE)
        kept = costs.budget(tokens, int(routable[0].sum()), 0.5)
        flops = {DENSE: self._flops(tokens), CONVERTED: self._flops(kept)}
        found = speedup(seconds[DENSE], seconds[CONVERTED], flops[DENSE] / flops[CONVERTED])
        return found | {variant: spread(values) for variant, values in seconds.items()}

    def _become(self, variant: str) -> None:
        converted = hasattr(self.model, "gamma_mod")
        if variant == DENSE and converted:
            self.model.gamma_mod.remove()
        if variant == CONVERTED and not converted:
            convert(self.model, self.layers, seed=self.seed)
            # Probabilities on either side of a half: about every second layer takes a generated token.
            self.model.gamma_mod.router.weight.data.mul_(SHARPNESS)

    def _once(self) -> tuple[float, float, int | None, Any]:
        """Seconds of a prefill and of a step, peak memory, and the cache."""
        cache = DynamicCache(config=self.model.config)

        def choose(_layer: int, _p: Tensor, _run: ForwardPass) -> tuple[Tensor, None]:
            return self.mask, None

        chosen = choosing(choose) if hasattr(self.model, "gamma_mod") else nullcontext()
        with measure_skips() as self.skips, chosen:
            output, prefill, peak = self.clock.time(
                lambda: self.model(inputs_embeds=self.embeds, past_key_values=cache, logits_to_keep=1)
            )
            token = output.logits[:, -1:].argmax(-1)

            def decode() -> None:
                following = token
                for _ in range(self.settings.decode_tokens):
                    following = self.model(input_ids=following, past_key_values=cache).logits[:, -1:].argmax(-1)

            _, seconds, _ = self.clock.time(decode)
        return prefill, seconds / self.settings.decode_tokens, peak, cache

    def _flops(self, kept: int) -> int:
        """Of a prompt, the head on its last row."""
        counts = [kept if layer in self.layers else self.settings.tokens for layer in range(self.shape.layers)]
        head = 2 * self.shape.hidden * self.shape.vocabulary
        return self.settings.batch * (costs.prefill_flops(counts, self.shape) + head)

    def _bytes(self, lengths: list[int]) -> tuple[float, float]:
        """Read by a step on average: dense, and converted as its layers executed."""
        steps, size = self.settings.decode_tokens, self.model.dtype.itemsize
        dense = converted = 0
        for step in range(steps):
            whole = self.settings.tokens + step + 1
            every = [True] * self.shape.layers
            dense += costs.decode_bytes(every, [whole] * self.shape.layers, self.shape, size)
            executed = [
                any(self.skips.counts["decode", layer][step]) if layer in self.layers else True
                for layer in range(self.shape.layers)
            ]
            held = [lengths[layer] if layer in self.layers else whole for layer in range(self.shape.layers)]
            converted += costs.decode_bytes(executed, held, self.shape, size)
        return dense / steps, converted / steps

    def _figures(self, rounds: dict[str, _Rounds], lengths: list[int]) -> dict[str, Any]:
        dense, converted = rounds[DENSE], rounds[CONVERTED]
        kept = int(self.mask[0].sum())
        read = self._bytes(lengths)
        prefill = speedup(dense.prefill, converted.prefill, self._flops(self.settings.tokens) / self._flops(kept))
        decode = speedup(dense.decode, converted.decode, read[0] / read[1])
        return {
            "prefill": prefill | {name: spread(one.prefill) for name, one in rounds.items()},
            "decode": decode | {name: spread(one.decode) for name, one in rounds.items()},
            "skip": {"prefill": self.skips.prefill, "decode": self.skips.decode},
            "peak_bytes": {name: one.peak for name, one in rounds.items()},
        }


def build(shape: DecoderShape, dtype: torch.dtype, device: torch.device, seed: int) -> LlamaForCausalLM:
    """A decoder of these dimensions with random weights: one layer is drawn, the others repeat it."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = model.to_empty(device=device).eval()
    # The rotary table is a buffer: it was left empty with the weights.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    generator, drawn = torch.Generator(device).manual_seed(seed), dict[str, Tensor]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Layers are alike but lie apart in memory: time depends on neither, and seven billion draws take minutes.
            kind = re.sub(r"\.\d+\.", ".N.", name)
            if kind in drawn:
                parameter.copy_(drawn[kind])
            elif parameter.ndim > 1:
                drawn[kind] = parameter.uniform_(-0.035, 0.035, generator=generator)
            else:
                drawn[kind] = parameter.fill_(1.0)
    return model
