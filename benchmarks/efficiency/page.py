"""The comparison as a page: tables in markdown, and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficiency.findings import Row

COLOURS = {"host": "#1c1e21", "paper": "#0b5c6b", "peer": "#b5651d", "control": "#8a8f98", "both": "#7b3fa0"}
NAMES = {"host": "the host", "paper": "this repository's papers", "peer": "peers", "control": "controls",
         "both": "two papers together"}  # fmt: skip
MARKERS = "osD^vP*Xph<>"


def markdown(metrics: Mapping[str, Any], command: str, picture: str | None) -> str:
    """The page of a record's metrics."""
    rows: list[Row] = metrics["rows"]
    answered = any(row.get("accuracy") for row in rows)
    host = metrics["host"]
    lines = ["# Which one makes a vision-language model cheaper", ""]
    if picture is not None:
        lines += [f"![Right answers against the FLOPs of an answer]({picture})", ""]
    lines += [_sentence(metrics), "", f"`{command}`", ""]
    lines += _table(rows, answered)
    lines += ["", *_legend(metrics, answered), ""]
    if answered:
        lines += ["## By kind of question", "", *_kinds(rows), ""]
    if any(row.get("second") for row in rows):
        lines += ["## A second question about the same picture", "", *_turns(rows), ""]
    if metrics.get("elsewhere"):
        lines += [
            "## On another task, and on the models that are cheap by design",
            "",
            *_elsewhere(metrics["elsewhere"]),
            "",
        ]
    lines += ["## What each needs", "", *_needs(rows), ""]
    notes = {row["method"]: row["note"] for row in rows if row["note"]}
    if notes or metrics["left_out"]:
        lines += ["## What to know", ""]
        lines += [f"- {name}: {note}." for name, note in notes.items()]
        lines += [f"- Left out, {name}: {why}." for name, why in metrics["left_out"].items()]
        lines.append("")
    lines.append(f"Host: {host['model']}, {host['layers']} layers, {host['dtype']}, on {metrics['machine']}.")
    return "\n".join(lines) + "\n"


def _sentence(metrics: Mapping[str, Any]) -> str:
    asked = metrics.get("questions")
    what = f"{asked} questions; " if asked else "No answers (random weights); "
    return (
        f"{what}cost on {metrics['costed']} single prompts, time the median of {metrics['rounds']} alternated rounds. "
        "● marks the Pareto front: nothing else is right as often for fewer FLOPs."
    )


def _table(rows: Sequence[Row], answered: bool) -> list[str]:
    head = ["method", "at"] + (["right", "to the host"] if answered else [])
    head += ["FLOPs", "prefill", "decoding", "KV cache", "peak"] + (["front"] if answered else [])
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for row in rows:
        cells = [f"**{row['method']}**" if row["kind"] == "paper" else row["method"], row["point"]]
        if answered:
            cells += [_percent(row["accuracy"]) + _seeds(row), _points(row["change"]) if row["kind"] != "host" else ""]
        cells += [
            f"{100 * row['flops_share']:.1f} %",
            f"{1000 * row['prefill_seconds']:.3g} ms ({row['prefill_speedup']:.2f}×)",
            f"{1000 * row['decode_seconds']:.3g} ms ({row['decode_speedup']:.2f}×)",
            f"{100 * row['kv_share']:.1f} %",
            _size(row["peak_bytes"]),
        ]
        lines.append(_line([*cells, *(["●" if row["front"] else ""] if answered else [])]))
    return lines


def _legend(metrics: Mapping[str, Any], answered: bool) -> list[str]:
    whole = metrics["rows"][0]
    said = [
        f"FLOPs: of a whole answer, vision tower included, as torch's own counter counts what ran; the host's are "
        f"{whole['flops']:.4g}. Prefill: until the first token; decoding: one further token; × is how many times "
        f"faster than the host in the same rounds. KV cache: share of the host's {_size(whole['kv_bytes'])} when the "
        f"answer is written. Peak: what lived at once beside the weights."
    ]
    if answered:
        said.append(
            "Right: share of right answers with the 95 % bootstrap interval over questions; to the host: the paired "
            "difference in points. What draws at random is a mean over its seeds, with its lowest and highest draw."
        )
    return [" ".join(said)]


def _kinds(rows: Sequence[Row]) -> list[str]:
    kinds = list(rows[0]["by_kind"])
    lines = [_line(["method", "at", *kinds]), _line(["---"] * 2 + ["---:"] * len(kinds))]
    for row in rows:
        values = [row["by_kind"][kind] for kind in kinds]
        lines.append(
            _line([row["method"], row["point"], *("–" if one is None else f"{100 * one:.0f}" for one in values)])
        )
    return lines


