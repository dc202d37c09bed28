"""`flashsloth bench`: what the compression is worth on this machine."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from flashsloth.evidence.settings import BenchSettings
from tenfold import UserError
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked

EPILOG = "Examples: [bold]flashsloth bench[/bold] · [bold]flashsloth bench --layers all --output bench.json[/bold]"
FULL = {"layers": 32, "vision_layers": 26}


def bench(
    model: Annotated[str | None, typer.Option(help="3.2b (the default) or hd-3.2b.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Default: bfloat16 on CUDA, float32 on the CPU.")] = None,
    layers: Annotated[str | None, typer.Option(help="Of the language model, or all; default: 2 on the CPU.")] = None,
    vision_layers: Annotated[int | None, typer.Option(help="Of the tower; default: 2 on the CPU.")] = None,
    question: Annotated[int | None, typer.Option(help="Tokens of the question; default 7.")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Forced tokens of the answer; default 128.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count; default 5.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record with all figures.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Measure time to the first token, tower, decoding and memory against no compression; random weights."""
    given: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "vision_layers": vision_layers}
    given |= {"question": question, "new_tokens": new_tokens, "repeats": repeats}
    if layers == "all":
        given |= FULL
    elif layers is not None:
        if not layers.isdigit():
            raise UserError(f"layers: {layers!r}", "flashsloth bench", "a number, or all")
        given["layers"] = int(layers)
    chosen = checked(BenchSettings, given, "flashsloth bench")

    from flashsloth.commands.tables import bench_tables
    from flashsloth.evidence.speed import run_bench

    console().print(bench_tables(run_bench(chosen, seed, output)))
    if output is not None:
        echo(f"wrote {output}")
