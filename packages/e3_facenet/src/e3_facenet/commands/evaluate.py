"""`e3-facenet eval` and `bench`: options into settings, and what they say in the end."""

# Annotations are not deferred: typer evaluates them.

import os
from pathlib import Path
from typing import Annotated

import typer

from e3_facenet.commands.options import Clip, Device, Dtype, Model, Output
from tenfold.cli import SeedOption, SetOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.verbs import absolute, absolute_if_there, chosen, new_folder

DATA = """A folder with dataset.json (or dataset2.json): {"train": {"filenames": [...], "captions": [...]}, "test": ...}
and a folder of pictures, as MM-CelebA-HQ, CelebAText-HQ and FFHQ-Text in the authors' form; or with captions.jsonl."""
EVAL_EPILOG = (
    "Examples: [bold]e3-facenet eval --model e3-facenet-512 --data MM-CelebA-HQ --inception inception-2015-12-05.pt "
    "--output runs/fid[/bold] · [bold]e3-facenet eval --data runs/mini/data --limit 20[/bold] (the mini model)"
)
BENCH_EPILOG = "Example: [bold]e3-facenet bench --output runs/bench.json[/bold]"


def evaluate(
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    model: Model = None,
    config: Annotated[str | None, typer.Option(help="A YAML file of settings.")] = None,
    set_: SetOption = None,
    output: Output = None,
    split: Annotated[str | None, typer.Option(help="test or train.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many faces and real pictures.")] = None,
    count: Annotated[int | None, typer.Option(min=2, help="Faces; as many as the split has pictures.")] = None,
    inception: Annotated[Path | None, typer.Option(metavar="FILE", help="TorchScript of Inception features.")] = None,
    face: Annotated[Path | None, typer.Option(metavar="FILE", help="TorchScript of face embeddings, for MVIC.")] = None,
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: SeedOption = 0,
) -> None:
    """FID and KID with their protocol, CLIP score, MVIC and flatness of faces made from a split's captions."""
    from e3_facenet.evaluation.settings import EvalSettings

    given = {"model": absolute_if_there(model), "clip": absolute_if_there(clip), "split": split, "limit": limit,
             "count": count, "inception": absolute(inception), "face": absolute(face), "device": device,
             "dtype": dtype}  # fmt: skip
    settings = chosen(EvalSettings, "e3_facenet", config, set_, given)
    if data is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"folder": absolute(data)})})
    from e3_facenet.evaluation.run import run_eval

    found = run_eval(settings, seed, output or new_folder("e3-facenet", "eval"))
    if int(os.environ.get("RANK", 0)) == 0:
        console().print(_table(found.metrics))
        echo(f"wrote {found.output}")


def _table(metrics: dict[str, object]) -> object:
    from rich.table import Table

    table = Table(title_justify="left", show_header=False)
    for name, value in metrics.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
    protocol = metrics["protocol"]
    assert isinstance(protocol, dict)
    for name, value in protocol.items():
        table.add_row(f"protocol: {name}", str(value))
    return table


def bench(
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the record to this file.")] = None,
    views: Annotated[int, typer.Option(min=1, max=16, help="At once.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Alternated rounds after the warm-up.")] = 5,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on the CPU.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Five views at full width with random weights: ours beside the official way, in one run."""
    from e3_facenet.evidence.settings import BenchSettings
    from e3_facenet.evidence.speed import run_bench
    from tenfold.cli.settings import checked

    given = {"views": views, "repeats": repeats, "device": device, "threads": threads}
    metrics = run_bench(checked(BenchSettings, given), seed, output)
    echo(
        f"{views} views: official {metrics['official']['seconds']:.2f} s, ours {metrics['ours']['seconds']:.2f} s; "
        f"{metrics['realised']:.2f} times as fast (FLOPs predict {metrics['predicted']:.2f}); "
        f"pictures differ by {metrics['largest_difference']:.1e}"
    )
    if output is not None:
        echo(f"wrote {output}")