def _turns(rows: Sequence[Row]) -> list[str]:
    lines = [_line(["method", "at", "asked first", "asked second", "difference"])]
    lines.append(_line(["---", "---", "---:", "---:", "---:"]))
    for row in rows:
        if found := row.get("second"):
            cells = [f"{100 * found['fresh']:.1f} %", f"{100 * found['later']:.1f} %", _points(found["change"])]
            lines.append(_line([row["method"], row["point"], *cells]))
    pairs = next(row["second"]["pairs"] for row in rows if row.get("second"))
    return [
        f"{pairs} pairs of questions about one picture. The picture is read with the first question, whose words are "
        "then forgotten; the second question is asked from what is left of the picture: a token that the first one did "
        "not need is gone. For the host nothing is.",
        "",
        *lines,
    ]


def _elsewhere(rows: Sequence[Row]) -> list[str]:
    lines = [_line(["host", "with", "right", "FLOPs", "KV cache", "how"]), _line(["---", "---", *["---:"] * 3, "---"])]
    for row in rows:
        shares = [f"{100 * row[name]:.1f} %" for name in ("accuracy", "flops_share", "kv_share")]
        lines.append(_line([row["host"], row["method"] or "nothing", *shares, row["knobs"]]))
    asked = "; ".join(f"{host}: {count} questions" for host, count in {r["host"]: r["questions"] for r in rows}.items())
    return [f"{asked}. Nothing is trained for what is attached there, but EAS's adapters.", "", *lines]


def _needs(rows: Sequence[Row]) -> list[str]:
    lines = [_line(["method", "trains", "the host's weights", "preparing", "measured"]), _line(["---"] * 5)]
    seen = set()
    for row in rows:
        needs = row["needs"]
        if row["method"] in seen:
            continue
        seen.add(row["method"])
        taken = "–" if needs["seconds"] is None else "0" if not needs["seconds"] else f"{needs['seconds']:.3g} s"
        lines.append(_line([row["method"], needs["trained"], needs["weights"], taken, needs["source"]]))
    return lines


def _percent(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{100 * interval['value']:.1f} % ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"


def _seeds(row: Row) -> str:
    """Lowest and highest of several draws."""
    if row["seeds"] < 2 or not row["by_seed"]:
        return ""
    return f", seeds {100 * min(row['by_seed']):.1f} to {100 * max(row['by_seed']):.1f}"


def _points(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{100 * interval['value']:+.1f} ({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Right answers against FLOPs: a line through the points of a method, intervals, the front ringed. Without answers
    realised against counted speed-ups."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 6.2), layout="constrained", dpi=150)
    axis = figure.subplots()
    answered = any(row.get("accuracy") for row in rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        these = [row for row in rows if row["method"] == method]
        these = sorted((row for row in these if not answered or row["accuracy"]), key=lambda row: row["flops_share"])
        if not these:
            continue
        x, y = zip(*(_place(row, answered) for row in these), strict=True)
        kind = these[0]["kind"]
        line = "-" if kind in ("paper", "peer") else ":"
        axis.plot(x, y, line, color=COLOURS[kind], linewidth=1.2, alpha=0.7, zorder=2)
        axis.plot(x, y, MARKERS[number % len(MARKERS)], color=COLOURS[kind], markersize=6, label=method, zorder=3)
        for row, across, up in zip(these, x, y, strict=True):
            if answered:
                low, high = 100 * row["accuracy"]["low"], 100 * row["accuracy"]["high"]
                axis.plot([across, across], [low, high], color=COLOURS[kind], linewidth=0.8, alpha=0.35, zorder=1)
            if answered and row["seeds"] > 1:
                ends = [100 * min(row["by_seed"]), 100 * max(row["by_seed"])]
                axis.plot([across, across], ends, color=COLOURS[kind], linewidth=3, alpha=0.6, zorder=2)
            if row["front"]:
                axis.plot(across, up, "o", markersize=13, markerfacecolor="none", markeredgecolor="#b3261e", zorder=4)
    if answered:
        axis.set_xlabel("FLOPs of a whole answer, % of the host's")
        axis.set_ylabel("right answers, % (95 % interval over questions)")
    else:
        ends = [min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])]
        axis.plot(ends, ends, color="#dfdcd4", linewidth=1, zorder=0)
        axis.set_xlabel("times fewer FLOPs")
        axis.set_ylabel("times faster until the first token")
    axis.grid(color="#ecebe6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _place(row: Row, answered: bool) -> tuple[float, float]:
    if answered:
        return 100 * row["flops_share"], 100 * row["accuracy"]["value"]
    return 1 / row["flops_share"], row["prefill_speedup"]
