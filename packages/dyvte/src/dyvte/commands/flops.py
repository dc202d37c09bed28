"""`dyvte flops`: what an exit saves, by the closed formula, as a row or as a table of fixed exits."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tenfold import UserError
from tenfold.cli.app import console

HOSTS = ("llava-1.5-7b", "llava-1.5-13b")


def flops(
    host: Annotated[str, typer.Option(help="llava-1.5-7b or llava-1.5-13b.")] = "llava-1.5-7b",
    tokens: Annotated[int, typer.Option(help="Of the whole prompt.")] = 640,
    visual: Annotated[int, typer.Option(help="Visual ones of them.")] = 576,
    every: Annotated[int, typer.Option(help="A row for every so many exit layers.")] = 4,
) -> None:
    """Print prefill TFLOPs and KV cache for exits after every few layers: a table for engines with fixed exits."""
    from dyvte import costs

    if host not in HOSTS:
        raise UserError("unknown host", host, " or ".join(HOSTS))
    if not 0 < visual < tokens or every < 1:
        raise UserError(f"{visual} visual of {tokens} tokens", "--tokens, --visual", "some text beside the image")
    shape = costs.LLAMA_7B if host == HOSTS[0] else costs.LLAMA_13B
    encoder = costs.CLIP_L_336 + costs.projector_flops(costs.VISUAL_TOKENS, shape.hidden)
    dense = encoder + costs.prefill_flops(tokens, visual, None, shape)
    table = Table("exit layer", "full layers", "TFLOPs", "saved", "KV MiB (16 bit)", title=f"{host}, {tokens} tokens")
    for exit_layer in (*range(-1, shape.layers - 1, every), None):
        cost = encoder + costs.prefill_flops(tokens, visual, exit_layer, shape)
        cache = costs.kv_bytes(tokens, visual, exit_layer, shape) / 2**20
        full = shape.layers if exit_layer is None else exit_layer + 1
        name = "never" if exit_layer is None else str(exit_layer)
        table.add_row(name, str(full), f"{cost / 1e12:.2f}", f"{1 - cost / dense:.1%}", f"{cache:.0f}")
    console().print(table)


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `flops`."""
    app.command("flops", epilog="Example: [bold]dyvte flops --host llava-1.5-13b --tokens 703[/bold]")(flops)
