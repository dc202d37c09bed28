"""LaVIN's decoding: the authors' two, which depend on the batch, and one that does not.

A prompt's prefill gives router weights w and a global vector g for every layer. What comes after differs:

    CONSISTENT   w, g of every row's own prompt, frozen; positions go on as in training. Batch 1, 2 and 64 agree.
    UNMERGED     the authors' batched path: w frozen, g of the current token alone; generation starts at the end of the
                 shortest prompt, what is left of longer ones is fed token by token (their w and g know only the part
                 before); a generated token is turned by one position too few
    MERGED       the authors' folded path, batch 1: w and g frozen; the same position too few

`generate(..., fold="exact")` decodes one prompt with everything in the matrices; "released" has the authors' order of
the bias. No path keeps keys of the modality token, or of skipped attentions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eas.lavin import Cache, Fold, Lavin, Step, causal, prompt_means
from tenfold import UserError


@dataclass(frozen=True)
class Semantics:
    """What a decoding step knows.

    Attributes:
        current: the global vector is the current token's alone; else the prompt's, frozen.
        late: generated tokens are turned by one position too few, as if the modality token had none.
        shortest: a batch's prefill ends where its shortest prompt does.
    """

    current: bool = False
    late: bool = False
    shortest: bool = False


CONSISTENT = Semantics()
UNMERGED = Semantics(current=True, late=True, shortest=True)
MERGED = Semantics(late=True)
NAMED = {"consistent": CONSISTENT, "unmerged": UNMERGED, "merged": MERGED}


@dataclass(frozen=True)
class Prompt:
    """One question: token ids from BOS on, prefix included; where its picture's vectors stand, ids are 0.

    Attributes:
        ids: ``[tokens]``. at: where the vectors begin; None: no picture.
    """

    ids: Tensor
    at: int | None = None


@dataclass(frozen=True)
class Generated:
    """What was generated.

    Attributes:
        tokens: of every row, the new ones, ended by `end` where it came (and without it).
        whole: of every row, prompt and at most `new` further tokens, as the authors cut them.
        logits: ``[batch, steps, vocabulary]`` of every pass.
    """

    tokens: list[list[int]]
    whole: list[list[int]]
    logits: Tensor


@torch.no_grad()
def generate(
    model: Lavin,
    prompts: Sequence[Prompt],
    images: Tensor,
    new: int,
    *,
    semantics: Semantics = CONSISTENT,
    end: int | None = None,
    fold: Fold | None = None,
    temperature: float = 0.0,
    top_p: float = 0.75,
    generator: torch.Generator | None = None,
) -> Generated:
    """Generate `new` tokens for every prompt.

    Args:
        images: ``[batch, 3, size, size]``; zeros where there is none (they run through the tower all the same).
        end: stop when every row has written this token; None: never, as the authors' code.
        fold: decode one prompt with folded matrices; the model is as before afterwards.
        temperature: 0 is greedy; else tokens are drawn, by `top_p` (the authors: 0.1 and 0.75).

    Raises:
        UserError: nothing to generate, no pictures for the rows, several prompts with `fold`, or matrices that cannot
            be folded (a quantised base keeps its adapters beside it).
    """
    if not prompts or new < 1 or len(images) != len(prompts):
        raise UserError(f"{len(prompts)} prompts, {len(images)} images, {new} tokens", "LaVIN", "at least one, as many")
    if fold and len(prompts) > 1:
        raise UserError(f"{len(prompts)} prompts", "folding", "one: a fold is one prompt's")
    with folding(model) if fold else _nothing():
        return _Run(model, prompts, images, new, semantics, end, fold).go(temperature, top_p, generator)


class _Run:
    """One batch on its way.

    The tokens of all rows stand in a table, right-padded; ``filled`` is how many columns have been through the model.
    """

    def __init__(
        self,
        model: Lavin,
        prompts: Sequence[Prompt],
        images: Tensor,
        new: int,
        semantics: Semantics,
        end: int | None,
        fold: Fold | None,
    ) -> None:
        self.model, self.semantics, self.new, self.end, self.fold = model, semantics, new, end, fold
        device = model.tok_embeddings.weight.device
        lengths, batch = [len(one.ids) for one in prompts], len(prompts)
        self.lengths, self.longest = torch.tensor(lengths, device=device), max(lengths)
        self.table = torch.zeros(batch, self.longest + new, dtype=torch.long, device=device)
        for row, one in enumerate(prompts):
            self.table[row, : len(one.ids)] = one.ids.to(device)
        self.first = min(lengths) if semantics.shortest else self.longest
        self.cache = Cache(batch, self.longest + new, device)
        self.begin = self._embed(prompts, images.to(device))

    def _embed(self, prompts: Sequence[Prompt], images: Tensor) -> Tensor:
        """``[batch, 1 + first, width]``: modality token, then words and vectors of the prefill."""
        model, width = self.model, self.model.config.features
        seen = model.see(images, fold=self.fold is not None)
        words = model.tok_embeddings(self.table[:, : self.first]).clone()
        modes = []
        for row, one in enumerate(prompts):
            modes.append(model.adapter_modality_embedding.weight[int(one.at is not None)])
            if one.at is not None:
                there = min(width, max(0, self.first - one.at))
                words[row, one.at : one.at + there] = seen[row, :there].to(words.dtype)
        return torch.cat((torch.stack(modes)[:, None].to(words.dtype), words), dim=1)

    def go(self, temperature: float, top_p: float, generator: torch.Generator | None) -> Generated:
        last = self._prefill()
        logits, done = [last], torch.zeros(len(self.table), dtype=torch.bool, device=self.table.device)
        # As released a step is a column of the table; else a row's n-th new token stands behind its own prompt.
        steps = self.longest + self.new - self.first if self.semantics.shortest else self.new
        for number in range(steps):
            drawn = _choose(logits[-1], temperature, top_p, generator)
            place = self._place(number)
            prompted = place < self.lengths if self.semantics.shortest else torch.zeros_like(done)
            rows = torch.arange(len(place), device=place.device)
            self.table[rows, place] = torch.where(prompted, self.table[rows, place], drawn)
            if self.end is not None:
                done |= (drawn == self.end) & ~prompted
                if bool(done.all()):
                    break
            if number + 1 < steps:
                logits.append(self._step(self.table[rows, place], place))
        return self._result(torch.stack(logits, dim=1))

    def _place(self, number: int) -> Tensor:
        """Of every row, the column of its `number`-th new token."""
        if self.semantics.shortest:
            return torch.full_like(self.lengths, self.first + number)
        return self.lengths + number

    def _prefill(self) -> Tensor:
        """Logits ``[batch, vocabulary]`` behind the prompts, or behind the first so many columns of them."""
        model, device = self.model, self.begin.device
        length = self.begin.shape[1]
        real = torch.arange(length, device=device) < (self.lengths.clamp_max(self.first) + 1)[:, None]
        mask = causal(length, device) & real[:, None, None]
        mask |= torch.eye(length, dtype=torch.bool, device=device)  # a row of nothing has no softmax
        rotation = model.rotation(torch.arange(length, device=device)[None])
        step = Step(rotation, mask, *prompt_means(real.float()), cache=self.cache, fold=self.fold)
        hidden = model.run(self.begin, step)
        self.cache.used = length - 1
        self.cache.valid[:, : length - 1] = real[:, 1:]
        rows = torch.arange(len(hidden), device=device)
        return model.output(hidden[rows, self.lengths.clamp_max(self.first)]).float()

    def _step(self, tokens: Tensor, place: Tensor) -> Tensor:
        """Logits ``[batch, vocabulary]`` behind one more token a row, which stands in column `place`."""
        model, cache = self.model, self.cache
        cache.valid[:, cache.used] = True
        positions = place if self.semantics.late else place + 1  # the modality token has position 0
        mask = cache.valid[:, None, None, : cache.used + 1]
        step = Step(model.rotation(positions[:, None]), mask, cache=cache, current=self.semantics.current)
        hidden = model.run(model.tok_embeddings(tokens)[:, None], step)
        cache.used += 1
        return model.output(hidden[:, -1]).float()

    def _result(self, logits: Tensor) -> Generated:
        table, lengths = self.table.tolist(), self.lengths.tolist()
        whole = [row[: length + self.new] for row, length in zip(table, lengths, strict=True)]
        tokens = []
        for row, length in zip(whole, lengths, strict=True):
            written = row[length:]
            tokens.append(written[: written.index(self.end)] if self.end in written else written)
        return Generated(tokens, whole, logits)


def _choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    if temperature <= 0:
        return logits.argmax(-1)
    chances, order = torch.softmax(logits / temperature, -1).sort(-1, descending=True)
    chances = chances.masked_fill(chances.cumsum(-1) - chances > top_p, 0)
    drawn = torch.multinomial(chances, 1, generator=generator)
    return order.gather(-1, drawn)[:, 0]


@contextmanager
def folding(model: Lavin) -> Iterator[None]:
    """Inside, a prompt's prefill may fold its adapters into the matrices; afterwards they are as before.

    Raises:
        UserError: a matrix that is quantised, or no plain linear layer.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    for block in model.blocks():
        for holder, name in block.targets():
            linear = getattr(holder, name)
            if type(linear) is not nn.Linear or not torch.is_floating_point(linear.weight):
                raise UserError(f"{name} of layer {block.number} cannot be folded", type(linear).__name__, "nn.Linear")
            before.append((holder, name, linear))
    try:
        yield
    finally:
        for holder, name, linear in before:
            setattr(holder, name, linear)
        for block in model.blocks():
            block.folded = False


@contextmanager
def _nothing() -> Iterator[None]:
    yield
