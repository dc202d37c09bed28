"""`dyvte bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dyvte.commands.options import CompactEvery, Device
from dyvte.evidence.settings import BenchSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.settings import checked


def bench(
    device: Device = None,
    layers: Annotated[
        str | None, typer.Option(help="So many, or all (32); default: all on CUDA, 4 on the CPU.")
    ] = None,
    exit_layer: Annotated[int | None, typer.Option(help="Where the image leaves; default: the middle.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (default), float16 or float32.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 1.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Pairs of rounds that count; default 5.")] = None,
    decode_tokens: Annotated[int | None, typer.Option(help="Decoding steps of a round; default 8.")] = None,
    compact_every: CompactEvery = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record with all figures.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Measure prefill and decoding at the full width of LLaVA-1.5-7B, beside what FLOPs and bytes promise."""
    given = {"device": device, "layers": int(layers) if layers and layers.isdigit() else layers}
    given |= {"exit_layer": exit_layer, "dtype": dtype, "batch": batch, "repeats": repeats}
    settings = checked(BenchSettings, given | {"decode_tokens": decode_tokens, "compact_every": compact_every})

    from dyvte.commands.tables import bench_table
    from dyvte.evidence.speed import run_bench

    console().print(bench_table(run_bench(settings, seed, output)))


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `bench`."""
    app.command("bench", epilog="Example: [bold]dyvte bench --layers all --output bench.json[/bold]")(bench)
