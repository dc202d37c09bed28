"""What the arms are asked: questions in batches, and second questions about a picture in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efficiency.arms import Arm
from fitprune.evaluation.compare import Item
from tenfold.data.formats import Picture
from tenfold.hosts.answers import Protocol, encode_batch, generate
from tenfold.hosts.loading import Host
from tenfold.hosts.ragged import RaggedCache
from tenfold.hosts.structure import unwrap, visual_mask
from tenfold.runs.progress import Progress

Answers = dict[str, list[str]]  # arm's key -> an answer for every question


def ask(
    host: Host, arms: Sequence[Arm], items: Sequence[Item], batch: int, max_new_tokens: int, progress: Progress
) -> Answers:
    """Every arm's answers: a batch of prompts is encoded once and answered by all in turn.

    Raises:
        UserError: a broken image, or a host that an arm cannot serve.
    """
    protocol = Protocol.of(host.model, host.processor)
    answers: Answers = {arm.key: [] for arm in arms}
    for start in progress(range(0, len(items), batch), "answers"):
        asked = items[start : start + batch]
        prompts = [protocol.prompt(host.processor, item.picture(), item.text) for item in asked]
        inputs = encode_batch(host.processor, host.model, prompts)
        for arm in arms:
            with arm.on(host.model) as model:
                found = generate(model, host.processor, prompts, max_new_tokens=max_new_tokens, inputs=inputs)
            answers[arm.key] += [one.text for one in found]
    return answers


def scores(items: Sequence[Item], answers: Sequence[str]) -> np.ndarray:
    """``[questions]``, 1 for a right answer, 0 for a wrong one, NaN where the right one is not known."""
    found = [item.score(answer) for item, answer in zip(items, answers, strict=True)]
    return np.array([np.nan if score is None else score for score in found])


@dataclass(frozen=True)
class Pair:
    """Two questions about one picture, by their numbers: the second is asked when the first is answered."""

    first: int
    second: int


def pairs(items: Sequence[Item], most: int) -> list[Pair]:
    """Neighbouring questions about the same picture, each in one pair, the first so many."""
    found, number = [], 0
    while number + 1 < len(items) and len(found) < most:
        if _picture(items[number]) == _picture(items[number + 1]):
            found.append(Pair(number, number + 1))
            number += 1
        number += 1
    return found


def _picture(item: Item) -> Any:
    source = item.image.source if isinstance(item.image, Picture) else item.image
    return source if isinstance(source, str) or hasattr(source, "parts") else id(source)


def counts_positions_once(model: Any) -> bool:
    """Whether a token has one position: with several axes (Qwen2-VL) a second question cannot be laid out here."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return "mrope_section" not in rope


@torch.inference_mode()
def second_questions(
    host: Host,
    arms: Sequence[Arm],
    items: Sequence[Item],
    asked: Sequence[Pair],
    max_new_tokens: int,
    progress: Progress,
) -> dict[str, list[str | None]]:
    """Answers to the second question of every pair, from what the first one has left of the picture.

    The picture is read once, with the first question; of the cache its words are forgotten, and the second question
    takes their place, as a server does that keeps a picture. For the host alone that is the question asked afresh. No
    host needs to hold a conversation for it.

    Returns:
        arm's key -> an answer for every pair; None where the two prompts do not begin alike, or an arm keeps no record
        of which entries are words.
    """
    protocol, processor = Protocol.of(host.model, host.processor), host.processor
    found: dict[str, list[str | None]] = {arm.key: [] for arm in arms}
    for pair in progress(list(asked), "second questions"):
        picture = items[pair.first].picture()
        prompts = [protocol.prompt(processor, picture, items[number].text) for number in (pair.first, pair.second)]
        first, second = (encode_batch(processor, host.model, [prompt]) for prompt in prompts)
        visual = visual_mask(unwrap(host.model), first)[0].nonzero()
        end = int(visual[-1]) + 1 if len(visual) else 0
        alike = end > 0 and torch.equal(first["input_ids"][:, :end], second["input_ids"][:, :end])
        for arm in arms:
            new = None
            if alike:
                with arm.on(host.model) as model:
                    new = _after(model, first, second["input_ids"][:, end:], end, max_new_tokens)
            found[arm.key].append(
                None if new is None else processor.tokenizer.decode(new, skip_special_tokens=True).strip()
            )
    return found


def _after(model: Any, first: Mapping[str, Tensor], later: Tensor, end: int, max_new_tokens: int) -> list[int] | None:
    """The first prompt up to its picture, then other words, greedily answered.

    Positions are said, not left to be counted: a cache that lost tokens does not show its length.
    """
    given = {name: value for name, value in first.items() if name != "attention_mask"}
    cache = model(**given, use_cache=True).past_key_values
    if not forget(cache, first["input_ids"].shape[1] - end):
        return None
    ends = unwrap(model).generation_config.eos_token_id
    stop = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    new: list[int] = []
    place = end
    while len(new) < max_new_tokens:
        positions = torch.arange(place, place + later.shape[1], device=later.device)[None]
        output = model(input_ids=later, position_ids=positions, past_key_values=cache, use_cache=True)
        place += later.shape[1]
        later = output.logits[:, -1:].argmax(-1)
        new.append(int(later))
        if new[-1] in stop:
            break
    return new


def forget(cache: Any, words: int) -> bool:
    """Take the last words out of every layer of a cache of one unpadded row, and out of its books.

    Returns:
        False, and nothing done, where layers hold different numbers of words (tokens that passed a layer by).
    """
    layers = [layer for layer in cache.layers if layer.is_initialized]
    if any(hasattr(layer, "lengths") for layer in layers):
        return False
    for layer in layers:
        layer.keys, layer.values = layer.keys[:, :, :-words], layer.values[:, :, :-words]
    # The books themselves, and what holds them; each once.
    held = [getattr(one, "ragged", one) for one in vars(cache).values()]
    for books in {id(one): one for one in held if isinstance(one, RaggedCache)}.values():
        books.lengths = [max(0, length - words) for length in books.lengths]
    return True
