"""What every pruner in a comparison has in common: when, which and where tokens leave, and what that costs.

Costs are those of the official formula, with the place where the tokens leave accounted for. "At equal FLOPs" means
matched: a knob is turned, or single removals are added to a recipe, until the visual FLOPs that are saved just reach
the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from fitprune import rules
from fitprune.costs import DecoderShape, alive, base_macs, layer_macs, recipe_macs
from fitprune.pruner import Pruner
from fitprune.recipe import Recipe
from fitprune.rules import Rule
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.hosts.ragged import Tokens


@dataclass
class Method(ABC):
    """A way of pruning: when, which and where visual tokens leave.

    Attributes:
        rule: which leave first: those of lowest score.
        at_output: they leave at a layer's output, not before its ``o_proj``.
    """

    rule: ClassVar[Rule] = staticmethod(rules.product)
    at_output: ClassVar[bool] = False
    _pruner: Pruner | None = field(default=None, init=False, repr=False, compare=False)
    _attached: bool = field(default=False, init=False, repr=False, compare=False)

    @abstractmethod
    def schedule(self, num_layers: int) -> Recipe:
        """When: tokens that leave in each layer of a decoder.

        Raises:
            UserError: the knobs name layers that this decoder does not have.
        """

    @property
    def before(self) -> int:
        """Tokens that never enter layer 0, out of the schedule's number of visual tokens."""
        return 0

    @property
    def knobs(self) -> str:
        """The knobs' values, for tables; the seed is none."""
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.init and f.name != "seed")

    @classmethod
    @abstractmethod
    def at_reduction(cls, target: float, shape: DecoderShape, visual_tokens: int, **knobs: Any) -> Self:
        """The knob that saves a share of the visual MACs: at least ``target``, and less with one token more.

        Args:
            target: share of the visual MACs to save.
            shape: the decoder's dimensions.
            visual_tokens: V of the prompts to prune.
            knobs: those that are not solved for.

        Raises:
            UserError: out of reach; says how much can be saved.
        """

    def pruner(self, num_layers: int) -> Pruner:
        """What does it, for a decoder of so many layers."""
        return Pruner(self.schedule(num_layers), self.rule, before=self.before, at_output=self.at_output)

    def left(self, num_layers: int, visual_tokens: int) -> list[int]:
        """Visual tokens of a prompt at the input of every layer, and after the last one."""
        recipe = self.schedule(num_layers)
        entering = visual_tokens - self.before * visual_tokens // recipe.visual_tokens
        return alive(recipe.counts_for(visual_tokens), entering)

    def macs(self, shape: DecoderShape, visual_tokens: int, text_tokens: int = 0) -> int:
        """The official cost of a prefill, of the visual tokens alone or with ``text_tokens`` in every layer."""
        left = [tokens + text_tokens for tokens in self.left(shape.layers, visual_tokens)]
        return sum(layer_macs(n, n if self.at_output else after, shape) for n, after in pairwise(left))

    def flops(self, shape: DecoderShape, visual_tokens: int, text_tokens: int = 0) -> int:
        """2 x `macs`."""
        return 2 * self.macs(shape, visual_tokens, text_tokens)

    def reduction(self, shape: DecoderShape, visual_tokens: int) -> float:
        """Share of the visual MACs that is saved."""
        return 1 - self.macs(shape, visual_tokens) / base_macs(visual_tokens, shape)

    @contextmanager
    def __call__(self, model: nn.Module, *, visual_mask: Tensor | None = None) -> Iterator[Self]:
        """Attach for the duration of a ``with`` block; arguments and errors as in `attach`."""
        self.attach(model, visual_mask=visual_mask)
        try:
            yield self
        finally:
            self.detach()

    def attach(self, model: nn.Module, *, visual_mask: Tensor | None = None) -> None:
        """Start pruning; arguments and errors as in `Pruner.attach`, and those of `schedule`."""
        if not self._attached:
            layers = DecoderShape.of(structure.unwrap(model).config).layers
            self._pruner = self.pruner(layers)
        self._running.attach(model, visual_mask=visual_mask)
        self._attached = True

    def detach(self) -> None:
        """Stop pruning and restore the model; without effect when not attached."""
        if self._attached:
            self._running.detach()
            self._attached = False

    @property
    def entering(self) -> list[Tokens]:
        """As `Pruner.entering`."""
        return self._running.entering

    def visual_tokens(self) -> list[tuple[int, ...]]:
        """As `Pruner.visual_tokens`."""
        return self._running.visual_tokens()

    def surviving(self, row: int = 0) -> Tensor:
        """As `Pruner.surviving`."""
        return self._running.surviving(row)

    @property
    def _running(self) -> Pruner:
        if self._pruner is None:
            raise UserError("nothing was pruned yet", type(self).__name__, "a forward pass inside its context")
        return self._pruner


