"""The whole way at full size with random weights: a release, its conversion, loading, an answer, an evaluation.

    python benchmarks/rehearse.py flashsloth --output benchmarks/results/flashsloth-rehearsal.json

Every step is recorded with its seconds and the process's peak memory. Weights are written shard by shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from flashsloth.checkpoints import release
from flashsloth.checkpoints.convert import convert
from flashsloth.checkpoints.keys import to_official
from flashsloth.checkpoints.load import load
from flashsloth.configuration import FlashSlothConfig
from flashsloth.evaluation.benchmarks import write_mini_set
from flashsloth.evaluation.run import run_eval
from flashsloth.evaluation.settings import EvalSettings
from flashsloth.miniature.vocabulary import write_vocabulary
from tenfold.cli import main as run_app
from tenfold.hosts.answers import Prompt, generate
from tenfold.random_weights import random_weights
from tenfold.runs import atomic_write_json
from tenfold.runs.rehearsal import Steps, rehearsed
from tenfold.weights import write_weights

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


def rehearse(config: FlashSlothConfig, folder: Path, steps: Steps, limit: int = 2) -> dict[str, Any]:
    """Walk the way; what the record says beside the steps."""
    found: dict[str, Any] = {}
    step = steps.step
    official, ours = folder / "release", folder / "ours"
    with step("write a release"):
        write_release(config, official)
    with step("convert"):
        convert(official, ours)
    with step("load in bfloat16"):
        model, processor = load(ours, dtype="bfloat16", device="auto")
    with step("answer"):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8))
        prompt = Prompt(processor.prompt("What is in the image?"), (picture,))
        found["new_tokens"] = generate(model, processor, [prompt], max_new_tokens=4)[0].new_tokens
    del model, processor
    with step("evaluate"):
        write_mini_set(folder / "mini", seed=0, per_kind=1)
        settings = EvalSettings(
            model=str(ours), benchmark="mini", data=str(folder / "mini"), limit=limit, dtype="bfloat16"
        )
        (evaluated,) = run_eval(settings, 0, folder / "eval")
        found["questions"] = evaluated.metrics["questions"]
    return found


def write_release(config: FlashSlothConfig, folder: Path, shard_bytes: int = 10**9) -> None:
    """Random float16 weights in the official layout, drawn tensor by tensor."""
    folder.mkdir(parents=True)
    shapes = {name: tuple(one.shape) for name, one in to_official(release.meta_state(config)).items()}
    atomic_write_json(folder / "config.json", release.config_to_official(config))
    atomic_write_json(folder / "generation_config.json", {"bos_token_id": 50256, "eos_token_id": 50256})
    write_vocabulary(folder)
    write_weights(folder, random_weights(dict(sorted(shapes.items())), torch.float16), shard_bytes)


@app.command(epilog="Example: python -m flashsloth.evidence.rehearsal --output rehearsal.json")
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record.")],
    folder: Annotated[Path | None, typer.Option(help="For the weights (13 GB); default: a temporary one.")] = None,
    model: Annotated[str, typer.Option(help="3.2b or hd-3.2b.")] = "3.2b",
) -> None:
    """Rehearse release, conversion, loading, answer and evaluation at full size."""
    config = FlashSlothConfig.named(model)
    config.dtype = torch.float16
    with rehearsed("flashsloth", {"model": model}, output, folder) as (steps, place, metrics):
        metrics |= rehearse(config, place, steps)
    typer.echo(f"wrote {output}")


if __name__ == "__main__":
    run_app(app)
