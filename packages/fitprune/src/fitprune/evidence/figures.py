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
    "fitprune": ("FitPrune", "#c8553d", "-"),
    "self": ("recipe, self mass", "#e09f3e", "-"),
    "cross": ("recipe, cross mass", "#7f4f24", "-"),
    "last-token": ("recipe, last token", "#d68fb3", "-"),
    "uniform": ("uniform recipe", "#9c6ade", "-"),
    "single-cut": ("single cut", "#4c956c", "-"),
    "fastv": ("FastV", "#28536b", "-"),
    "pyramiddrop": ("PyramidDrop", "#3a9bc1", "-"),
    "random": ("recipe, random", "#6b7280", "--"),
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
        table: rows with method, ratio, kind, visual_reduction, mean and seeds (`mini_verdicts.Scores.table`).
    """
    kinds = list(dict.fromkeys(row["kind"] for row in table))
    canvas = _canvas(3.1 * len(kinds), 4.1)
    panels = canvas.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind in zip(panels, kinds, strict=True):
        whole = next((row for row in table if row["method"] == UNPRUNED and row["kind"] == kind), None)
        if whole is not None:
            axis.axhline(100 * whole["mean"], color="#999999", linewidth=1, linestyle=":", label=UNPRUNED)
        for method, (name, colour, line) in LINES.items():
            rows = [row for row in table if row["method"] == method and row["kind"] == kind]
            if not rows:
                continue
            rows = sorted(rows, key=lambda row: row["visual_reduction"])
            left = [100 * (1 - row["visual_reduction"]) for row in rows]
            strong = method == "fitprune"
            look = {"color": colour, "linestyle": line, "zorder": 4 if strong else 3}
            axis.plot(left, [100 * row["mean"] for row in rows], linewidth=2.6 if strong else 1.3, label=name, **look)
            for place, row in zip(left, rows, strict=True):
                dots = [100 * value for value in row["seeds"]]
                axis.plot([place] * len(dots), dots, ".", color=colour, markersize=4, alpha=0.7)
        axis.set_title(f"{kind} questions", fontsize=10, loc="left", color=INK)
        axis.set_xlabel("visual FLOPs left, %")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0, 103)
    panels[0].set_ylabel("accuracy, %")
    handles, names = panels[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return _saved(canvas, path)


def gates(curves: Mapping[str, Sequence[Sequence[float]]], path: Path) -> Path:
    """Accuracy when one visual token is left after a layer.

    Args:
        curves: kind of question -> one curve a seed, one share a layer.
    """
    canvas = _canvas(2.6 * len(curves), 3)
    panels = canvas.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axis, (kind, seeds) in zip(panels, curves.items(), strict=True):
        for curve in seeds:
            axis.plot(
                range(len(curve)), [100 * share for share in curve], "o-", color="#28536b", alpha=0.7, markersize=3
            )
        axis.set_title(kind.replace("_", "-"), fontsize=10, loc="left", color=INK)
        axis.set_xlabel("dropped after layer")
        axis.set_xticks(range(len(seeds[0])))
        axis.set_ylim(0, 103)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy, %")
    return _saved(canvas, path)


def mini_host(folder: Path, seed: int = 0, scenes: int = 8) -> tuple[Path, Path]:
    """A 60 % recipe of the host that ships, and the patches of a scene that are left under it: two pictures."""
    from fitprune.evaluation import picture
    from fitprune.evaluation.demo import SCENE, SCENE_PIXELS, generate
    from fitprune.evidence.experiments import calibrate
    from fitprune.pruner import Pruner
    from tenfold.cli.settings import HostSettings
    from tenfold.data import mini_sets, miniworld
    from tenfold.hosts.loading import load_host
    from tenfold.hosts.prompts import encode

    host = load_host(HostSettings())
    recipe = calibrate(host, seed, scenes).recipe(0.6)
    recipe.plot(folder / "recipe-mini.png")
    asked: tuple[miniworld.Question, ...] = ()
    index = SCENE
    while not asked:  # not every scene has an object with a neighbour
        index += 1
        scene = miniworld.scene(seed, index)
        asked = miniworld.questions(scene, seed, index, 1, ("two_hop",))
    image = miniworld.render(scene, SCENE_PIXELS)
    inputs = encode(host.processor, host.model, image, f"{asked[0].text}\n{mini_sets.SHORT_ANSWER}")
    whole = generate(host, inputs)
    pruner = Pruner(recipe)
    with pruner(host.model):
        pruned = generate(host, inputs)
    surviving = pruner.surviving()
    visual = surviving.shape[1]
    caption = (
        f"“{whole}” with all {visual} visual tokens, “{pruned}” with {int(surviving[-1].sum())} left; "
        f"right is “{asked[0].answer}”."
    )
    grid = picture.patch_grid(inputs, visual)
    assert grid is not None  # 36 tokens of one square picture
    drawn = picture.draw(image, grid, picture.stages(surviving), heading=asked[0].text, caption=caption)
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
