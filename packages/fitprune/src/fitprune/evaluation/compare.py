"""A comparison at equal FLOPs: every method saves the same share of the visual FLOPs and is asked the same questions.

    questions = [Item("1", image, "What is it?", "cat"), ...]
    found = compare(model, processor, questions, recipes={0.6: recipe}, methods=("fitprune", "fastv"))
    for row in found.rows():
        print(row.method, row.ratio, row.seed, row.kind, row.visual_reduction, row.accuracy)

A batch of prompts is encoded once, text and images, and answered by every method in turn: all see the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fitprune import costs
from fitprune.costs import DecoderShape
from fitprune.evaluation.baselines import METHODS, drawn, solve
from fitprune.evaluation.pruners import Method
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.data.formats import Picture
from tenfold.hosts.answers import Protocol, encode_batch, generate_tokens
from tenfold.hosts.structure import unwrap, visual_mask
from tenfold.metrics import Interval, bootstrap, normalise_answer
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress

UNPRUNED = "unpruned"
ALL_KINDS = "all"


@dataclass(frozen=True)
class Item:
    """A question of a comparison.

    Attributes:
        id: unique among the questions.
        image: about which it is, opened when it is asked.
        text: as the model reads it, without roles and image token.
        answer: the right one, where it is known; what equals it after VQA's normalisation is right.
        kind: questions of a kind get rows of their own.
        judge: a benchmark's own score of an answer, in place of the comparison with ``answer``.
    """

    id: str
    image: Image.Image | Picture
    text: str
    answer: str | None = None
    kind: str = ""
    judge: Callable[[str], float | None] | None = field(default=None, repr=False, compare=False)

    def score(self, given: str) -> float | None:
        """1 for a right answer, 0 for a wrong one (or what ``judge`` says); None where that is not known."""
        if self.judge is not None:
            return self.judge(given)
        return None if self.answer is None else float(_same(given, self.answer))

    def picture(self) -> Image.Image:
        return self.image.open() if isinstance(self.image, Picture) else self.image


@dataclass(frozen=True)
class Arm:
    """A method at one budget, as it is run.

    Attributes:
        name: in `METHODS`, or "unpruned".
        ratio: share of the visual MACs that was asked to be saved.
        seed: of a method that draws at random, else None.
        method: None for the unpruned model.
    """

    name: str
    ratio: float
    seed: int | None
    method: Method | None = field(compare=False)

    @property
    def key(self) -> str:
        budget = "" if self.method is None else f"@{self.ratio:g}"
        return f"{self.name}{budget}" + ("" if self.seed is None else f"#{self.seed}")


@dataclass(frozen=True)
class Row:
    """How a method did on the questions of one kind, or on all.

    Attributes:
        method, ratio: which, and the share of the visual MACs that was asked to be saved.
        seed: of its draws; None for a method without, and for the mean over the seeds.
        kind: of the questions, "all" for all.
        knobs: of the method, solved for the ratio.
        questions: their number.
        visual_reduction: share of the visual MACs saved on these prompts, by the official formula.
        prompt_reduction: the same with all tokens of the prompt counted.
        accuracy: share of right answers; None where none is known.
        change: of the accuracy against the unpruned model, with the paired bootstrap interval.
        agreement: share of answers equal to the unpruned model's, with its interval.
    """

    method: str
    ratio: float
    seed: int | None
    kind: str
    knobs: str
    questions: int
    visual_reduction: float
    prompt_reduction: float
    accuracy: float | None
    change: Interval | None
    agreement: Interval


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        shape: the decoder's dimensions.
        items: the questions.
        arms: the unpruned model first, then what was compared.
        left_out: method and ratio that could not be solved -> why.
        answers: per question, ``visual`` and ``text`` tokens of its prompt and the ``answers`` by arm.
    """

    shape: DecoderShape
    items: Sequence[Item]
    arms: Sequence[Arm]
    left_out: Mapping[str, str]
    answers: Sequence[Mapping[str, Any]]

    def rows(self) -> list[Row]:
        """A row for every method, ratio, seed and kind of question."""
        return [row for arm in self.arms for row in self._rows([arm], arm.seed)]

    def summary(self) -> list[Row]:
        """The same with the mean over the seeds of a method."""
        groups: dict[tuple[str, float], list[Arm]] = {}
        for arm in self.arms:
            groups.setdefault((arm.name, arm.ratio), []).append(arm)
        return [row for arms in groups.values() for row in self._rows(arms, None)]

    def _rows(self, arms: Sequence[Arm], seed: int | None) -> Iterator[Row]:
        kinds = list(dict.fromkeys(item.kind for item in self.items))
        everything = range(len(self.items))
        yield self._row(arms, seed, ALL_KINDS, everything)
        for kind in kinds if len(kinds) > 1 else ():
            yield self._row(arms, seed, kind, [number for number in everything if self.items[number].kind == kind])

    def _row(self, arms: Sequence[Arm], seed: int | None, kind: str, numbers: Sequence[int]) -> Row:
        arm, whole = arms[0], self.arms[0]
        scores = np.mean([self._scores(each, numbers) for each in arms], axis=0)
        known = ~np.isnan(scores)
        before = self._scores(whole, numbers)
        agreeing = np.mean(
            [[_same(self._answer(each, n), self._answer(whole, n)) for n in numbers] for each in arms], axis=0
        )
        return Row(
            method=arm.name,
            ratio=arm.ratio,
            seed=seed,
            kind=kind,
            knobs="" if arm.method is None else arm.method.knobs,
            questions=len(numbers),
            visual_reduction=self._reduction(arm, numbers, text=False),
            prompt_reduction=self._reduction(arm, numbers, text=True),
            accuracy=float(scores[known].mean()) if known.any() else None,
            change=bootstrap((scores - before)[known]) if known.any() else None,
            agreement=bootstrap(agreeing),
        )

    def _answer(self, arm: Arm, number: int) -> str:
        return self.answers[number]["answers"][arm.key]

    def _scores(self, arm: Arm, numbers: Sequence[int]) -> np.ndarray:
        """``[questions]``, NaN where the right answer is not known."""
        scores = [self.items[number].score(self._answer(arm, number)) for number in numbers]
        return np.array([np.nan if score is None else score for score in scores])

    def _reduction(self, arm: Arm, numbers: Sequence[int], *, text: bool) -> float:
        if arm.method is None:
            return 0.0
        spent = base = 0
        for number in numbers:
            visual, words = self.answers[number]["visual"], self.answers[number]["text"] if text else 0
            spent += arm.method.macs(self.shape, visual, words) if visual else 0
            base += costs.recipe_macs((0,) * self.shape.layers, visual, self.shape, words) if visual else 0
        return 1 - spent / base if base else 0.0


