"""`flashsloth convert` and `flashsloth tokenizer`: their options; the work is imported when it is asked for."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from tenfold import UserError
from tenfold.cli.output import echo

EPILOG = (
    "Examples: [bold]flashsloth convert FlashSloth-3.2B flashsloth-3.2b[/bold] · [bold]flashsloth convert "
    "FlashSloth_HD-3.2B hd --siglip siglip-so400m-patch14-384[/bold] · [bold]flashsloth convert flashsloth-3.2b "
    "release --to official[/bold] · [bold]flashsloth convert --check[/bold]"
)
TOKENIZER_EPILOG = "Example: [bold]flashsloth tokenizer phi-2 flashsloth-tokenizer[/bold]"


def convert(
    source: Annotated[
        Path | None, typer.Argument(metavar="SRC", help="A folder or hub id, a release or this package's.")
    ] = None,
    target: Annotated[Path | None, typer.Argument(metavar="DST", help="A new folder.")] = None,
    to: Annotated[str, typer.Option(help="ours (this package's folder) or official.")] = "ours",
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With Phi-2's vocab.json and merges.txt, if SRC has none.")
    ] = None,
    siglip: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="SigLIP-SO400M/14-384: print how far the vision tower is from it."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the full-size model with the official list of weights.")
    ] = False,
) -> None:
    """Turn a release into a folder that the other verbs take, or back, bit for bit."""
    if check:
        _check()
        return
    if source is None or target is None:
        raise UserError("nothing to convert", expected="flashsloth convert SRC DST")

    from flashsloth.checkpoints.convert import convert as work

    made = work(source, target, to=to, words=tokenizer, siglip=siglip)
    parts = ", ".join(f"{part} {count:,}" for part, count in made.parameters.items())
    echo(f"wrote {made.output}: {sum(made.parameters.values()):,} parameters ({parts})")
    if made.tower_difference is not None:
        said = "equal to SigLIP's: it was not trained" if made.tower_difference == 0 else "not SigLIP's: it was trained"
        echo(f"vision tower: largest difference {made.tower_difference:g}, {said}")


def _check() -> None:
    from flashsloth.checkpoints.keys import key_report
    from tenfold.ledger.goldens import goldens
    from tenfold.runs import read_json

    folder = goldens("flashsloth")
    if folder is None:
        raise UserError("the official list of weights does not travel in a wheel", expected="the source tree")
    report = key_report(read_json(folder / "official_keys.json"))
    for line in report.wrong:
        echo(line)
    verdict = f"{len(report.wrong)} differ" if report.wrong else "all agree by name and shape"
    echo(f"{report.count:,} weights, {report.parameters:,} parameters: {verdict}")
    if report.wrong:
        raise typer.Exit(1)


def tokenizer(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with Phi-2's vocab.json and merges.txt.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
) -> None:
    """Build the tokenizer from Phi-2's files: <learnable> 50295, </s> 50296, <image> 50297; known ids are checked."""
    from flashsloth.checkpoints.tokenizer import build
    from tenfold.runs import atomic_directory

    made = build(source)
    with atomic_directory(target) as folder:
        made.save_pretrained(folder)
    echo(f"wrote {target}: {len(made):,} tokens")


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs `convert` and `tokenizer`."""
    app.command("convert", epilog=EPILOG)(convert)
    app.command("tokenizer", epilog=TOKENIZER_EPILOG)(tokenizer)
