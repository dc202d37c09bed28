"""Pictures of edits: the mask over the picture, and masks over the steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

TINT = (230, 30, 120)
GAP = 4
TILE = 160


def overlay(picture: Image.Image, mask: Image.Image | np.ndarray) -> Image.Image:
    """The picture with its mask tinted; both of one size."""
    inside = np.asarray(mask) >= 128 if isinstance(mask, Image.Image) else np.asarray(mask, dtype=bool)
    pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(TINT, dtype=np.float32)
    return Image.fromarray(pixels.round().astype(np.uint8))


def strip(pictures: list[Image.Image], edge: int = TILE) -> Image.Image:
    """Pictures side by side, each fitted into a square tile."""
    sheet = Image.new("RGB", (len(pictures) * (edge + GAP) - GAP, edge), "white")
    for number, picture in enumerate(pictures):
        # Enlarged pixels stay squares; photographs are scaled smoothly.
        method = Image.Resampling.NEAREST if max(picture.size) < edge else Image.Resampling.LANCZOS
        scale = edge / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        tile = picture.convert("RGB").resize(size, method)
        sheet.paste(tile, (number * (edge + GAP) + (edge - size[0]) // 2, (edge - size[1]) // 2))
    return sheet


def step_strip(picture: Image.Image, step_masks: Tensor, edited: Image.Image | None, most: int = 8) -> Image.Image:
    """The picture, its masks over at most ``most`` steps (``[steps, rows, columns]`` uint8), and the edit."""
    steps = np.unique(np.linspace(0, len(step_masks) - 1, most).round().astype(int))
    masks = [Image.fromarray(step_masks[step].cpu().numpy()).resize(picture.size) for step in steps]
    tiles = [picture, *(overlay(picture, mask) for mask in masks)]
    return strip(tiles if edited is None else [*tiles, edited])


def draw_steps(path: Path, world: int = 101, shown: tuple[int, ...] = (13, 11)) -> Path:
    """Edits of the mini model on two scenes that it edits well, steps from left to right."""
    from inst_diff_edit.data import scenes
    from inst_diff_edit.evaluation.settings import DEMO
    from inst_diff_edit.miniature import model as mini

    pipe, rows = mini.load(), []
    for index in shown:
        edit = scenes.edit(world, index)
        found = pipe(
            edit.picture(), edit.prompt, final="latents", num_masks=int(DEMO["num_masks"]),
            mask_threshold=DEMO["threshold"], return_step_masks=True,
        )  # fmt: skip
        rows.append(step_strip(edit.picture(), found.step_masks[0], found.images[0]))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + GAP for row in rows) - GAP), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (row.height + GAP)))
    sheet.save(path)
    return path
