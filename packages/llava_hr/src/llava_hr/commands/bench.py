"""`llava-hr bench`: beside LLaVA-1.5 at equal resolution."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_hr.evidence.settings import BenchSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked

BENCH_EPILOG = "Examples: [bold]llava-hr bench[/bold] · [bold]llava-hr bench --device cuda --output bench.json[/bold]"


def bench(
    device: Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Default: bfloat16 on CUDA, float32 on the CPU.")] = None,
    layers: Annotated[int | None, typer.Option(help="Of the decoder; default: 32 on CUDA, 2 on the CPU.")] = None,
    vit_layers: Annotated[int | None, typer.Option(help="Default: 24 on CUDA, 4 on the CPU.")] = None,
    conv_depths: Annotated[
        str | None, typer.Option(metavar="A,B,C,D", help="Default: 3,3,27,3 on CUDA, 1,1,3,1 on the CPU.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Of LLaVA-HR; default 1024.")] = None,
    llava_size: Annotated[
        list[int] | None, typer.Option(help="Of LLaVA-1.5, may be repeated, the baseline first; default 1022 and 336.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count; default 3.")] = None,
    overlap: Annotated[
        bool | None, typer.Option("--overlap/--no-overlap", help="Also measure two streams; default: on CUDA.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record with all figures.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Measure vision, prefill and decoding of LLaVA-HR-7B against LLaVA-1.5-7B at equal resolution, random weights."""
    given: dict[str, Any] = {"device": device, "dtype": dtype, "layers": layers, "vit_layers": vit_layers}
    given |= {"image_size": image_size, "repeats": repeats, "overlap": overlap}
    given |= {"llava_sizes": tuple(llava_size) if llava_size else None}
    given |= {"conv_depths": tuple(conv_depths.split(",")) if conv_depths else None}
    chosen = checked(BenchSettings, given, "llava-hr bench")

    from llava_hr.commands.tables import bench_tables
    from llava_hr.evidence.speed import run_bench

    console().print(bench_tables(run_bench(chosen, seed, output)))
    if output is not None:
        echo(f"wrote {output}")
