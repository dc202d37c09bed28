"""`eas bench --host lavin`: what the paper's 2.2x is made of, measured in one run at full width with random weights.

    released    K = 0, adapters beside the decoder as the authors run them (LaVIN): float32, an expert a convolution
    unmerged    K = 0, the same adapters as this package runs them
    folded_0    K = 0, folded: nothing skipped, nothing left of the adapters
    folded      K skipped, folded (LaVIN-EAS)

Folding is a request's and is timed with its prefill. A request is the prefill and 64 tokens, which is how many the
authors generate. ``released / folded`` is the paper's ratio; ``released / folded_0`` is what folding gives and
``folded_0 / folded`` what skipping gives: the two multiply to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eas import costs
from eas.adapters import Adapter
from eas.checkpoints.lavin_keys import is_method
from eas.evidence.settings import BenchSettings
from eas.lavin import LAVIN_7B, Lavin, LavinConfig
from eas.lavin_decoding import MERGED, UNMERGED, Prompt, _Run, folding
from tenfold.random_weights import random_weight
from tenfold.runs.clock import Clock, speedup, spread

RELEASED, UNMERGED_0, FOLDED_0, FOLDED = "released", "unmerged", "folded_0", "folded"
FULL_LAYERS, CPU_LAYERS, SHARE, GENERATED = 32, 4, 12 / 32, 64
FULL = LAVIN_7B  # a test puts a smaller one here


def released_forward(adapter: Adapter, tokens: Tensor, router: Tensor) -> Tensor:
    """`Adapter.forward` in the authors' steps: channels first, float32, each expert's convolution by itself."""
    channels = tokens.float().transpose(1, 2)  # [batch, width, tokens]
    hidden = F.conv1d(channels, adapter.A.weight[..., None].float(), adapter.A.bias.float())
    experts = [
        F.conv1d(hidden, one.weight[..., None].float(), one.bias.float(), groups=adapter.groups)
        for one in (adapter.B, adapter.D)
    ]
    mixed = sum(router[:, number, None, None] * one for number, one in enumerate(experts))
    return (channels + adapter.scale * mixed).transpose(1, 2).to(tokens.dtype)


def build(settings: BenchSettings, device: torch.device, config: LavinConfig) -> Lavin:
    """The model with random weights, adapters in float32, drawn on its device."""
    with torch.device("meta"):
        model = Lavin(config, both=True)
    dtype = getattr(torch, settings.dtype)
    for name, parameter in list(model.named_parameters()):
        holder, _, leaf = name.rpartition(".")
        made = random_weight(name, parameter.shape, torch.float32 if is_method(name) else dtype).to(device)
        setattr(model.get_submodule(holder), leaf, torch.nn.Parameter(made, requires_grad=False))
    return model.eval()


@torch.no_grad()
def measure(settings: BenchSettings, device: torch.device) -> dict[str, Any]:
    """Seconds of prefill (with folding) and of a decoded token, medians over alternated rounds."""
    layers = settings.layers or (FULL_LAYERS if device.type == "cuda" else CPU_LAYERS)
    removed = settings.removed or max(1, round(SHARE * layers))
    model = build(settings, device, replace(FULL, layers=layers))
    skip = tuple(range(layers - removed, layers))
    subjects = {RELEASED: (), UNMERGED_0: (), FOLDED_0: (), FOLDED: skip}
    clock = Clock(device)
    seconds: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in subjects}
    peaks: dict[str, int | None] = {}
    for number in range(settings.rounds + 1):
        for name, gone in subjects.items():
            model.set_skip(gone)
            found, peak = _once(model, name, settings, clock)
            if number:
                for part, value in found.items():
                    seconds[name][part].append(value)
                peaks[name] = peak
    predicted = _predicted(model.config, settings, removed)
    rows: dict[str, Any] = {}
    for name in subjects:
        rows[name] = {"peak_bytes": peaks[name], "request_seconds": _request(seconds[name])}
        for part in ("prefill", "decode"):
            ratio = predicted[RELEASED][part] / predicted[name][part]
            rows[name][part] = {
                **spread(seconds[name][part]),
                "speedup": speedup(seconds[RELEASED][part], seconds[name][part], ratio),
            }
    title = f"LaVIN 7B width, {layers} layers, K = {removed}, {settings.prompt} tokens, {settings.dtype}, {device}"
    return {"title": title, "layers": layers, "removed": removed, "subjects": rows, **_parts(seconds)}


def _request(one: dict[str, list[float]]) -> float:
    return median(one["prefill"]) + GENERATED * median(one["decode"])


def _parts(seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The paper's ratio by its parts, of a decoded token and of a request."""
    pairs = {"paper": (RELEASED, FOLDED), "folding": (RELEASED, FOLDED_0), "skipping": (FOLDED_0, FOLDED)}
    ratios = {
        name: {
            "decode": median(seconds[first]["decode"]) / median(seconds[second]["decode"]),
            "request": _request(seconds[first]) / _request(seconds[second]),
        }
        for name, (first, second) in pairs.items()
    }
    return {"ratios": ratios}


def _predicted(config: LavinConfig, settings: BenchSettings, removed: int) -> dict[str, Any]:
    """MACs of a prefill and bytes of a decoding step; folding itself is not in the MACs of the prefill."""
    shape = costs.Shape(config.width, config.ffn, config.layers, config.vocabulary, config.heads, config.heads)
    ranks = costs.RankSizes(config.adapter_rank, config.pia_rank, config.groups)
    size, tokens = torch.finfo(getattr(torch, settings.dtype)).bits // 8, settings.prompt
    kinds = {RELEASED: (0, ranks), UNMERGED_0: (0, ranks), FOLDED_0: (0, None), FOLDED: (removed, None)}
    return {
        name: {
            "prefill": costs.prefill_macs(shape, tokens, gone, one),
            "decode": costs.decode_bytes(shape, tokens, gone, one, size),
        }
        for name, (gone, one) in kinds.items()
    }


def _once(model: Lavin, name: str, settings: BenchSettings, clock: Clock) -> tuple[dict[str, float], int | None]:
    config = model.config
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocabulary, (settings.prompt,), generator=generator)
    device, dtype = model.tok_embeddings.weight.device, model.backbone.visual.class_embedding.dtype
    images = torch.zeros(1, 3, config.size, config.size, device=device, dtype=dtype)
    folded = name in (FOLDED, FOLDED_0)
    with ExitStack() as stack:
        stack.enter_context(folding(model) if folded else _as_released(model, name == RELEASED))
        run = _Run(
            model,
            [Prompt(ids)],
            images,
            settings.tokens,
            MERGED if folded else UNMERGED,
            None,
            "exact" if folded else None,
        )
        _, prefill, peak = clock.time(run._prefill)
        steps = [torch.full((1,), settings.prompt + step, device=device) for step in range(settings.tokens)]

        def decode() -> None:
            for place in steps:
                run._step(run.table[:, 0], place)

        _, seconds, later = clock.time(decode)
    most = None if peak is None or later is None else max(peak, later)
    return {"prefill": prefill, "decode": seconds / settings.tokens}, most


@contextmanager
def _as_released(model: Lavin, released: bool) -> Iterator[None]:
    adapters = [block.adapter for block in model.blocks() if released and block.adapter is not None]
    for one in adapters:
        one.forward = partial(released_forward, one)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for one in adapters:
            del one.forward
