"""Pictures for the report: what the mini model sees, and of the recorded runs the gates, the curves and the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_hr.evaluation.picture import BAR, INK, LINE, QUIET
from llava_hr.evidence.findings import CURVE, NAMES
from tenfold.cli import find_package_file
from tenfold.ledger import Figure
from tenfold.runs import read_json

COLOURS = {"fine": BAR, "coarse": "#c9ced8"}
MISSED = "#b3261e"
ARM_COLOURS = {
    "mra": BAR, "align": "#c8553d", "vit": "#8d99ae", "convnext": "#6a994e", "low_to_high": "#9c6ade",
    "vit_double": "#e09f3e", "mra_96": INK,
}  # fmt: skip


def report_figures(folder: Path) -> list[Figure]:
    """Draw the report's pictures into a folder; without records there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        Figure(
            draw_demonstration(folder / "resolutions.png"),
            "One scene as both pathways see it, what the mini model answers, and the gates of its adapters.",
        )
    ]
    results = find_package_file("llava_hr", "results")
    if results is None:
        return drawn
    if (results / "mini-gates.json").is_file():
        record = read_json(results / "mini-gates.json")
        drawn += [
            Figure(
                draw_gates(record["gates"], folder / "gates.png"),
                "What every seed must show before arms are compared: the bar is what is allowed, a dot is a seed.",
            ),
            Figure(
                draw_curves(record["runs"], folder / "curves.png"),
                f"Loss of stage 2, a line for each seed; a point is the mean of {CURVE} steps.",
            ),
        ]
    if (results / "mini-fine.json").is_file():
        path = draw_variants(read_json(results / "mini-fine.json"), folder / "variants.png")
        drawn.append(Figure(path, "The miniature's variants on held-out scenes: mean, spread and every training seed."))
    return drawn


def draw_demonstration(path: Path, seed: int = 0) -> Path:
    """The demonstration's picture, of the model that ships."""
    from llava_hr.evaluation.answers import Answerer, Query
    from llava_hr.evaluation.demo import MAX_NEW_TOKENS, ask, line_of, look
    from llava_hr.evaluation.model import open_host
    from llava_hr.evaluation.picture import draw
    from llava_hr.evaluation.settings import DemoSettings

    settings = DemoSettings(device="cpu")
    shown, host = ask(settings, seed), open_host(settings)
    queries = [Query.about(host.processor, one.prompt, lambda: shown.image, key="image") for one in shown.questions]
    answers = Answerer(host.model, host.processor).answers(queries, MAX_NEW_TOKENS)
    gates, views = look(host, shown)
    lines = [line_of(one, answer.text) for one, answer in zip(shown.questions, answers, strict=True)]
    path.write_bytes(draw(views, gates, heading=f"{host.name}, {answers[0].visual_tokens} visual tokens", lines=lines))
    return path


def draw_gates(gates: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """A row for each gate: the range that passes, and every seed's value.

    Args:
        gates: name -> "values", "passed", and "least" and "most" where there is such a bound; in per cent or points.
        path: a PNG.
    """
    figure, axes = _canvas(7.2, 0.42 * len(gates) + 0.8)
    for place, gate in enumerate(gates.values()):
        least, most = gate.get("least", 0.0), gate.get("most", 100.0)
        axes.barh(place, most - least, 0.6, least, color=COLOURS["coarse"])
        colour = BAR if gate["passed"] else MISSED
        axes.plot(gate["values"], [place] * len(gate["values"]), "o", color=colour, markersize=5)
    names = [name if gate["passed"] else f"{name}: missed" for name, gate in gates.items()]
    axes.set_yticks(range(len(gates)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-5, 100)
    axes.set_xlabel("right answers, %; the picture's part in them, points", fontsize=8, color=INK)
    return _saved(figure, path)


def draw_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Loss of stage 2 by step, a colour for each arm and a line for each of its seeds.

    Args:
        runs: each with "arm" and "loss", means of CURVE steps each.
        path: a PNG.
    """
    figure, axes = _canvas(7.2, 3.6)
    told: set[str] = set()
    for run in runs:
        steps = [CURVE * (number + 0.5) for number in range(len(run["loss"]))]
        label = None if run["arm"] in told else NAMES[run["arm"]]
        axes.plot(steps, run["loss"], color=ARM_COLOURS[run["arm"]], linewidth=1, label=label)
        told.add(run["arm"])
    axes.set_yscale("log")
    axes.grid(axis="y", color=LINE, linewidth=0.4)
    axes.set_xlabel("step of stage 2", fontsize=8, color=INK)
    axes.set_ylabel("loss", fontsize=8, color=INK)
    axes.legend(fontsize=7, frameon=False, ncols=2)
    return _saved(figure, path)


def draw_variants(result: Mapping[str, Any], path: Path) -> Path:
    """Bars of fine and coarse accuracy, a pair for each variant, and every seed's value.

    Args:
        result: `results/mini-fine.json`, with its table.
        path: a PNG.
    """
    rows = result["table"]
    figure, axes = _canvas(7.2, 0.62 * len(rows) + 0.9)
    for place, name in ((-0.2, "fine"), (0.2, "coarse")):
        means, spreads = [row[name]["mean"] for row in rows], [row[name]["spread"] for row in rows]
        where = [number + place for number in range(len(rows))]
        axes.barh(where, means, 0.36, xerr=spreads, color=COLOURS[name], ecolor=QUIET, label=f"{name} questions")
        for number, row in zip(where, rows, strict=True):
            axes.plot(row[name]["seeds"], [number] * len(row[name]["seeds"]), ".", color=INK, markersize=3)
    axes.set_yticks(range(len(rows)), [f"{row['name']}\n{row['tokens']} visual tokens" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("right answers, %", fontsize=8, color=INK)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return _saved(figure, path)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    return path
