"""`python -m tenfold.ledger.readme README.md`: the generated tables of the READMEs.

A README beside a `claims.yaml` gets its package's claims, any other the ten papers, between
`<!-- ledger:start -->` and `<!-- ledger:end -->`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli.app import main
from tenfold.errors import UserError
from tenfold.ledger.entries import Entry, collect
from tenfold.ledger.evidence import Result
from tenfold.ledger.papers import PAPERS
from tenfold.ledger.schema import Claim, Ledger, load_ledger
from tenfold.ledger.text import MISSING, is_waiting, our_value, paper_value, summary
from tenfold.ledger.which import RECORD, lines, load_comparison
from tenfold.runs import atomic_write_text, read_text

START, END = "<!-- ledger:start -->", "<!-- ledger:end -->"
WHICH_START, WHICH_END = "<!-- which:start -->", "<!-- which:end -->"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command(epilog="Example: [bold]python -m tenfold.ledger.readme README.md --check[/bold]")
def readme(
    path: Annotated[Path, typer.Argument(metavar="README.md")],
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 when the table is stale.")
    ] = False,
) -> None:
    """Rewrite the generated table of a README."""
    text = read_text(path)
    fresh = with_tables(text, path)
    if check and fresh != text:
        typer.echo(f"{path}: its table is stale, run python -m tenfold.ledger.readme {path}", err=True)
        raise typer.Exit(1)
    if fresh != text:
        atomic_write_text(path, fresh)


def with_tables(text: str, path: Path) -> str:
    """A README's text with its tables as the ledgers and the comparison say now.

    Raises:
        UserError: no place for them, or a package that is not installed.
    """
    beside = path.resolve().parent
    if (beside / "claims.yaml").is_file():
        entry = collect(load_ledger(beside / "claims.yaml").paper, None)
        if entry.ledger is None:
            raise UserError("is not installed", entry.paper.package, "the package beside this README")
        return replace_block(text, claims_block(entry.ledger, entry.results), path)
    # A paper whose folder is not in this repository is planned, whatever else is installed.
    here = {paper.package for paper in PAPERS if (beside / "packages" / paper.package).is_dir()}
    entries = [collect(paper.package, None) if paper.package in here else Entry(paper) for paper in PAPERS]
    text = replace_block(text, papers_block(entries), path)
    if WHICH_START not in text:
        return text
    return replace_block(text, which_block(entries, beside), path, (WHICH_START, WHICH_END))


def replace_block(text: str, block: str, path: Path, markers: tuple[str, str] = (START, END)) -> str:
    """`text` with `block` between the markers.

    Raises:
        UserError: not exactly one start marker with one end marker behind it.
    """
    first, last = markers
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end or first in rest or last in after:
        raise UserError("no place for the table", path, f"one {first} and one {last}")
    return f"{before}{first}\n{block}\n{last}{after}"


def which_block(entries: Sequence[Entry], beside: Path) -> str:
    """The report's answers: what to take for what, and what was found here.

    Args:
        beside: the repository's folder.
    """
    record = beside / RECORD
    comparison = load_comparison(record if record.is_file() else None)
    rows = []
    if record.with_suffix(".png").is_file():
        picture = Path(RECORD).with_suffix(".png").as_posix()
        rows += [f"![Right answers against the FLOPs of an answer, every method on one host]({picture})", ""]
    rows += ["| you want | take | found here |", "|---|---|---|"]
    page = Path(RECORD).with_suffix(".md").as_posix()
    for line in lines(entries, comparison):
        where = page if line.anchor is None else f"packages/{line.package}/README.md#what-is-reproduced"
        standing = f" ({line.status})" if line.status else ""
        rows.append(_row([line.wish, f"**{line.name}**", f"[{line.found}]({where}){standing}"]))
    return "\n".join(rows)


def papers_block(entries: Sequence[Entry]) -> str:
    """The ten papers: what each claims, how to install and use it, what of it is reproduced."""
    rows = ["| paper | install | use | the paper's claim | evidence here |", "|---|---|---|---|---|"]
    for entry in entries:
        paper = entry.paper
        cells = [
            f"**{paper.name}**<br>{paper.title.removeprefix(f'{paper.name}: ')}<br>"
            f"{paper.venue}, [arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})",
            f"`pip install ./packages/{paper.package}`" if entry.ledger else MISSING,
            f"`{paper.command} demo`" if entry.ledger else MISSING,
            paper.claim,
            summary(entry.ledger, entry.results) if entry.ledger else "planned",
        ]
        rows.append(_row(cells))
    return "\n".join(rows)


def claims_block(ledger: Ledger, results: Sequence[Result]) -> str:
    """One package's claims; those that nobody has run with official weights are folded away."""
    pairs = list(zip(ledger.claims, results, strict=True))
    waiting = [(claim, result) for claim, result in pairs if is_waiting(claim, result)]
    lines = [
        summary(ledger, results),
        "",
        "| claim | source | kind | paper | ours | status |",
        "|---|---|---|---:|---:|---|",
    ]
    for claim, result in pairs:
        if not is_waiting(claim, result):
            cells = [
                claim.statement,
                claim.source,
                claim.kind,
                paper_value(claim),
                _stable_value(claim, result),
            ]
            lines.append(_row([*cells, _standing(result)]))
    if waiting:
        lines += [
            "",
            f"<details><summary>{len(waiting)} claims not run here: official weights and data</summary>",
        ]
        lines += ["", "| claim | source | paper | command |", "|---|---|---:|---|"]
        for claim, _ in waiting:
            lines.append(_row([claim.statement, claim.source, paper_value(claim), f"`{claim.command}`"]))
        lines += ["", "</details>"]
    return "\n".join(lines)


def _stable_value(claim: Claim, result: Result) -> str:
    """Our number where it is the same on every machine: computed exactly, or committed."""
    same_everywhere = claim.kind == "analytic" or result.date is not None
    return our_value(claim, result) if same_everywhere else MISSING


def _standing(result: Result) -> str:
    if result.date is None:
        return result.status
    return f"{result.status} ({', '.join(part for part in (result.date, result.device) if part)})"


def _row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.replace("|", "\\|").split()) for cell in cells)
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    main(app)
