"""Which of the papers to take for what: one line each, with what was found here and where that stands.

Nothing here holds a number. A line about a method that makes a model cheaper quotes the record of
`benchmarks/efficiency.py`, its picture shows them side by side; every other line quotes a claim of the paper's ledger,
with its standing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tenfold
from tenfold.errors import UserError
from tenfold.ledger.entries import Entry
from tenfold.ledger.text import our_value
from tenfold.runs import RunRecord

RECORD = "benchmarks/results/efficiency-cpu.json"
PAGE = "efficiency.html"


@dataclass(frozen=True)
class Choice:
    """A paper as an answer.

    Attributes:
        wish: what someone wants, as the end of "you want ...".
        claims: of its ledger, those that say most about it first; the first with evidence is quoted.
        method: its name in the comparison of methods; None where it is not in it, or not on its own task.
    """

    package: str
    wish: str
    claims: tuple[str, ...]
    method: str | None = None


CHOICES = (
    Choice("fitprune", "a model as it is to answer with fewer visual tokens, nothing trained",
           ("mini-when",), "FitPrune"),
    Choice("dyvte", "the same, with a depth of the image that follows the question; small gates are trained",
           ("mini-fixed",), "DyVTE"),
    Choice("eas", "a frozen model tuned to one task that drops attentions and their cache",
           ("mini-equal", "mini-folded")),
    Choice("gamma_mod", "to tune a whole model so that tokens skip layers", ("mini-learned", "mini-shipped"), "γ-MoD"),
    Choice("flashsloth", "a small model that reads few visual tokens by design", ("mini-embq",)),
    Choice("llava_hr", "a model that reads fine detail without paying for more visual tokens",
           ("mini-cost", "mini-shipped")),
    Choice("dtnet", "captions from grid features, by a small model", ("mini-shipped",)),
    Choice("dit_sam", "the mask of what a sentence names", ("mini-layer-wise", "mini-shipped")),
    Choice("e3_facenet", "views of a face in 3D from a caption, in one pass", ("mini-sce", "mini-shipped")),
    Choice("inst_diff_edit", "a picture edited by a text, the rest left as it is", ("mini-background", "mini-shipped")),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One answer.

    Attributes:
        wish: what someone wants. package, name: what to take.
        found: what was found here, in words.
        status: of a claim; empty for a line of the comparison.
        anchor: in the paper's page, of its claim; None: the comparison's page.
    """

    wish: str
    package: str
    name: str
    found: str
    status: str
    anchor: str | None

    @property
    def link(self) -> str:
        """Where the evidence stands in a report."""
        return PAGE if self.anchor is None else f"{self.package}.html#{self.anchor}"


def find_record() -> Path | None:
    """The comparison's record in the checkout that tenfold is imported from; None elsewhere."""
    path = Path(tenfold.__file__).parents[3] / RECORD
    return path if path.is_file() else None


def load_comparison(path: Path | None) -> Mapping[str, Any] | None:
    """The metrics of the comparison's record.

    Raises:
        UserError: another record, or a broken one.
    """
    if path is None:
        return None
    record = RunRecord.load(path)
    metrics = record.metrics
    rows = metrics.get("rows")
    if record.verb != "efficiency" or not isinstance(rows, list) or not rows:
        raise UserError(f"the record of {record.package} {record.verb}", path, "one of benchmarks/efficiency.py")
    wanted = {"method", "point", "kind", "accuracy", "change", "flops_share", "prefill_speedup", "kv_share", "front"}
    for row in rows:
        if missing := wanted - set(row):
            raise UserError(f"a row without {sorted(missing)[0]}", path, "a record of benchmarks/efficiency.py")
    return {**metrics, "id": record.id, "date": f"{record.started:%Y-%m-%d}", "commit": record.commit}


def lines(entries: Sequence[Entry], comparison: Mapping[str, Any] | None) -> list[Line]:
    """A line for every paper here that is an answer, in the order of `CHOICES`."""
    here = {entry.paper.package: entry for entry in entries if entry.ledger is not None}
    rows = [] if comparison is None else comparison["rows"]
    found = []
    for choice in CHOICES:
        entry = here.get(choice.package)
        if entry is None:
            continue
        point = chosen_point([row for row in rows if row["method"] == choice.method])
        if point is not None:
            said = told(point, comparison)
            found.append(Line(choice.wish, choice.package, entry.paper.name, said, "", None))
        elif (line := _of_claim(choice, entry)) is not None:
            found.append(line)
    return found


def chosen_point(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of a method's points the cheapest that is not told apart from the host; where all are, the nearest to it."""
    answered = [row for row in rows if row["change"] is not None]
    if not answered:
        return None
    alike = [row for row in answered if row["change"]["high"] >= 0]
    if alike:
        return min(alike, key=lambda row: row["flops_share"])
    return max(answered, key=lambda row: row["change"]["value"])


def told(row: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> str:
    """A point of the comparison in words."""
    change, point = row["change"], f" ({row['point']})" if row["point"] else ""
    asked = "" if comparison is None else f" on {comparison['questions']} questions"
    note = f"; {row['note']}" if row.get("note") else ""
    return (
        f"{100 * row['flops_share']:.0f} % of the host's FLOPs at {_signed(change['value'])} points "
        f"({_signed(change['low'])} to {_signed(change['high'])}) of right answers{asked}{point}{note}"
    )


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _of_claim(choice: Choice, entry: Entry) -> Line | None:
    assert entry.ledger is not None
    pairs = {claim.id: (claim, result) for claim, result in zip(entry.ledger.claims, entry.results, strict=True)}
    known = [pairs[name] for name in choice.claims if name in pairs]
    if not known:
        return None
    claim, result = next((pair for pair in known if pair[1].status != "not run here"), known[0])
    # What is recomputed may differ in its last digits between machines: only committed numbers are quoted.
    value = f": {our_value(claim, result)}" if result.value is not None and result.date is not None else ""
    said = f"{claim.statement}{value}"
    return Line(choice.wish, choice.package, entry.paper.name, said, result.status, claim.id)
