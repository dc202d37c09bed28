"""Numbers and standings as words, the same in the terminal, the READMEs and the report."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.ledger.evidence import WITHOUT_EVIDENCE, Result, claim_counts
from tenfold.ledger.schema import Claim, Ledger, Value

MISSING = "–"


def format_value(value: Value, unit: str | None = None) -> str:
    """A number as it is read: at most five significant digits, thousands grouped, its unit behind."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        text = value
    elif isinstance(value, int):
        text = f"{value:,}"
    elif value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:,.5g}"
    else:
        text = f"{value:.3g}"
    return f"{text} {unit}" if unit else text


def small(value: float) -> str:
    """A difference of floating-point numbers: "0", or one decimal and its power of ten."""
    return f"{value:.1e}" if value else "0"


def paper_value(claim: Claim) -> str:
    """The paper's number."""
    return format_value(claim.value, claim.unit)


def our_value(claim: Claim, result: Result) -> str:
    """Ours; the unit only where it is a number in it."""
    return format_value(result.value, claim.unit if not isinstance(result.value, str) else None)


def difference(claim: Claim, result: Result) -> str:
    """Ours minus the paper's, with its sign, where both are numbers; empty elsewhere."""
    ours, theirs = result.value, claim.value
    if not isinstance(ours, int | float) or not isinstance(theirs, int | float):
        return ""
    # Rounding noise of a subtraction is no difference.
    apart = round(ours - theirs, 9)
    return "0" if apart == 0 else f"{'+' if apart > 0 else '-'}{format_value(abs(apart))}"


def evidence(result: Result) -> str:
    """Where a result comes from: "recomputed", or date, commit, device and run of a recorded one."""
    if result.status == "not run here":
        return MISSING
    if result.date is None:
        return "recomputed"
    parts = [
        result.date,
        result.commit[:10] if result.commit else "commit unknown",
        result.device,
        # The end of a run's id tells runs apart; all of it stands in the recorded file.
        f"run {result.run_id.rpartition('-')[2]}" if result.run_id else None,
    ]
    return ", ".join(part for part in parts if part)


def summary(ledger: Ledger, results: Sequence[Result]) -> str:
    """One line: for each kind, how many of its claims have evidence; failures named."""
    parts = []
    for kind, statuses in claim_counts(ledger, results).items():
        total = sum(statuses.values())
        shown = statuses.get("reproduced", 0) + statuses.get("recorded", 0)
        noted = [f"{statuses[status]} {status}" for status in WITHOUT_EVIDENCE if statuses.get(status)]
        parts.append(f"{kind} {shown}/{total}" + (f" ({', '.join(noted)})" if noted else ""))
    return ", ".join(parts)


def is_waiting(claim: Claim, result: Result) -> bool:
    """A claim that needs official weights and data, and that nobody has run here: tables fold these away."""
    return claim.kind == "full" and result.status == "not run here"
