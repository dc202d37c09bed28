"""`inst-diff-edit bench`: the method against other masks, in one run."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from inst_diff_edit.evidence.settings import BenchSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.settings import checked

BENCH_EPILOG = "Example: [bold]inst-diff-edit bench --device cuda --dtype bfloat16 --output bench.json[/bold]"


def bench(
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count, after one that does not; 3.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Full size on the CPU too: hours. CUDA always does.")] = False,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the run's record to it.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Time an edit by this method and by both DiffEdits; realised speed-up over the one that counting promises."""
    chosen = checked(BenchSettings, {"device": device, "dtype": dtype, "repeats": repeats})

    from inst_diff_edit.commands.tables import bench_tables
    from inst_diff_edit.evidence.speed import FULL, run_bench

    console().print(bench_tables(run_bench(chosen, seed, output, FULL if full else None)))
