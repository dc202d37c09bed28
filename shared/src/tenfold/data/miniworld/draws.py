"""Random integers that are the same on every platform and with every numpy.

`numpy.random.Generator` may change what its methods return between versions (NEP 19); the raw bits of a
`BitGenerator` may not. The mini world is pinned by a hash, so it draws from the raw bits only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from tenfold.errors import UserError

T = TypeVar("T")

# What a stream of (seed, index) is for. Each purpose reads its own stretch of 2**128 Philox blocks.
SCENE, QUESTIONS, CAPTIONS, REFERRING, EDIT, DATASET = range(1, 7)


class Draws:
    """A stream of random choices.

    Args:
        bits: any numpy bit generator. `Draws(sample_rng(seed, epoch, index).bit_generator)` is a trainer's stream.
    """

    def __init__(self, bits: np.random.BitGenerator) -> None:
        self._bits = bits

    @classmethod
    def of(cls, seed: int, index: int, purpose: int) -> Draws:
        """The mini world's own stream of one item.

        The purpose is the counter's third word, which `tenfold.runs.sample_rng` leaves 0: no trainer's stream can
        meet one of these, whatever its seed.

        Raises:
            UserError: seed or index outside [0, 2**64).
        """
        for name, value in (("seed", seed), ("index", index)):
            if not 0 <= value < 2**64:
                raise UserError("out of range", f"{name} {value}", "an integer in [0, 2**64)")
        key = np.array([seed, index], dtype=np.uint64)
        counter = np.array([0, 0, purpose, 0], dtype=np.uint64)
        return cls(np.random.Philox(key=key, counter=counter))

    def below(self, n: int) -> int:
        """A uniform integer in [0, n), n <= 2**32 (bias below n / 2**32)."""
        return (int(self._bits.random_raw()) >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """A uniform integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, uniformly."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order; all of them when there are fewer."""
        return self.shuffled(items)[:count]
