"""The claims ledger: what a paper says, what we found, and how.

`claims.yaml` lists a paper's numbers; a package's `claims.checks()` recomputes those that can be
recomputed; its `results` folder holds what was measured once. Together they become the `claims` table, the
READMEs' tables (`python -m tenfold.ledger.readme`) and the report (`python -m tenfold.ledger.report`).
"""

from tenfold.ledger.entries import Entry, Figure, collect, evaluate_package
from tenfold.ledger.evidence import Outcome, Recorded, Result, claim_counts, evaluate, failures
from tenfold.ledger.pages import collect_and_render, render_report
from tenfold.ledger.papers import PAPERS, Paper
from tenfold.ledger.schema import Claim, Ledger, load_ledger

__all__ = [
    "PAPERS",
    "Claim",
    "Entry",
    "Figure",
    "Ledger",
    "Outcome",
    "Paper",
    "Recorded",
    "Result",
    "claim_counts",
    "collect",
    "collect_and_render",
    "evaluate",
    "evaluate_package",
    "failures",
    "load_ledger",
    "render_report",
]
