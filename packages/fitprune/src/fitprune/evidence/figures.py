"""The report's figures. Every function writes one picture and returns its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from fitprune.recipe import Recipe
from tenfold.runs import atomic_write_bytes

INK, QUIET = "#1f2430", "#6b7280"
# The released recipes by model: colour, and a shift that keeps their points apart.
MODELS = {"llava-1.5-7b": ("#28536b", 0.0), "llava-next-7b": ("#c8553d", 1.0), "llava-hr-7b": ("#6a994e", 2.0)}
# Method -> name, colour, line: the paper's own first and strongest, published peers in colour, controls in grey.
LINES = {
    "product": ("FitPrune", "#c8553d", "-"),
    "self": ("recipe, self mass", "#e09f3e", "-"),
    "cross": ("recipe, cross mass", "#7f4f24", "-"),
    "last-token": ("recipe, last token", "#d68fb3", "-"),
    "uniform": ("uniform recipe", "#9c6ade", "-"),
    "fastv": ("FastV", "#28536b", "-"),
    "pyramiddrop": ("PyramidDrop", "#3a9bc1", "-"),
    "oracle": ("recipe, oracle", "#4c956c", "--"),
    "random": ("recipe, random", "#6b7280", "--"),
    "grid": ("recipe, evenly spread", "#8d99ae", "--"),
    "inverse": ("recipe, inverse", "#b9bec8", "--"),
    "random-before": ("random before layer 0", "#1f2430", "--"),
}
UNPRUNED = "unpruned"


def delivered(path: Path) -> Path:
    """What the released recipes save, against their labels."""
    canvas = _canvas(7, 3.2)
    axis = canvas.subplots()
    axis.axhline(0, color="#999999", linewidth=1, linestyle="--", zorder=1)
    for model, (colour, shift) in MODELS.items():
        labels = [percent for name, percent in Recipe.released_names() if name == model and percent]
        beyond = [100 * (Recipe.released(model, label).reduction or 0.0) - label for label in labels]
        axis.vlines([label + shift for label in labels], 0, beyond, color=colour, linewidth=2)
        axis.plot([label + shift for label in labels], beyond, "o", color=colour, markersize=5, label=model)
    axis.set_xticks(range(10, 100, 10))
    axis.set_xlabel("label of the recipe, % of the visual FLOPs")
    axis.set_ylabel("delivered - label, points")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return _saved(canvas, path)


def accuracy(table: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Accuracy against the visual FLOPs that are left, a panel for each kind of question.

    Args:
        table: rows with method, ratio, kind, visual_reduction, mean and seeds (`findings.Scores.table`).
    """
    kinds = list(dict.fromkeys(row["kind"] for row in table))
    columns = min(3, len(kinds))
    rows_of_panels = -(-len(kinds) // columns)
    canvas = _canvas(3.1 * columns, 0.8 + 3.1 * rows_of_panels)
    panels = canvas.subplots(rows_of_panels, columns, sharey=True, squeeze=False).ravel()
    for axis, kind in zip(panels, kinds, strict=False):
        whole = next((row for row in table if row["method"] == UNPRUNED and row["kind"] == kind), None)
        if whole is not None:
            axis.axhline(100 * whole["mean"], color="#999999", linewidth=1, linestyle=":", label=UNPRUNED)
        for method, (name, colour, line) in LINES.items():
            rows = [row for row in table if row["method"] == method and row["kind"] == kind]
            if not rows:
                continue
            rows = sorted(rows, key=lambda row: row["visual_reduction"])
            left = [100 * (1 - row["visual_reduction"]) for row in rows]
            strong = method == "product"
            look = {"color": colour, "linestyle": line, "zorder": 4 if strong else 3}
            axis.plot(left, [100 * row["mean"] for row in rows], linewidth=2.6 if strong else 1.3, label=name, **look)
            for place, row in zip(left, rows, strict=True):
                dots = [100 * value for value in row["seeds"]]
                axis.plot([place] * len(dots), dots, ".", color=colour, markersize=4, alpha=0.7)
        axis.set_title(f"{kind.replace('_', '-')} questions", fontsize=10, loc="left", color=INK)
        axis.set_xlabel("visual FLOPs left, %")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0, 103)
    panels[0].set_ylabel("accuracy, %")
    handles, names = panels[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return _saved(canvas, path)


def gates(seeds: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """What is left of a host's answers when tokens or an attention are taken away.

    Args:
        seeds: training seed -> gates as `tenfold.data.mini_gate.measure` gives them; kinds of questions of the first.
    """
    canvas = _canvas(11, 3.6)
    removal, kept, attention = canvas.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    (first, *_), measured = seeds.values(), list(seeds.values())
    layers = range(-1, len(first["removal"]["all"]) - 1)
    for number, (kind, curve) in enumerate(first["removal"].items()):
        whole = kind == "all"
        look = {"color": INK, "linewidth": 2.4} if whole else {"color": f"C{number - 1}", "linewidth": 1.1}
        removal.plot(layers, curve, label=kind.replace("_", "-"), **look)
    for one in measured[1:]:
        removal.plot(layers, one["removal"]["all"], color=INK, linewidth=1, linestyle=":")
    for one in measured:
        for rule, colour in (("oracle", "#c8553d"), ("random", QUIET)):
            named = {"label": rule} if one is first else {}
            after = [int(layer) for layer in one["keep-sets"]]
            shares = [choice[rule] for choice in one["keep-sets"].values()]
            kept.plot(after, shares, "o-", color=colour, markersize=3, **named)
        attention.plot(range(len(one["attention removed"])), one["attention removed"], "o-", color=INK, markersize=3)
    names = ("all removed after layer", "40 % kept after layer", "attention removed in layer")
    for axis, name in zip((removal, kept, attention), names, strict=True):
        axis.set_xlabel(name)
        axis.set_ylim(0, 103)
        axis.spines[["top", "right"]].set_visible(False)
    removal.set_ylabel("accuracy, %")
    removal.legend(frameon=False, fontsize=7, ncols=3, loc="lower right")
    kept.legend(frameon=False, fontsize=7, loc="lower right")
    return _saved(canvas, path)


def mini_host(folder: Path, seed: int = 0, scenes: int = 8) -> tuple[Path, Path]:
    """A 60 % recipe of the host that ships, and the patches of a scene that are left under it: two pictures."""
    from fitprune.evaluation import picture
    from fitprune.evaluation.demo import SCENE_PIXELS, generate
    from fitprune.evidence.experiments import calibrate
    from fitprune.pruner import Pruner
    from tenfold.cli.settings import HostSettings
    from tenfold.data import mini_sets
    from tenfold.data.miniworld import flag_questions, flags
    from tenfold.hosts.loading import load_host
    from tenfold.hosts.prompts import encode

    host = load_host(HostSettings())
    recipe = calibrate(host, seed, scenes).recipe(0.6)
    recipe.plot(folder / "recipe-mini.png")
    ((scene, question),) = flag_questions.asked("two_hop", seed, 1)
    image = flags.render(scene, SCENE_PIXELS)
    inputs = encode(host.processor, host.model, image, f"{question.text}\n{mini_sets.SHORT_ANSWER}")
    whole = generate(host, inputs)
    pruner = Pruner(recipe)
    with pruner(host.model):
        pruned = generate(host, inputs)
    surviving = pruner.surviving()
    visual = surviving.shape[1]
    caption = (
        f"“{whole}” with all {visual} visual tokens, “{pruned}” with {int(surviving[-1].sum())} left; "
        f"right is “{question.answer}”."
    )
    grid = picture.patch_grid(inputs, visual)
    assert grid is not None  # 100 tokens of one square picture
    drawn = picture.draw(image, grid, picture.stages(surviving), heading=question.text, caption=caption)
    atomic_write_bytes(folder / "patches.png", drawn)
    return folder / "recipe-mini.png", folder / "patches.png"


def _canvas(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _saved(canvas: Any, path: Path) -> Path:
    drawn = BytesIO()
    canvas.savefig(drawn, format="png", metadata={"Software": None})
    atomic_write_bytes(path, drawn.getvalue())
    return path
