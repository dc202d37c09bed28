"""The mini model and stage 0: a small SAM that learns to segment what a point lies on (it plays SAM's pre-training).

model = train_points(MiniSettings(), seed=0)        # variant default, no text seen
iou = point_iou(model, ...)                          # the gate before anything is built on it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit_sam.config import DITConfig, Variant
from dit_sam.data.mini import CONFIG, WORDS, part_seed, polygon
from dit_sam.data.segmentation import decode
from dit_sam.data.settings import MiniSettings
from dit_sam.model import PIXEL_MEAN, PIXEL_STD, DITSam, mask_loss
from dit_sam.text_encoder import Vocabulary
from tenfold.data import miniworld
from tenfold.runs import sample_rng
from tenfold.runs.finite import require_finite_loss

POINT_STEPS, POINT_BATCH, POINT_RATE = 1000, 32, 2e-3


def mini_config(variant: Variant = "layer_wise", *, decoder_depth: int = 2, reproject: bool = True) -> DITConfig:
    """The mini model: 48 px, 36 image tokens of width 32, four blocks, a decoder of two layers."""
    return DITConfig(
        variant=variant,
        width=32,
        depth=4,
        heads=4,
        patch_size=8,
        native_size=48,
        window_size=6,
        global_blocks=(1, 3),
        input_size=48,
        prompt_width=32,
        mask_channels=4,
        decoder_depth=decoder_depth,
        decoder_heads=4,
        decoder_mlp=64,
        iou_width=32,
        words=len(WORDS),
        text_width=32,
        text_depth=1,
        text_heads=4,
        text_mlp=64,
        text_positions=16,
        text_length=8,
        cross_width=16,
        cross_heads=4,
        cross_mlp=64,
        reproject=reproject,
        dropout=0.0,
    )


def mini_vocabulary() -> Vocabulary:
    """The words of the mini world."""
    return Vocabulary(WORDS, "the mini world")


@dataclass(frozen=True)
class Scenes:
    """Scenes in memory: pictures float32 [scenes, 3, S, S], normalised; each scene's masks bool [objects, S, S]."""

    pictures: Tensor
    masks: list[np.ndarray]


def draw_scenes(settings: MiniSettings, part: str, count: int) -> Scenes:
    """The first scenes of a part, as the data set has them."""
    seed, size = part_seed(settings, part), settings.size
    pictures, masks = [], []
    for index in range(count):
        scene = miniworld.scene(seed, index, CONFIG)
        pictures.append(miniworld.render_array(scene, size))
        masks.append(np.stack([decode([polygon(one, size)], size, size, "scene") > 0 for one in scene.things]))
    values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    return Scenes((values - mean) / std, masks)


def point_logits(model: DITSam, pictures: Tensor, points: Tensor) -> Tensor:
    """Mask logits [batch, 1, S, S] of what lies at a point [batch, 2] (x, y) of each picture; for stage 0 alone."""
    scale = model.config.native_size / pictures.shape[-1]
    labels = torch.ones(len(points), 1)
    sparse, _ = model.prompt_encoder((points[:, None] * scale, labels), None, None)
    return model.decode(model.image_encoder(pictures), sparse).logits


def train_points(
    settings: MiniSettings, seed: int, steps: int = POINT_STEPS, progress: Callable[[range], object] | None = None
) -> DITSam:
    """Stage 0: everything but the text side learns from points on objects; Adam, half a cosine."""
    torch.manual_seed(seed)
    model = DITSam(mini_config("default"), mini_vocabulary())
    for name, table in model.named_parameters():
        if name.endswith("pos_embed"):  # drawn, as nothing pre-trained it
            torch.nn.init.normal_(table, std=0.02)
    scenes = draw_scenes(settings, "train", settings.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=POINT_RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    count = range(steps)
    for step in progress(count) if progress is not None else count:  # type: ignore[attr-defined]
        pictures, points, targets = _point_batch(scenes, sample_rng(seed, 0, step), POINT_BATCH)
        loss = mask_loss(point_logits(model, pictures, points), targets)
        require_finite_loss(loss, "points", step + 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _point_batch(scenes: Scenes, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen = rng.integers(len(scenes.pictures), size=batch)
    points, targets = [], []
    for scene in chosen:
        masks = scenes.masks[scene]
        mask = masks[rng.integers(len(masks))]
        rows, columns = np.nonzero(mask)
        place = rng.integers(len(rows))
        points.append([columns[place], rows[place]])
        targets.append(mask)
    return scenes.pictures[chosen], torch.tensor(points).float(), torch.from_numpy(np.stack(targets))[:, None].float()


@torch.no_grad()
def point_iou(model: DITSam, settings: MiniSettings, seed: int, count: int = 300) -> float:
    """Mean IoU in per cent of masks from one random point each, on scenes of val: the gate of stage 0."""
    scenes = draw_scenes(settings, "val", min(count, settings.val))
    pictures, points, targets = _point_batch(scenes, sample_rng(seed, 1, 0), count)
    predicted = point_logits(model.eval(), pictures, points) > 0
    truth = targets > 0.5
    both = (predicted & truth).sum((1, 2, 3))
    return 100 * (both / (predicted | truth).sum((1, 2, 3)).clamp(min=1)).mean().item()
