"""What an answer costs: counted FLOPs, measured seconds, bytes of the cache, peak of what lives beside the weights."""

from __future__ import annotations

import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import StoppingCriteria, StoppingCriteriaList

from efficiency.arms import Arm
from tenfold.runs.progress import Progress

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Cost:
    """Of one arm, means over the prompts; seconds are medians over rounds.

    Attributes:
        flops: of a whole answer, vision tower included: every matrix product that ran, as torch's own counter counts
            them, attention matrices in full.
        kv_bytes: of keys and values when the answer is written.
        peak_bytes: the most that lived at once beside weights and inputs; CUDA: as the allocator says.
        prefill_seconds: until the first token. decode_seconds: for one more.
    """

    flops: float
    kv_bytes: float
    peak_bytes: float
    prefill_seconds: float
    decode_seconds: float


class LiveBytes(TorchDispatchMode):
    """The peak of bytes in tensors that came into being inside the block and live at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {part.untyped_storage()._cdata for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)}
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                # A view of what was there before is nothing new.
                if storage._cdata in self._holders or storage._cdata not in before:
                    self._hold(part, storage._cdata, storage.nbytes())
        return result

    def _hold(self, tensor: Tensor, storage: int, size: int) -> None:
        if not self._holders[storage]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._holders[storage] += 1
        weakref.finalize(tensor, self._drop, storage, size)

    def _drop(self, storage: int, size: int) -> None:
        self._holders[storage] -= 1
        if not self._holders[storage]:
            del self._holders[storage]
            self.now -= size


class Ticks(StoppingCriteria):
    """Never stops; notes when each token was there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, list[float]()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
        self.tick()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def tick(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())


def _bytes(cache: Any) -> int:
    """Of keys and values that a transformers cache holds."""
    held = [part for layer in cache.layers for part in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(part.nbytes for part in held if isinstance(part, Tensor))


@torch.inference_mode()
def count(model: Any, arm: Arm, inputs: Inputs, options: Mapping[str, Any]) -> tuple[int, int, int]:
    """FLOPs, bytes of the cache and peak bytes of one answer."""
    cuda = model.device.type == "cuda"
    with arm.on(model) as running:
        if cuda:
            torch.cuda.reset_peak_memory_stats(model.device)
            resting = torch.cuda.memory_allocated(model.device)
        live = LiveBytes()
        with FlopCounterMode(display=False) as counter, live:
            output = running.generate(**inputs, **options, do_sample=False, return_dict_in_generate=True)
        peak = torch.cuda.max_memory_allocated(model.device) - resting if cuda else live.peak
        return counter.get_total_flops(), _bytes(output.past_key_values), peak


@torch.inference_mode()
def seconds(model: Any, arm: Arm, inputs: Inputs, new_tokens: int) -> tuple[float, float]:
    """Until the first token, and for one further token, of an answer of exactly so many tokens (at least 2)."""
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    with arm.on(model) as running:
        ticks = Ticks(model.device)
        ticks.tick()
        running.generate(**inputs, **length, do_sample=False, stopping_criteria=StoppingCriteriaList([ticks]))
    start, first, *_, last = ticks.times
    return first - start, (last - first) / (new_tokens - 1)


def measure(
    model: Any,
    arms: Sequence[Arm],
    prompts: Sequence[Inputs],
    *,
    options: Mapping[str, Any],
    new_tokens: int,
    rounds: int,
    progress: Progress,
) -> dict[str, Cost]:
    """Every arm's cost on the same single prompts.

    Rounds are alternated, the second one in reverse order, so that a change of the machine's speed meets all arms; one
    before them warms up and does not count.

    Args:
        options: of `generate`, for the counted answer. new_tokens: of the timed one.
    """
    counted = {arm.key: [count(model, arm, inputs, options) for inputs in prompts] for arm in progress(arms, "costs")}
    prefill: dict[str, list[float]] = defaultdict(list)
    decode: dict[str, list[float]] = defaultdict(list)
    for number in progress(range(rounds + 1), "rounds"):
        for arm in arms if number % 2 else reversed(arms):
            taken = [seconds(model, arm, inputs, new_tokens) for inputs in prompts]
            if number:
                prefill[arm.key].append(sum(first for first, _ in taken) / len(taken))
                decode[arm.key].append(sum(further for _, further in taken) / len(taken))
    means = {key: [sum(part) / len(found) for part in zip(*found, strict=True)] for key, found in counted.items()}
    return {key: Cost(*means[key], median(prefill[key]), median(decode[key])) for key in means}
