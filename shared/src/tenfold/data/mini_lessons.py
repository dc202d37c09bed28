"""What the mini host is taught, step by step: scenes, conversations about them, and hints.

A hint names, in the middle of the network, what the model should have found by then: an object's row, column, colour
and shape, read from a token's hidden state through the model's own output matrix, so hints need no weights. An answer
that takes two looks at the picture gives no gradient towards either look as long as the other one does not exist;
hints make each look a lesson of its own. What was tried:

- Answers alone, AdamW, 4000 steps of shape, colour and place: 100 %, 100 %, 49 %; two hops 25 %, which is guessing.
- Hints on places only, Muon: places 98 % after 700 steps, but objects were never found by their look (35 %).
- Hints on what each visual token shows, too: the vision tower learns it within 200 steps; still no find by look.
- Hints at the words that name an object, too: everything is learnt, two hops 97 % after 2000 steps.

The last hint also settles how deep the answer is read: for place and two-hop questions this host was led to look at
the picture after layer LAST (what one colour or shape singles out, it answers from an earlier look). That is what makes
it a test bed for rules that drop visual tokens (`tenfold.data.mini_gate`), and no evidence of where larger models look.

Every sample comes from `sample_rng(seed, step, number)`: a batch is a pure function of seed and step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaProcessor

from tenfold.data import mini_host, miniworld
from tenfold.data.mini_sets import SHORT_ANSWER
from tenfold.runs import sample_rng

NOTHING = "nothing"
# What a hint says of an object, each with the words it is said in.
HINTED = {
    "row": miniworld.ROWS,
    "column": miniworld.COLUMNS,
    "colour": (NOTHING, *miniworld.COLOURS),
    "shape": (NOTHING, *miniworld.SHAPES),
}
UNSAID = -100  # torch's mark of a target that does not count

# After how many decoder layers a hidden state is read: what the picture shows, at each visual token; where the answer
# will be found, at the last token of the question.
PICTURE, LAST = 0, 4
# The token that ends a question's reference to an object, and after how many layers that object is to be found there:
# a colour or shape takes one look at the picture, colour and shape together must be gathered before it.
NAMED = {"shape": (4, 2), "colour": (4, 2), "two_hop": (3, 3), "yes_no": (4, 3)}

# Questions are drawn uniformly from these: two hops three times as often as anything else.
KINDS = ("shape", "colour", "place", "two_hop", "two_hop", "two_hop", "yes_no")
# Steps of the whole training, of the linear rise of the learning rates, and over which scenes grow from two objects to
# nine: to tell one object from another is learnt within a few hundred steps on scenes of two, hardly at all on nine.
STEPS, WARMUP, RAMP = 2400, 50, 600


@dataclass(frozen=True)
class Settings:
    """What the weights depend on, besides the constants above and the seed.

    Args:
        steps: optimiser steps; fewer than STEPS end the training early.
        batch: scenes a step.
        questions: questions about each scene.
        threads: of torch; sums over threads differ in their last bits.
        matrix_rate: highest learning rate of the layers' matrices (Muon).
        rate: highest learning rate of everything else (AdamW).
        weight_decay: of the layers' matrices.
        clip: largest gradient norm.
        hints: weight of the hints' loss beside the answers'.
    """

    steps: int
    batch: int
    questions: int
    threads: int
    matrix_rate: float = 0.02
    rate: float = 2e-3
    weight_decay: float = 0.02
    clip: float = 1.0
    hints: float = 0.5


def scene_config(step: int) -> miniworld.SceneConfig:
    """The scenes of a step: four to nine objects, fewer at first."""
    most = min(9, 2 + 7 * step // RAMP)
    return miniworld.SceneConfig(min_objects=max(2, most // 2), max_objects=most)


def schedule(step: int) -> float:
    """The share of the highest learning rates at a step, counted from 0: a linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def told(thing: miniworld.Thing) -> list[int]:
    """An object's row, column, colour and shape: numbers into the words of HINTED."""
    return [
        *miniworld.place(thing),
        HINTED["colour"].index(thing.colour),
        HINTED["shape"].index(thing.shape),
    ]


def told_of(led_to: tuple[miniworld.Thing, ...], kind: str) -> list[int]:
    """What the token that names an object should know: `told`, or that there is nothing of that look.

    Of several objects that look as asked, no place is told.
    """
    if not led_to:
        return [UNSAID, UNSAID, 0, 0]
    several = kind == "yes_no" and len(led_to) > 1
    return [UNSAID, UNSAID, *told(led_to[0])[2:]] if several else told(led_to[0])


