"""The picture of a paper whose package draws none: what was recomputed, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tenfold.ledger.evidence import Result
from tenfold.ledger.schema import Ledger
from tenfold.ledger.text import our_value, paper_value

MOST = 14  # rows
COLOURS = {"reproduced": "#1f7a4d", "recorded": "#2a5fa8", "not reproduced": "#b3261e"}


def draw_recomputed(ledger: Ledger, results: Sequence[Result], path: Path) -> tuple[Path, str] | None:
    """Draw our number over the paper's for the first claims that have both, those that missed first.

    Returns:
        The picture and its caption; None where no claim has both.
    """
    pairs = [
        (claim, result, result.value / claim.value)
        for claim, result in zip(ledger.claims, results, strict=True)
        if isinstance(result.value, int | float) and isinstance(claim.value, int | float) and claim.value > 0
        if result.status in COLOURS
    ]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: pair[1].status != "not reproduced")
    shown = pairs[:MOST]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.3 * len(shown)), layout="constrained", dpi=150)
    axis = figure.subplots()
    axis.axvline(1, color="#5c6068", linewidth=1)
    for place, (claim, result, ratio) in enumerate(shown):
        axis.plot([1, ratio], [place, place], color=COLOURS[result.status], linewidth=1.5)
        axis.plot(ratio, place, "o", color=COLOURS[result.status], markersize=6)
        label = f"{our_value(claim, result)} (paper {paper_value(claim)})"
        axis.annotate(label, (1, place), xytext=(1.02, place), textcoords=("axes fraction", "data"), va="center",
                      fontsize=8, annotation_clip=False)  # fmt: skip
    axis.set_yticks(range(len(shown)), [claim.id for claim, _, _ in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(min(0.9, *(ratio for *_, ratio in shown)) - 0.02, max(1.1, *(ratio for *_, ratio in shown)) + 0.02)
    axis.set_xlabel("recomputed here / published")
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    more = f" ({len(shown)} of {len(pairs)})" if len(pairs) > len(shown) else ""
    return path, f"Numbers of the paper that are recomputed here{more}: ours over theirs."
