"""`dtnet bench`: what beam search takes with kept keys and values, against the authors' way, beside what counting says.

A model of the paper's size with random weights; both searches in one process, in turn within each round, on the same
features. Their captions must be the same, word for word.

- kept: `beam.beam_search`, all 20 steps, as the authors' code has no early stop;
- kept, stops early: the same captions, once no other can win. Random weights hardly ever end a caption, so this says
  little; a trained model ends after about ten words;
- projected again: `official_style.reprojecting_beam_search`, as the authors' code does its work;
- its products alone: the encoder, and in every step one product with each weight that a kept search cannot do without,
  on as many rows as there are beams. No search that makes all steps can be faster: at one image at a time this, not the
  number of multiplications, is what limits the speed-up.

Times are of the whole way from features to captions: the encoder, which is the same for all, and the search.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dtnet.beam import Beams, beam_search
from dtnet.config import DTNetConfig
from dtnet.costs import caption_macs, encoder_macs
from dtnet.evidence.official_style import reprojecting_beam_search
from dtnet.model import DTNet
from tenfold.cli.settings import DEVICE, Settings
from tenfold.runs import atomic_write_json, run, track
from tenfold.runs.clock import Clock
from tenfold.runs.ranks import choose_device

KEPT, EARLY, AGAIN = "kept", "kept, stops early", "projected again"
FLOOR = "its products alone"
BATCHES, FULL_BATCHES = (1, 10), (1, 10, 50)
# Of a caption's log-probability: sums over 20 words, added in another order.
CLOSE = 1e-3


class BenchSettings(Settings):
    """Settings of `dtnet bench`.

    Attributes:
        beams, max_len: of the search.
        batches: images at a time; None: 1 and 10, and 50 on CUDA or with `full`.
        full: 50 images at a time on the CPU, too.
        repeats: rounds after the warm-up; medians are reported.
        precision: of the weights. In "bf16" the searches may round differently and need not give the same words.
        device: "auto" takes CUDA where there is a device, else the CPU.
        threads: of torch on the CPU; None: as torch chooses.
    """

    beams: int = Field(default=5, ge=1)
    max_len: int = Field(default=20, ge=1, le=54)
    batches: tuple[int, ...] | None = None
    full: bool = False
    repeats: int = Field(default=3, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)


def run_bench(
    settings: BenchSettings, seed: int, output: Path | None, config: DTNetConfig | None = None
) -> dict[str, Any]:
    """Measure, and write the run's record with all figures to the file `output`.

    Args:
        config: other dimensions than the paper's.

    Raises:
        UserError: no CUDA device when asked for.
        RuntimeError: the searches disagree about a word (in fp32), so that a comparison of speeds would mean nothing.
    """
    device = choose_device(settings.device)
    config = config or DTNetConfig()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    batches = settings.batches or (FULL_BATCHES if settings.full or device.type == "cuda" else BATCHES)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    with run("dtnet", "bench", config=settings.model_dump(), seed=seed, output=None) as current:
        model = DTNet(config, seed=seed).eval().to(device, dtype)
        rows = [measure(model, batch, settings, seed, device) for batch in batches]
        current.metrics |= {
            "d_model": config.d_model,
            "layers": [config.encoder_layers, config.decoder_layers],
            "vocabulary": config.vocabulary_size,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "millions_of_macs": {name: macs(config, settings, name) / 1e6 for name in (KEPT, AGAIN)},
            "predicted": macs(config, settings, AGAIN) / macs(config, settings, KEPT),
            "batches": rows,
        }
    if output is not None:
        assert current.record is not None
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics


def macs(config: DTNetConfig, settings: BenchSettings, way: str) -> int:
    """Multiply-accumulates from features to one caption, all steps."""
    return encoder_macs(config) + caption_macs(config, settings.beams, settings.max_len, cached=way != AGAIN)


def measure(model: DTNet, batch: int, settings: BenchSettings, seed: int, device: torch.device) -> dict[str, Any]:
    """One batch size: seconds of each way, captions a second, and the speed-up over the authors' way."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.positions, config.d_in)
    features = torch.randn(shape, generator=generator).relu().to(device, model.encoder.fc.weight.dtype)
    ways: dict[str, Callable[[], Beams]] = {
        KEPT: lambda: beam_search(model, features, settings.beams, settings.max_len, early_stop=False),
        EARLY: lambda: beam_search(model, features, settings.beams, settings.max_len, early_stop=True),
        AGAIN: lambda: reprojecting_beam_search(model, features, settings.beams, settings.max_len),
    }
    clock = Clock(device)
    least: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, int | None] = {}
    found: dict[str, Beams] = {}
    for round_ in track(range(settings.repeats + 1), f"{batch} images at a time"):  # the first one warms up
        for name, way in ways.items():
            found[name], took, memory[name] = clock.time(torch.inference_mode()(way))
            if round_:
                seconds[name].append(took)
        _, took, _ = clock.time(torch.inference_mode()(lambda: products_alone(model, features, settings)))
        if round_:
            least.append(took)
    same = all(torch.equal(found[name].tokens, found[AGAIN].tokens) for name in (KEPT, EARLY))
    apart = _apart(found[KEPT].log_probs, found[AGAIN].log_probs)
    if settings.precision == "fp32" and not (same and apart < CLOSE):
        raise RuntimeError(f"the searches disagree at batch {batch}: log-probabilities are {apart:.1e} apart")
    medians = {name: median(values) for name, values in seconds.items()}
    realised = medians[AGAIN] / medians[KEPT]
    predicted = macs(config, settings, AGAIN) / macs(config, settings, KEPT)
    return {
        "batch": batch,
        "same_tokens": same,
        "largest_log_prob_difference": apart,
        "seconds": medians,
        "all_seconds": seconds,
        "captions_per_second": {name: batch / value for name, value in medians.items()},
        "peak_bytes": memory,
        "realised": realised,
        "realised_early": medians[AGAIN] / medians[EARLY],
        "predicted": predicted,
        "realised_over_predicted": realised / predicted,
        "seconds_of_products_alone": median(least),
        "most_that_can_be": medians[AGAIN] / median(least),
    }


def products_alone(model: DTNet, features: Tensor, settings: BenchSettings) -> None:
    """What no search can leave out: the encoder, the image's keys and values, and every step's products."""
    memory = model.encode(features).memory
    decoder = model.decoder
    linears = [decoder.fc]
    for layer in decoder.layers:
        block: Any = layer
        for linear in (block.cross_attention.k, block.cross_attention.v):
            linear(memory)
        own, cross = block.self_attention, block.cross_attention
        linears += [own.q, own.k, own.v, own.o, cross.q, cross.o, block.feed_forward.fc1, block.feed_forward.fc2]
    rows = {
        width: memory.new_zeros(len(features), settings.beams, width) for width in {one.in_features for one in linears}
    }
    for _ in range(settings.max_len):
        for linear in linears:
            linear(rows[linear.in_features])


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of a caption's summed log-probability."""
    return (ours.sum(-1) - theirs.sum(-1)).abs().max().item()
