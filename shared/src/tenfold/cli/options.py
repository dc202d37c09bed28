"""Options that every package's verbs spell alike: `--config`, `--set`, `--seed`, `--output`.

@app.command()
def eval(config: ConfigOption = "mini", settings: SetOption = None, seed: SeedOption = 0): ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[str, typer.Option("--config", help="A YAML file, or the name of a shipped config.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the config; may be repeated."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Same seed, device and threads: same result.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FOLDER", help="A new folder for results and run record.")
]
