"""Pruning at inference: a recipe says how many visual tokens leave in each layer, the input which.

In layer ``i`` of the prefill the ``r[i]`` visual tokens with the smallest product of the two attention
masses leave (`fitprune.statistics`), after that layer's attention and before its output projection
(`fitprune.attachment`). Decoding prunes nothing: each layer's KV cache is simply shorter.

    recipe = fitprune.Recipe.released("llava-1.5-7b", 60)
    with fitprune.Pruner(recipe)(model):
        model.generate(**inputs)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fitprune.attachment import Attachment, Selection
from fitprune.host import CACHE_STATE
from fitprune.recipe import Recipe
from fitprune.rules import Observation, Rule, product
from fitprune.statistics import lowest_scores
from tenfold import UserError
from tenfold.hosts.ragged import Tokens, counts_on


@dataclass
class Pruner:
    """Prunes the visual tokens of a transformers vision-language model by a recipe.

    Use it as a context, ``with Pruner(recipe)(model): ...``, or with `attach` and `detach`; leaving
    restores the model exactly. A pruner serves one model at a time. Inside the context the model accepts
    batches, padding on either side, several images or none per row, any number of visual tokens (``r[i]``
    is scaled to each row's own number), and later turns on the same cache. Its logits exist for the
    surviving tokens only; the last row stays the last one. A KV cache made inside the context is valid only
    inside it.

    Attributes:
        recipe: how many visual tokens leave in every layer.
        rule: which: the score by which the lowest leave (`fitprune.rules`); the paper's is the product of both masses.
        before: of ``recipe.visual_tokens``, how many are removed before layer 0 sees them (a baseline; the paper's
            method removes none there). Needs `generate`, which counts positions by the attention mask.
        at_output: let tokens leave at a layer's output, as pruners between layers do, not before its ``o_proj``.
    """

    recipe: Recipe
    rule: Rule = product
    before: int = 0
    at_output: bool = False
    _attachment: Attachment | None = field(default=None, init=False, repr=False)
    _prompt: Tokens | None = field(default=None, init=False, repr=False)
    _entering: list[Tokens] = field(default_factory=list, init=False, repr=False)

    @contextmanager
    def __call__(self, model: nn.Module, *, visual_mask: Tensor | None = None) -> Iterator[Pruner]:
        """Attach for the duration of a ``with`` block; arguments and errors as in `attach`."""
        self.attach(model, visual_mask=visual_mask)
        try:
            yield self
        finally:
            self.detach()

    def attach(self, model: nn.Module, *, visual_mask: Tensor | None = None) -> None:
        """Start pruning.

        Args:
            model: a transformers vision-language model, possibly under PEFT adapters.
            visual_mask: ``[batch, tokens]`` bool, which positions of the prompt hold a visual token. Needed
                only when prompts are given as ``inputs_embeds``; otherwise they are found by the
                placeholders in the input ids.

        Raises:
            UserError: the recipe is for another number of layers, the host's structure cannot be served
                (the reason is named), or pruner or model are already in use.
        """
        if self._attachment is not None:
            raise UserError("this pruner is already attached", type(self._attachment.model).__name__, "detach() first")
        self.recipe.validate(model)
        selection = RecipeSelection(self.recipe, self.rule, before=self.before, at_output=self.at_output)
        self._attachment = Attachment(model, selection, visual_mask)

    def detach(self) -> None:
        """Stop pruning and restore the model; without effect when not attached."""
        if self._attachment is not None:
            self._prompt, self._entering = self._attachment.prompt, self._attachment.entering
            self._attachment.detach()
            self._attachment = None

    @property
    def entering(self) -> list[Tokens]:
        """The tokens at the input of every layer, and after the last one, in the last pass that held an
        image."""
        return self._entering if self._attachment is None else self._attachment.entering

    def visual_tokens(self) -> list[tuple[int, ...]]:
        """Visual tokens of every row at the input of layer 0, 1, ... and after the last layer."""
        return [tokens.num_visual for tokens in self.entering]

    def surviving(self, row: int = 0) -> Tensor:
        """Which visual tokens of a row are present at the input of each layer, and after the last one.

        Returns:
            ``[layers + 1, visual tokens of the row]`` bool, on the CPU, visual tokens in prompt order.
        """
        prompt = self._prompt if self._attachment is None else self._attachment.prompt
        if prompt is None:
            raise UserError("nothing was pruned yet", None, "a forward pass with an image")
        columns = prompt.index[row][prompt.visual[row]].cpu()
        present = [tokens.index[row][tokens.visual[row]].cpu() for tokens in self.entering]
        return torch.stack([torch.isin(columns, left) for left in present])

    @staticmethod
    def kv_lengths(cache: Any) -> list[list[int]]:
        """Real tokens in the cache of every layer, per row: ``[layers][batch]``; padding does not count."""
        state = getattr(cache, CACHE_STATE, None)
        lengths = []
        for layer, keys in enumerate(layer.keys for layer in cache.layers):
            real = None if state is None else state.real[layer]
            lengths.append([keys.shape[2]] * keys.shape[0] if real is None else real.sum(1).tolist())
        return lengths


class RecipeSelection(Selection):
    """The ``r[i]`` visual tokens of smallest score leave in layer ``i``; by the paper's rule, of smallest product."""

    def __init__(self, recipe: Recipe, rule: Rule = product, *, before: int = 0, at_output: bool = False) -> None:
        self.recipe = recipe
        self.rule = rule
        self.at_output = at_output
        self._before = before
        self.idle = not before and recipe.empty
        self._counts: dict[int, list[int]] = {}

    def counts(self, layer: int, tokens: Tokens) -> tuple[int, ...]:
        """Tokens to remove in this layer, per row, scaled to the row's own number of visual tokens."""
        for visual in tokens.prompt_visual:
            if visual not in self._counts:
                self._counts[visual] = self.recipe.counts_for(visual)
        # Another method may have let some leave, or all.
        left = zip(tokens.prompt_visual, tokens.num_visual, tokens.unasked, strict=True)
        return tuple(min(self._counts[visual][layer], max(now - last, 0)) for visual, now, last in left)

    def before(self, tokens: Tokens) -> tuple[Tensor, tuple[int, ...]] | None:
        if not self._before:
            return None
        counts = tuple(self._before * visual // self.recipe.visual_tokens for visual in tokens.prompt_visual)
        most = [now - last for now, last in zip(tokens.num_visual, tokens.unasked, strict=True)]
        counts = tuple(map(min, counts, most))
        score = self.rule(Observation(-1, tokens))
        return lowest_scores(score, tokens.removable, counts_on(counts, score.device)), counts

    def active(self, layer: int, tokens: Tokens) -> bool:
        return any(self.counts(layer, tokens))

    def remove(self, seen: Observation) -> tuple[Tensor, tuple[int, ...]]:
        counts = self.counts(seen.layer, seen.tokens)
        score = self.rule(seen)
        return lowest_scores(score, seen.tokens.removable, counts_on(counts, score.device)), counts
