"""`python -m tenfold.ledger.picture packages/fitprune`: the picture that a package's README opens with.

It is the first figure of the package's evidence (`evidence.claims.figures`; where there is none, its recomputed numbers
beside the paper's), which also opens its page of the report. It is drawn anew, at most 1,200 pixels wide and 150 KB,
and written as `picture.png` beside the README.
"""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from tenfold.cli.app import main
from tenfold.errors import UserError
from tenfold.ledger.entries import Figure, collect, drawn_figures
from tenfold.ledger.schema import load_ledger
from tenfold.runs import atomic_write_bytes, atomic_write_text, read_text

NAME = "picture.png"
WIDTH, LIMIT = 1200, 150 * 1024
COLOURS = (256, 128, 64, 32)  # of the palette; fewer where the file would be too large

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command(epilog="Example: [bold]python -m tenfold.ledger.picture packages/fitprune[/bold]")
def picture(folder: Annotated[Path, typer.Argument(metavar="packages/PAPER", help="A package's folder.")]) -> None:
    """Draw a package's picture, and put it at the top of its README."""
    package = load_ledger(folder / "claims.yaml").paper
    with tempfile.TemporaryDirectory(prefix="tenfold-picture-") as temporary:
        figures = drawn_figures(package, Path(temporary)) or collect(package, Path(temporary)).figures
        if not figures:
            raise UserError("no figure and no number to draw", package, "figures(folder) in its evidence.claims")
        atomic_write_bytes(folder / NAME, compact(figures[0].path))
    readme = folder / "README.md"
    text = read_text(readme)
    atomic_write_text(readme, with_picture(text, figures[0]))
    typer.echo(f"wrote {folder / NAME}")


def compact(path: Path) -> bytes:
    """A picture as a PNG of at most `WIDTH` pixels and `LIMIT` bytes, on white.

    Raises:
        UserError: it stays larger.
    """
    with Image.open(path) as opened:
        drawn = Image.new("RGB", opened.size, "white")
        drawn.paste(opened, mask=opened.getchannel("A") if opened.mode == "RGBA" else None)
    drawn.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    for colours in COLOURS:
        written = BytesIO()
        drawn.quantize(colours, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
        if len(written.getvalue()) <= LIMIT:
            return written.getvalue()
    raise UserError(f"stays above {LIMIT // 1024} KB", path, "a picture with larger areas of one colour")


def with_picture(text: str, figure: Figure) -> str:
    """A README with the picture below its title; an earlier picture is replaced."""
    lines = [line for line in text.splitlines() if f"({NAME})" not in line]
    while len(lines) > 1 and not lines[1].strip():
        del lines[1]
    caption = " ".join(figure.caption.replace("[", "(").replace("]", ")").split())
    return "\n".join([lines[0], "", f"![{caption}]({NAME})", "", *lines[1:]]) + "\n"


if __name__ == "__main__":
    main(app)
