"""Pictures for the report: what the mini model sees, and what the miniature's variants answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_hr.evaluation.picture import BAR, INK, QUIET
from tenfold.cli import find_package_file
from tenfold.ledger import Figure
from tenfold.runs import read_json

COLOURS = {"fine": BAR, "coarse": "#c9ced8"}


def report_figures(folder: Path) -> list[Figure]:
    """Draw the report's pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        Figure(
            draw_demonstration(folder / "resolutions.png"),
            "One scene as both pathways see it, what the mini model answers, and the gates of its adapters.",
        )
    ]
    results = find_package_file("llava_hr", "results")
    if results is not None and (results / "mini-fine.json").is_file():
        path = draw_variants(read_json(results / "mini-fine.json"), folder / "variants.png")
        drawn.append(Figure(path, "The miniature's variants on held-out scenes: mean and spread over training seeds."))
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


def draw_variants(result: Mapping[str, Any], path: Path) -> Path:
    """Bars of fine and coarse accuracy, a pair for each variant.

    Args:
        result: `results/mini-fine.json`, with its table.
        path: a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    rows = result["table"]
    figure = Canvas(figsize=(7.2, 0.62 * len(rows) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, name in ((-0.2, "fine"), (0.2, "coarse")):
        means, spreads = [row[name]["mean"] for row in rows], [row[name]["spread"] for row in rows]
        where = [number + place for number in range(len(rows))]
        axes.barh(where, means, 0.36, xerr=spreads, color=COLOURS[name], ecolor=QUIET, label=f"{name} questions")
    axes.set_yticks(range(len(rows)), [f"{row['name']}\n{row['tokens']} visual tokens" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("right answers, %", fontsize=8, color=INK)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    return path
