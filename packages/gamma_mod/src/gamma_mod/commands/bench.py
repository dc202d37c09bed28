"""`gamma-mod bench`: dense against converted at equal weights."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from gamma_mod.evidence.settings import BenchSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked

EPILOG = (
    "Examples: [bold]gamma-mod bench[/bold] · [bold]gamma-mod bench --layers all --device cuda --output "
    "bench.json[/bold] · [bold]gamma-mod bench --training[/bold]"
)


def bench(
    device: Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or cuda:N.")] = None,
    layers: Annotated[str | None, typer.Option(help="Decoder layers, or all; default: 8 on the CPU.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Of the prompt; default 1400, the paper's.")] = None,
    skip: Annotated[float | None, typer.Option(help="Realised skip of converted layers; default 0.577.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (default), float16 or float32.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 1.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Alternated rounds that count; default 5.")] = None,
    decode_tokens: Annotated[int | None, typer.Option(help="Steps timed after each prompt; default 8.")] = None,
    training: Annotated[bool | None, typer.Option("--training", help="Also time training steps.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record with all figures.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Measure prefill and decoding at the full width of Vicuna-7B, beside what FLOPs and bytes promise."""
    given: dict[str, Any] = {"device": device, "layers": layers, "tokens": tokens, "skip": skip, "dtype": dtype}
    given |= {"batch": batch, "repeats": repeats, "decode_tokens": decode_tokens, "training": training}
    settings = checked(BenchSettings, given, "gamma-mod bench")

    from gamma_mod.commands.tables import bench_table
    from gamma_mod.evidence.speed import run_bench

    console().print(bench_table(run_bench(settings, seed, output)))
    if output is not None:
        echo(f"wrote {output}")
