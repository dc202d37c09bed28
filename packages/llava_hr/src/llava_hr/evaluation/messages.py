"""Messages as evaluation harnesses write them, as turns of a template."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from tenfold import UserError
from tenfold.data.conversation import IMAGE
from tenfold.data.formats import Turn

_SPEAKERS = {"user": "human", "assistant": "gpt"}
# What an image is known by, and what opens it.
Known = tuple[str, Callable[[], Image.Image]]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], list[Known]]:
    """Turns with `<image>` in front of their words, one for each image, and the images in their order.

    Args:
        messages: ``{"role", "content": [{"type": "text", "text"}, {"type": "image", "url": a PIL image}, ...]}``.
            System messages give way to the template's own. Several texts of a turn are put together as they are.

    Returns:
        The turns; each image's content as a digest (documents bring images without names), and what opens it.

    Raises:
        UserError: a part that is neither text nor an image, another role, speakers out of turn, no question at the end.
    """
    turns: list[Turn] = []
    images: list[Known] = []
    for message in messages:
        role = message["role"]
        if role == "system":
            continue
        expected = ("user", "assistant")[len(turns) % 2]
        if role != expected:
            raise UserError(f"a message from {role}", f"message {len(turns)}", f"one from {expected}")
        text, marks = "", 0
        for part in message["content"]:
            if part["type"] == "text":
                text += part["text"]
            elif part["type"] == "image" and role == "user":
                images.append(_known(part["url"]))
                marks += 1
            else:
                raise UserError(f"a message with {part['type']}", f"role {role}", "text, and images of the user")
        # An <image> among the words is no image: those that are come first, each on a line of its own.
        turns.append(Turn(_SPEAKERS[role], f"{IMAGE}\n" * marks + text.replace(IMAGE, "").strip()))
    if len(turns) % 2 == 0:
        raise UserError("no question at the end", f"{len(turns)} messages", "a message from user")
    return turns, images


def _known(source: Any) -> Known:
    if not isinstance(source, Image.Image):
        raise UserError(f"an image given as {type(source).__name__}", None, "a PIL image")
    image = source.convert("RGB")
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    return digest, lambda: image
