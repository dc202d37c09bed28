"""`eas bench`: its options; the work is imported when it is asked for."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from eas.evidence.settings import BenchSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked

EPILOG = (
    "Examples: [bold]eas bench --device cuda --output runs/bench[/bold] · [bold]eas bench --host lavin --prompt 128 "
    "--device cuda --output runs/bench-lavin[/bold]"
)


def bench(
    host: Annotated[str | None, typer.Option(help="llava (default), or lavin: the paper's 2.2x by its parts.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (default), float16 or float32.")] = None,
    layers: Annotated[int | None, typer.Option(help="Default: 4 on the CPU, 32 on CUDA.")] = None,
    removed: Annotated[int | None, typer.Option(help="K; default: 12 of 32, in proportion.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens of the prompt; default 636.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Decoded tokens a round; default 8.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds that count; default 5.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For a run record.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Measure prefill and decoding un-skipped, un-merged and folded, beside what MACs and bytes promise."""
    given = {"device": device, "dtype": dtype, "layers": layers, "removed": removed, "prompt": prompt}
    settings = checked(BenchSettings, given | {"tokens": tokens, "rounds": rounds, "host": host})

    from eas.commands.tables import bench_table
    from eas.evidence.speed import run_bench

    record = run_bench(settings, seed, output)
    console().print(bench_table(record))
    for name, ratios in record.get("ratios", {}).items():
        echo(f"{name}: {ratios['decode']:.3f} times a token, {ratios['request']:.3f} times a request of 64 tokens")
    for part, ratio in record.get("skipping_alone", {}).items():
        echo(f"skipping alone, {part}: {ratio['realised']:.3f} times, predicted {ratio['predicted']:.3f}")
    if "fold" in record["subjects"]["folded"]:
        echo(f"folding one prompt: {record['subjects']['folded']['fold']['seconds'] * 1000:.1f} ms")
