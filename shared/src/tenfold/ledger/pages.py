"""The report: static HTML that needs no server, no script and nothing from elsewhere."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tenfold.errors import UserError
from tenfold.ledger.entries import Entry, Figure, collect
from tenfold.ledger.evidence import STATUSES, WITHOUT_EVIDENCE
from tenfold.ledger.papers import PAPERS
from tenfold.ledger.text import MISSING, difference, evidence, our_value, paper_value, summary
from tenfold.ledger.which import PAGE, find_record, lines, load_comparison
from tenfold.runs import atomic_directory

MARKER = ".tenfold-report"
"""Lies in every report's folder: only a folder that has it is replaced by a new report."""

KINDS = {
    "parity": ("Parity", "The same numbers as the authors' code on golden data."),
    "analytic": ("Analytic", "Recomputed exactly: compute, tokens, parameters, memory."),
    "mini": ("Mini", "The mechanism's effect at laptop scale, with baseline and control."),
    "speed": ("Speed", "Measured at full size with random weights."),
    "full": ("Full size", "Needs official weights and data sets; the command says how."),
}
TOLD_FIRST = ("full", "mini", "speed", "analytic", "parity")
TOLD = 8  # claims that a page names before its tables
COLUMNS = (
    {"field": "paper_value", "heading": "Paper", "style": "number c-value", "cell": "number"},
    {"field": "our_value", "heading": "Ours", "style": "number c-value", "cell": "number"},
    {"field": "status", "heading": "Status", "style": "c-status", "cell": ""},
    {"field": "evidence", "heading": "Evidence", "style": "c-evidence", "cell": "small soft"},
)
Row = dict[str, Any]

_FIGURE_SUFFIXES = (".png", ".svg", ".jpg", ".jpeg", ".webp")


def collect_and_render(output: str | Path, packages: Sequence[str] | None = None) -> Path:
    """Evaluate the papers and write their report.

    Args:
        output: folder of the report; made, or an earlier report, which is replaced.
        packages: which papers; None: all ten, those without an installed package as planned.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: a broken ledger; `output` holds something else than a report.
    """
    _refuse_foreign(Path(output))
    with tempfile.TemporaryDirectory(prefix="tenfold-figures-") as figures:
        wanted = packages if packages is not None else [paper.package for paper in PAPERS]
        entries = [collect(package, Path(figures, package)) for package in wanted]
        return render_report(entries, output, find_record() if packages is None else None)


def render_report(entries: Sequence[Entry], output_dir: str | Path, comparison: Path | None = None) -> Path:
    """Write `index.html`, one page for each paper, and copies of their figures.

    Args:
        comparison: the record of `benchmarks/efficiency.py`, with its picture beside it: a page, and the front page's
            picture. None: the front page says what the ledgers say.

    Returns:
        The path of `index.html`.

    Raises:
        UserError: a figure is missing or no picture; `output_dir` holds something else than a report.
    """
    output = Path(output_dir)
    _refuse_foreign(output)
    templates = Environment(
        loader=PackageLoader("tenfold.ledger"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    templates.globals["written"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with atomic_directory(output, replace=True) as folder:
        (folder / MARKER).touch()
        papers = [_paper_context(entry, folder) for entry in entries]
        compared = load_comparison(comparison)
        picture = None if comparison is None else _copy_picture(comparison, folder)
        front = {"lines": lines(entries, compared), "comparison": compared, "picture": picture}
        (folder / "index.html").write_text(
            templates.get_template("index.html").render(papers=papers, statuses=STATUSES, **front), encoding="utf-8"
        )
        if compared is not None:
            page = templates.get_template("efficiency.html").render(comparison=compared, picture=picture)
            (folder / PAGE).write_text(page, encoding="utf-8")
        for paper in papers:
            page = templates.get_template("paper.html").render(**paper, statuses=STATUSES)
            (folder / paper["page"]).write_text(page, encoding="utf-8")
    return output / "index.html"


def _unbroken(shown: Any) -> Any:
    """A text whose percent signs stay with their numbers where a line ends; what is HTML already is left alone."""
    return shown.replace(" %", "\N{NO-BREAK SPACE}%") if type(shown) is str else shown


def _refuse_foreign(output: Path) -> None:
    if output.is_dir() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise UserError("holds something else than a report", output, "a new folder, or an earlier report")


def _paper_context(entry: Entry, folder: Path) -> dict[str, Any]:
    """What the templates show of one paper: texts only, no decisions left to them."""
    rows = []
    if entry.ledger is not None:
        for claim, result in zip(entry.ledger.claims, entry.results, strict=True):
            rows.append(
                {
                    "claim": claim,
                    "paper_value": paper_value(claim),
                    "our_value": our_value(claim, result),
                    "difference": difference(claim, result),
                    "status": result.status,
                    "detail": result.detail,
                    "evidence": evidence(result),
                }
            )
    figures = [_copy_figure(figure, entry.paper.package, folder) for figure in entry.figures]
    return {
        "paper": entry.paper,
        "title": entry.paper.title.removeprefix(f"{entry.paper.name}: "),
        "page": f"{entry.paper.package}.html",
        "ledger": entry.ledger,
        "rows": rows,
        "counts": _counts(rows),
        "summary": summary(entry.ledger, entry.results) if entry.ledger is not None else "",
        "version": entry.version,
        "commit": entry.source.commit,
        "dirty": entry.source.dirty,
        "figures": figures,
        "standing": _standing(rows),
        "kinds": [kind for name in KINDS if (kind := _kind(name, rows)) is not None],
    }


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    return {status: sum(row["status"] == status for row in rows) for status in STATUSES}


def _standing(rows: Sequence[Row]) -> list[tuple[str, list[Row], int]]:
    """What the page says first: (heading, a few claims, how many more there are)."""
    told = []
    for heading, statuses in (
        ("Reproduced or recorded", ("reproduced", "recorded")),
        ("Not reproduced, equivalent, or no verdict", WITHOUT_EVIDENCE),
    ):
        found = [row for row in rows if row["status"] in statuses]
        # The mechanism's effect and the speed say more than the counts, and counts more than golden cases.
        found.sort(key=lambda row: TOLD_FIRST.index(row["claim"].kind))
        told.append((heading, found[:TOLD], max(0, len(found) - TOLD)))
    return told


def _kind(name: str, rows: Sequence[Row]) -> dict[str, Any] | None:
    """One folded table: its rows, and the columns in which any of them says something."""
    chosen = [row for row in rows if row["claim"].kind == name]
    if not chosen:
        return None
    heading, meaning = KINDS[name]
    said = [column for column in COLUMNS if any(row[column["field"]] != MISSING for row in chosen)]
    return {"heading": heading, "meaning": meaning, "rows": chosen, "columns": said, "counts": _counts(chosen),
            "open": name == "mini"}  # fmt: skip


def _copy_picture(comparison: Path, folder: Path) -> str | None:
    drawn = comparison.with_suffix(".png")
    if not drawn.is_file():
        return None
    target = folder / "figures" / "efficiency.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(drawn, target)
    return target.relative_to(folder).as_posix()


def _copy_figure(figure: Figure, package: str, folder: Path) -> dict[str, str]:
    if figure.path.suffix.lower() not in _FIGURE_SUFFIXES:
        raise UserError("not a picture", figure.path, ", ".join(_FIGURE_SUFFIXES))
    if not figure.path.is_file():
        raise UserError("no such figure", figure.path)
    target = folder / "figures" / package / figure.path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(figure.path, target)
    return {"path": target.relative_to(folder).as_posix(), "caption": figure.caption}
