"""Beam search exactly as released (section 7), greedy search and sampling.

    beams = beam_search(model, features, beam_size=5)
    beams.tokens                                            # [batch, 1, 20]

No length is normalised, no word is suppressed: the raw sum of log-probabilities ranks the captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtnet.encoder import Encoded
from dtnet.model import DTNet
from tenfold import UserError

Models = DTNet | Sequence[DTNet]
Inputs = Tensor | Encoded | Sequence[Encoded]

# What a finished beam's continuations other than word 0 score; finite, as released, and below any real caption.
UNREACHABLE = -999.0


@dataclass(frozen=True)
class Beams:
    """Captions, the best first.

    Attributes:
        tokens: `[batch, out_size, T]` int64, T = max_len; word 0 after ``<eos>``.
        log_probs: of each word `[batch, out_size, T]`; 0 after ``<eos>``. Their sum ranks the captions.
    """

    tokens: Tensor
    log_probs: Tensor


class Decoding:
    """One model or an ensemble, word by word.

    Args:
        models: log-probabilities of several are averaged.
        inputs: features for all of them, or what `DTNet.encode` made, one for each model.
        padding: of the features.
        max_len: words of a caption, to be checked against the models' positions.
    """

    def __init__(self, models: Models, inputs: Inputs, padding: Tensor | None, max_len: int) -> None:
        self.models = [models] if isinstance(models, DTNet) else list(models)
        if not self.models:
            raise UserError("no model", "beam search", "at least one")
        configs = [model.config for model in self.models]
        sizes = {(config.vocabulary_size, config.bos_id, config.eos_id) for config in configs}
        if len(sizes) > 1 or len({model.vocabulary for model in self.models} - {None}) > 1:
            raise UserError("models with different vocabularies", "ensemble", "the same words")
        longest = min(config.max_len for config in configs)
        if not 1 <= max_len <= longest:
            raise UserError(f"max_len {max_len}", "beam search", f"1 to {longest}, the decoder's positions")
        if isinstance(inputs, Tensor):
            encoded = [model.encode(inputs.to(model.device), padding) for model in self.models]
        else:
            encoded = [inputs] if isinstance(inputs, Encoded) else list(inputs)
        if len(encoded) != len(self.models):
            raise UserError(f"{len(encoded)} encodings", "ensemble", f"one for each of {len(self.models)} models")
        pairs = zip(self.models, encoded, strict=True)
        self.caches = [model.decoder.start(part.memory, part.mask) for model, part in pairs]
        self.vocabulary_size, bos_id, self.eos_id = sizes.pop()
        self.first = encoded[0].memory.new_full((len(encoded[0].memory), 1), bos_id, dtype=torch.long)

    def __call__(self, words: Tensor) -> Tensor:
        """Log-probabilities after `words` `[batch, beams]`: `[batch, beams, vocabulary]`."""
        results = []
        for number, model in enumerate(self.models):
            step, self.caches[number] = model.decoder.step(words, self.caches[number])
            results.append(step)
        return results[0] if len(results) == 1 else torch.stack(results).mean(dim=0)

    def reorder(self, parents: Tensor, beams: int) -> None:
        """Beams `parents` `[batch, new beams]` of `beams` go on."""
        offset = torch.arange(len(parents), device=parents.device)[:, None] * beams
        rows = (offset + parents).flatten()
        self.caches = [cache.reorder(rows) for cache in self.caches]


def beam_search(
    model: Models,
    inputs: Inputs,
    beam_size: int = 5,
    max_len: int = 20,
    out_size: int = 1,
    *,
    early_stop: bool | None = None,
    padding: Tensor | None = None,
    steps: list[Tensor] | None = None,
) -> Beams:
    """The most probable captions; `log_probs` has gradients where gradients are on (SCST).

    Args:
        model: one, or an ensemble whose log-probabilities are averaged at every step. In the mode that it is in: SCST
            searches in train mode.
        inputs: features `[batch, n, d_in]`, or what `DTNet.encode` made of them (for an ensemble, one for each model).
        early_stop: stop once the captions that are returned can no longer change. The same captions, in fewer steps.
            None: on the CPU; to look at each step would make another device wait.
        padding: `[batch, n]` bool, as for `DTNet.encode`.
        steps: a list that every step's log-probabilities are appended to, `[batch, beams, vocabulary]`: of the beams as
            they were before the choice; 0 for those that had finished.

    Raises:
        UserError: sizes out of range, inputs of another shape, or an ensemble of several vocabularies.
    """
    decoding = Decoding(model, inputs, padding, max_len)
    if not 1 <= out_size <= beam_size <= decoding.vocabulary_size:
        sizes = f"beam_size {beam_size}, out_size {out_size}"
        raise UserError(sizes, "beam search", f"1 <= out_size <= beam_size <= {decoding.vocabulary_size} words")
    words = decoding.first  # [batch, beams]: one beam before the first word
    stops = words.device.type == "cpu" if early_stop is None else early_stop
    scores = torch.zeros_like(words, dtype=torch.float32)
    finished = torch.zeros_like(words, dtype=torch.bool)
    tokens, gains = words[..., None][..., :0], scores[..., None][..., :0]  # [batch, beams, t]
    for _ in range(max_len):
        step = decoding(words)  # [batch, beams, vocabulary]
        if steps is not None:
            steps.append(step.masked_fill(finished[..., None], 0))
        candidates = _candidates(scores, step.detach(), finished)
        scores, chosen = candidates.flatten(1).topk(beam_size)  # the best first
        parents = chosen // decoding.vocabulary_size
        words = chosen % decoding.vocabulary_size
        ended = finished.gather(1, parents)
        gain = step.flatten(1).gather(1, chosen).masked_fill(ended, 0)
        tokens = torch.cat((_of_parents(tokens, parents), words[..., None]), dim=-1)
        gains = torch.cat((_of_parents(gains, parents), gain[..., None]), dim=-1)
        finished = ended | (words == decoding.eos_id)
        # Scores only fall: once the best `out_size` are finished, no other beam can pass them.
        if stops and bool(finished[:, :out_size].all()):
            break
        decoding.reorder(parents, step.shape[1])
    rest = max_len - tokens.shape[-1]
    pad = torch.nn.functional.pad
    return Beams(pad(tokens[:, :out_size], (0, rest)), pad(gains[:, :out_size], (0, rest)))


def _candidates(scores: Tensor, step: Tensor, finished: Tensor) -> Tensor:
    """The score of every continuation of every beam; a finished beam has one, word 0, at no cost."""
    ended = torch.full_like(step[:1, :1], UNREACHABLE).expand_as(step).clone()
    ended[..., 0] = scores
    return torch.where(finished[..., None], ended, scores[..., None] + step)


def _of_parents(history: Tensor, parents: Tensor) -> Tensor:
    return history.gather(1, parents[..., None].expand(-1, -1, history.shape[-1]))


def greedy(model: Models, inputs: Inputs, max_len: int = 20, *, padding: Tensor | None = None) -> Beams:
    """The most probable next word at every step, up to ``<eos>``: `[batch, 1, T]`. Arguments as `beam_search`."""
    return _one_by_one(Decoding(model, inputs, padding, max_len), max_len, lambda step: step.argmax(dim=-1))


def sample(
    model: Models,
    inputs: Inputs,
    max_len: int = 20,
    *,
    temperature: float = 1.0,
    samples: int = 1,
    generator: torch.Generator | None = None,
    padding: Tensor | None = None,
) -> Beams:
    """Draw every word from the model's distribution: `[batch, samples, T]`, in the order drawn.

    Args:
        model, inputs, max_len, padding: as for `beam_search`.
        temperature: log-probabilities are divided by it before drawing; those that are returned are not.
        generator: on the model's device.

    Raises:
        UserError: sizes or a temperature out of range.
    """
    if not temperature > 0 or samples < 1:
        raise UserError(f"temperature {temperature}, samples {samples}", "sample", "above 0, and at least 1")
    decoding = Decoding(model, inputs, padding, max_len)
    decoding.first = decoding.first.expand(-1, samples)

    def draw(step: Tensor) -> Tensor:
        probabilities = (step.detach() / temperature).softmax(dim=-1)
        return probabilities.flatten(0, 1).multinomial(1, generator=generator).view(step.shape[:2])

    return _one_by_one(decoding, max_len, draw)


def _one_by_one(decoding: Decoding, max_len: int, choose: Callable[[Tensor], Tensor]) -> Beams:
    words = decoding.first
    finished = torch.zeros_like(words, dtype=torch.bool)
    tokens, gains = [], []
    for _ in range(max_len):
        step = decoding(words)
        words = choose(step).masked_fill(finished, 0)
        tokens.append(words)
        gains.append(step.gather(-1, words[..., None])[..., 0].masked_fill(finished, 0))
        finished = finished | (words == decoding.eos_id)
    return Beams(torch.stack(tokens, dim=-1), torch.stack(gains, dim=-1))
