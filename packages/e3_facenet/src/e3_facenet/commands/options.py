"""Options that several verbs spell alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = "A folder of this package, an official pickle, a hub repository, or mini (the default), which ships."
Model = Annotated[str | None, typer.Option(help=MODEL_HELP)]
Clip = Annotated[str | None, typer.Option(help="A CLIP in transformers' format instead of the one the model names.")]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="Of the upsampling blocks: float32, bfloat16 or float16.")]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="What the face looks like; at most 77 CLIP tokens.")]
Psi = Annotated[float | None, typer.Option(help="Truncation; 0.7. Smaller is more average.")]
Yaws = Annotated[str | None, typer.Option(help="Radians, by commas; the five views of the paper by default.")]