@dataclass(frozen=True)
class Schedule(Recipe):
    """A recipe by what each layer lets in, exact for any number of visual tokens.

    Attributes:
        entering: V -> visual tokens at the input of every layer.
    """

    entering: Callable[[int], Sequence[int]] = field(default=lambda visual: (), repr=False, hash=False, compare=False)

    @classmethod
    def of(cls, name: str, num_layers: int, entering: Callable[[int], Sequence[int]]) -> Schedule:
        return cls(name, num_layers, visual_tokens=1, remove=(0,) * num_layers, entering=entering)

    @property
    def empty(self) -> bool:
        return False  # what leaves is known for a number of visual tokens only

    def counts_for(self, visual_tokens: int) -> list[int]:
        left = [*self.entering(visual_tokens)]
        return [before - after for before, after in pairwise((*left, left[-1]))]


def match(recipe: Recipe, target: float, shape: DecoderShape, visual_tokens: int) -> Recipe:
    """A recipe brought to a cost: single removals are added, or taken back, until ``target`` is just met.

    The next one is added to the layer whose share has fallen furthest behind the recipe's own (d'Hondt's rule), so that
    its form stays; a recipe that removes nothing is filled evenly. Where all tokens but one are removed and that does
    not save enough, the deepest removals move to earlier ones of its layers.

    Args:
        recipe: for this decoder; restated for ``visual_tokens`` first.
        target: share of the visual MACs to save.
        shape: the decoder's dimensions.
        visual_tokens: V.

    Raises:
        UserError: a recipe for another depth, or all tokens but one in the first of its layers save less.
    """
    check(recipe.num_layers == shape.layers, "recipe", recipe.model, f"one for {shape.layers} layers")
    weights = recipe.remove if any(recipe.remove) else (1,) * shape.layers
    base = base_macs(visual_tokens, shape)
    remove = list(recipe.counts_for(visual_tokens))

    def saved() -> float:
        return 1 - recipe_macs(remove, visual_tokens, shape) / base

    while saved() < target:
        layers = [layer for layer in range(shape.layers) if weights[layer]]
        if sum(remove) >= visual_tokens - 1:  # none left to add: the deepest one moves forward
            deepest = max((layer for layer in layers if remove[layer]), default=0)
            layers = [layer for layer in layers if layer < deepest]
            if not layers:
                raise _out_of_reach("this recipe", saved(), target)
            remove[deepest] -= 1
        layer = max(layers, key=lambda i: (weights[i] / (remove[i] + 1), -i))
        remove[layer] += 1
    while any(remove):
        layer = min((i for i in range(len(remove)) if remove[i]), key=lambda i: (weights[i] / remove[i], -i))
        remove[layer] -= 1
        if saved() < target:
            remove[layer] += 1
            break
    macs = {"base": base, "asked": round(base * (1 - target)), "delivered": recipe_macs(remove, visual_tokens, shape)}
    return Recipe(
        recipe.model,
        shape.layers,
        visual_tokens,
        tuple(remove),
        target,
        recipe.alpha,
        "given",
        recipe.calibration,
        macs,
    )


def first_within_reach(
    name: str,
    makers: Sequence[Callable[[int], Any]],
    most: int,
    target: float,
    shape: DecoderShape,
    visual_tokens: int,
) -> Any:
    """The first maker's method that saves enough, its knob turned no further than needed.

    Args:
        makers: knob, 0 to ``most``, to method; the further, the more it saves.
    """
    best = 0.0
    for make in makers:
        saved = make(most).reduction(shape, visual_tokens)
        if saved >= target:
            knobs = range(most + 1)
            return make(bisect_left(knobs, target, key=lambda knob: make(knob).reduction(shape, visual_tokens)))
        best = max(best, saved)
    raise _out_of_reach(name, best, target)


def _out_of_reach(name: str, most: float, target: float) -> UserError:
    return UserError(
        f"{name} saves at most {most:.1%} of the visual FLOPs here", f"asked {target:.1%}", "a lower share"
    )


def check(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}", None, expected)
