"""`fitprune bench`: what pruning really saves, beside what the FLOPs promise.

The host is LLaVA-1.5-7B's decoder at full width with random weights (time does not depend on what the weights say):
all 32 layers on CUDA, 4 on the CPU. The prompt is LLaVA's: 35 tokens of prefix, 576 visual tokens, 65 of text. All
variants run in one process, in turn within each round, so that a change of the machine's speed meets all of them:

- unpruned, fused attention (SDPA): the baseline;
- pruned: tokens leave before ``o_proj``, as the plain pre-norm block allows;
- pruned at the layer's output: the generic path, for blocks of another kind;
- unpruned, eager attention: how the official code runs its host.

A decoder of fewer layers takes a resampled recipe: layer ``j`` of ``L`` removes what the released recipe removes in
its layers ``32 j / L`` to ``32 (j + 1) / L - 1`` together. Predicted speed-ups are for exactly what runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from fitprune import flops
from fitprune.attachment import Attachment, Selection
from fitprune.loading import find_device
from fitprune.pruner import RecipeSelection
from fitprune.ragged import Tokens
from fitprune.recipe import Recipe
from fitprune.search import candidates
from fitprune.settings import BenchSettings
from fitprune.statistics import AttentionMass, ascending, token_mass
from tenfold.runs import atomic_write_json, run, track

Result = TypeVar("Result")

UNPRUNED, PRUNED, GENERIC, EAGER = "unpruned", "pruned", "pruned at the layer's output", "unpruned, eager"
VARIANTS = (UNPRUNED, PRUNED, GENERIC, EAGER)
CPU_LAYERS = 4
# Tolerances of the bisection at which the search's two ways of selecting candidates are compared.
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Host:
    """The dimensions of the measured model, and of its prompt.

    Attributes:
        shape: of the decoder; the number of layers is that of the settings.
        vocabulary: rows of the language-model head.
        prefix, visual, text: tokens before the image, of the image, and after it.
    """

    shape: flops.DecoderShape = flops.LLAVA_7B
    vocabulary: int = 32000
    prefix: int = 35
    visual: int = 576
    text: int = 65

    @property
    def tokens(self) -> int:
        return self.prefix + self.visual + self.text


class Clock:
    """Times work on a device: CUDA events there, the wall clock on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(self, work: Callable[[], Result]) -> tuple[Result, float, int | None]:
        """What the work returns, its seconds, and the peak of allocated memory in bytes (CUDA only)."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            result = work()
            return result, time.perf_counter() - start, None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self.device):
            start.record()
            result = work()
            stop.record()
        torch.cuda.synchronize(self.device)
        return result, start.elapsed_time(stop) / 1000, torch.cuda.max_memory_allocated(self.device)


def run_bench(settings: BenchSettings, seed: int, output: Path | None, host: Host | None = None) -> dict[str, Any]:
    """Measure, and write the run's record with all figures to the file ``output``.

    Args:
        host: dimensions other than LLaVA-1.5-7B's.

    Raises:
        UserError: no CUDA device when asked for, or no released recipe of that percentage.
    """
    host = host or Host()
    device = find_device(settings.device)
    layers = settings.layers or (host.shape.layers if device.type == "cuda" else min(CPU_LAYERS, host.shape.layers))
    host = replace(host, shape=replace(host.shape, layers=layers))
    released = Recipe.released("llava-1.5-7b", settings.percent)
    recipe = Recipe(f"llava-1.5-7b, {layers} layers", layers, released.visual_tokens, resample(released.remove, layers))
    recipe = recipe.scale(host.visual)
    with run("fitprune", "bench", config=settings.model_dump(), seed=seed, output=None) as current:
        bench = Bench(settings, host, recipe, device, seed)
        current.metrics |= {
            "host": {
                "layers": layers,
                "of": released.num_layers,
                "hidden": host.shape.hidden,
                "dtype": settings.dtype,
                "batch": settings.batch,
                "tokens": {"prefix": host.prefix, "visual": host.visual, "text": host.text},
            },
            "recipe": {
                "released": f"llava-1.5-7b:{settings.percent}",
                "remove": list(recipe.remove),
                "visual_reduction": flops.reduction(recipe.remove, host.visual, host.shape),
            },
        }
        current.metrics |= bench.measure()
        current.metrics["search"] = bench.search()
    if output is not None and current.record is not None:
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics


def resample(remove: Sequence[int], layers: int) -> tuple[int, ...]:
    """A recipe for fewer layers: each removes what the layers that it stands for remove together."""
    bounds = [len(remove) * layer // layers for layer in range(layers + 1)]
    return tuple(sum(remove[start:stop]) for start, stop in pairwise(bounds))


def build(host: Host, dtype: torch.dtype, device: torch.device, seed: int) -> LlavaForConditionalGeneration:
    """A LLaVA with the decoder of these dimensions, random weights, and a vision tower that is not used."""
    shape = host.shape
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=host.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=4096,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2
        ),
        image_token_index=host.vocabulary,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()


class Bench:
    """One model, one prompt, and the variants that are measured on them."""

    def __init__(self, settings: BenchSettings, host: Host, recipe: Recipe, device: torch.device, seed: int) -> None:
        self.settings, self.host, self.recipe = settings, host, recipe
        self.clock = Clock(device)
        self.model = build(host, getattr(torch, settings.dtype), device, seed)
        generator = torch.Generator().manual_seed(seed)
        embeds = torch.randn(settings.batch, host.tokens, host.shape.hidden, generator=generator)
        self.embeds = (0.02 * embeds).to(device, self.model.dtype)
        self.visual = torch.zeros(settings.batch, host.tokens, dtype=torch.bool)
        self.visual[:, host.prefix : host.prefix + host.visual] = True

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        """Prefill and decode of every variant, in turn within each round; the first round does not count."""
        prefills: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        decodes: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        peaks: dict[str, int | None] = dict.fromkeys(VARIANTS)
        scoring: list[float] = []
        for number in track(range(1 + self.settings.repeats), "rounds"):
            for variant in VARIANTS:
                prefill, decode, peaks[variant] = self._once(variant)
                if number:
                    prefills[variant].append(prefill)
                    decodes[variant].append(decode)
            if number:
                scoring.append(self._scoring())
        return self._figures(prefills, decodes, peaks, scoring)

    def search(self) -> dict[str, Any]:
        """The recipe search's selection of candidates against its definition as a loop, on this model's scores.

        Raises:
            AssertionError: the two select different tokens.
        """
        observer = Scores()
        with torch.inference_mode(), self._attached(observer):
            self._prefill()
        visual = self.visual[0].to(self.embeds.device)
        ours, loop = [], []
        for mass in observer.masses:
            for score in (mass.cross[0], mass.self_[0]):
                for alpha in ALPHAS:
                    kept = float(score[visual].sum()) * (1 - alpha)
                    fast, seconds, _ = self.clock.time(lambda: candidates(score, visual, kept))  # noqa: B023
                    ours.append(seconds)
                    slow, seconds, _ = self.clock.time(lambda: candidates_by_loop(score, visual, kept))  # noqa: B023
                    loop.append(seconds)
                    assert torch.equal(fast, slow), "two ways of selecting candidates disagree"
        return {
            "selections": len(ours),
            "visual_tokens": self.host.visual,
            "milliseconds": 1e3 * median(ours),
            "loop_milliseconds": 1e3 * median(loop),
            "ratio": median(loop) / median(ours),
        }

    def _once(self, variant: str) -> tuple[float, float, int | None]:
        """Seconds of a prefill, seconds per generated token, and the prefill's peak memory."""
        self.model.set_attn_implementation("eager" if variant == EAGER else "sdpa")
        with self._attached(self._selection(variant)):
            output, prefill, peak = self.clock.time(self._prefill)
            cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)

            def decode() -> None:
                following = token
                for _ in range(self.settings.decode_tokens):
                    step = self.model(input_ids=following, past_key_values=cache, use_cache=True)
                    following = step.logits[:, -1:].argmax(-1)

            _, seconds, _ = self.clock.time(decode)
        return prefill, seconds / self.settings.decode_tokens, peak

    def _scoring(self) -> float:
        """Seconds that one pruned prefill spends on scores and selection, each layer timed on its own."""
        self.model.set_attn_implementation("sdpa")
        selection = TimedSelection(self.recipe, self.clock)
        with self._attached(selection):
            self._prefill()
        return selection.seconds

    def _prefill(self) -> Any:
        return self.model(inputs_embeds=self.embeds, use_cache=True, logits_to_keep=1)

    def _selection(self, variant: str) -> RecipeSelection | None:
        pruned = variant in (PRUNED, GENERIC)
        return RecipeSelection(self.recipe, at_output=variant == GENERIC) if pruned else None

    @contextmanager
    def _attached(self, selection: Selection | None) -> Iterator[None]:
        if selection is None:
            yield
            return
        attachment = Attachment(self.model, selection, self.visual)
        try:
            yield
        finally:
            attachment.detach()

    def _figures(
        self,
        prefills: dict[str, list[float]],
        decodes: dict[str, list[float]],
        peaks: dict[str, int | None],
        scoring: list[float],
    ) -> dict[str, Any]:
        predicted = {variant: self._prefill_flops(variant) for variant in VARIANTS}
        moved = {variant: self._decode_bytes(variant) for variant in VARIANTS}
        figures: dict[str, Any] = {"prefill": {}, "decode": {}}
        for variant in VARIANTS:
            figures["prefill"][variant] = {
                **_spread(prefills[variant], 1.0),
                "flops": predicted[variant],
                "peak_bytes": peaks[variant],
                **_speedup(prefills, predicted, variant),
            }
            figures["decode"][variant] = {
                **_spread(decodes[variant], 1000.0),
                "bytes": moved[variant],
                **_speedup(decodes, moved, variant),
            }
        figures["scoring"] = {
            **_spread(scoring, 1.0),
            "flops": self._prefill_flops(PRUNED, scoring=True) - predicted[PRUNED],
            "share_of_pruned_prefill": median(scoring) / median(prefills[PRUNED]),
        }
        return figures

    def _prefill_flops(self, variant: str, scoring: bool = False) -> int:
        """FLOPs of the matrix products that run, the head on the last row; scoring counts on its own."""
        host = self.host
        remove = self._removals(variant)
        macs = flops.true_prefill_macs(
            remove,
            host.visual,
            host.prefix + host.text,
            host.shape,
            drops_before_projection=variant != GENERIC,
            score_rows=host.visual + host.text if scoring else None,
        )
        return 2 * self.settings.batch * (macs + host.shape.hidden * host.vocabulary)

    def _decode_bytes(self, variant: str) -> int:
        """Bytes read per generated token, on average: all weights once, and every row's KV cache."""
        left = flops.alive(self._removals(variant), self.host.visual)[:-1]
        fixed = self.host.prefix + self.host.text + (self.settings.decode_tokens + 1) // 2
        size = self.model.dtype.itemsize
        decoder = self.model.get_decoder().layers.parameters()
        weights = sum(parameter.numel() for parameter in decoder) + self.host.shape.hidden * self.host.vocabulary
        cache = flops.kv_bytes([tokens + fixed for tokens in left], self.host.shape, size)
        return weights * size + self.settings.batch * cache

    def _removals(self, variant: str) -> Sequence[int]:
        return self.recipe.remove if variant in (PRUNED, GENERIC) else (0,) * self.recipe.num_layers


