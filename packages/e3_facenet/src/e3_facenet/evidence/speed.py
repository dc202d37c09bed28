"""`e3-facenet bench`: five views of one face, ours beside the official way, in one run on one model.

A generator of the paper's size with random weights and random tokens, in float32. Both ways are timed in turn within
each round, and must give the same pictures within 1e-4, or the comparison would mean nothing. Neither counts the text
encoder: it runs once for both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from e3_facenet.camera import five_views, turntable
from e3_facenet.config import GeneratorConfig
from e3_facenet.costs import TOKENS, view_macs
from e3_facenet.evidence.official_style import render_views
from e3_facenet.evidence.settings import BenchSettings
from e3_facenet.generator import Generator
from tenfold.runs import atomic_write_json, run, track
from tenfold.runs.clock import Clock, speedup, spread
from tenfold.runs.ranks import choose_device

CLOSE = 1e-4


def random_generator(config: GeneratorConfig, seed: int) -> Generator:
    """A generator with random weights, drawn without moving torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(config).eval()
    generator.channels_last()
    return generator


def run_bench(
    settings: BenchSettings, seed: int, output: Path | None = None, config: GeneratorConfig | None = None
) -> dict[str, Any]:
    """Measure, and write the run's record with all figures to the file `output`.

    Args:
        config: other dimensions than the paper's.

    Raises:
        UserError: no CUDA device when asked for.
        RuntimeError: the two ways disagree.
    """
    device, config = choose_device(settings.device), config or GeneratorConfig()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with run("e3_facenet", "bench", config=settings.model_dump(), seed=seed, output=None) as current:
        model = random_generator(config, seed).to(device)
        draw = torch.Generator().manual_seed(seed)
        ws = torch.randn(1, config.num_ws, config.w_dim, generator=draw).to(device)
        tokens = torch.randn(1, TOKENS, config.token_dim, generator=draw).to(device)
        z_bg = torch.randn(1, config.bg_dim, generator=draw).to(device)
        pose = (five_views() if settings.views == 5 else turntable(settings.views)).to(device)
        clock = Clock(device)
        seconds: dict[str, list[float]] = {"official": [], "ours": []}
        memory: dict[str, int | None] = {}
        with torch.inference_mode():
            for round_ in track(range(settings.repeats + 1), "rounds"):  # the first one warms up
                theirs, took, memory["official"] = clock.time(lambda: render_views(model, ws, tokens, pose, z_bg))
                ours, took_ours, memory["ours"] = clock.time(
                    lambda: model(ws, tokens, pose, z_bg.expand(len(pose), -1)).image
                )
                if round_:
                    seconds["official"].append(took)
                    seconds["ours"].append(took_ours)
        apart = (ours - theirs).abs().max().item()
        scale = theirs.std().item()
        if not apart <= CLOSE * max(scale, 1.0):
            raise RuntimeError(f"the two ways are {apart:.1e} apart")
        predicted = view_macs(config) / view_macs(config, folded=True)
        current.metrics |= {name: spread(values) for name, values in seconds.items()}
        current.metrics |= speedup(seconds["official"], seconds["ours"], predicted)
        current.metrics |= {
            "views": settings.views, "resolution": config.resolution, "largest_difference": apart,
            "picture_std": scale, "all_seconds": seconds, "peak_bytes": memory, "device": str(device),
            "threads": torch.get_num_threads(), "gflops_view": 2 * view_macs(config) / 1e9,
            "gflops_view_folded": 2 * view_macs(config, folded=True) / 1e9,
        }  # fmt: skip
    if output is not None:
        assert current.record is not None
        atomic_write_json(output, current.record.model_dump(mode="json"))
    return current.metrics
