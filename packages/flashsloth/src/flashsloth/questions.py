"""Which tokens are the question that a group of query tokens reads (sheet section 3.5).

Explicit by the template: a round's question stands between the image (or the user's name) and the round's query
tokens, and is found by the ids of the template's own words:

    ... USER: <image> \\n  What is red?  <learnable>  ASSISTANT: The bus. </s> USER:  Is it large?  <learnable> ...
                           [question 1]                                              [ question 2 ]

The official code counts instead: 32 tokens of its own system prompt, or none in batches of 20 and more; and while
answering it reads the first question for every round. `official_spans` reproduces that, for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from flashsloth.configuration import FlashSlothConfig
from tenfold import UserError

Span = tuple[int, int]  # [start, end), positions in a row of input ids

PLAIN_BATCH = 20  # batches of this size and more are taken for stage 1 by the official code
PROMPT = 32  # tokens of the official system prompt and " USER: ", with the single space at its end


@dataclass(frozen=True)
class Round:
    """One group of query tokens.

    Attributes:
        place: position of its first query token.
        question: positions of what it reads.
        images: images of the row that stand before it.
    """

    place: int
    question: Span
    images: int


def rounds(ids: Sequence[int], config: FlashSlothConfig, spans: Sequence[Span] | None = None) -> list[Round]:
    """The rounds of one row.

    Args:
        ids: of the row, with ``num_image_tokens`` placeholders an image and ``query_count`` a query group; padded on
            either side or not.
        config: for the ids of images, queries and the template's words.
        spans: the questions, one for each query group; None: found by the template.

    Raises:
        UserError: a query group that is not whole, or another number of spans than of groups.
    """
    places = query_places(ids, config)
    if spans is None:
        spans = [question_span(ids, place, before, config) for before, place in pairwise([0, *places])]
    elif len(spans) < len(places):
        raise UserError(f"{len(spans)} question spans for {len(places)} query groups", "question_spans", "one for each")
    found, seen, last = [], 0, 0
    for place, span in zip(places, spans, strict=False):
        seen, last = seen + ids[last:place].count(config.image_token_id), place
        found.append(Round(place, span, seen // config.num_image_tokens))
    return found


def query_places(ids: Sequence[int], config: FlashSlothConfig) -> list[int]:
    """Where each query group of a row begins.

    Raises:
        UserError: a group that is not whole.
    """
    marker, count = config.query_token_id, config.query_count
    places = []
    at = 0
    for _ in range(ids.count(marker) // count):
        at = ids.index(marker, at)
        if list(ids[at : at + count]) != [marker] * count:
            break
        places.append(at)
        at += count
    if ids.count(marker) != len(places) * count:
        expected = f"whole groups of {count}: a question and its queries come in one pass"
        raise UserError(f"{ids.count(marker)} query tokens", "input_ids", expected)
    return places


def question_span(ids: Sequence[int], place: int, previous: int, config: FlashSlothConfig) -> Span:
    """The question of the queries at ``place``, behind those at ``previous``, by the template.

    It starts behind the last image of its round and the newline that follows; without image, behind "USER:"; without
    that, where the round does.
    """
    start = previous + config.query_count if previous or ids[0] == config.query_token_id else 0
    segment = list(ids[start:place])
    if config.end_token_id in segment:  # the answer before belongs to no question
        start += _last(segment, config.end_token_id) + 1
        segment = list(ids[start:place])
    if config.image_token_id in segment:
        start += _last(segment, config.image_token_id) + 1
        return (start + (ids[start] == config.newline_token_id), place)
    words = list(config.user_token_ids)
    for at in range(len(segment) - len(words) + 1):
        if segment[at : at + len(words)] == words:
            return (start + at + len(words), place)
    return (start, place)


def official_spans(
    ids: Sequence[int], config: FlashSlothConfig, batch: int, labels: Sequence[int] | None = None
) -> list[Span]:
    """The questions of one row as the official code counts them; a row without padding on its left.

    Args:
        ids: of the row, as for `rounds`.
        batch: rows of the batch: from 20 on, they are taken for stage 1.
        labels: of the row in training, -100 where nothing is learnt; None while answering.

    Returns:
        One span a query group; it may be empty, or end before it starts.
    """
    places = query_places(ids, config)
    visual = config.num_image_tokens if config.image_token_id in ids else 0
    if batch >= PLAIN_BATCH:  # stage 1: one range a sample, from the second token behind the image on
        return [(config.num_image_tokens + 1, place) for place in places[:1]] * len(places)
    spans = [(PROMPT + visual + 1 if visual else PROMPT, place) for place in places[:1]]
    learnt = [] if labels is None else [label != -100 for label in labels]
    for i in range(len(learnt) - 1):
        if learnt[i] and not learnt[i + 1] and len(spans) < len(places):
            spans.append((i + 3, places[len(spans)]))  # behind </s>, "USER" and ":"
    return spans + spans[-1:] * (len(places) - len(spans))


def with_placeholders(
    ids: Sequence[int], labels: Sequence[int], new: Mapping[int, tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """The official form of a row, one marker an image and a query group, with a placeholder for each of their tokens.

    Args:
        ids, labels: of the row.
        new: marker -> the id that takes its place, and how many of it.
    """
    long_ids: list[int] = []
    long_labels: list[int] = []
    for token, label in zip(ids, labels, strict=True):
        placeholder, count = new.get(token, (token, 1))
        long_ids += [placeholder] * count
        long_labels += [label] * count
    return long_ids, long_labels


def placeholders(config: FlashSlothConfig, image: int) -> dict[int, tuple[int, int]]:
    """What `with_placeholders` puts in: ``image`` is the id that stands for an image (-200 officially)."""
    return {
        image: (config.image_token_id, config.num_image_tokens),
        config.query_token_id: (config.query_token_id, config.query_count),
    }


def _last(values: Sequence[int], value: int) -> int:
    return len(values) - 1 - list(reversed(values)).index(value)
