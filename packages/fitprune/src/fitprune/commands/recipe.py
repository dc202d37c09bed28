"""`fitprune recipe`: recipes shown, compared and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fitprune.recipe import open_recipe
from tenfold.cli.app import console
from tenfold.cli.output import echo

RECIPE = "A recipe file, or NAME:PERCENT of a released one, such as llava-1.5-7b:60."
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE)]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Show, compare and draw recipes.")


@app.command(epilog="Example: [bold]fitprune recipe show llava-1.5-7b:60[/bold]")
def show(recipe: RecipeArgument) -> None:
    """Print a recipe: tokens by layer, and what it saves."""
    from fitprune.commands import tables

    found = open_recipe(recipe)
    console().print(tables.layers_table([found], found.summary()))
    console().print(tables.costs_table([found], None, None))


@app.command(epilog="Example: [bold]fitprune recipe diff llava-1.5-7b:60 runs/fit/recipe-0.6.json[/bold]")
def diff(recipe: RecipeArgument, other: RecipeArgument) -> None:
    """Print the layers in which two recipes differ."""
    from fitprune.recipe import open_recipe

    echo(open_recipe(recipe).diff(open_recipe(other)))


@app.command(epilog="Example: [bold]fitprune recipe plot llava-1.5-7b:60 recipe.png[/bold]")
def plot(
    recipe: RecipeArgument, file: Annotated[Path, typer.Argument(metavar="FILE.png", help="The picture to write.")]
) -> None:
    """Draw a recipe: removals and tokens left over the layers."""
    from fitprune.recipe import open_recipe

    open_recipe(recipe).plot(file)
    echo(f"wrote {file}")
