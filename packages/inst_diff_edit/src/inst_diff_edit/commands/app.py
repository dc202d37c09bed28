"""The command `inst-diff-edit`: options are read here, the work is done elsewhere and imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from inst_diff_edit.commands import bench, evaluate, train
from inst_diff_edit.commands.verify import TOLERANCES, VERIFIERS
from inst_diff_edit.evaluation.settings import DEMO, EditSettings
from inst_diff_edit.evidence.findings import experiments
from tenfold.cli import Package, SeedOption, SetOption, build_app, load_config
from tenfold.cli import main as run_app
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import new_folder

package = Package(
    name="inst-diff-edit",
    module="inst_diff_edit",
    distribution="inst-diff-edit",
    instead={
        "convert": "Stable Diffusion's folders as they are: from_pretrained reads old and new names; single files go "
        "through diffusers' from_single_file and save_pretrained"
    },
    tolerances=TOLERANCES,
)
app = build_app(
    package,
    lambda: import_module("inst_diff_edit.evidence.claims").checks(),
    VERIFIERS,
    experiments(),
)
app.command(epilog=train.TRAIN_EPILOG)(train.train)
app.command(name="eval", epilog=evaluate.EVAL_EPILOG)(evaluate.evaluate)
app.command(epilog=bench.BENCH_EPILOG)(bench.bench)

Model = Annotated[str | None, typer.Option(help="A folder in diffusers' layout, a hub id, or mini (the default).")]
Inpaint = Annotated[str | None, typer.Option(help="The inpainting model; without it latents are decoded directly.")]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]


@app.command(
    epilog='Examples: [bold]inst-diff-edit edit bear.jpg --to "a raccoon" --model stable-diffusion-v1-4 --inpaint '
    'stable-diffusion-inpainting[/bold] · [bold]inst-diff-edit edit scene.png --to "a striped lemon on grass"[/bold] '
    "(the mini model)"
)
def edit(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Any picture; it is squashed to the model's size.")],
    to: Annotated[str, typer.Option(metavar="TEXT", help="What it shall show.")],
    model: Model = None,
    inpaint: Inpaint = None,
    output: Output = None,
    config: Annotated[str, typer.Option(help="A YAML file, or a shipped one: mini, sd-v1-4.")] = "mini",
    set_: SetOption = None,
    strength: Annotated[float | None, typer.Option(help="Share of the schedule that is run; 0.5.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Of the mask; 0.2.")] = None,
    seed: SeedOption = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Edit a picture; writes the edit, the mask over it, and the masks over the steps."""
    base = load_config(EditSettings, config, set_ or ()).model_dump()
    given = {"model": model, "inpaint": inpaint, "strength": strength, "threshold": threshold}
    given |= {"device": device, "dtype": dtype, "image": str(image.resolve()), "prompt": to}
    _edit(checked(EditSettings, base | {k: v for k, v in given.items() if v is not None}), seed, output, "edit")


@app.command(epilog="Example: [bold]inst-diff-edit demo --output runs/demo[/bold]")
def demo(
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: a scene of the mini world.")] = None,
    to: Annotated[str | None, typer.Option(metavar="TEXT", help="Default: the scene's own edit.")] = None,
    model: Model = None,
    inpaint: Inpaint = None,
    output: Output = None,
    seed: SeedOption = 0,
) -> None:
    """Edit a scene with the mini model that ships, in seconds."""
    given = {"image": None if image is None else str(image.resolve()), "prompt": to, "model": model, "inpaint": inpaint}
    _edit(checked(EditSettings, (DEMO if model is None else {}) | given), seed, output, "demo")


def _edit(settings: EditSettings, seed: int, output: Path | None, verb: str) -> None:
    from inst_diff_edit.evaluation.edit import run_edit

    folder = output or new_folder("inst-diff-edit", verb)
    metrics = run_edit(settings, seed, folder, verb).metrics
    words = ", ".join(f"{word.partition(':')[2]} ({role})" for word, role in metrics["words"].items())
    echo(f'"{metrics["prompt"]}": {words}')
    echo(f"the mask covers {metrics['mask_share']:.1%} of the picture after {metrics['steps']} steps")
    echo(f"wrote edited.png, mask.png, overlay.png and steps.png to {folder}")


def main() -> None:
    run_app(app)
