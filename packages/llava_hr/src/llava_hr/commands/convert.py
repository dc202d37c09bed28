"""`llava-hr convert` and `llava-hr bench`: their options; the work is imported when it is asked for."""

# Annotations are not deferred: typer evaluates them.

import re
from pathlib import Path
from typing import Annotated

import typer

from tenfold import UserError
from tenfold.cli.output import echo

CONVERT_EPILOG = (
    "Examples: [bold]llava-hr convert llava-hr-7b-sft-1024 llava-hr-7b[/bold] · [bold]llava-hr convert llava-hr-7b "
    "official --to official[/bold] · [bold]llava-hr convert mm_projector.bin projector.safetensors[/bold] · "
    "[bold]llava-hr convert --check 7b[/bold]"
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
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

    look(source, target)

    from llava_hr.checkpoints.convert import convert as work

    made = work(source, target, to=to, tokenizer=tokenizer)
    parts = ", ".join(f"{part} {count:,}" for part, count in made.parameters.items() if count)
    echo(f"wrote {made.output}: {sum(made.parameters.values()):,} parameters ({parts})")
    if made.kept_aside:
        place = "kept in its folder official" if to == "ours" else "taken from the folder official"
        echo(f"{len(made.kept_aside)} tensors that no computation uses: {place}")
    if made.made_up:
        echo(f"{len(made.made_up)} tensors that no computation uses: filled in, as {source} has none")


def look(source: Path, target: Path) -> None:
    """Whether there is something to convert, before the libraries load that convert it.

    Raises:
        UserError: no such file or folder, and no id of the hub; a target that is there already.
    """
    if not source.exists() and not HUB_ID.fullmatch(str(source)):
        raise UserError("no such model", source, "a folder, a file, or a hub id such as favor123/llava-hr-7b-sft-1024")
    if target.exists():
        raise UserError("already exists", target, "a folder or file that does not exist yet")


def _check(model: str) -> None:
    from llava_hr.checkpoints.convert import key_report
    from tenfold.ledger.goldens import goldens
    from tenfold.runs import read_json

    folder = goldens("llava_hr")
    if folder is None:
        raise UserError("the official list of weights does not travel in a wheel", expected="the source tree")
    report = key_report(model, read_json(folder / "official_keys.json"))
    for line in report.wrong:
        echo(line)
    verdict = f"{len(report.wrong)} differ" if report.wrong else "all agree by name and shape"
    echo(f"{report.model}: {report.count:,} weights, {report.parameters:,} parameters: {verdict}")
    if report.wrong:
        raise typer.Exit(1)
