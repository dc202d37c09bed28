"""`dyvte convert`: official checkpoints and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold import UserError
from tenfold.cli.output import echo

WAYS = ("gates", "host", "official")


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="An official checkpoint; for official: an hf folder.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[str, typer.Option(help="gates, host (its LLaVA in transformers' layout) or official.")] = "gates",
    gates: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For official: the gates that go in.")] = None,
    vision_tower: Annotated[Path | None, typer.Option(metavar="FOLDER", help="CLIP, which releases lack.")] = None,
    processor: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Tokenizer files for the host.")] = None,
) -> None:
    """Take the gates out of an official DyVTE checkpoint, its LLaVA, or put gates into one."""
    if to not in WAYS:
        raise UserError(f"cannot convert to {to!r}", "--to", ", ".join(WAYS))
    if to == "official" and gates is None:
        raise UserError("no gates to put in", "--to official", "--gates FOLDER")

    from dyvte.checkpoints import release

    if to == "gates":
        made = release.to_gates(source, target)
        total = sum(parameter.numel() for parameter in made.parameters())
        echo(f"wrote {target}: {len(made)} gates, {total:,} parameters")
    elif to == "host":
        config = release.to_host(source, target, vision_tower=vision_tower, processor=processor)
        text: Any = config.text_config
        echo(f"wrote {target}: {text.num_hidden_layers} decoder layers, {config.dtype}")
    else:
        assert gates is not None
        echo(f"wrote {target}: {release.to_official(source, gates, target):,} parameters")


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `convert`."""
    app.command("convert", epilog="Example: [bold]dyvte convert llava-v1.5-7b-dyvte gates-7b[/bold]")(convert)
