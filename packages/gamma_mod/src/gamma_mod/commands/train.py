"""`gamma-mod train`: options into settings, a plan or a training, and what it says in the end."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gamma_mod.commands.options import Output
from gamma_mod.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute_if_there, new_folder

if TYPE_CHECKING:
    from rich.console import Group

    from gamma_mod.training.plan import DryRun

DATA = """A folder with LLaVA-1.5's instruction data: llava_v1_5_mix665k.json with coco/train2017, gqa/images,
ocr_vqa/images, textvqa/train_images, vg/VG_100K and vg/VG_100K_2. The config names the files
(--set data.conversations=..., data.images=...; relative to this folder)."""
EPILOG = (
    "Examples: [bold]gamma-mod train --config mini --output runs/mini[/bold] · [bold]gamma-mod train --config "
    "llava-hr-7b --dry-run[/bold] · [bold]torchrun --nproc_per_node 8 -m gamma_mod train --config llava-hr-7b --model "
    "llava-hr-7b-aligned --data playground/data --output runs/7b[/bold]"
)


def train(
    config: Annotated[
        str, typer.Option(help="A YAML file, or a shipped one: mini, llava-hr-7b, llava-hr-13b, llava-1.5-7b.")
    ] = "mini",
    set_: SetOption = None,
    model: Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="The dense host, after its alignment.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    output: Output = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Convert a dense host and tune it on conversations, so that its router learns which tokens may pass layers by.

    A killed training goes on with --resume, to the same bits. `torchrun` starts it on several GPUs or processes.
    """
    values = load_config(TrainSettings, config, set_ or ()).model_dump()
    if data is not None:
        values["data"]["folder"] = str(data.resolve())
    if model is not None:
        values["model"]["model"] = absolute_if_there(model)
    chosen = checked(TrainSettings, values, config)

    from tenfold.runs.launch import name_accelerator

    name_accelerator(chosen.device)
    if dry_run:
        from gamma_mod.training import plan

        console().print(plan_tables(plan.dry_run(chosen), chosen))
        return
    if output is None and resume:
        raise UserError("no folder", "--output", "the folder of the training")
    logging.getLogger("gamma_mod").setLevel(logging.INFO)

    from gamma_mod.training.run import run_train

    trained = run_train(chosen, seed, output or new_folder("gamma-mod", "train"), resume)
    if int(os.environ.get("RANK", 0)) == 0:
        found = trained.metrics
        skips = ", ".join(
            f"{name} {found[key]:.1%}"
            for name, key in (("in training", "training_skip"), ("of prompts afterwards", "prefill_skip"))
            if found[key] is not None
        )
        echo(f"{found['steps']} steps, loss {found['loss']:.4f}")
        echo(f"routing ratio {chosen.conversion.routing_ratio:g}; skipped {skips}")
        echo(f"wrote {trained.model}")


def plan_tables(dry: "DryRun", settings: TrainSettings) -> "Group":
    """What `--dry-run` prints."""
    from rich.console import Group
    from rich.table import Table

    plan, stage = dry.plan, settings.stage
    model = Table(title="Model", title_justify="left")
    for column in ("parameters", "trainable", "router", "layers", "converted", "routing ratio", "protected"):
        model.add_column(column)
    layers = "by ARank" if dry.layers is None else f"{len(dry.layers)}: {_ranges(dry.layers)}"
    ratio = f"{settings.conversion.routing_ratio:g}"
    sizes = (f"{dry.parameters:,}", f"{dry.trainable:,}", f"{dry.router:,}", f"{dry.num_layers}")
    model.add_row(*sizes, layers, ratio, settings.conversion.protect)
    steps = Table(title="Stage", title_justify="left")
    for column in ("samples", "batch", "steps", "warm-up", "learning rate", "lambda", "clipping", "DeepSpeed"):
        steps.add_column(column)
    batch = f"{stage.per_device} x {plan.accumulation} x {plan.gpus} = {stage.batch}"
    rate = f"0 → {stage.learning_rate:g} → 0"
    clip = "no" if settings.optimizer.clip is None else f"{settings.optimizer.clip:g}"
    counts = (f"{plan.samples:,}", batch, f"{plan.steps:,}", f"{plan.warmup:,}", rate)
    steps.add_row(*counts, f"{settings.conversion.aux_coefficient:g}", clip, stage.deepspeed or "no")
    note = f"Samples are {'counted in the data' if dry.counted else 'expected by the config'}."
    if dry.skip is not None:
        note += f" Of a row of 1,400 tokens, 1,059 of them routable, training skips {dry.skip:.1%} in converted layers."
    return Group(model, steps, note)


def _ranges(layers: tuple[int, ...]) -> str:
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)
