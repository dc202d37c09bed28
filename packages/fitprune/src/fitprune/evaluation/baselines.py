"""The pruners that FitPrune is compared with, each with its own published knobs, all used like `Pruner`.

    with FastV(k=2, ratio=0.5)(model):
        model.generate(**inputs)

Each says when tokens leave (a recipe), which (a rule of `fitprune.rules`) and where (before layer 0, before a layer's
``o_proj``, or at its output); a `Pruner` does it, so all of them serve the same hosts, batches and padding. For a
comparison at equal FLOPs every one finds the value of its knob that saves as much as asked:

    methods = [solve(name, 0.6, shape, visual_tokens=576, recipe=recipe) for name in METHODS]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Self

from fitprune import rules
from fitprune.costs import DecoderShape, fastv_alive, pyramid_alive
from fitprune.evaluation.pruners import Method, Schedule, check, first_within_reach, match
from fitprune.recipe import Recipe
from fitprune.rules import Rule
from tenfold import UserError

# Knobs that are real numbers are solved on a grid of six decimals, so that they are printed whole.
DECIMALS = 6
GRID = 10**DECIMALS


@dataclass
class FastV(Method):
    """FastV (Chen et al., ECCV 2024): one cut after K layers, by the attention of the last token in the K-th.

    Attributes:
        k: K, layers that all visual tokens pass.
        ratio: R, share of the visual tokens that leaves then.
    """

    k: int = 2
    ratio: float = 0.5

    rule: ClassVar[Rule] = staticmethod(rules.last_token)
    at_output: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self.k >= 1, "k", self.k, "a number of layers, at least 1: the cut needs a layer's attention")
        check(0 <= self.ratio <= 1, "ratio", self.ratio, "a share between 0 and 1")

    def schedule(self, num_layers: int) -> Recipe:
        check(self.k < num_layers, "k", self.k, f"less than the {num_layers} layers of this decoder")
        return Schedule.of("FastV", num_layers, lambda visual: fastv_alive(visual, self.k, self.ratio, num_layers))

    @classmethod
    def at_reduction(
        cls, target: float, shape: DecoderShape, visual_tokens: int, *, k: int | None = None, **_: Any
    ) -> Self:
        """As `Method.at_reduction`; R is solved. Without ``k``: the published 2, or 1 where 2 cannot save enough."""

        def make(k: int) -> Callable[[int], Self]:
            return lambda removed: cls(k, round(removed / visual_tokens, DECIMALS))

        choices = (k,) if k is not None else tuple(k for k in (2, 1) if k < shape.layers)
        return first_within_reach("FastV", [make(k) for k in choices], visual_tokens - 1, target, shape, visual_tokens)


@dataclass
class PyramidDrop(Method):
    """PyramidDrop (Xing et al., CVPR 2025): a share of the tokens stays at every stage, by the last token's attention.

    The ranking is by the last layer of a stage, from whose output the tokens leave; the authors' code computes queries
    and keys of the next layer for it. The numbers of tokens are the same.

    Attributes:
        layers: the first layer of every stage after the first one.
        keep: share of the tokens that stays at each of them.
    """

    layers: tuple[int, ...] = (8, 16, 24)
    keep: float = 0.5

    rule: ClassVar[Rule] = staticmethod(rules.last_token)
    at_output: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.layers = tuple(self.layers)
        rising = all(a < b for a, b in pairwise((0, *self.layers)))
        check(bool(self.layers) and rising, "layers", self.layers, "rising numbers of layers, from 1 on")
        check(0 <= self.keep <= 1, "keep", self.keep, "a share between 0 and 1")

    def schedule(self, num_layers: int) -> Recipe:
        check(self.layers[-1] < num_layers, "layers", self.layers, f"layers of a decoder that has {num_layers}")
        return Schedule.of(
            "PyramidDrop", num_layers, lambda visual: pyramid_alive(visual, self.layers, self.keep, num_layers)
        )

    @classmethod
    def at_reduction(
        cls,
        target: float,
        shape: DecoderShape,
        visual_tokens: int,
        *,
        layers: Sequence[int] | None = None,
        **_: Any,
    ) -> Self:
        """As `Method.at_reduction`; ``keep`` is solved. Without ``layers``: the published quarters of the decoder, or
        all of them as many layers earlier as it takes to save enough."""
        quarters = [shape.layers * quarter // 4 for quarter in (1, 2, 3)]
        choices = [
            tuple(dict.fromkeys(max(stage - shift, 1) for stage in quarters)) for shift in range(max(1, quarters[-1]))
        ]

        def make(layers: tuple[int, ...]) -> Callable[[int], Self]:
            return lambda steps: cls(layers, round(1 - steps / GRID, DECIMALS))

        stages = choices if layers is None else [tuple(layers)]
        most = GRID - GRID // visual_tokens - 1  # one token stays at the first stage
        return first_within_reach("PyramidDrop", [make(each) for each in stages], most, target, shape, visual_tokens)


@dataclass
class UnderRecipe(Method):
    """A recipe with some rule; `FitPrune` is the paper's own, the others differ from it in the rule alone.

    Attributes:
        recipe: how many tokens leave in each layer.
    """

    recipe: Recipe

    @property
    def knobs(self) -> str:
        return f"recipe {self.recipe.visual_tokens} → {self.recipe.alive()[-1]}"

    def schedule(self, num_layers: int) -> Recipe:
        check(self.recipe.num_layers == num_layers, "recipe", self.recipe.model, f"one for {num_layers} layers")
        return self.recipe

    @classmethod
    def at_reduction(
        cls, target: float, shape: DecoderShape, visual_tokens: int, *, recipe: Recipe | None = None, **knobs: Any
    ) -> Self:
        """As `Method.at_reduction`; ``recipe`` is brought to the cost by single removals (`match`)."""
        if recipe is None:
            raise UserError("no recipe", cls.__name__, "the recipe by which it prunes")
        return cls(match(recipe, target, shape, visual_tokens), **knobs)


@dataclass
class FitPrune(UnderRecipe):
    """The paper's method: a fitted recipe, and the product of both attention masses."""


