"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str | None, typer.Argument(help="A folder, a hub id, or mini (the default).")]
Gates = Annotated[
    str | None, typer.Option(help="A folder, an official checkpoint, a hub repository, shipped (mini host) or none.")
]
Threshold = Annotated[float | None, typer.Option(help="0 is the published rule; less exits sooner.")]
ExitAt = Annotated[int | None, typer.Option(help="Leave after this layer instead; -1: before the first.")]
Fastv = Annotated[bool | None, typer.Option("--fastv", help="FastV beside it (K = 2, R = 50 %).")]
CompactEvery = Annotated[int | None, typer.Option(help="Layers between two compactions; default 1.")]
Samples = Annotated[Path | None, typer.Option(metavar="FILE", help="LLaVA's instruction json.")]
ImageFolder = Annotated[Path | None, typer.Option(metavar="FOLDER", help="What `image` in it is relative to.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many.")]
Protocol = Annotated[str | None, typer.Option(help="llava (LLaVA-1.5's own prompts), processor or auto.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[str | None, typer.Option(help="sdpa or eager.")]
Config = Annotated[str | None, typer.Option(help="A YAML file, or a shipped one by its name.")]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]