def patches(scene: miniworld.Scene) -> list[list[int]]:
    """What `told` says of the object in the ninth of each visual token; of an empty ninth, that it holds nothing."""
    edge = mini_host.IMAGE_SIZE // mini_host.PATCH_SIZE
    there = {miniworld.place(thing): told(thing) for thing in scene.things}
    ninths = [(3 * row // edge, 3 * column // edge) for row in range(edge) for column in range(edge)]
    return [there.get(ninth, [*ninth, 0, 0]) for ninth in ninths]


@dataclass(frozen=True)
class Hints:
    """Where hints are read and what they say.

    Args:
        rows, columns: `[hints]` int64: a token.
        depths: `[hints]` int64: after how many decoder layers.
        says: `[hints, 4]` int64: numbers into the words of HINTED, in its order; UNSAID where nothing is said.
    """

    rows: Tensor
    columns: Tensor
    depths: Tensor
    says: Tensor


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Args:
        pixel_values: `[scenes, 3, 48, 48]` float32, normalised.
        input_ids: `[scenes, tokens]` int64, padded on the right (a causal decoder needs no mask then).
        rows, columns: `[answers]` int64 each: where an answer is predicted, one position before it.
        kinds: the kind of question of each answer; "end" for its `</s>`.
        hints: for the hidden states.
    """

    pixel_values: Tensor
    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    kinds: list[str]
    hints: Hints


class Batches:
    """Batches by step: a pure function of (seed, step).

    Args:
        processor: the mini host's.
        settings: sizes.
        seed: the run's seed.
    """

    def __init__(self, processor: LlavaProcessor, settings: Settings, seed: int) -> None:
        self._processor = processor
        self._settings = settings
        self._seed = seed
        self._ids: dict[str, list[int]] = {}

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        images, rows, columns, kinds, sequences, hints = [], [], [], [], [], []
        for number in range(self._settings.batch):
            draws = miniworld.Draws(sample_rng(self._seed, step, number).bit_generator)
            scene = miniworld.draw_scene(draws, scene_config(step))
            images.append(miniworld.render(scene, mini_host.IMAGE_SIZE))
            questions = miniworld.draw_questions(scene, draws, self._settings.questions, KINDS)
            ids, answers, hinted = self._sequence(scene, questions, draws)
            sequences.append(ids)
            for column, kind in answers:
                rows.append(number)
                columns.append(column)
                kinds.append(kind)
            hints += [(number, *hint) for hint in hinted]
        padding = self._processor.tokenizer.pad_token_id
        longest = max(len(ids) for ids in sequences)
        padded = [ids + [padding] * (longest - len(ids)) for ids in sequences]
        pixels = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        where = torch.tensor([hint[:3] for hint in hints])
        told_there = torch.tensor([hint[3] for hint in hints])
        hints_of_batch = Hints(where[:, 0], where[:, 1], where[:, 2], told_there)
        return Batch(pixels, torch.tensor(padded), torch.tensor(rows), torch.tensor(columns), kinds, hints_of_batch)

    def _sequence(
        self, scene: miniworld.Scene, questions: tuple[miniworld.Question, ...], draws: miniworld.Draws
    ) -> tuple[list[int], list[tuple[int, str]], list[tuple[int, int, list[int]]]]:
        """A conversation's ids, (position, kind) of what predicts each answer and its end, (position, depth, says)."""
        ids = self._encode("<s>")
        answers = []
        first = len(self._encode("<s>USER:"))
        hints = [(first + number, PICTURE, says) for number, says in enumerate(patches(scene))]
        for number, question in enumerate(questions):
            text = question.text
            if draws.below(8) == 0:  # often enough to learn that this ending changes nothing
                text += f"\n{SHORT_ANSWER}"
            image = "<image>" * mini_host.VISUAL_TOKENS + "\n" if number == 0 else ""
            ids = ids + self._encode(f"USER: {image}")
            start = len(ids)
            ids = ids + self._encode(text) + self._encode("ASSISTANT:")
            led_to = miniworld.led_to(scene, question)
            if question.kind in NAMED:
                word, depth = NAMED[question.kind]
                hints.append((start + word, depth, told_of(led_to, question.kind)))
            if led_to and question.kind != "yes_no":
                # Not what it looks like: that is the answer, which a second look is to bring.
                hints.append((len(ids) - 1, LAST, [*miniworld.place(led_to[-1]), UNSAID, UNSAID]))
            answers += [(len(ids) - 1, question.kind), (len(ids), "end")]
            ids += self._encode(f"{question.answer}</s>")
        return ids, answers, hints

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]
