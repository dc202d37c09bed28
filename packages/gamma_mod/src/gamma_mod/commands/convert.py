"""`gamma-mod convert`: a release to a host plus router, or back."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from tenfold import UserError
from tenfold.cli.output import echo

EPILOG = (
    "Examples: [bold]gamma-mod convert Gamma-MoD-llava-hr-7b-0.34 host --routing-ratio 0.34[/bold], then "
    "[bold]llava-hr convert host llava-hr-7b[/bold] · [bold]gamma-mod convert host release --to official[/bold]"
)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="An official release, or what this verb made of one.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[str, typer.Option(help="host (official layout, without router) or official.")] = "host",
    routing_ratio: Annotated[
        float | None, typer.Option(help="What it was trained with, which a release does not say; for further training.")
    ] = None,
) -> None:
    """Split an official release into its host and the router, or join them again, bit for bit."""
    if to not in ("host", "official"):
        raise UserError("unknown format", f"--to {to}", "host or official")
    if to == "official" and routing_ratio is not None:
        raise UserError("--routing-ratio has no place in a release", "--to official", "the option left out")

    from gamma_mod.checkpoints.convert import convert_back, convert_release

    if to == "official":
        made = convert_back(source, target)
    else:
        made = convert_release(source, target, routing_ratio=routing_ratio)
    echo(f"wrote {made.output}: {made.parameters:,} parameters, {len(made.layers)} converted layers")
