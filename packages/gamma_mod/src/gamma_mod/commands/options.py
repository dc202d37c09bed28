"""Options that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str | None, typer.Argument(help="A folder, a hub id, or mini (the default).")]
Imports = Annotated[
    list[str] | None, typer.Option("--import", help="A module that makes its model type known, e.g. llava_hr.auto.")
]
Layers = Annotated[str | None, typer.Option(help="Convert a dense host for this run, by a placement's name.")]
Skip = Annotated[float | None, typer.Option(help="Calibrate the prompt's threshold to skip this share of tokens.")]
Threshold = Annotated[float | None, typer.Option(help="Of prompts; default: the model's own.")]
DecodeSkip = Annotated[
    bool | None, typer.Option("--decode-skip/--no-decode-skip", help="Whether generated tokens may be skipped.")
]
Protocol = Annotated[str | None, typer.Option(help="template (the host's own, the default) or vicuna.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[str | None, typer.Option(help="sdpa or eager.")]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]
