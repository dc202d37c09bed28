"""Which tokens leave: the paper's rule, and those that it is compared with, behind one interface.

A rule gives every token a score; the visual tokens of lowest score leave. How many leave, and where, is the recipe's
business, so any rule can be run at any budget.

    Pruner(recipe)                          # the paper: product of both attention masses
    Pruner(recipe, rule=last_token)         # FastV's and PyramidDrop's score
    Pruner(recipe, rule=Random(seed=0))     # the control
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fitprune.statistics import AttentionMass, float32, token_mass
from tenfold.hosts.ragged import Tokens

NOTHING = torch.empty(0)  # before layer 0 there are neither queries nor keys


@dataclass(frozen=True)
class Observation:
    """What a rule can look at.

    Attributes:
        layer: number of the layer, -1 before layer 0, where queries and keys are empty.
        tokens: those at the layer's input.
        query: ``[batch, heads, tokens, head_dim]``, after rotary embedding.
        key: ``[batch, kv_heads, past + tokens, head_dim]``.
        scaling: factor of the logits.
        real_keys: ``[batch, past + tokens]`` bool, None without padding.
    """

    layer: int
    tokens: Tokens
    query: Tensor = NOTHING
    key: Tensor = NOTHING
    scaling: float = 1.0
    real_keys: Tensor | None = None


Rule = Callable[[Observation], Tensor]


def product(seen: Observation) -> Tensor:
    """``a_cross * a_self``, the paper's score at inference; ``[batch, tokens]`` float32, as of every rule. A row that
    ends in its image has no text to be asked by: ``a_self`` alone."""
    mass = _mass(seen)
    return _asked(seen, mass.product, mass.self_)


def self_mass(seen: Observation) -> Tensor:
    """``a_self`` alone: mass from the other visual tokens."""
    return _mass(seen).self_


def cross_mass(seen: Observation) -> Tensor:
    """``a_cross`` alone: mass from the text after the image; ``a_self`` where a row ends in its image."""
    mass = _mass(seen)
    return _asked(seen, mass.cross, mass.self_)


def inverse(seen: Observation) -> Tensor:
    """The control that must lose: the tokens of *highest* product leave."""
    return -product(seen)


@torch.no_grad()
def last_token(seen: Observation) -> Tensor:
    """Mean over heads of the attention that the last text token gives: the score of FastV and of PyramidDrop."""
    tokens, query, key = seen.tokens, seen.query, seen.key
    batch, heads, width, head_dim = query.shape
    last = torch.arange(width, device=query.device).mul(tokens.real).argmax(1)  # [batch]
    row = query[torch.arange(batch, device=query.device), :, last].float() * seen.scaling  # [batch, heads, head_dim]
    row = row.view(batch, key.shape[1], -1, head_dim)
    with float32(query.device):
        logits = (row @ key.float().transpose(2, 3)).view(batch, heads, -1)  # [batch, heads, past + tokens]
    keys = logits.shape[-1]
    hidden = torch.arange(keys, device=query.device) > (keys - width + last)[:, None]
    if seen.real_keys is not None:
        hidden = hidden | ~seen.real_keys
    attention = logits.masked_fill(hidden[:, None], torch.finfo(torch.float32).min).softmax(-1)
    return attention.mean(1)[:, keys - width :]


def _mass(seen: Observation) -> AttentionMass:
    return token_mass(seen.tokens, seen.query, seen.key, seen.scaling, seen.real_keys)


def _asked(seen: Observation, score: Tensor, otherwise: Tensor) -> Tensor:
    """``score``, and in rows that end in their image the other one."""
    if not any(seen.tokens.unasked):
        return score
    return torch.where(torch.tensor(seen.tokens.unasked, device=score.device)[:, None], otherwise, score)


@dataclass(frozen=True)
class Random:
    """A score drawn for every prompt, layer and token; the same for a prompt alone and in any batch.

    Attributes:
        seed: of the draws.
    """

    seed: int = 0

    def __call__(self, seen: Observation) -> Tensor:
        tokens = seen.tokens
        first = tokens.index.masked_fill(~tokens.real, tokens.index.max()).amin(1, keepdim=True)
        place = (tokens.index - first).clamp(min=0)  # counted from the row's first token, not from its padding
        drawn = mixed(place + mixed(torch.full_like(place[:, :1], self.seed)) + (seen.layer + 1) * 1_000_003)
        if tokens.question is not None:
            drawn = mixed(drawn ^ tokens.question[:, None])
        return ((drawn >> 20) & 0xFFFFFF).float() / 2**24


def mixed(values: Tensor) -> Tensor:
    """Scramble int64 numbers, alike on every device (SplitMix64, whose products wrap around)."""
    values = values - 7046029254386353131
    values = (values ^ _shifted(values, 30)) * -4658895280553007687
    values = (values ^ _shifted(values, 27)) * -7723592293110705685
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)  # zeros come in at the left, also of negative numbers


def question_of(input_ids: Tensor, real: Tensor) -> Tensor:
    """A number for every row's prompt, of its ids without padding: ``[batch, tokens]`` both -> ``[batch]`` int64."""
    place = real.cumsum(1)
    return (mixed(input_ids.long() + place * 1_000_003) * real).sum(1)


RULES: Mapping[str, Rule] = {
    "product": product,
    "self": self_mass,
    "cross": cross_mass,
    "inverse": inverse,
    "last_token": last_token,
    "random": Random(),
}
