"""Which attentions are redundant: the search of EAS, a bandit whose arms are the attentions.

Every step trains the adapters of a random subnet in which K attentions are skipped. Every T steps after a warm-up, S
different subnets are scored on one batch without gradient, and the preference of what they skipped moves:

    reward  r_k = exp(-l_k)          pref_i += eta (r_k - mean r) p_i (1 - p_i)   for every i that subnet k skips

p is the sampling weight before the update, and the subnets are drawn without replacement in proportion to it. In the
end the K attentions of the largest preference go: a high one says that the net does well without that attention.

    search = Search(RULES["llava"], sites=32, removed=12)
    subnet = search.sample(generator)
    search.update(subnets, losses)
    search.skip()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenfold import UserError


@dataclass(frozen=True)
class Rule:
    """What the three hosts of the paper do differently.

    Attributes:
        probability: from preferences ``[sites]`` to sampling weights p ``[sites]``.
        subnets: S, scored at an update.
        every: T, calls between two updates.
        step: eta.
    """

    name: str
    probability: Callable[[Tensor], Tensor]
    subnets: int
    every: int
    step: float


def _softmax(preferences: Tensor) -> Tensor:
    return torch.softmax(10 * preferences, dim=0)


RULES = {
    "llava": Rule("llava", torch.sigmoid, subnets=5, every=3, step=1.0),
    "lavin": Rule("lavin", _softmax, subnets=3, every=10, step=2.0),
    "meter": Rule("meter", torch.sigmoid, subnets=3, every=10, step=1.0),
}


@dataclass
class Search:
    """The preferences of a search, and what is drawn by them.

    Attributes:
        rule: of the host.
        sites: attentions that can be skipped.
        removed: K.
        warmup: calls before the first update.
        ramp: during the warm-up, skip fewer: ``min(K, floor(2 K t / warmup) + 1)`` at call t (the LLaVA host).
        preferences: ``[sites]`` float32.
        calls: training steps so far.
        updates: of the preferences so far.
    """

    rule: Rule
    sites: int
    removed: int
    warmup: int = 0
    ramp: bool = False
    preferences: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: int = 0
    updates: int = 0
    _last: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.removed < self.sites:
            raise UserError(f"{self.removed} attentions to remove", f"of {self.sites}", "at least 1, and 1 that stays")
        if not self.preferences.numel():
            self.preferences = torch.zeros(self.sites)

    def begin(self) -> int:
        """Count a training step; how many attentions it skips."""
        self.calls += 1
        if not self.ramp or not self.warmup:
            return self.removed
        return min(self.removed, 2 * self.removed * self.calls // self.warmup + 1)

    def due(self) -> bool:
        """Whether the preferences are to be updated after this step."""
        return self.calls >= self.warmup and self.calls - self._last >= self.rule.every

    def sample(self, generator: torch.Generator, count: int | None = None) -> tuple[int, ...]:
        """Draw the attentions that a subnet skips, without replacement, in proportion to p; ascending."""
        weights = self.rule.probability(self.preferences)
        drawn = torch.multinomial(weights, self.removed if count is None else count, generator=generator)
        return tuple(sorted(drawn.tolist()))

    def distinct(self, generator: torch.Generator, count: int | None = None) -> list[tuple[int, ...]]:
        """Draw S different subnets for an update.

        Raises:
            UserError: fewer different ones come up in a thousand draws.
        """
        found: dict[tuple[int, ...], None] = {}
        for _ in range(1000):
            found.setdefault(self.sample(generator, count))
            if len(found) == self.rule.subnets:
                return list(found)
        raise UserError(
            f"{len(found)} different subnets in 1,000 draws", "the search", f"{self.rule.subnets}: remove more or fewer"
        )

    def update(self, subnets: Sequence[Sequence[int]] | Tensor, losses: Tensor) -> None:
        """Move the preferences of what the subnets skip.

        Args:
            subnets: S lists of sites.
            losses: ``[S]``, or ``[ranks, S]`` where every rank scored the same subnets on a batch of its own; rewards
                are then averaged over ranks.

        Raises:
            UserError: a loss is not finite.
        """
        if not torch.isfinite(losses).all():
            raise UserError("a loss that is not finite", "the search", "a lower learning rate")
        self._last = self.calls
        self.updates += 1
        rewards = torch.exp(-losses.double()).reshape(-1, losses.shape[-1]).mean(0)  # [S]
        baseline = rewards.mean().float()  # single precision, in which ranks share it
        chances = self.rule.probability(self.preferences)
        gain = self.rule.step * chances * (1 - chances)  # frozen before this update
        for subnet, advantage in zip(subnets, (rewards - baseline).float(), strict=True):
            sites = torch.as_tensor(subnet, dtype=torch.long)
            self.preferences[sites] += advantage * gain[sites]

    def order(self) -> tuple[int, ...]:
        """All sites, the most dispensable first; of equal ones the earlier first."""
        return tuple(torch.argsort(self.preferences, descending=True, stable=True).tolist())

    def skip(self) -> tuple[int, ...]:
        """The K most dispensable attentions, ascending by number."""
        return tuple(sorted(self.order()[: self.removed]))

    def margin(self) -> float:
        """The gap of preference between the last that goes and the first that stays: how sure the choice is."""
        order = self.order()
        return float(self.preferences[order[self.removed - 1]] - self.preferences[order[self.removed]])