class TimedSelection(RecipeSelection):
    """The recipe's selection with a clock around it."""

    def __init__(self, recipe: Recipe, clock: Clock) -> None:
        super().__init__(recipe)
        self._clock = clock
        self.seconds = 0.0

    def remove(self, *args: Any) -> tuple[Tensor, tuple[int, ...]]:
        answer, seconds, _ = self._clock.time(lambda: super(TimedSelection, self).remove(*args))
        self.seconds += seconds
        return answer


class Scores(Selection):
    """Keeps the attention masses of every layer of the unpruned model."""

    def __init__(self) -> None:
        self.masses: list[AttentionMass] = []

    def remove(
        self, layer: int, tokens: Tokens, query: Tensor, key: Tensor, scaling: float, real_keys: Tensor | None
    ) -> None:
        self.masses.append(token_mass(tokens, query, key, scaling, real_keys))


def candidates_by_loop(score: Tensor, visual: Tensor, kept_mass: float) -> Tensor:
    """`fitprune.search.candidates` as it is defined: for every k the k smallest scores are summed anew, O(V^2)."""
    order = ascending(score[None], visual[None])[0, : int(visual.sum())]
    ordered = score[order].double()
    total, count = ordered.sum(), len(order) - 1
    for k in range(len(order)):
        if total - ordered[:k].sum() < kept_mass:
            count = max(k - 1, 0)
            break
    chosen = torch.zeros_like(visual)
    chosen[order[:count]] = True
    return chosen


def _spread(values: Sequence[float], unit: float) -> dict[str, float]:
    name = "seconds" if math.isclose(unit, 1.0) else "milliseconds"
    return {name: unit * median(values), "fastest": unit * min(values), "slowest": unit * max(values)}


def _speedup(seconds: dict[str, list[float]], cost: dict[str, int], variant: str) -> dict[str, float]:
    """Against the unpruned model with fused attention: by the cost that is counted, as measured, and their ratio."""
    predicted = cost[UNPRUNED] / cost[variant]
    realised = median(seconds[UNPRUNED]) / median(seconds[variant])
    return {"predicted": predicted, "realised": realised, "realised_over_predicted": realised / predicted}
