"""What one paper has to show: its ledger, its results, its figures."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tenfold.cli.files import find_package_file, package_file
from tenfold.errors import UserError
from tenfold.ledger.evidence import Outcome, Result, evaluate
from tenfold.ledger.papers import PAPERS, Paper
from tenfold.ledger.schema import Ledger, load_ledger
from tenfold.runs.provenance import Source, package_source, package_version


@dataclass(frozen=True)
class Figure:
    """A picture for the report: a PNG, SVG, JPEG or WebP file and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Entry:
    """One paper in a report.

    Attributes:
        ledger: None for a paper without a package yet; then `results`, `figures` and `version` are empty.
        results: one for each claim of the ledger, in its order.
        source: the commit that the results were computed from.
    """

    paper: Paper
    ledger: Ledger | None = None
    results: Sequence[Result] = ()
    figures: Sequence[Figure] = field(default_factory=tuple)
    version: str | None = None
    source: Source = field(default_factory=lambda: Source(None, None))


def is_installed(package: str) -> bool:
    """Whether a paper's package can be imported."""
    return importlib.util.find_spec(package) is not None


def evaluate_package(package: str, checks: Mapping[str, Callable[[], Outcome]]) -> tuple[Ledger, list[Result]]:
    """Load a package's claims.yaml, and evaluate it with its checks and its committed results.

    Raises:
        UserError: no or a broken claims.yaml, or broken recorded results.
    """
    ledger = load_ledger(package_file(package, "claims.yaml"))
    if ledger.paper != package:
        raise UserError(f"claims of {ledger.paper}", package_file(package, "claims.yaml"), f"paper: {package}")
    return ledger, evaluate(ledger, checks, find_package_file(package, "results"))


def drawn_figures(package: str, folder: Path) -> list[Figure]:
    """The figures of a package's evidence, drawn into a folder; the first one is its picture."""
    claims = importlib.import_module(f"{package}.evidence.claims")
    if not hasattr(claims, "figures"):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return list(claims.figures(folder))


def collect(package: str, figures: Path | None) -> Entry:
    """The entry of one of the ten papers; its package is evaluated when it is installed.

    The package's module `evidence.claims` gives `checks()`, and may give `figures(folder) -> list[Figure]`, the
    one that says most about the paper first.

    Args:
        figures: folder that the package draws its figures into; None: none are drawn.

    Raises:
        UserError: not one of the ten papers; a broken ledger.
    """
    paper = next((paper for paper in PAPERS if paper.package == package), None)
    if paper is None:
        raise UserError("not one of the papers", package, ", ".join(paper.package for paper in PAPERS))
    if not is_installed(package):
        return Entry(paper)
    claims = importlib.import_module(f"{package}.evidence.claims")
    ledger, results = evaluate_package(package, claims.checks())
    drawn = drawn_figures(package, figures) if figures is not None else []
    if figures is not None and not drawn:
        from tenfold.ledger.chart import draw_recomputed

        drawn = [Figure(*found)] if (found := draw_recomputed(ledger, results, figures / "recomputed.png")) else []
    return Entry(paper, ledger, results, drawn, package_version(package), package_source(package))
