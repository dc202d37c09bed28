"""Arguments of a call: one for all pictures or one for each, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tenfold import UserError

# The authors' seed: every picture's noise is drawn from it when no generator is given.
SEED = 4623523532252


def one_of(name: str, given: Any, allowed: Sequence[str]) -> None:
    """Raises UserError for something else than what is allowed."""
    if given not in allowed:
        raise UserError(f"{name} {given!r}", name, " or ".join(f'"{one}"' for one in allowed))


def one_each(texts: Any, count: int, name: str) -> list[str]:
    """One text for all pictures, or one a picture, as a list."""
    if isinstance(texts, str):
        return [texts] * count
    if not isinstance(texts, Sequence):
        raise UserError(f"a {name} of type {type(texts).__name__}", name, "text, or a list of texts")
    if len(texts) != count:
        raise UserError(f"{len(texts)} texts for {count} pictures", name, "one for all, or one a picture")
    return list(texts)


def as_generators(given: Any, count: int) -> list[torch.Generator]:
    """One generator a picture; a single one is used by all of them in turn."""
    if given is None:
        return [torch.Generator().manual_seed(SEED) for _ in range(count)]
    generators = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(generators) != count:
        raise UserError(f"{len(generators)} generators for {count} pictures", "generator", "one, or one a picture")
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise UserError("something else than a generator", "generator", "torch.Generator, one, or one a picture")
    if any(one.device.type != "cpu" for one in generators):
        raise UserError("a generator on another device", "generator", 'torch.Generator("cpu"): seeds are drawn there')
    return generators
