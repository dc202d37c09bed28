"""`inst-diff-edit eval` and `bench`: options into settings, and what came out as tables."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from inst_diff_edit.evaluation.settings import EDITING_SETS, METHODS, EvalSettings
from tenfold import UserError
from tenfold.cli import SeedOption, load_config
from tenfold.cli.app import console
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute_if_there, new_folder

DATA_TREE = (
    "Holds Editing-Mask_list.txt, ImageNet_list.txt, Imagen_list.txt and, for each set, <set>/image/<file> (or "
    "<set>/<file>) and Editing-Mask/mask/<file's stem>.png (or .jpg). Default: scenes of the mini world."
)
SETS = "Editing-Mask (default), ImageNet, Imagen or all; or KEY=VALUE, one setting of the config. May be repeated."
LPIPS = (
    "Holds alexnet-owt-7be5be79.pth (torchvision) and alex.pth (LPIPS v0.1), or vgg16-397923af.pth and vgg.pth, or all."
)
EVAL_EPILOG = (
    "Examples: [bold]inst-diff-edit eval[/bold] · [bold]inst-diff-edit eval stable-diffusion-v1-4 --inpaint "
    "stable-diffusion-inpainting --data data --set Editing-Mask --lpips weights/lpips[/bold] · [bold]torchrun "
    "--nproc_per_node 2 -m inst_diff_edit eval ... --output runs/eval[/bold]"
)


def evaluate(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Folder, hub id or mini (default).")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA_TREE)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME|KEY=VALUE", help=SETS)] = None,
    inpaint: Annotated[str | None, typer.Option(help="The inpainting model; else latents are decoded.")] = None,
    method: Annotated[str | None, typer.Option(help=f"{METHODS[0]} (default), {METHODS[1]} or {METHODS[2]}.")] = None,
    config: Annotated[str, typer.Option(help="A YAML file, or a shipped one: mini, sd-v1-4.")] = "mini",
    strength: Annotated[float | None, typer.Option(help="Share of the schedule that is run; 0.5.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Of the mask; 0.2, DiffEdit's 0.3.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many records of each set.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures at a time; 4.")] = None,
    lpips: Annotated[Path | None, typer.Option(metavar="FOLDER", help=LPIPS)] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="pt_inception-2015-12-05-6726825d.pth, for FID and CSFID.")
    ] = None,
    real: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="<target label>/<real pictures>, for CSFID on ImageNet.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A CLIP model as transformers reads it.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    seed: SeedOption = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Edit a benchmark's pictures and measure masks and pictures; the paper's values beside ours.

    One that was killed goes on where it stopped when the same command is given again with its --output.
    """
    names = [text for text in set_ or () if "=" not in text]
    base = load_config(EvalSettings, config, [text for text in set_ or () if "=" in text]).model_dump()
    paths = {"data": data, "lpips": lpips, "inception": inception, "real": real, "clip": clip}
    given: dict[str, Any] = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    given |= {
        "model": absolute_if_there(model),
        "inpaint": absolute_if_there(inpaint),
        "method": method,
        "strength": strength,
        "limit": limit,
    }
    given |= {"batch": batch, "device": device, "dtype": dtype, "sets": _sets(names) or None}
    given["diffedit_threshold" if (method or base["method"]) == "diffedit" else "threshold"] = threshold
    chosen = checked(EvalSettings, base | {name: value for name, value in given.items() if value is not None})
    if output is None and "WORLD_SIZE" in os.environ:
        raise UserError("no folder", "--output", "one that all ranks see")
    logging.getLogger("inst_diff_edit").setLevel(logging.INFO)

    from inst_diff_edit.commands.tables import eval_tables
    from inst_diff_edit.evaluation.run import run_eval

    found = run_eval(chosen, seed, output or new_folder("inst-diff-edit", "eval"))
    if found is not None:
        console().print(eval_tables(found))


def _sets(names: list[str]) -> tuple[str, ...]:
    """Names in the order given, "all" as the three. Raises UserError for an unknown one."""
    for name in names:
        if name not in (*EDITING_SETS, "all"):
            raise UserError("no such set", f"--set {name}", f"{', '.join(EDITING_SETS)}, all or KEY=VALUE")
    spelt = [one for name in names for one in (EDITING_SETS if name == "all" else (name,))]
    return tuple(dict.fromkeys(spelt))
