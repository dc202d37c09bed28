"""`eas convert`: its options; the work is imported when it is asked for."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from tenfold import UserError
from tenfold.cli.output import echo

EPILOG = (
    "Examples: [bold]eas convert llava-eas-scienceqa adapters[/bold] · [bold]eas convert adapters release "
    "--to official --base vicuna-7b[/bold] · [bold]eas convert --check llava15_7b_aid_slake[/bold]"
)


def convert(
    source: Annotated[
        Path | None, typer.Argument(metavar="SRC", help="An official LLaVA-EAS checkpoint, or a folder of ours.")
    ] = None,
    target: Annotated[Path | None, typer.Argument(metavar="DST", help="A new folder.")] = None,
    to: Annotated[str, typer.Option(help="ours or official.")] = "ours",
    base: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Frozen language model, for a whole official checkpoint.")
    ] = None,
    check: Annotated[
        str | None, typer.Option(metavar="HOST", help="Compare full-size names: vicuna_7b_sqa, llava15_7b_aid_slake.")
    ] = None,
) -> None:
    """Take adapters, PIAs and projector out of an official checkpoint, or put them back, bit for bit."""
    if check is not None:
        _check(check)
        return
    if source is None or target is None:
        raise UserError("nothing to convert", expected="eas convert SRC DST")
    if to not in ("ours", "official"):
        raise UserError("unknown format", f"--to {to}", "ours or official")

    from eas.checkpoints.convert import convert as work

    made = work(source, target, to=to, base=base)
    echo(
        f"wrote {made.output}: skips {list(made.plan.skip)} of {made.plan.layers}; {made.modules:,} parameters of "
        f"adapters and PIAs, {made.projector:,} of the projector; {made.frozen:,} are the host's"
    )


def _check(host: str) -> None:
    from eas.checkpoints.convert import key_report
    from tenfold.ledger.goldens import goldens
    from tenfold.runs import read_json

    folder = goldens("eas")
    if folder is None:
        raise UserError("the official list of weights does not travel in a wheel", expected="the source tree")
    golden = read_json(folder / "official_keys.json")
    if host not in ("vicuna_7b_sqa", "llava15_7b_aid_slake"):
        raise UserError("no such host", f"--check {host}", "vicuna_7b_sqa or llava15_7b_aid_slake")
    report = key_report(host, golden)
    for line in report.wrong:
        echo(line)
    verdict = f"{len(report.wrong)} differ" if report.wrong else "all agree by name and shape"
    echo(f"{report.host}: {report.count:,} weights, {report.parameters:,} parameters: {verdict}")
    if report.wrong:
        raise typer.Exit(1)