def compare(
    model: nn.Module,
    processor: Any,
    items: Sequence[Item],
    *,
    recipes: Mapping[float, Recipe],
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0,),
    batch: int = 16,
    max_new_tokens: int = 16,
    protocol: Protocol = Protocol.processor,
    log: PredictionLog | None = None,
    progress: Progress = lambda things, label: things,
) -> Comparison:
    """Ask every method the same questions, at the same visual FLOPs.

    Args:
        model: a transformers vision-language model.
        processor: its processor.
        items: the questions.
        recipes: share of the visual MACs to save -> the recipe of the methods that go by one; it is brought to that
            share by single removals. Its number of visual tokens is the V at which all methods are solved.
        methods: names in `METHODS`.
        seeds: of the methods that draw at random.
        batch: prompts at a time.
        max_new_tokens: of an answer.
        protocol: how a question becomes a prompt.
        log: keeps answers, so that a run that was killed goes on.

    Raises:
        UserError: no questions, two of one id, an unknown method, a recipe for another depth, a broken image, or a host
            that cannot be served.
    """
    if not items:
        raise UserError("no questions", None, "at least one")
    by_id: dict[Any, Item] = {item.id: item for item in items}
    if len(by_id) < len(items):
        raise UserError("questions with the same id", None, "one id each")
    shape = DecoderShape.of(unwrap(model).config)
    arms, left_out = solve_all(shape, recipes, methods, seeds)
    answers: dict[Any, Any] = {}
    todo = [item.id for item in items] if log is None else log.todo([item.id for item in items])
    for start in progress(range(0, len(todo), batch), "answers"):
        asked = [by_id[name] for name in todo[start : start + batch]]
        found = list(
            zip((item.id for item in asked), _ask(model, processor, asked, arms, protocol, max_new_tokens), strict=True)
        )
        answers.update(found)
        if log is not None:
            log.extend(found)
    if log is not None:
        answers = log.merged(item.id for item in items)
    return Comparison(shape, items, arms, left_out, [answers[item.id] for item in items])


