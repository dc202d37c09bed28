"""`dit-sam bench`: the encoder against the released way, in one run, at full width with random weights.

Ours keeps no map of all pairs, and text is keys and values alone (L-DIT); both compute the same numbers, which is
checked first. Times are medians of alternated rounds, on CUDA by events. Peak memory is that of one forward pass over
the resting
process: of a process of its own on a CPU, of the allocator on CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_sam.config import DITConfig, sized
from dit_sam.costs import encoder_macs
from dit_sam.evidence.official_style import released_encoder
from dit_sam.evidence.settings import BenchSettings
from dit_sam.image_encoder import ImageEncoder, Keys
from tenfold import UserError
from tenfold.runs import run
from tenfold.runs.clock import Clock, speedup, spread
from tenfold.runs.ranks import choose_device
from tenfold.runs.resumption import threads

# Sentences on one picture, of the seconds an expression takes.
EXPRESSIONS = (1, 8)
# Differences of float32 and of bfloat16, over the largest number.
_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run_bench(settings: BenchSettings, seed: int = 0, output: Path | None = None) -> dict[str, Any]:
    """Measure; with `output` also as a file, with versions and hardware.

    Raises:
        UserError: no CUDA where it is asked for; both ways disagree.
    """
    device = choose_device(settings.device)
    cuda = device.type == "cuda"
    precision = settings.precision or ("bf16" if cuda else "fp32")
    config = sized(settings.encoder)
    layers = settings.layers or ("all" if cuda else "1")
    depth = config.depth if layers == "all" else min(int(layers), config.depth)
    config = config.changed(depth=depth)
    with (
        threads(settings.threads),
        run("dit_sam", "bench", config=settings.model_dump(), seed=seed, output=None) as current,
    ):
        rows = [_compare(config, size, device, precision, settings.repeats, seed) for size in settings.sizes]
        expressions = []
        if depth == sized(settings.encoder).depth:
            expressions = _expressions(config, settings.sizes[0], device, precision, settings.repeats, seed)
        current.metrics |= {"rows": rows, "expressions": expressions, "encoder": settings.encoder}
        current.metrics |= {"layers": depth, "precision": precision, "device": device.type}
    assert current.record is not None
    if output is not None:
        from tenfold.runs import atomic_write_json

        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics


def build(config: DITConfig, device: torch.device, dtype: torch.dtype, seed: int) -> ImageEncoder:
    """An encoder with random weights, the zero-initialised ones too, so that text matters."""
    torch.manual_seed(seed)
    encoder = ImageEncoder(config).to(device, dtype).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "probs" in name or "rel_pos" in name or "pos_embed" in name:
                weight.normal_(std=0.02)
    return encoder


def inputs(
    config: DITConfig, size: int, sentences: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Patches of a picture, [1, h, w, width], and text [sentences, slots, text width], random."""
    generator = torch.Generator().manual_seed(size)
    edge = size // config.patch_size
    patches = torch.randn(1, edge, edge, config.width, generator=generator)
    text = torch.randn(sentences, config.text_length, config.text_width, generator=generator)
    return patches.to(device, dtype), text.to(device, dtype)


def ways(encoder: ImageEncoder, patches: Tensor, text: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The two ways of one forward pass."""
    return {
        "released": partial(released_encoder, encoder, patches, text),
        "ours": partial(encoder.encode, patches, text),
    }


@torch.inference_mode()
def _compare(
    config: DITConfig, size: int, device: torch.device, precision: str, repeats: int, seed: int
) -> dict[str, Any]:
    encoder = build(config, device, _DTYPES[precision], seed)
    both = ways(encoder, *inputs(config, size, 1, device, _DTYPES[precision]))
    clock, seconds = Clock(device), {"released": [], "ours": []}  # type: ignore[var-annotated]
    first = {name: clock.time(work) for name, work in both.items()}  # the warm-up
    difference = (first["ours"][0] - first["released"][0]).abs().max() / first["released"][0].abs().max()
    if not difference.item() <= _TOLERANCES[precision]:
        raise UserError(f"both ways differ by {difference.item():.1e}", f"{size} pixels", "the same numbers")
    for _ in range(repeats):
        for name, work in both.items():
            seconds[name].append(clock.time(work)[1])
    if device.type == "cuda":
        peaks = {name: result[2] for name, result in first.items()}
    else:
        del both, first, encoder
        peaks = {name: _peak_of(name, config, size, precision, seed) for name in seconds}
    known = all(peaks.values())
    macs = [encoder_macs(config, size), encoder_macs(config, size, text_queries=False)]
    return {
        "size": size,
        "tokens": (size // config.patch_size) ** 2 + config.text_length,
        **{name: spread(values) for name, values in seconds.items()},
        **speedup(seconds["released"], seconds["ours"], macs[0] / macs[1]),
        "peak_bytes": peaks,
        "memory_ratio": peaks["released"] / peaks["ours"] if known else None,  # type: ignore[operator]
        "difference": difference.item(),
    }


def _peak_of(name: str, config: DITConfig, size: int, precision: str, seed: int) -> int | None:
    """Peak memory of one way on a CPU over a resting process of its own; None where /proc is not Linux'."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (name, config, size, precision, seed, torch.get_num_threads()))


@torch.inference_mode()
def _peak_here(name: str, config: DITConfig, size: int, precision: str, seed: int, count: int) -> int | None:
    torch.set_num_threads(count)
    device = torch.device("cpu")
    encoder = build(config, device, _DTYPES[precision], seed)
    # A small pass first, so that libraries have taken what they keep.
    ways(encoder, *inputs(config, 4 * config.patch_size, 1, device, _DTYPES[precision]))[name]()
    work = ways(encoder, *inputs(config, size, 1, device, _DTYPES[precision]))[name]
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError:
        return None
    before = _status("VmRSS")
    work()
    return max(1, _status("VmHWM") - before)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


@torch.inference_mode()
def _expressions(
    config: DITConfig, size: int, device: torch.device, precision: str, repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Seconds an expression of the whole encoder, keys and values of the sentences kept."""
    encoder, clock, rows = build(config, device, _DTYPES[precision], seed), Clock(device), []
    for count in EXPRESSIONS:
        patches, text = inputs(config, size, count, device, _DTYPES[precision])
        keys: list[Keys] = encoder.text_keys(text)
        work = partial(encoder.encode, patches.expand(count, -1, -1, -1), None, keys)
        clock.time(work)
        seconds = [clock.time(work)[1] / count for _ in range(max(1, repeats // 2))]
        rows.append({"sentences": count, "size": size, **spread(seconds), "threads": os.cpu_count()})
    return rows
