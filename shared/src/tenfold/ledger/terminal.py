"""The claims table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from tenfold.ledger.evidence import Result
from tenfold.ledger.schema import Ledger
from tenfold.ledger.text import difference, is_waiting, our_value, paper_value, summary

_STYLES = {
    "reproduced": "green",
    "recorded": "cyan",
    "equivalent": "yellow",
    "no verdict": "yellow",
    "not reproduced": "bold red",
    "not run here": "dim",
}


def unchecked(ledger: Ledger, results: Sequence[Result]) -> str:
    """A line for claims of parity that an installation without the source tree cannot check."""
    pairs = zip(ledger.claims, results, strict=True)
    count = sum(claim.kind == "parity" and result.status == "not run here" for claim, result in pairs)
    if not count:
        return ""
    return (
        f"\n{count} claims of parity were not checked: their golden data are in the source tree, not in an installed "
        "package (run this in a clone, or name their folder by TENFOLD_GOLDENS)."
    )


def claims_table(ledger: Ledger, results: Sequence[Result], everything: bool = False) -> Table:
    """What the paper says beside what we found.

    Args:
        everything: also list the claims that need official weights and data and were not run.
    """
    table = Table(title=ledger.title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("claim", min_width=34)
    table.add_column("source", max_width=20)
    table.add_column("kind")
    for column in ("paper", "ours"):
        table.add_column(column, justify="right", max_width=20)
    table.add_column("difference", justify="right", no_wrap=True, min_width=len("difference"))
    table.add_column("status", no_wrap=True, min_width=len("not reproduced"))
    hidden = 0
    for claim, result in zip(ledger.claims, results, strict=True):
        if is_waiting(claim, result) and not everything:
            hidden += 1
            continue
        status = Text(result.status, style=_STYLES[result.status])
        # Text keeps square brackets of a statement from being read as markup.
        cells = [claim.statement, claim.source, claim.kind, paper_value(claim), our_value(claim, result)]
        table.add_row(*map(Text, [*cells, difference(claim, result)]), status)
    more = f"\n{hidden} claims that need official weights and data are not listed (--all)." if hidden else ""
    table.caption = Text(summary(ledger, results) + unchecked(ledger, results) + more)
    return table
