"""Seeds: one for the process, and one independent stream per sample of each epoch.

A run that draws the augmentation of sample i in epoch e from `sample_rng(seed, e, i)` can be killed and
resumed bit for bit; one that draws it from the global state cannot, because workers and resumes reorder it.
"""

from __future__ import annotations

import importlib.util
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and (when installed) torch's global generators, CUDA's included.

    `torch.use_deterministic_algorithms` is left as it is: it is a choice about speed that belongs to the
    caller.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.manual_seed(seed)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The numpy generator of sample `index` in epoch `epoch`; bit-identical on every platform.

    Philox is counter-based: (seed, epoch) is its 128-bit key and `index` the top word of its 256-bit
    counter, so different samples read different stretches of 2**192 blocks and streams never overlap.

    Args:
        seed, epoch, index: integers in [0, 2**64).
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The torch CPU generator of sample `index` in epoch `epoch`, seeded from `sample_rng`'s stream."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(int(sample_rng(seed, epoch, index).integers(2**63)))
    return generator
