"""`fitprune claims --train`: mini hosts of three seeds, every pruner at equal FLOPs on them, and what that comes to.

Every seed trains and is measured in a process of its own, two at a time; what a seed has finished is kept in the
folder, so that a killed run goes on. How the hosts are taught decides what can be seen here: hints led them to look at
the picture late (`tenfold.data.mini_lessons`), which makes them a test bed for selection rules and no evidence of where
larger models look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitprune.evaluation.settings import COMPARED
from tenfold import UserError
from tenfold.cli import Experiments, Finding
from tenfold.cli.settings import HostSettings
from tenfold.ledger.seeds import run_each
from tenfold.runs import atomic_write_json, fingerprint, last_complete_checkpoint, read_json

if TYPE_CHECKING:
    from fitprune.evaluation.compare import Comparison, Item, Row
    from fitprune.fitting import Calibration
    from tenfold.hosts.loading import Host

SEEDS = (0, 1, 2)
WORKERS = 2
TRAINING = {"batch": 16, "questions": 8, "threads": 1}
# Of the scenes that are asked about; a fit looks at those of the host's seed.
WORLD = 7
SCENES, QUESTIONS, DRAWS, BATCH = 32, 300, 4, 60
RATIOS = (0.4, 0.6, 0.8, 0.9)
# Kinds of questions as they are reported, and the mini world's.
KINDS = {"one-hop": ("shape", "colour"), "place": ("place",), "two-hop": ("two_hop",)}
# Beside a recipe, the schedules under which the statistics are compared.
SCHEDULES = {"uniform": "in uniform steps", "single-cut": "in a single cut"}


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains the mini host with {len(SEEDS)} seeds (about 30 minutes on two cores) and compares {len(COMPARED)} "
        f"pruners at {len(RATIOS)} budgets on {len(KINDS) * QUESTIONS} questions a seed (about 7 minutes)",
        conduct,
    )


def conduct(folder: Path) -> list[Finding]:
    """Train and measure every seed, then judge the claims."""
    from fitprune.evidence.findings import judge

    measured = run_each([(measure_seed, seed, folder) for seed in SEEDS], WORKERS)
    return judge(dict(zip(SEEDS, measured, strict=True)))


def measure_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Train one seed (or take what is there) and measure it; kept as ``folder/seed-N.json``.

    Raises:
        UserError: a host that was trained otherwise, or a measurement of another host.
    """
    import torch

    from tenfold.hosts.loading import load_host

    torch.set_num_threads(1)
    model = trained(seed, folder / f"seed-{seed}")
    kept = folder / f"seed-{seed}.json"
    if kept.exists():
        measured = read_json(kept)
        if measured["host"] != fingerprint(model):
            raise UserError("measured on another host", kept, f"that of {model}; remove the file to measure again")
        return measured
    measured = {"host": fingerprint(model), **measure(load_host(HostSettings(model=str(model))), seed)}
    atomic_write_json(kept, measured)
    return measured


def trained(seed: int, work: Path) -> Path:
    """The folder of the host of a seed: ``work/model``, trained now unless it is there.

    Raises:
        UserError: a host that another seed or other settings made.
    """
    from tenfold.data.mini_lessons import STEPS, Settings
    from tenfold.data.train_mini_host import LESSONS, train_mini_host

    if not (work / "model").is_dir():
        resume = work.is_dir() and last_complete_checkpoint(work) is not None
        train_mini_host(work, seed=seed, steps=STEPS, resume=resume, **TRAINING)
    made = read_json(work / "model" / "training.json")
    # As JSON has it: tuples are lists there.
    wanted = json.loads(json.dumps({"seed": seed, "settings": {**asdict(Settings(STEPS, **TRAINING)), **LESSONS}}))
    for name, value in wanted.items():
        if made.get(name) != value:
            raise UserError(f"a host trained with another {name}", work / "model", f"{name} {value}")
    return work / "model"


