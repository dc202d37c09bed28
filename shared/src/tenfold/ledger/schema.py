"""`claims.yaml`: what a paper claims, and the evidence that its package can give for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from tenfold.errors import UserError
from tenfold.runs import read_yaml
from tenfold.runs.record import validation_error

Kind = Literal["parity", "analytic", "mini", "speed", "full"]
Value = int | float | str | None


class Claim(BaseModel):
    """One number or statement of the paper.

    Attributes:
        id: unique in its ledger. statement: what is claimed, in one sentence. source: table or section.
        value, unit: the paper's number, None where it gives none.
        kind: parity (same as the official code on golden data), analytic (recomputed exactly), mini (the
            mechanism at laptop scale), speed (measured at full size), full (official weights and data).
        check: name of the function in the package's `claims.checks()` that recomputes it, or None.
        tolerance: how far a recomputed number may be from `value`, absolute; None: the check decides alone.
        command: what recomputes it; required for kind full, which nothing here runs by itself.
        note: what a reader should know.
        should_hold: False for a claim that is known not to come out; it then does not fail `claims`.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    statement: str = Field(min_length=1)
    source: str = Field(min_length=1)
    value: Value = None
    unit: str | None = None
    kind: Kind
    check: str | None = None
    tolerance: float | None = Field(default=None, ge=0)
    command: str | None = None
    note: str | None = None
    should_hold: StrictBool = True

    @model_validator(mode="after")
    def _full_claims_say_how(self) -> Claim:
        if self.kind == "full" and not self.command:
            raise ValueError("a claim of kind full needs the exact command")
        return self


class Ledger(BaseModel):
    """The claims of one paper.

    Attributes:
        paper: the package. title, venue, arxiv, repository: of the paper and its official code.
        licence_note: what the licences of official code and weights allow.
        claims: in the order in which they are shown.
    """

    model_config = ConfigDict(extra="forbid")

    paper: str = Field(min_length=1)
    title: str = Field(min_length=1)
    venue: str = Field(min_length=1)
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")
    repository: str = Field(min_length=1)
    licence_note: str | None = None
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Ledger:
        ids = [claim.id for claim in self.claims]
        twice = sorted({claim_id for claim_id in ids if ids.count(claim_id) > 1})
        if twice:
            raise ValueError(f"claim {twice[0]} is there twice")
        return self


def load_ledger(path: str | Path) -> Ledger:
    """Read and check a `claims.yaml`.

    Raises:
        UserError: missing, broken, or a field is missing, unknown or wrong (names it: `claims.3.kind`).
    """
    path = Path(path)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError("not a claims ledger", path, "a mapping with paper, title, ..., claims")
    try:
        return Ledger.model_validate(content)
    except ValidationError as error:
        raise validation_error(error, path, "a claims ledger") from error