@dataclass
class SelfMass(UnderRecipe):
    """The mass from other visual tokens alone decides."""

    rule: ClassVar[Rule] = staticmethod(rules.self_mass)


@dataclass
class CrossMass(UnderRecipe):
    """The mass from the text alone decides."""

    rule: ClassVar[Rule] = staticmethod(rules.cross_mass)


@dataclass
class LastToken(UnderRecipe):
    """The attention of the last token alone decides, as for FastV and PyramidDrop."""

    rule: ClassVar[Rule] = staticmethod(rules.last_token)


@dataclass
class Inverse(UnderRecipe):
    """The control that must lose: the tokens of highest product leave."""

    rule: ClassVar[Rule] = staticmethod(rules.inverse)


@dataclass
class RandomTokens(UnderRecipe):
    """The control of the rule: tokens drawn at random leave when the recipe says.

    Attributes:
        seed: of the draws.
    """

    seed: int = 0

    @property
    def rule(self) -> Rule:  # type: ignore[override]
        return rules.Random(self.seed)


@dataclass
class Uniform(Method):
    """The control of the recipe: as many tokens leave in every layer, until one is left; by the paper's rule.

    Attributes:
        per_layer: tokens that leave in each layer; a fraction is spread evenly.
        visual_tokens: V that this is stated for.
    """

    per_layer: float
    of: int = 576

    def __post_init__(self) -> None:
        check(self.per_layer >= 0, "per_layer", self.per_layer, "a number of tokens")

    def schedule(self, num_layers: int) -> Recipe:
        most = self.of - 1
        gone = [min(int((layer + 1) * self.per_layer + 1e-9), most) for layer in range(num_layers)]
        remove = tuple(after - before for before, after in pairwise((0, *gone)))
        return Recipe("uniform", num_layers, self.of, remove)

    @classmethod
    def at_reduction(cls, target: float, shape: DecoderShape, visual_tokens: int, **_: Any) -> Self:
        """As `Method.at_reduction`; ``per_layer`` is solved."""
        make = [lambda steps: cls(steps / GRID, visual_tokens)]
        return first_within_reach("a uniform recipe", make, (visual_tokens - 1) * GRID, target, shape, visual_tokens)