def solve_all(
    shape: DecoderShape, recipes: Mapping[float, Recipe], methods: Sequence[str], seeds: Sequence[int]
) -> tuple[list[Arm], dict[str, str]]:
    """The unpruned model and every method at every ratio and seed; and which cannot save so much, with the reason."""
    arms, left_out = [Arm(UNPRUNED, 0.0, None, None)], {}
    check_methods(methods)
    for ratio, recipe in recipes.items():
        check_ratio(ratio)
        if recipe.num_layers != shape.layers:
            raise UserError(
                f"a recipe for {recipe.num_layers} layers", recipe.model, f"one for the {shape.layers} of this model"
            )
        for name in methods:
            for seed in seeds if drawn(name) else (None,):
                try:
                    method = solve(name, ratio, shape, recipe.visual_tokens, recipe=recipe, seed=seed or 0)
                except UserError as error:
                    left_out[f"{name} at {ratio:.0%}"] = str(error)
                    continue
                arms.append(Arm(name, ratio, seed, method))
    return arms, left_out


def check_methods(names: Sequence[str]) -> None:
    """Raises UserError for a name that is not in `METHODS`."""
    for name in names:
        if name not in METHODS:
            raise UserError("no such method", name, ", ".join(METHODS))


def check_ratio(ratio: float) -> None:
    """Raises UserError for what is no share of the visual FLOPs."""
    if not 0 < ratio < 1:
        raise UserError("not a share of the visual FLOPs", f"ratio {ratio:g}", "a number between 0 and 1")


@torch.inference_mode()
def _ask(
    model: nn.Module,
    processor: Any,
    items: Sequence[Item],
    arms: Sequence[Arm],
    protocol: Protocol,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    prompts = [protocol.prompt(processor, item.picture(), item.text) for item in items]
    inputs = encode_batch(processor, model, prompts)
    visual = visual_mask(unwrap(model), inputs).sum(1).tolist()
    tokens = inputs["attention_mask"].sum(1).tolist()
    given: dict[str, list[str]] = {}
    with _features_once(unwrap(model)):
        for arm in arms:
            with nullcontext() if arm.method is None else arm.method(model):
                rows = generate_tokens(model, inputs, max_new_tokens=max_new_tokens)
            texts = processor.batch_decode(rows, skip_special_tokens=True)
            given[arm.key] = [text.strip() for text in texts]
    return [
        {
            "visual": visual[number],
            "text": tokens[number] - visual[number],
            "answers": {key: texts[number] for key, texts in given.items()},
        }
        for number in range(len(items))
    ]


@contextmanager
def _features_once(model: nn.Module) -> Iterator[None]:
    """All methods answer the same batch: what the vision tower makes of its images is computed for the first."""
    inner: Any = getattr(model, "model", model)
    compute: Any = getattr(inner, "get_image_features", None)
    if compute is None or "get_image_features" in vars(inner):
        yield
        return
    features: list[Any] = []

    @wraps(compute)  # `generate` looks at its parameters
    def once(*args: Any, **kwargs: Any) -> Any:
        if not features:
            features.append(compute(*args, **kwargs))
        return features[0]

    inner.get_image_features = once
    try:
        yield
    finally:
        del inner.get_image_features


def _same(one: str, other: str) -> bool:
    return normalise_answer(one) == normalise_answer(other)