def measure(
    host: Host,
    seed: int,
    *,
    ratios: Sequence[float] = RATIOS,
    methods: Sequence[str] = COMPARED,
    scenes: int = SCENES,
    questions: int = QUESTIONS,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Everything that is measured of one host.

    Args:
        seed: of the scenes that recipes are fitted to, and of the random draws.
        scenes: of a fit.
        questions: of each of `KINDS`.
        draws: of the methods that draw at random.

    Returns:
        "gate", curves by kind of question; "recipes", one for each ratio in reach; "rows" of the comparison; and
        "left_out", which method cannot save how much.
    """
    from fitprune.evaluation.compare import compare
    from tenfold.data import mini_gate

    gate = {
        kind: mini_gate.gate_curve(host.model, host.processor, WORLD, questions, kind)
        for kinds in KINDS.values()
        for kind in kinds
    }
    calibration = calibrate(host, seed, scenes)
    recipes, left_out = {}, {}
    for ratio in ratios:
        try:
            recipes[ratio] = calibration.recipe(ratio)
        except UserError as error:
            left_out[f"recipe at {ratio:.0%}"] = str(error)
    items = asked(questions)
    options = {"seeds": range(100 * seed, 100 * seed + draws), "batch": BATCH, "max_new_tokens": 4}
    found = compare(host.model, host.processor, items, recipes=recipes, methods=methods, **options)
    rows = [_plain(row) for row in found.summary()]
    # Self and cross mass under the other schedules: each is a recipe, too.
    for name, words in SCHEDULES.items():
        given = {
            arm.ratio: arm.method.schedule(found.shape.layers)
            for arm in found.arms
            if arm.name == name and arm.method is not None
        }
        if given:
            chosen = tuple(method for method in ("self", "cross") if method in methods)
            others = compare(host.model, host.processor, items, recipes=given, methods=chosen, **options)
            rows += [_plain(row, f"{row.method} {words}") for row in others.summary() if row.method in chosen]
    return {
        "gate": gate,
        "recipes": [_recipe(calibration, ratio, found) for ratio in recipes],
        "rows": rows,
        "left_out": {**left_out, **found.left_out},
    }


def shipped(questions: int = 60, scenes: int = 8, draws: int = 3) -> dict[tuple[str, str], float]:
    """The host that ships, pruned by 60 % in three ways at equal FLOPs: accuracy by method and kind of question."""
    from fitprune.evaluation.compare import compare
    from tenfold.hosts.loading import load_host

    host = load_host(HostSettings())
    recipe = calibrate(host, 0, scenes).recipe(0.6)
    items = asked(questions, {kind: KINDS[kind] for kind in ("one-hop", "two-hop")})
    methods = ("fitprune", "fastv", "random-before")
    options = {"seeds": range(draws), "batch": BATCH, "max_new_tokens": 4}
    found = compare(host.model, host.processor, items, recipes={0.6: recipe}, methods=methods, **options)
    return {(row.method, row.kind): row.accuracy for row in found.summary() if row.accuracy is not None}


def calibrate(host: Host, seed: int, scenes: int) -> Calibration:
    """The host measured on scenes of the mini world, as `fitprune fit` does it."""
    from fitprune.data.calibration import Prompts, mini_calibration
    from fitprune.fitting import Calibration

    return Calibration(host.model, host.processor, Prompts(host, mini_calibration(seed, scenes)))


def asked(questions: int, kinds: Mapping[str, Sequence[str]] = KINDS) -> list[Item]:
    """As many questions of each kind, one a scene, as the calibration asks them."""
    from fitprune.evaluation.compare import Item
    from tenfold.data import mini_gate, mini_host, miniworld
    from tenfold.data.mini_sets import SHORT_ANSWER

    return [
        Item(
            f"{own}-{number}",
            miniworld.render(scene, mini_host.IMAGE_SIZE),
            f"{question.text}\n{SHORT_ANSWER}",
            question.answer,
            name,
        )
        for name, several in kinds.items()
        for own in several
        for number, (scene, question) in enumerate(mini_gate.asked(own, WORLD, questions // len(several)))
    ]


def _recipe(calibration: Calibration, ratio: float, found: Comparison) -> dict[str, Any]:
    """What one recipe asks, removes and delivers, rounded in both ways."""
    from fitprune.data.calibration import prompt_reduction

    rounded = {name: calibration.recipe(ratio, rounding=name) for name in ("largest_remainder", "floor")}
    ours = rounded["largest_remainder"]
    text = sum(answer["text"] for answer in found.answers) / len(found.answers)
    return {
        "ratio": ratio,
        "alpha": ours.alpha,
        "visual_tokens": ours.visual_tokens,
        "remove": list(ours.remove),
        "delivered": {name: recipe.reduction for name, recipe in rounded.items()},
        "whole_prompt": prompt_reduction(ours, text, calibration.shape),
        "text_tokens": text,
    }


def _plain(row: Row, name: str | None = None) -> dict[str, Any]:
    kept = ("method", "ratio", "kind", "knobs", "questions", "visual_reduction", "prompt_reduction", "accuracy")
    return {key: getattr(row, key) for key in kept} | {"method": name or row.method}
