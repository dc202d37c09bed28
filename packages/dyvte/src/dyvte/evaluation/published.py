"""The paper's scores of LLaVA-1.5 with DyVTE, as the ledger `claims.yaml` lists them."""

from __future__ import annotations

from functools import cache

from tenfold.cli import package_file
from tenfold.ledger.schema import load_ledger


def published(model: str, benchmark: str) -> float | None:
    """The score that the paper prints for a model with DyVTE on a benchmark, in percent (MME: points); None: none."""
    size = next((size for size in ("7b", "13b") if f"llava-1.5-{size}" in model.lower()), None)
    return None if size is None else _scores().get(f"score-{size}-{benchmark}")


@cache
def _scores() -> dict[str, float]:
    claims = load_ledger(package_file("dyvte", "claims.yaml")).claims
    return {claim.id: claim.value for claim in claims if claim.kind == "full" and isinstance(claim.value, int | float)}
