"""From claims to results: what was recomputed now, what is on record, what nobody has run."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from tenfold.errors import UserError
from tenfold.ledger.schema import Claim, Ledger, Value
from tenfold.runs import read_json, track
from tenfold.runs.record import validation_error

logger = logging.getLogger(__name__)

Status = Literal["reproduced", "recorded", "equivalent", "no verdict", "not reproduced", "not run here"]
STATUSES: tuple[Status, ...] = get_args(Status)
# Of claims that somebody tried and that did not come out.
WITHOUT_EVIDENCE: tuple[Status, ...] = ("not reproduced", "equivalent", "no verdict")
UNDECIDED = re.compile(r"\bno verdict\b(?! was declared)")
EQUIVALENT = re.compile(r"equivalent\b")


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        value: our number; None when it could not be computed here.
        passed: whether the claim came out; None: measured, nothing to compare it with, or a validity gate failed.
        detail: what a reader should know, e.g. "largest difference 3e-7 in 12 tensors". Where a gate failed it says
            "no verdict", and which gate.
    """

    value: Value
    passed: bool | None
    detail: str = ""


class Recorded(BaseModel):
    """A committed result: one JSON file of the package's `results` folder. Further fields are allowed.

    Attributes:
        verdict: "no verdict" where a validity gate failed, which may also stand in `detail`; "equivalent" where the
            difference lies within the least effect, which `detail` may also begin with.
    """

    model_config = ConfigDict(extra="allow")

    claim: str
    value: Value
    passed: bool | None
    date: date
    commit: str | None
    device: str | None
    run_id: str | None = None
    detail: str = ""
    verdict: str | None = None


class Result(BaseModel):
    """A claim's standing.

    Attributes:
        claim: its id. value: ours, None when there is none.
        status: "reproduced" (recomputed now, and it holds), "recorded" (measured earlier, or now with nothing
            to compare it with), "equivalent" (the miniature's difference lies within the least effect that counts:
            what the paper claims is not seen in it), "no verdict" (a validity gate of the miniature failed: nothing
            is said for or against the paper), "not reproduced" (it did not come out, now or earlier), "not run here".
        detail: from the check or the record.
        run_id, date, commit, device: of a recorded result; None for one that was recomputed now.
    """

    model_config = ConfigDict(extra="forbid")

    claim: str
    value: Value = None
    status: Status
    detail: str = ""
    run_id: str | None = None
    date: str | None = None
    commit: str | None = None
    device: str | None = None


@runtime_checkable
class Waiting(Protocol):
    """A check whose work is mostly done by another process."""

    def begin(self) -> None:
        """Start that process, without waiting for it; what fails here fails again when the check is asked."""
        ...

    def __call__(self) -> Outcome:
        """The check."""
        ...


def evaluate(ledger: Ledger, checks: Mapping[str, Callable[[], Outcome]], recorded: Path | None) -> list[Result]:
    """The result of every claim, in the ledger's order. A claim is never shown as more than its evidence.

    A check that runs decides. Where there is none, or it finds nothing to compute with here (value and
    passed both None, or a UserError), the newest recorded result counts; where there is none either, the
    claim is not run.

    Args:
        checks: name -> function; one that several claims name runs once. One that has a method ``begin`` waits for
            something outside: that is begun before the other checks, and the check is asked after them.
        recorded: folder of committed results (`*.json`, see `Recorded`), or None.

    Raises:
        UserError: a claim names a check that does not exist, or a recorded file is broken or names no claim.
    """
    for claim in ledger.claims:
        if claim.check is not None and claim.check not in checks:
            known = ", ".join(sorted(checks)) or "none"
            raise UserError(f"no check {claim.check}", f"claim {claim.id} of {ledger.paper}", f"one of: {known}")
    on_record = _load_recorded(recorded, ledger) if recorded is not None else {}
    outcomes: dict[str, Outcome] = {}
    asked = list(dict.fromkeys(claim.check for claim in ledger.claims if claim.check))
    waiting = {name: check for name in asked if isinstance(check := checks[name], Waiting)}
    for check in waiting.values():
        check.begin()
    for name in track(sorted(asked, key=waiting.__contains__), "claims"):
        outcomes[name] = _run_check(name, checks[name])
    return [
        _result(claim, outcomes.get(claim.check) if claim.check else None, on_record.get(claim.id))
        for claim in ledger.claims
    ]


def _run_check(name: str, check: Callable[[], Outcome]) -> Outcome:
    try:
        return check()
    except UserError as error:
        # What a check needs from outside is not here; that says nothing about the claim.
        logger.info("check %s cannot run here: %s", name, error)
        return Outcome(None, None, str(error))


def _result(claim: Claim, outcome: Outcome | None, record: Recorded | None) -> Result:
    if outcome is not None and (outcome.value is not None or outcome.passed is not None):
        passed = _holds(claim, outcome.value, outcome.passed)
        status = _standing(claim, passed, outcome.detail, "reproduced")
        return Result(claim=claim.id, value=outcome.value, status=status, detail=outcome.detail)
    if record is not None:
        passed = _holds(claim, record.value, record.passed)
        status = _standing(claim, passed, f"{record.verdict or ''} {record.detail}".strip(), "recorded")
        return Result(
            claim=claim.id,
            value=record.value,
            status=status,
            detail=record.detail,
            run_id=record.run_id,
            date=record.date.isoformat(),
            commit=record.commit,
            device=record.device,
        )
    return Result(claim=claim.id, status="not run here", detail=outcome.detail if outcome is not None else "")


def _standing(claim: Claim, passed: bool | None, told: str, held: Status) -> Status:
    """What to call an outcome; `held` where it came out."""
    if passed:
        return held
    if claim.kind == "mini" and passed is None and UNDECIDED.search(told):
        return "no verdict"
    if claim.kind == "mini" and EQUIVALENT.match(told):
        return "equivalent"
    return "recorded" if passed is None else "not reproduced"


def _holds(claim: Claim, value: Value, passed: bool | None) -> bool | None:
    """What the check says, and, where the claim has a number and a tolerance, that the number agrees too."""
    if passed is False or claim.tolerance is None:
        return passed
    if not isinstance(value, int | float) or not isinstance(claim.value, int | float):
        return passed
    return abs(value - claim.value) <= claim.tolerance


def _load_recorded(folder: Path, ledger: Ledger) -> dict[str, Recorded]:
    """Claim id -> its newest recorded result."""
    known = {claim.id for claim in ledger.claims}
    newest: dict[str, Recorded] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = Recorded.model_validate(read_json(path))
        except ValidationError as error:
            raise validation_error(error, path, "a recorded result") from error
        if record.claim not in known:
            raise UserError(f"no claim {record.claim}", path, f"an id of {ledger.paper}'s claims.yaml")
        if record.claim not in newest or newest[record.claim].date <= record.date:
            newest[record.claim] = record
    return newest


def failures(ledger: Ledger, results: Sequence[Result]) -> list[str]:
    """Ids of parity and analytic claims that should hold and did not."""
    status = {result.claim: result.status for result in results}
    return [
        claim.id
        for claim in ledger.claims
        if claim.kind in ("parity", "analytic") and claim.should_hold and status[claim.id] == "not reproduced"
    ]


def claim_counts(ledger: Ledger, results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Kind -> status -> number of claims; every kind and status that occurs."""
    kinds = {claim.id: claim.kind for claim in ledger.claims}
    counts: dict[str, Counter[str]] = {}
    for result in results:
        counts.setdefault(kinds[result.claim], Counter())[result.status] += 1
    return {kind: dict(counter) for kind, counter in counts.items()}
