"""The authors' numbers beside ours: of the released weights, by data set and part (mIoU, as read from their README)."""

from __future__ import annotations

from tenfold.cli import package_file
from tenfold.ledger import load_ledger


def published(name: str, part: str) -> float | None:
    """The number of the released weights of a set on a part, in per cent; None where there is none."""
    claim_id = f"{name.replace('+', '-plus')}-{part.lower()}"
    claims = load_ledger(package_file("dit_sam", "claims.yaml")).claims
    value = next((claim.value for claim in claims if claim.id == claim_id), None)
    return float(value) if isinstance(value, int | float) else None
