"""`llava-hr train`: options into settings, a plan or a training, and what it says in the end."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_hr.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import new_folder

if TYPE_CHECKING:
    from rich.console import Group

    from llava_hr.training.plan import DryRun

DATA = """A folder with LLaVA-1.5's training data: LLaVA-Pretrain/blip_laion_cc_sbu_558k.json with
LLaVA-Pretrain/images/00000/*.jpg ... for stage 1; llava_v1_5_mix665k.json with coco/train2017, gqa/images,
ocr_vqa/images (all .jpg), textvqa/train_images, vg/VG_100K and vg/VG_100K_2 for stage 2. The config names the files
(--set pretrain.data=..., finetune.images=...; relative to this folder)."""
EPILOG = (
    "Examples: [bold]llava-hr train --config mini --output runs/mini[/bold] · [bold]llava-hr train --config 7b "
    "--dry-run[/bold] · [bold]torchrun --nproc_per_node 8 -m llava_hr train --config 7b --data playground/data "
    "--output runs/7b[/bold]"
)


def train(
    config: Annotated[str, typer.Option(help="A YAML file, or a shipped one: mini, 7b, 13b, x-13b.")] = "mini",
    set_: SetOption = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
    stages: Annotated[str | None, typer.Option(help="pretrain, finetune, or pretrain,finetune.")] = None,
    lm: Annotated[
        str | None, typer.Option(metavar="FOLDER|ID", help="The language model, with its tokenizer: Vicuna.")
    ] = None,
    clip: Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="CLIP ViT-L/14-336.")] = None,
    convnext: Annotated[
        str | None, typer.Option(metavar="FILE|TAG", help="The ConvNeXt: a timm or open_clip file, or a timm tag.")
    ] = None,
    projector: Annotated[
        str | None, typer.Option(metavar="FILE", help="What stage 1 trained, for --stages finetune: mm_projector.bin.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="FOLDER|ID", help="Fine-tune a whole LLaVA-HR instead; implies finetune.")
    ] = None,
) -> None:
    """Train LLaVA-HR: low-resolution pre-training of the projector, then high-resolution instruction tuning of all.

    A killed training goes on with --resume, to the same bits. `torchrun` starts it on several GPUs or processes.
    """
    chosen = load_config(TrainSettings, config, set_ or ())
    values = chosen.model_dump()
    if data is not None:
        values["data"]["folder"] = str(data.resolve())
    given = {"language_model": lm, "clip": clip, "convnext": convnext, "projector": projector, "start": start}
    values["model"] |= {name: value for name, value in given.items() if value is not None}
    if stages is not None or start is not None:
        values["stages"] = tuple(name.strip() for name in (stages or "finetune").split(","))
    chosen = checked(TrainSettings, values, "--stages" if stages else config)

    from tenfold.runs.launch import name_accelerator

    name_accelerator(chosen.device)
    if dry_run:
        from llava_hr.training import plan

        console().print(plan_tables(plan.dry_run(chosen), chosen.model.size))
        return
    if output is None and resume:
        raise UserError("no folder", "--output", "the folder of the training")
    output = output or new_folder("llava-hr", "train")
    logging.getLogger("llava_hr").setLevel(logging.INFO)

    from llava_hr.training.run import run_train

    trained = run_train(chosen, seed, output, resume)
    if int(os.environ.get("RANK", 0)) == 0:
        for stage in chosen.running:
            values = trained.metrics[stage]
            echo(f"{stage}: {values['steps']} steps, loss {values['loss']:.4f}")
        for path in (trained.projector, trained.model):
            if path is not None:
                echo(f"wrote {path}")


def plan_tables(dry: "DryRun", size: str) -> "Group":
    """What `--dry-run` prints."""
    from rich.console import Group
    from rich.table import Table

    models = Table(title="Model", title_justify="left")
    for column in ("stage", "parameters", "trainable", "pixels", "visual tokens", "longest sequence", "state per GPU"):
        models.add_column(column)
    stages = Table(title="Stages", title_justify="left")
    for column in ("stage", "samples", "batch", "steps", "warm-up", "learning rate", "sampler", "DeepSpeed"):
        stages.add_column(column)
    for count in dry.stages:
        plan, settings = count.plan, count.plan.settings
        sizes = (f"{count.parameters:,}", f"{count.trainable:,}", f"{settings.image_size}", f"{count.visual_tokens:,}")
        models.add_row(plan.name, *sizes, f"{count.positions:,}", _size(count.state_bytes))
        batch = f"{settings.per_device} x {plan.accumulation} x {plan.gpus} = {settings.batch}"
        rate = f"0 → {settings.learning_rate:g} → 0"
        counts = (f"{plan.samples:,}", batch, f"{plan.steps:,}", f"{plan.warmup:,}", rate)
        stages.add_row(plan.name, *counts, settings.sampler, settings.deepspeed or "no")
    counted = "counted in the data" if dry.counted else "expected by the config"
    note = (
        f"Samples are {counted}. Batch: a GPU's, accumulated, GPUs. State: weights, gradients and AdamW's averages; "
        "activations come on top."
    )
    last = dry.stages[-1]
    if last.plan.name == "finetune" and size != "mini":
        note += (
            f"\nOfficial checkpoints also hold {last.unused:,} parameters that no output depends on (ConvNeXt's head, "
            f"CLIP's last norm): {last.parameters + last.unused:,} in all."
        )
    return Group(models, stages, note)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
