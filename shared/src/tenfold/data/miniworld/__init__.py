"""The mini world: scenes of coloured shapes that are the same bytes on every platform, and what can be said of them.

>>> from tenfold.data import miniworld
>>> scene = miniworld.scene(seed=0, index=7)
>>> image = miniworld.render(scene, size=336)               # PIL image
>>> miniworld.masks(scene, size=336).shape                  # bool [objects, 336, 336]
>>> miniworld.questions(scene, seed=0, index=7, count=3)    # one-word answers
"""

from tenfold.data.miniworld.draws import Draws
from tenfold.data.miniworld.edits import EDITS, EditPair, edit_pair
from tenfold.data.miniworld.language import (
    COLUMNS,
    KINDS,
    ONE_HOP,
    ROWS,
    Question,
    Referring,
    absent_pairs,
    adversarial_pairs,
    caption,
    captions,
    describe,
    draw_questions,
    led_to,
    place,
    presence_question,
    questions,
    referring,
)
from tenfold.data.miniworld.raster import masks, render, render_array
from tenfold.data.miniworld.world import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    UNITS,
    Scene,
    SceneConfig,
    Thing,
    draw_scene,
    neighbour,
    scene,
)

__all__ = [
    "COLOURS",
    "COLUMNS",
    "DIRECTIONS",
    "EDITS",
    "KINDS",
    "ONE_HOP",
    "ROWS",
    "SHAPES",
    "SIZES",
    "UNITS",
    "Draws",
    "EditPair",
    "Question",
    "Referring",
    "Scene",
    "SceneConfig",
    "Thing",
    "absent_pairs",
    "adversarial_pairs",
    "caption",
    "captions",
    "describe",
    "draw_questions",
    "draw_scene",
    "edit_pair",
    "led_to",
    "masks",
    "neighbour",
    "place",
    "presence_question",
    "questions",
    "referring",
    "render",
    "render_array",
    "scene",
]
