"""`dtnet bench`: beam search against the authors' way."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from dtnet.commands.options import Device
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked

BENCH_EPILOG = "Example: [bold]dtnet bench --output bench.json[/bold]"


def bench(
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record, as JSON.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images at a time; may be repeated.")] = None,
    full: Annotated[bool, typer.Option("--full", help="50 images at a time, too, on the CPU.")] = False,
    beams: Annotated[int | None, typer.Option(help="Of the search; default 5.")] = None,
    max_len: Annotated[int | None, typer.Option(help="Steps of the search; default 20.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds after the warm-up; default 3.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default) or bf16.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch, on the CPU.")] = None,
    seed: SeedOption = 0,
    device: Device = None,
) -> None:
    """Measure beam search with kept keys and values against the authors' way, at full size with random weights."""
    from dtnet.commands.tables import bench_tables
    from dtnet.evidence.speed import BenchSettings, run_bench

    given: dict[str, Any] = {"batches": tuple(batch) if batch else None, "full": full, "beams": beams}
    given |= {"max_len": max_len, "repeats": repeats, "precision": precision, "threads": threads, "device": device}
    console().print(bench_tables(run_bench(checked(BenchSettings, given, "dtnet bench"), seed, output)))
    if output is not None:
        echo(f"wrote {output}")
