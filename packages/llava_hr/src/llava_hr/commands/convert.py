"""`llava-hr convert` and `llava-hr bench`: their options; the work is imported when it is asked for."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_hr.evidence.settings import BenchSettings
from llava_hr.training.settings import checked
from tenfold import UserError
from tenfold.cli import SeedOption
from tenfold.cli.app import console

CONVERT_EPILOG = (
    "Examples: [bold]llava-hr convert llava-hr-7b-sft-1024 llava-hr-7b[/bold] · [bold]llava-hr convert llava-hr-7b "
    "official --to official[/bold] · [bold]llava-hr convert mm_projector.bin projector.safetensors[/bold] · "
    "[bold]llava-hr convert --check 7b[/bold]"
)
BENCH_EPILOG = "Examples: [bold]llava-hr bench[/bold] · [bold]llava-hr bench --device cuda --output bench.json[/bold]"
SOURCE = "A folder or hub id, official or this package's; or a stage-1 file: mm_projector.bin, projector.safetensors."


def convert(
    source: Annotated[Path | None, typer.Argument(metavar="SRC", help=SOURCE)] = None,
    target: Annotated[Path | None, typer.Argument(metavar="DST", help="A new folder, of stage 1 a new file.")] = None,
    to: Annotated[str, typer.Option(help="ours (this package's folder) or official.")] = "ours",
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of the language model, where SRC has no tokenizer.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="7b or x-13b: compare the full-size model with the official list of weights."
        ),
    ] = None,
) -> None:
    """Turn an official checkpoint into a folder that the other verbs take, or back, bit for bit."""
    if check is not None:
        if source is not None:
            raise UserError("--check converts nothing", source, "llava-hr convert --check 7b")
        _check(check)
        return
    if source is None or target is None:
        raise UserError("nothing to convert", expected="llava-hr convert SRC DST")
    if to not in ("ours", "official"):
        raise UserError("unknown format", f"--to {to}", "ours or official")

    from llava_hr.checkpoints.convert import convert as work

    made = work(source, target, to=to, tokenizer=tokenizer)
    parts = ", ".join(f"{part} {count:,}" for part, count in made.parameters.items() if count)
    typer.echo(f"wrote {made.output}: {sum(made.parameters.values()):,} parameters ({parts})")
    if made.kept_aside:
        place = "kept in its folder official" if to == "ours" else "taken from the folder official"
        typer.echo(f"{len(made.kept_aside)} tensors that no computation uses: {place}")
    if made.made_up:
        typer.echo(f"{len(made.made_up)} tensors that no computation uses: filled in, as {source} has none")


def _check(model: str) -> None:
    from llava_hr.checkpoints.convert import key_report
    from llava_hr.evidence.claims import goldens
    from tenfold.runs import read_json

    folder = goldens()
    if folder is None:
        raise UserError("the official list of weights does not travel in a wheel", expected="the source tree")
    report = key_report(model, read_json(folder / "official_keys.json"))
    for line in report.wrong:
        typer.echo(line)
    verdict = f"{len(report.wrong)} differ" if report.wrong else "all agree by name and shape"
    typer.echo(f"{report.model}: {report.count:,} weights, {report.parameters:,} parameters: {verdict}")
    if report.wrong:
        raise typer.Exit(1)


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

    from llava_hr.bench_tables import bench_tables
    from llava_hr.evidence.speed import run_bench

    console().print(bench_tables(run_bench(chosen, seed, output)))
    if output is not None:
        typer.echo(f"wrote {output}")
