"""`fitprune claims --train`: mini hosts of three seeds, every pruner at equal FLOPs on them, and what that comes to.

Every seed trains and is measured in a process of its own; what a seed has finished is kept in the folder, so that a
killed run goes on. How the hosts are taught decides what can be seen here: masks and hints led them to look at the
picture in certain layers (`tenfold.data.mini_lessons`), which makes them a test bed for rules that drop tokens and no
evidence of where larger models look. What the rules need of a host is measured with them: the gates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from fitprune.costs import DecoderShape
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.cli import Experiments, Finding
from tenfold.cli.settings import HostSettings
from tenfold.ledger.seeds import run_each
from tenfold.runs import atomic_write_json, fingerprint, last_complete_checkpoint, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from fitprune.evaluation.pruners import Method
    from fitprune.fitting import Calibration
    from fitprune.pruner import Pruner
    from fitprune.rules import Observation, Rule
    from tenfold.data.mini_probes import Prompts
    from tenfold.hosts.loading import Host

SEEDS = (0, 1, 2)
WORKERS = 2
TRAINING = {"batch": 8, "questions": 12, "threads": 1}
# Of the scenes that are asked about; a fit looks at those of the host's seed. Both are worlds that no pilot looks at.
WORLD = 7
SCENES, QUESTIONS, DRAWS = 32, 100, 3
RATIOS = (0.4, 0.6, 0.8)
# Under the fitted recipe: what stays is chosen by these. The last four look at no attention.
UNDER_RECIPE = ("product", "self", "cross", "last-token", "inverse", "random", "grid", "oracle")
OTHERS = ("uniform", "fastv", "pyramiddrop", "random-before")
ARMS = (*UNDER_RECIPE, *OTHERS)
DRAWN = ("random", "grid", "random-before")  # as often as DRAWS; the oracle draws once, among what it does not know
UNPRUNED = "unpruned"


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains the mini host with {len(SEEDS)} seeds (about half an hour each on one core) and compares {len(ARMS)} "
        f"pruners at {len(RATIOS)} budgets on {6 * QUESTIONS} questions a seed (about 8 minutes each)",
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


@dataclass
class Scored:
    """A rule that looks at no attention: the visual tokens of lowest score leave, by scores given beforehand.

    Attributes:
        scores: ``[batch, visual tokens]``.
        first: the first visual token's column in the prompt.
    """

    scores: Tensor
    first: int

    def __call__(self, seen: Observation) -> Tensor:
        place = (seen.tokens.index - self.first).clamp(0, self.scores.shape[1] - 1)
        return self.scores.gather(1, place)


@dataclass
class Recording:
    """A rule, and what it said in one layer.

    Attributes:
        rule: that decides.
        layer: whose scores are kept.
        scores: ``[batch, visual tokens]`` there, NaN where a token is gone.
        first, visual_tokens: the first visual token's column in the prompt, and their number.
    """

    rule: Rule
    layer: int
    first: int
    visual_tokens: int
    scores: Tensor | None = field(default=None, init=False)

    def __call__(self, seen: Observation) -> Tensor:
        scores = self.rule(seen)
        if seen.layer == self.layer:
            place = (seen.tokens.index - self.first).clamp(0, self.visual_tokens)
            place = place.masked_fill(~seen.tokens.visual, self.visual_tokens)  # one column more, for words
            wide = scores.new_full((len(scores), self.visual_tokens + 1), float("nan"))
            self.scores = wide.scatter(1, place, scores)[:, : self.visual_tokens]
        return scores


def chance(name: str, group: Prompts, generator: Any) -> Tensor:
    """Scores ``[batch, visual tokens]`` of the rules that look at no attention, drawn for every question.

    random: uniform. grid: of every 2 x 2 patches one stays as long as one can, then a second one, ...; which comes
    first is drawn. oracle: objects and their flags stay, and of these the answer's.
    """
    import torch

    from tenfold.data.miniworld import flags

    drawn = torch.rand(group.objects.shape, generator=generator)
    if name == "oracle":
        return 0.5 * drawn + group.objects.float() + group.answer_patch.float()
    if name == "grid":
        number = torch.arange(drawn.shape[1])
        place = 2 * (number // flags.EDGE % 2) + number % 2  # of a patch in its 2 x 2
        order = torch.rand(len(drawn), 4, generator=generator).argsort(1)
        return order[:, place] + 0.5 * drawn
    return drawn


@dataclass(frozen=True)
class Arm:
    """A way of pruning at one budget.

    Attributes:
        method: when tokens leave, and what that saves.
        rule: which leave; None: those that `chance` names.
        chance: name of scores that look at no attention.
    """

    method: Method
    rule: Rule | None
    chance: str = ""

    def pruner(self, layers: int, group: Prompts, first: int, generator: Any) -> Pruner:
        """What prunes a group of prompts."""
        whole = self.method.pruner(layers)
        rule = self.rule or Scored(chance(self.chance, group, generator), first)
        return replace(whole, rule=rule)


def find_arm(name: str, fitted: Recipe, ratio: float, shape: DecoderShape) -> Arm:
    """An arm of ARMS at a share of the visual FLOPs.

    Raises:
        UserError: out of reach.
    """
    from fitprune.evaluation.baselines import solve
    from fitprune.rules import RULES

    visual_tokens = fitted.visual_tokens
    if name in UNDER_RECIPE:
        method = solve("fitprune", ratio, shape, visual_tokens, recipe=fitted)
        by_chance = name in ("random", "grid", "oracle")
        return Arm(method, None, name) if by_chance else Arm(method, RULES[name.replace("-", "_")])
    method = solve(name, ratio, shape, visual_tokens, recipe=fitted)
    return Arm(method, None, "random") if name == "random-before" else Arm(method, method.rule)


class Questions:
    """The same questions to a host under any pruner.

    Args:
        host: the mini host.
        groups: of prompts of one length.
    """

    def __init__(self, host: Host, groups: Sequence[Prompts]) -> None:
        from tenfold.data.miniworld import flags

        self._model = host.model
        self.groups = groups
        self.shape = DecoderShape.of(host.model.config)
        self.first = int(groups[0].visual(host.model).nonzero()[0])
        self._pixels = [
            host.processor.image_processor([flags.render(scene) for scene in group.scenes], return_tensors="pt")
            for group in groups
        ]

    def right(self, make: Callable[[Prompts], Pruner | None]) -> list[float]:
        """1 for each question that is answered rightly, 0 for each other one; a pruner for each group, or None."""
        return [one for group in range(len(self.groups)) for one in self.right_of(group, make(self.groups[group]))]

    def right_of(self, number: int, pruner: Pruner | None) -> list[float]:
        """`right` for one group."""
        import torch

        ids = self.groups[number].input_ids
        inputs = {**self._pixels[number], "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode(), nullcontext() if pruner is None else pruner(self._model):
            said = self._model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
        return (said == self.groups[number].answers).double().tolist()

    def under(self, arm: Arm, seed: int, draw: int) -> list[float]:
        """`right` under an arm, by one draw of what it draws."""
        import torch

        generator = torch.Generator().manual_seed(1000 * seed + draw)
        return self.right(lambda group: arm.pruner(self.shape.layers, group, self.first, generator))


def measure(
    host: Host,
    seed: int,
    *,
    ratios: Sequence[float] = RATIOS,
    arms: Sequence[str] = ARMS,
    scenes: int = SCENES,
    questions: int = QUESTIONS,
    draws: int = DRAWS,
    looks: bool = True,
) -> dict[str, Any]:
    """Everything that is measured of one host.

    Args:
        seed: of the scenes that recipes are fitted to, and of the random draws.
        scenes: of a fit.
        questions: of each kind.
        draws: of the arms that draw at random.
        looks: also how recipes round and what their scores tell; without it "recipes" and "signal" stay empty.

    Returns:
        "kinds": of the questions; "right": arm -> ratio -> share of the draws that answered each question rightly;
        "saved": arm -> ratio -> share of the visual FLOPs; "recipes" and "signal", one for each ratio in reach; and
        "left_out", which arm cannot save how much.
    """
    from tenfold.data.mini_probes import prompts

    asked = Questions(host, prompts(host.processor, WORLD, questions))
    calibration = calibrate(host, seed, scenes)
    right: dict[str, dict[str, list[float]]] = {UNPRUNED: {"0": asked.right(lambda group: None)}}
    saved: dict[str, dict[str, float]] = {}
    recipes, signal, left_out = [], {}, {}
    for ratio in ratios:
        try:
            fitted = calibration.recipe(ratio)
        except UserError as error:
            left_out[f"recipe at {ratio:.0%}"] = str(error)
            continue
        if looks:
            recipes.append(_recipe(calibration, ratio, asked))
            signal[f"{ratio:g}"] = find_signal(asked, find_arm("product", fitted, ratio, asked.shape))
        for name in arms:
            try:
                arm = find_arm(name, fitted, ratio, asked.shape)
            except UserError as error:
                left_out[f"{name} at {ratio:.0%}"] = str(error)
                continue
            runs = [asked.under(arm, seed, draw) for draw in range(draws if name in DRAWN else 1)]
            right.setdefault(name, {})[f"{ratio:g}"] = [sum(row) / len(row) for row in zip(*runs, strict=True)]
            saved.setdefault(name, {})[f"{ratio:g}"] = arm.method.reduction(asked.shape, fitted.visual_tokens)
    kinds = [group.kind for group in asked.groups for _ in group.scenes]
    found = {"recipes": recipes, "signal": signal, "left_out": left_out}
    return {"kinds": kinds, "right": right, "saved": saved, **found}


def find_signal(asked: Questions, arm: Arm) -> dict[str, float]:
    """How well the product tells the answer's patch from others where a recipe removes its median token.

    Returns:
        "layer", "auc" over all visual tokens that are there, "auc among objects" over patches of objects and flags,
        and "layers", how many the recipe removes tokens in.
    """
    remove = arm.method.schedule(asked.shape.layers).remove
    gone = list(accumulate(remove))
    layer = next(number for number, count in enumerate(gone) if 2 * count >= gone[-1])
    everywhere, among = [], []
    for number, group in enumerate(asked.groups):
        recording = Recording(arm.rule, layer, asked.first, group.objects.shape[1])
        asked.right_of(number, replace(arm.method.pruner(asked.shape.layers), rule=recording))
        everywhere += areas(recording.scores, group.answer_patch, ~group.answer_patch)
        among += areas(recording.scores, group.answer_patch, group.objects & ~group.answer_patch)
    return {
        "layer": layer,
        "auc": mean(everywhere),
        "auc among objects": mean(among),
        "layers": sum(count > 0 for count in remove),
    }


def areas(scores: Tensor, ours: Tensor, others: Tensor) -> list[float]:
    """Area under the ROC curve of every row that has both: the share of pairs in which ours has the higher score.

    Args:
        scores: ``[batch, visual tokens]``, NaN where a token is gone.
        ours, others: ``[batch, visual tokens]`` bool.
    """
    found = []
    for row, one, other in zip(scores, ours, others, strict=True):
        higher, lower = (row[which & ~row.isnan()] for which in (one, other))
        if len(higher) and len(lower):
            difference = higher[:, None] - lower
            found.append(float(((difference > 0).double() + 0.5 * (difference == 0)).mean()))
    return found


def shipped(questions: int = 8, scenes: int = 4) -> dict[str, float]:
    """The host that ships, pruned by 60 % at equal FLOPs: accuracy by arm."""
    from tenfold.hosts.loading import load_host

    measured = measure(
        load_host(HostSettings()), 0,
        ratios=(0.6,), arms=("product", "random", "fastv"), scenes=scenes, questions=questions, draws=1,
        looks=False,
    )  # fmt: skip
    return {arm: mean(row) for arm, rows in measured["right"].items() for row in rows.values()}


def calibrate(host: Host, seed: int, scenes: int) -> Calibration:
    """The host measured on scenes of the mini world, as `fitprune fit` does it."""
    from fitprune.data.calibration import Prompts, mini_calibration
    from fitprune.fitting import Calibration

    return Calibration(host.model, host.processor, Prompts(host, mini_calibration(seed, scenes)))


def _recipe(calibration: Calibration, ratio: float, asked: Questions) -> dict[str, Any]:
    """What one recipe asks, removes and delivers, rounded in both ways."""
    from fitprune.data.calibration import prompt_reduction

    rounded = {name: calibration.recipe(ratio, rounding=name) for name in ("largest_remainder", "floor")}
    ours = rounded["largest_remainder"]
    text = mean([group.input_ids.shape[1] - ours.visual_tokens for group in asked.groups])
    return {
        "ratio": ratio,
        "alpha": ours.alpha,
        "visual_tokens": ours.visual_tokens,
        "remove": list(ours.remove),
        "delivered": {name: recipe.reduction for name, recipe in rounded.items()},
        "whole_prompt": prompt_reduction(ours, text, calibration.shape),
        "text_tokens": text,
    }
