"""`dit-sam bench`."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from dit_sam.evidence.settings import BenchSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import DEVICES, checked

EPILOG = (
    "Examples: [bold]dit-sam bench --output bench.json[/bold] · [bold]dit-sam bench --size 1024 --layers 1[/bold] · "
    "[bold]dit-sam bench --layers all[/bold] (seconds an expression)"
)


def bench(
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record, as JSON.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Pixels; may be repeated; default 512 and 1024.")] = None,
    layers: Annotated[str | None, typer.Option(help="Blocks, or all; default 1 on a CPU, all on CUDA.")] = None,
    encoder: Annotated[str | None, typer.Option(help="vit_b (default), vit_l or vit_h.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Alternated rounds after the warm-up; default 5.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default on a CPU) or bf16 (default on CUDA).")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch, on the CPU.")] = None,
    seed: SeedOption = 0,
    device: Annotated[str | None, typer.Option(help=DEVICES)] = None,
) -> None:
    """Measure the encoder against the released way, which makes the map of all pairs: full width, random weights.

    With all layers also the seconds an expression takes, with one and eight sentences on a picture: the encoder runs
    once for every expression.
    """
    from rich.table import Table

    from dit_sam.evidence.speed import run_bench

    given: dict[str, Any] = {"sizes": tuple(size) if size else None, "layers": layers, "encoder": encoder}
    given |= {"repeats": repeats, "precision": precision, "threads": threads, "device": device}
    found = run_bench(checked(BenchSettings, given, "dit-sam bench"), seed, output)
    table = Table(title=f"{found['encoder']}, {found['layers']} blocks, {found['precision']}, {found['device']}")
    for column in ("pixels", "tokens", "released way", "ours", "faster", "by FLOPs", "of that", "peak memory"):
        table.add_column(column)
    for row in found["rows"]:
        memory = "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.1f} times less"
        ratio = (f"{row['realised']:.2f} times", f"{row['predicted']:.2f}", f"{row['realised_over_predicted']:.2f}")
        ways = (f"{row['released']['seconds']:.3f} s", f"{row['ours']['seconds']:.3f} s")
        table.add_row(str(row["size"]), f"{row['tokens']:,}", *ways, *ratio, memory)
    console().print(table)
    for row in found["expressions"]:
        echo(f"{row['sentences']} sentences on a picture: {row['seconds']:.2f} s an expression at {row['size']} px")
    if output is not None:
        echo(f"wrote {output}")
