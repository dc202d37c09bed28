"""`fitprune bench`: what pruning really saves, beside what the FLOPs promise.

The host is LLaVA-1.5-7B's decoder at full width with random weights (time does not depend on what the weights say):
all 32 layers on CUDA, 4 on the CPU. The prompt is LLaVA's: 35 tokens of prefix, 576 visual tokens, 65 of text. All
variants run in one process, in turn within each round, so that a change of the machine's speed meets all of them:

- unpruned, fused attention (SDPA): the baseline;
- pruned: tokens leave before ``o_proj``, as the plain pre-norm block allows;
- pruned at the layer's output: the generic path, for blocks of another kind;
- unpruned, eager attention: how the official code runs its host;
- other pruners (`fitprune.evaluation.baselines`), each at the visual FLOPs that the recipe saves.

A decoder of fewer layers takes a resampled recipe: layer ``j`` of ``L`` removes what the released recipe removes in
its layers ``32 j / L`` to ``32 (j + 1) / L - 1`` together. Predicted speed-ups are for exactly what runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from fitprune import costs
from fitprune.attachment import Attachment
from fitprune.evaluation.baselines import METHODS, FitPrune, solve
from fitprune.evaluation.pruners import Method
from fitprune.evidence.search_speed import Scores, compare_selections, drawn_scores
from fitprune.evidence.settings import BenchSettings
from fitprune.pruner import RecipeSelection
from fitprune.recipe import Recipe
from fitprune.rules import Observation
from tenfold import UserError
from tenfold.runs import atomic_write_json, run, track
from tenfold.runs.clock import Clock
from tenfold.runs.ranks import choose_device

Result = TypeVar("Result")

UNPRUNED, PRUNED, GENERIC, EAGER = "unpruned", "pruned", "pruned at the layer's output", "unpruned, eager"
CPU_LAYERS = 4
# The search is timed at the prompt's number of visual tokens and at this multiple: LLaVA-NeXT's 2,880 for 576.
LARGER = 5


@dataclass(frozen=True)
class Host:
    """The dimensions of the measured model, and of its prompt.

    Attributes:
        shape: of the decoder; the number of layers is that of the settings.
        vocabulary: rows of the language-model head.
        prefix, visual, text: tokens before the image, of the image, and after it.
    """

    shape: costs.DecoderShape = costs.LLAVA_7B
    vocabulary: int = 32000
    prefix: int = 35
    visual: int = 576
    text: int = 65

    @property
    def tokens(self) -> int:
        return self.prefix + self.visual + self.text


def run_bench(settings: BenchSettings, seed: int, output: Path | None, host: Host | None = None) -> dict[str, Any]:
    """Measure, and write the run's record with all figures to the file ``output``.

    Args:
        host: dimensions other than LLaVA-1.5-7B's.

    Raises:
        UserError: no CUDA device when asked for, or no released recipe of that percentage.
    """
    host = host or Host()
    device = choose_device(settings.device)
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
            "knobs": {name: method.knobs for name, method in bench.peers.items()},
            "left_out": bench.left_out,
            "recipe": {
                "released": f"llava-1.5-7b:{settings.percent}",
                "remove": list(recipe.remove),
                "visual_reduction": costs.reduction(recipe.remove, host.visual, host.shape),
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


def peers(
    methods: Sequence[str], recipe: Recipe, shape: costs.DecoderShape
) -> tuple[dict[str, Method], dict[str, str]]:
    """Methods solved to the visual FLOPs that a recipe saves, and which cannot save so much, with the reason.

    Raises:
        UserError: an unknown method.
    """
    target = costs.reduction(recipe.remove, recipe.visual_tokens, shape)
    found: dict[str, Method] = {}
    left_out: dict[str, str] = {}
    for name in methods:
        if name not in METHODS:
            raise UserError("no such method", name, ", ".join(METHODS))
        try:
            found[name] = solve(name, target, shape, recipe.visual_tokens, recipe=recipe)
        except UserError as error:
            left_out[name] = str(error)
    return found, left_out


class Bench:
    """One model, one prompt, and the variants that are measured on them."""

    def __init__(self, settings: BenchSettings, host: Host, recipe: Recipe, device: torch.device, seed: int) -> None:
        self.settings, self.host, self.recipe = settings, host, recipe
        self.clock = Clock(device)
        self.peers, self.left_out = peers(settings.methods, recipe, host.shape)
        self.model = build(host, getattr(torch, settings.dtype), device, seed)
        generator = torch.Generator().manual_seed(seed)
        embeds = torch.randn(settings.batch, host.tokens, host.shape.hidden, generator=generator)
        self.embeds = (0.02 * embeds).to(device, self.model.dtype)
        self.visual = torch.zeros(settings.batch, host.tokens, dtype=torch.bool)
        self.visual[:, host.prefix : host.prefix + host.visual] = True

    @property
    def variants(self) -> list[str]:
        return [UNPRUNED, PRUNED, GENERIC, EAGER, *self.peers]

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        """Prefill and decode of every variant, in turn within each round; the first round does not count."""
        prefills: dict[str, list[float]] = {variant: [] for variant in self.variants}
        decodes: dict[str, list[float]] = {variant: [] for variant in self.variants}
        peaks: dict[str, int | None] = dict.fromkeys(self.variants)
        scoring: list[float] = []
        for number in track(range(1 + self.settings.repeats), "rounds"):
            for variant in self.variants:
                prefill, decode, peaks[variant] = self._once(variant)
                if number:
                    prefills[variant].append(prefill)
                    decodes[variant].append(decode)
            if number:
                scoring.append(self._scoring())
        return self._figures(prefills, decodes, peaks, scoring)

    @torch.inference_mode()
    def search(self) -> dict[str, Any]:
        """The recipe search's selection of candidates against its definition as a loop, on this model's scores.

        Raises:
            AssertionError: the two select different tokens.
        """
        observer = Scores()
        attachment = Attachment(self.model, observer, self.visual)
        try:
            self._prefill()
        finally:
            attachment.detach()
        visual = self.visual[0].to(self.embeds.device)
        figures = compare_selections(torch.stack(observer.scores), visual, self.clock.time)
        larger = drawn_scores(LARGER * self.host.visual, len(observer.scores), self.embeds.device)
        figures["larger"] = compare_selections(larger, torch.ones_like(larger[0, 0], dtype=torch.bool), self.clock.time)
        return figures

    def _once(self, variant: str) -> tuple[float, float, int | None]:
        """Seconds of a prefill, seconds per generated token, and the prefill's peak memory."""
        self.model.set_attn_implementation("eager" if variant == EAGER else "sdpa")
        with self._pruned(variant):
            output, prefill, peak = self.clock.time(self._prefill)
            cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
            # Said, not left to be counted: a prompt that was cut before layer 0 does not show its length.
            positions = torch.arange(self.host.tokens, self.host.tokens + self.settings.decode_tokens)
            positions = positions.to(token.device).expand(len(token), -1)

            def decode() -> None:
                following = token
                for step in range(self.settings.decode_tokens):
                    output = self.model(
                        input_ids=following,
                        position_ids=positions[:, step : step + 1],
                        past_key_values=cache,
                        use_cache=True,
                    )
                    following = output.logits[:, -1:].argmax(-1)

            _, seconds, _ = self.clock.time(decode)
        return prefill, seconds / self.settings.decode_tokens, peak

    def _scoring(self) -> float:
        """Seconds that one pruned prefill spends on scores and selection, each layer timed on its own."""
        self.model.set_attn_implementation("sdpa")
        selection = TimedSelection(self.recipe, self.clock)
        attachment = Attachment(self.model, selection, self.visual)
        try:
            self._prefill()
        finally:
            attachment.detach()
        return selection.seconds

    def _prefill(self) -> Any:
        return self.model(inputs_embeds=self.embeds, use_cache=True, logits_to_keep=1)

    def _pruned(self, variant: str) -> AbstractContextManager[Any]:
        method = self.method(variant)
        return nullcontext() if method is None else method(self.model, visual_mask=self.visual)

    def method(self, variant: str) -> Method | None:
        """What prunes in a variant; None where nothing does."""
        ours = {UNPRUNED: None, EAGER: None, PRUNED: FitPrune(self.recipe), GENERIC: AtOutput(self.recipe)}
        return self.peers[variant] if variant in self.peers else ours[variant]

    def _figures(
        self,
        prefills: dict[str, list[float]],
        decodes: dict[str, list[float]],
        peaks: dict[str, int | None],
        scoring: list[float],
    ) -> dict[str, Any]:
        predicted = {variant: self._prefill_flops(variant) for variant in self.variants}
        moved = {variant: self._decode_bytes(variant) for variant in self.variants}
        figures: dict[str, Any] = {"prefill": {}, "decode": {}}
        for variant in self.variants:
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
        host, method, left = self.host, self.method(variant), self._left(variant)
        macs = costs.true_prefill_macs(
            [before - after for before, after in pairwise(left)],
            left[0],
            host.prefix + host.text,
            host.shape,
            drops_before_projection=method is None or not method.at_output,
            score_rows=host.visual + host.text if scoring else None,
        )
        return 2 * self.settings.batch * (macs + host.shape.hidden * host.vocabulary)

    def _decode_bytes(self, variant: str) -> int:
        """Bytes read per generated token, on average: all weights once, and every row's KV cache."""
        left = self._left(variant)[:-1]
        fixed = self.host.prefix + self.host.text + (self.settings.decode_tokens + 1) // 2
        size = self.model.dtype.itemsize
        decoder = self.model.get_decoder().layers.parameters()
        weights = sum(parameter.numel() for parameter in decoder) + self.host.shape.hidden * self.host.vocabulary
        cache = costs.kv_bytes([tokens + fixed for tokens in left], self.host.shape, size)
        return weights * size + self.settings.batch * cache

    def _left(self, variant: str) -> list[int]:
        method, layers = self.method(variant), self.host.shape.layers
        return [self.host.visual] * (layers + 1) if method is None else method.left(layers, self.host.visual)


