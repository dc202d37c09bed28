"""The mini world's training data in LLaVA's formats, so that a mini run and a full one differ in their config alone.

<folder>/captions.json    stage 1: one caption for each image
<folder>/instruct.json    stage 2: conversations of four turns; every sixteenth is about a described scene instead
<folder>/images/000000000000.png
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashsloth.data.mini_world import Scene, caption, conversation, draw, render
from tenfold import UserError
from tenfold.data.formats import LlavaInstructSample, Picture, Turn, write_llava_instruct
from tenfold.runs import atomic_directory, atomic_write_json

INSTRUCT, CAPTIONS, IMAGES = "instruct.json", "captions.json", "images"
TEXT_ONLY_EVERY = 16


def write_mini_data(folder: str | Path, seed: int = 0, train: int = 6400) -> Path:
    """Write the miniature's training data; the same files for the same arguments.

    Args:
        folder: must not exist; appears whole or not at all.
        seed: of the world.
        train: number of scenes.

    Raises:
        UserError: the folder exists, or no scene is asked for.
    """
    if train < 1:
        raise UserError("no scenes", f"train={train}", "at least one")
    with atomic_directory(folder) as path:
        scenes = [draw(seed, index) for index in range(train)]
        write_llava_instruct(path / CAPTIONS, path / IMAGES, captions(scenes))
        # The same images again: only their names are written.
        atomic_write_json(path / INSTRUCT, list(instruct(scenes)))
    return Path(folder)


def captions(scenes: list[Scene]) -> Iterator[LlavaInstructSample]:
    """Stage 1's samples: every image and its caption."""
    for scene in scenes:
        said = (Turn("human", "Describe the image.\n<image>"), Turn("gpt", caption(scene)))
        yield LlavaInstructSample(_name(scene)[:-4], said, _name(scene), Picture(render(scene)))


def instruct(scenes: list[Scene]) -> Iterator[dict[str, Any]]:
    """Stage 2's records."""
    for number, scene in enumerate(scenes):
        text_only = number % TEXT_ONLY_EVERY == TEXT_ONLY_EVERY - 1
        record: dict[str, Any] = {"id": _name(scene)[:-4]} | ({} if text_only else {"image": _name(scene)})
        said = turns(scene, caption(scene) if text_only else "<image>")
        yield record | {"conversations": [{"from": turn.speaker, "value": turn.text} for turn in said]}


def turns(scene: Scene, before: str = "<image>") -> tuple[Turn, ...]:
    """A scene's conversation; `before` opens its first question."""
    said = []
    for number, one in enumerate(conversation(scene)):
        said += [Turn("human", f"{before}\n{one.text}" if number == 0 else one.text), Turn("gpt", one.answer)]
    return tuple(said)


def _name(scene: Scene) -> str:
    return f"{scene.index:012d}.png"