@dataclass
class SingleCut(Method):
    """A recipe of one layer: the cut that FastV makes, by the paper's rule and before the layer's ``o_proj``.

    Attributes:
        layer: in which tokens leave.
        keep: visual tokens that stay.
        of: V, the visual tokens that this is stated for.
    """

    layer: int = 1
    keep: int = 144
    of: int = 576

    def __post_init__(self) -> None:
        check(self.layer >= 0, "layer", self.layer, "the number of a layer")
        check(0 <= self.keep <= self.of, "keep", self.keep, "a number of visual tokens")

    def schedule(self, num_layers: int) -> Recipe:
        check(self.layer < num_layers, "layer", self.layer, f"a layer of a decoder that has {num_layers}")
        removed = self.of - self.keep
        remove = tuple(removed if layer == self.layer else 0 for layer in range(num_layers))
        return Recipe("single cut", num_layers, self.of, remove)

    @classmethod
    def at_reduction(
        cls, target: float, shape: DecoderShape, visual_tokens: int, *, layer: int | None = None, **_: Any
    ) -> Self:
        """As `Method.at_reduction`; ``keep`` is solved. Without ``layer``: 1, or 0 where 1 cannot save enough."""

        def make(layer: int) -> Callable[[int], Self]:
            return lambda removed: cls(layer, visual_tokens - removed, visual_tokens)

        choices = (layer,) if layer is not None else tuple(layer for layer in (1, 0) if layer < shape.layers)
        return first_within_reach(
            "a single cut", [make(each) for each in choices], visual_tokens - 1, target, shape, visual_tokens
        )


@dataclass
class RandomBefore(Method):
    """The control of the depth: some tokens drawn at random enter layer 0, the others never do.

    Attributes:
        keep: visual tokens that enter.
        of: V, the visual tokens that this is stated for.
        seed: of the draws.
    """

    keep: int = 192
    of: int = 576
    seed: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.keep <= self.of, "keep", self.keep, "a number of visual tokens")

    @property
    def rule(self) -> Rule:  # type: ignore[override]
        return rules.Random(self.seed)

    @property
    def before(self) -> int:
        return self.of - self.keep

    def schedule(self, num_layers: int) -> Recipe:
        return Recipe.zero(num_layers, self.of)

    @classmethod
    def at_reduction(cls, target: float, shape: DecoderShape, visual_tokens: int, *, seed: int = 0, **_: Any) -> Self:
        """As `Method.at_reduction`; ``keep`` is solved."""
        make = [lambda removed: cls(visual_tokens - removed, visual_tokens, seed)]
        return first_within_reach("removal before layer 0", make, visual_tokens - 1, target, shape, visual_tokens)


METHODS: Mapping[str, type[Method]] = {
    "fitprune": FitPrune,
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "last-token": LastToken,
    "self": SelfMass,
    "cross": CrossMass,
    "uniform": Uniform,
    "single-cut": SingleCut,
    "random": RandomTokens,
    "random-before": RandomBefore,
    "inverse": Inverse,
}


def drawn(name: str) -> bool:
    """Whether a method draws at random, and so has a seed."""
    return "seed" in {f.name for f in fields(METHODS[name])}


def solve(
    name: str, target: float, shape: DecoderShape, visual_tokens: int, *, recipe: Recipe | None = None, seed: int = 0
) -> Method:
    """A method of `METHODS` at a share of the visual MACs; arguments and errors as in `Method.at_reduction`.

    Raises:
        UserError: also for an unknown name, or a method that goes by a recipe without one.
    """
    if name not in METHODS:
        raise UserError("no such method", name, ", ".join(METHODS))
    wanted = {f.name for f in fields(METHODS[name])}
    given = {key: value for key, value in (("recipe", recipe), ("seed", seed)) if key in wanted}
    return METHODS[name].at_reduction(target, shape, visual_tokens, **given)