@dataclass
class AtOutput(FitPrune):
    """The recipe by the generic path, for blocks that are not plain pre-norm."""

    at_output: ClassVar[bool] = True


class TimedSelection(RecipeSelection):
    """The recipe's selection with a clock around it."""

    def __init__(self, recipe: Recipe, clock: Clock) -> None:
        super().__init__(recipe)
        self._clock = clock
        self.seconds = 0.0

    def remove(self, seen: Observation) -> tuple[Tensor, tuple[int, ...]]:
        answer, seconds, _ = self._clock.time(lambda: super(TimedSelection, self).remove(seen))
        self.seconds += seconds
        return answer


def _spread(values: Sequence[float], unit: float) -> dict[str, float]:
    name = "seconds" if math.isclose(unit, 1.0) else "milliseconds"
    return {name: unit * median(values), "fastest": unit * min(values), "slowest": unit * max(values)}


def _speedup(seconds: dict[str, list[float]], cost: dict[str, int], variant: str) -> dict[str, float]:
    """Against the unpruned model with fused attention: by the cost that is counted, as measured, and their ratio."""
    predicted = cost[UNPRUNED] / cost[variant]
    realised = median(seconds[UNPRUNED]) / median(seconds[variant])
    return {"predicted": predicted, "realised": realised, "realised_over_predicted": realised / predicted}
