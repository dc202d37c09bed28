"""The miniature that ships: variant sap+embq of `experiments`, as a folder that `flashsloth.load` opens.

python -m flashsloth.evidence.shipped --output runs/mini_model
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from flashsloth.checkpoints.release import generation_config
from flashsloth.evidence import experiments
from flashsloth.miniature.model import mini_processor
from tenfold.cli import main as run_app
from tenfold.runs import run

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m flashsloth.evidence.shipped --output runs/mini_model")
def shipped(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For metrics, record and the model's folder.")],
    seed: Annotated[int, typer.Option(min=0, help="One of the record's; same seed and threads: same bits.")] = 1,
) -> None:
    """Train the miniature that ships with the package."""
    torch.set_num_threads(1)
    plan = experiments.Plan()
    with run("flashsloth", "shipped", config=asdict(plan), seed=seed, output=output) as current:
        data = experiments.Data.of(plan)
        model = experiments.train("sap+embq", seed, data, plan, lambda step, loss: current.log(step, loss=loss))
        model.generation_config = generation_config(model.config)
        folder = current.file("model")
        model.save_pretrained(folder)
        mini_processor().save_pretrained(folder)


if __name__ == "__main__":
    run_app(app)
