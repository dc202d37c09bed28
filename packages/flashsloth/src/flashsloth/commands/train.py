"""`flashsloth train`: options into settings, a plan or a training, and what it says in the end."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from flashsloth.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute_if_there, new_folder

DATA = """A folder with LLaVA-1.5's training data: LLaVA-Pretrain/blip_laion_cc_sbu_558k.json with
LLaVA-Pretrain/images/00000/*.jpg ... for stage 1; llava_v1_5_mix665k.json with coco/train2017, gqa/images,
ocr_vqa/images (all .jpg), textvqa/train_images, vg/VG_100K and vg/VG_100K_2 for stage 2. The config names the files
(--set pretrain.data=..., finetune.images=...; relative to this folder)."""
EPILOG = (
    "Examples: [bold]flashsloth train --config mini --output runs/mini[/bold] · [bold]flashsloth train --config "
    "3.2b-mix665k --dry-run[/bold] · [bold]torchrun --nproc_per_node 8 -m flashsloth train --config 3.2b-mix665k "
    "--data playground/data --output runs/3.2b[/bold]"
)


def train(
    config: Annotated[
        str, typer.Option(help="A YAML file, or a shipped one: mini, 3.2b-mix665k, hd-3.2b-mix665k.")
    ] = "mini",
    set_: SetOption = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
    stages: Annotated[str | None, typer.Option(help="pretrain, finetune, or pretrain,finetune.")] = None,
    lm: Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="Phi-2, with its vocab.json.")] = None,
    siglip: Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="SigLIP-SO400M/14-384.")] = None,
    stage1: Annotated[
        str | None, typer.Option(metavar="FILE", help="What stage 1 trained, for --stages finetune.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="FOLDER|ID", help="Fine-tune a whole FlashSloth instead; implies finetune.")
    ] = None,
) -> None:
    """Train FlashSloth: SAP and projector on captions, then all but the vision tower on instructions.

    A killed training goes on with --resume, to the same bits. `torchrun` starts it on several GPUs or processes.
    """
    chosen = load_config(TrainSettings, config, set_ or ())
    values = chosen.model_dump()
    if data is not None:
        values["data"]["folder"] = str(data.resolve())
    given = {"language_model": lm, "siglip": siglip, "stage1": stage1, "start": start}
    values["model"] |= {name: absolute_if_there(value) for name, value in given.items() if value is not None}
    if stages is not None or start is not None or stage1 is not None:
        values["stages"] = tuple(name.strip() for name in (stages or "finetune").split(","))
    chosen = checked(TrainSettings, values, "--stages" if stages else config)

    from tenfold.runs.launch import name_accelerator

    name_accelerator(chosen.device)
    if dry_run:
        from flashsloth.commands.tables import plan_tables
        from flashsloth.training import plan

        console().print(plan_tables(plan.dry_run(chosen)))
        return
    if output is None and resume:
        raise UserError("no folder", "--output", "the folder of the training")
    output = output or new_folder("flashsloth", "train")
    logging.getLogger("flashsloth").setLevel(logging.INFO)

    from flashsloth.training.run import run_train

    trained = run_train(chosen, seed, output, resume)
    if int(os.environ.get("RANK", "0")) == 0:
        for stage in chosen.running:
            told = trained.metrics[stage]
            loss = "–" if told["loss"] is None else f"{told['loss']:.4f}"
            echo(f"{stage}: {told['steps']} steps, loss {loss}")
        for path in (trained.stage1, trained.model):
            if path is not None:
                echo(f"wrote {path}")
