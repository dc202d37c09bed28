"""What the mini host is taught: the tower to read patches, then the decoder to answer, with hints and looks.

A hint names, in the middle of the network, what the model should have found by then: an object's row, column, colour,
shape and flag, read from a token's hidden state through the model's own output matrix, so hints need no weights. An
answer that takes several looks at the picture gives no gradient towards any of them as long as the others do not
exist; hints make each look a lesson of its own.

Hints place a look; they do not prevent an earlier one. Without more, the text copies a handful of objects out of the
picture in its first layers, and nothing is read later. So in batches with looks (`looking`) the picture can be seen
only where a look belongs: by the word that names an object in the first layers, by the last token from layer LATE on.
All batches of the training's first part are of this kind, every second one after it: the host must then answer
without any such mask, but has little to gain from another way of reading.

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
from tenfold.data.miniworld import flag_questions, flags
from tenfold.data.miniworld.flag_questions import DEEP, PLAIN, FlagQuestion
from tenfold.data.miniworld.flags import FlagScene
from tenfold.runs import sample_rng

NOTHING = "nothing"
# What a hint says of an object, each with the words it is said in.
HINTED = {
    "row": miniworld.ROWS,
    "column": miniworld.COLUMNS,
    "colour": (NOTHING, *miniworld.COLOURS),
    "shape": (NOTHING, *miniworld.SHAPES),
    "flag": (NOTHING, *mini_host.FLAGS),
}
UNSAID = -100  # torch's mark of a target that does not count
_COLOURS = tuple(miniworld.COLOURS)

# After how many decoder layers a hidden state is read: what the picture shows, at each visual token; the object that
# a word names (by one word, or by two), at that word; and the objects of the chain, at the last token of the question.
PICTURE, ONE_WORD, TWO_WORDS, CHAIN = 0, 2, 3, (5, 7, 9, 11)
# Where a look may see the picture: words that name in the layers before EARLY, the last token from layer LATE on. From
# step FREE on looks are free in every second step.
EARLY, LATE, FREE = 3, 5, 1500

# Kinds of questions as often as they are drawn, where flags may be followed and where they may not.
DRAWN = ("shape", "colour", "place", "count") * 2 + ("yes_no", "three_hop") * 3 + ("two_hop", "follow") * 4
DRAWN_PLAIN = tuple(kind for kind in DRAWN if kind in PLAIN)
# Steps of the whole training of the decoder, of the linear rise of the learning rates, and over which scenes grow.
STEPS, WARMUP, RAMP = 2500, 50, 300
# Steps of the tower alone, its pictures a step, and the last step of the tower at a share of the highest rates.
TOWER_STEPS, TOWER_PICTURES, TOWER_END = 350, 24, 0.3
TRAINED_NOISE = 27  # the noise of a picture is uniform from 0 to this, in grey levels


@dataclass(frozen=True)
class Settings:
    """What the weights depend on, besides the constants above and the seed.

    Args:
        steps: optimiser steps of the decoder; fewer than STEPS end the training early.
        batch: scenes a step.
        questions: questions about each scene.
        threads: of torch; sums over threads differ in their last bits.
        tower_steps: optimiser steps of the tower, before the decoder's.
        free: step from which on looks are free in every second step; 0 for free looks throughout.
        matrix_rate: highest learning rate of the layers' matrices (Muon).
        rate: highest learning rate of everything else (AdamW).
        weight_decay: of the layers' matrices.
        clip: largest gradient norm.
        answers: weight of the answers' loss.
        ends: weight of the loss of the end behind an answer.
        hints: weight of the hints' loss.
    """

    steps: int
    batch: int
    questions: int
    threads: int
    tower_steps: int = TOWER_STEPS
    free: int = FREE
    matrix_rate: float = 0.02
    rate: float = 2e-3
    weight_decay: float = 0.02
    clip: float = 1.0
    answers: float = 2.0
    ends: float = 0.2
    hints: float = 0.5


def scene_size(step: int) -> tuple[int, int]:
    """Least and most objects of a step's scenes: four to six, fewer at first."""
    most = min(6, 3 + 3 * step // RAMP)
    return max(3, most - 2), most


def schedule(step: int) -> float:
    """The share of the highest learning rates at a step, counted from 0: a linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def tower_schedule(step: int, steps: int) -> float:
    """The same while the tower learns: a linear warm-up, then a line down to TOWER_END."""
    return min(1.0, (step + 1) / WARMUP) * (1 - (1 - TOWER_END) * step / steps)


def looking(step: int, settings: Settings) -> bool:
    """Whether a step's questions may see the picture only where a look belongs."""
    return settings.free > 0 and (step < settings.free or step % 2 == 0)


def told(scene: FlagScene, place: int, *, look: bool = True) -> list[int]:
    """An object's row, column, colour, shape and flag: numbers into the words of HINTED.

    Args:
        look: whether colour and shape are said.
    """
    thing = scene.things[place]
    following = None if thing.next is None else scene.things[thing.next].colour
    seen = [_colour(thing.colour), _shape(thing.shape)] if look else [UNSAID, UNSAID]
    return [*thing.ninth, *seen, 0 if following is None else _colour(following)]


def told_of_presence(scene: FlagScene, question: FlagQuestion) -> list[int]:
    """What a yes-no question should have found: the only object of its colour, what is common to several, or nothing.

    A "no" to a red circle where there is a red square tells of the square: to look is to see another shape.
    """
    colour, shape = question.text.split()[3:5]
    alike = [place for place, thing in enumerate(scene.things) if thing.colour == colour]
    if not alike:
        return [UNSAID, UNSAID, 0, 0, UNSAID]
    if len(alike) == 1:
        return told(scene, alike[0])
    return [UNSAID, UNSAID, _colour(colour), _shape(shape) if question.chain else UNSAID, UNSAID]


def _colour(colour: str) -> int:
    return 1 + _COLOURS.index(colour)


def _shape(shape: str) -> int:
    return 1 + miniworld.SHAPES.index(shape)


def patches(scene: FlagScene) -> list[list[int]]:
    """What is said of each visual token: the object that it shows, or that there is none."""
    says = [[3 * row // flags.EDGE, 3 * column // flags.EDGE, 0, 0, 0] for row, column in _grid()]
    for place, thing in enumerate(scene.things):
        shown, flag = thing.patches
        says[shown] = told(scene, place)
        if thing.next is not None:  # what a flag shows is said where its object is
            says[flag][-1] = UNSAID
    return says


def _grid() -> list[tuple[int, int]]:
    return [(row, column) for row in range(flags.EDGE) for column in range(flags.EDGE)]


def question_hints(scene: FlagScene, question: FlagQuestion) -> list[tuple[int | None, int, list[int]]]:
    """(number of the word, or None for the last token; after how many layers; what it says) of a question's hints."""
    if question.kind == "count":
        return []
    first = told_of_presence(scene, question) if question.kind == "yes_no" else told(scene, question.chain[0])
    depth = ONE_WORD if question.kind in ("shape", "colour") else TWO_WORDS
    hints: list[tuple[int | None, int, list[int]]] = [(question.named, depth, first), (None, CHAIN[0], first)]
    if question.kind in DEEP:
        following = list(zip(question.chain[1:], CHAIN[1:], strict=False))
        # Not what the last one looks like: that is the answer, which one more look is to bring.
        hints += [(None, after, told(scene, place, look=place != question.chain[-1])) for place, after in following]
    return hints


@dataclass(frozen=True)
class Hints:
    """Where hints are read and what they say.

    Args:
        rows, columns: `[hints]` int64: a token.
        depths: `[hints]` int64: after how many decoder layers.
        says: `[hints, 5]` int64: numbers into the words of HINTED, in its order; UNSAID where nothing is said.
    """

    rows: Tensor
    columns: Tensor
    depths: Tensor
    says: Tensor


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Args:
        pixel_values: `[scenes, 3, 80, 80]` float32, normalised.
        input_ids: `[scenes, tokens]` int64, padded on the right.
        positions: `[scenes, tokens]` int64: every question begins where the picture ends.
        blocks: `[scenes, tokens]` int64: -1 for the picture and what stands before it, else the question's number;
            -2 for padding.
        rows, columns: `[answers]` int64 each: where an answer is predicted, one position before it.
        named: `[answers]` int64: where the word stands that names what is looked for.
        kinds: the kind of question of each answer.
        hints: for the hidden states.
    """

    pixel_values: Tensor
    input_ids: Tensor
    positions: Tensor
    blocks: Tensor
    rows: Tensor
    columns: Tensor
    named: Tensor
    kinds: list[str]
    hints: Hints

    def sees(self) -> Tensor:
        """What a token sees: its question up to it, and the picture; bool `[scenes, tokens, tokens]`."""
        tokens = self.input_ids.shape[1]
        before = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        question, key = self.blocks[:, :, None], self.blocks[:, None, :]
        return before & ((key == -1) | (key == question))

    def sees_in_looks(self, first: int, layers: int) -> list[Tensor]:
        """`sees` of each layer in batches with looks.

        Named words see the picture in the layers before EARLY, last tokens from LATE on, other text never; a visual
        token sees itself and the two to its left.

        Args:
            first: the first visual token's place.
            layers: of the decoder.
        """
        sees = self.sees()
        number = torch.arange(mini_host.VISUAL_TOKENS)
        ahead = number[:, None] - number[None, :]
        near = (number[:, None] // flags.EDGE == number[None, :] // flags.EDGE) & (ahead >= 0) & (ahead <= 2)
        picture = slice(first, first + mini_host.VISUAL_TOKENS)
        blind = sees.clone()
        blind[:, :, picture] = False
        blind[:, picture, picture] = near
        early, late = blind.clone(), blind.clone()
        early[self.rows, self.named] = sees[self.rows, self.named]
        late[self.rows, self.columns] = sees[self.rows, self.columns]
        return [early if layer < EARLY else late if layer >= LATE else blind for layer in range(layers)]


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
        self.first = len(self._encode("<s>USER:"))
        self._prefix = self._encode("<s>USER:" + "<image>" * mini_host.VISUAL_TOKENS + "\n")

    def at(self, step: int) -> Batch:
        """The batch of a step of the decoder, counted from 0."""
        images, sequences = [], []
        answers: list[tuple[int, int, int]] = []  # row, column, named
        kinds: list[str] = []
        hints: list[tuple[int, int, int, list[int]]] = []
        for row in range(self._settings.batch):
            draws = miniworld.Draws(sample_rng(self._seed, step, row).bit_generator)
            scene = flags.draw_scene(draws, *scene_size(step), repeated=row % 4 == 3)
            images.append(flags.render(scene, noise=draws.between(0, TRAINED_NOISE)))
            for number, says in enumerate(patches(scene)):
                # All objects, and a part of the ground: there is much of it, and little to learn.
                if says[2] or draws.below(7) == 0:
                    hints.append((row, self.first + number, PICTURE, says))
            ids, positions = list(self._prefix), list(range(len(self._prefix)))
            blocks = [-1] * len(ids)
            for number, question in enumerate(self._questions(scene, draws)):
                start = len(ids)
                ending = f"\n{SHORT_ANSWER}" if draws.below(2) else ""
                asked = self._encode(question.text + ending) + self._encode("ASSISTANT:")
                last = start + len(asked) - 1
                said = asked + self._encode(question.answer) + self._encode("</s>")
                ids += said
                blocks += [number] * len(said)
                positions += range(len(self._prefix), len(self._prefix) + len(said))
                answers.append((row, last, start + question.named))
                kinds.append(question.kind)
                for word, depth, says in question_hints(scene, question):
                    hints.append((row, last if word is None else start + word, depth, says))
            sequences.append((ids, positions, blocks))
        pixels = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        padding = self._processor.tokenizer.pad_token_id
        padded = [
            _padded(part, fill) for part, fill in zip(zip(*sequences, strict=True), (padding, 0, -2), strict=True)
        ]
        rows, columns, named = torch.tensor(answers).unbind(1)
        where = torch.tensor([hint[:3] for hint in hints])
        hints_of_batch = Hints(where[:, 0], where[:, 1], where[:, 2], torch.tensor([hint[3] for hint in hints]))
        return Batch(pixels, *padded, rows, columns, named, kinds, hints_of_batch)  # type: ignore[arg-type, call-arg]

    def pictures(self, step: int) -> tuple[Tensor, Tensor]:
        """A step of the tower: pixels `[pictures, 3, 80, 80]` and what each patch shows, `[pictures, 100, 5]` int64.

        Six or eight objects in each, in turn; the noise grows over the first half of the steps.
        """
        images, says = [], []
        noise = min(TRAINED_NOISE, 2 * TRAINED_NOISE * step // max(1, self._settings.tower_steps))
        objects = 8 if step % 2 else 6
        for number in range(TOWER_PICTURES):
            # Beside the decoder's steps, which count from 0.
            draws = miniworld.Draws(sample_rng(self._seed, 2**32 + step, number).bit_generator)
            scene = flags.draw_scene(draws, objects, objects)
            images.append(flags.render(scene, noise=draws.between(0, noise)))
            says.append(patches(scene))
        return self._processor.image_processor(images, return_tensors="pt")["pixel_values"], torch.tensor(says)

    def _questions(self, scene: FlagScene, draws: miniworld.Draws) -> list[FlagQuestion]:
        questions: list[FlagQuestion] = []
        kinds = DRAWN_PLAIN if scene.repeated else DRAWN
        while len(questions) < self._settings.questions:
            question = flag_questions.draw_question(scene, draws, kinds)
            questions += [] if question is None else [question]
        return questions

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]


def _padded(rows: tuple[list[int], ...], fill: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
