"""The laptop's networks: dimensions of the mini generator and discriminator, a CLIP of its world, and a judge.

The CLIP is a transformers CLIPModel of 0.1 million parameters with a word tokenizer, trained by the contrastive loss on
drawn heads, then frozen: the stand-in for OpenAI's. The judge is a separate CNN that names attributes; it never trains
anything, it only measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3_facenet.config import DiscriminatorConfig, GeneratorConfig
from e3_facenet.data.mini_world import COUNTS, caption, heads, vocabulary
from e3_facenet.text import TextEncoder
from tenfold.runs import sample_generator, sample_rng
from tenfold.runs.finite import require_finite_loss

CONTEXT, TEXT_WIDTH = 20, 32
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"


def mini_generator() -> GeneratorConfig:
    """0.1 million parameters: 32 x 32 pictures from an 8 x 8 volume, two enhanced blocks."""
    return GeneratorConfig(
        z_dim=32, w_dim=64, t_dim=TEXT_WIDTH, token_dim=TEXT_WIDTH, mapping_layers=4, heads=4, head_dim=16,
        resolution=32, nerf_resolution=8, channel_base=1024, channel_max=32, feature_channels=16, fg_hidden=32,
        fg_blocks=4, bg_hidden=16, bg_blocks=2, bg_dim=8, ray_samples=6, bg_samples=3, path_rays=4,
    )  # fmt: skip


def mini_discriminator() -> DiscriminatorConfig:
    """Its opponent."""
    return DiscriminatorConfig(
        t_dim=TEXT_WIDTH, cmap_dim=32, mapping_layers=2, resolution=32, nerf_resolution=8, channel_base=1024,
        channel_max=64, group=4,
    )  # fmt: skip


def mini_tokenizer() -> Any:
    """A word tokenizer of the world's captions; padding has id 0 and the end token the largest id, as CLIP's has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [PAD, UNKNOWN, *vocabulary(), START, END]
    table = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, table[START]), (END, table[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, bos_token=START, eos_token=END,
        model_max_length=CONTEXT,
    )  # fmt: skip


def mini_clip(seed: int) -> TextEncoder:
    """An untrained CLIP of the mini world, drawn by the seed without moving torch's generator."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = mini_tokenizer()
    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
            "max_position_embeddings": CONTEXT, "vocab_size": len(tokenizer), "pad_token_id": 0,
            "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "num_hidden_layers": 2,
              "image_size": 32, "patch_size": 4}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sample_rng(seed, 0, 11).integers(2**31)))
        return TextEncoder(CLIPModel(config), tokenizer)


def train_clip(seed: int, steps: int = 240, batch: int = 64, pictures: int = 1500) -> TextEncoder:
    """A CLIP trained on drawn heads, no two of a batch alike, symmetric loss; frozen when it returns."""
    encoder = mini_clip(seed)
    made, attributes, _ = heads(seed, 4, pictures)
    kinds = (attributes * torch.tensor(np.cumprod((1, *COUNTS[:-1])))).sum(-1)
    by_kind = [torch.nonzero(kinds == kind)[:, 0] for kind in range(int(np.prod(COUNTS)))]
    by_kind = [rows for rows in by_kind if len(rows)]
    clip = encoder.clip.requires_grad_(True)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        draw = sample_rng(seed, 5, step)
        chosen = draw.permutation(len(by_kind))[:batch]
        rows = torch.tensor([int(by_kind[kind][int(draw.integers(len(by_kind[kind])))]) for kind in chosen])
        ids = encoder.ids([caption(attributes[row].tolist(), draw) for row in rows])
        states = clip.text_model(input_ids=ids).last_hidden_state
        text = clip.text_projection(states[torch.arange(len(ids)), ids.argmax(-1)])
        logits = clip.logit_scale.exp().clamp(max=100) * (
            encoder.picture_features(made.images[rows], rescale=True) @ F.normalize(text, dim=-1).T
        )
        target = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        require_finite_loss(loss, "CLIP", step + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    clip.logit_scale.data.clamp_(max=float(np.log(100)))
    clip.requires_grad_(False)
    return encoder


class Judge(nn.Module):
    """A CNN that names the five attributes of a picture: [B, 3, 32, 32] in [-1, 1] -> five sets of logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.fc = nn.Linear(64 * 16, 96)
        self.out = nn.Linear(96, sum(COUNTS))

    def features(self, images: Tensor) -> Tensor:
        """[B, 96], what views are compared by."""
        x = images
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return F.relu(self.fc(x.flatten(1)))

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.out(self.features(images)).split(list(COUNTS), dim=-1))


def right(judge: Judge, images: Tensor, attributes: Tensor) -> Tensor:
    """Which attributes the judge finds as they should be: [B, 5] bool."""
    with torch.no_grad():
        found = torch.stack([logits.argmax(-1) for logits in judge(images)], dim=1)
    return found == attributes


def train_judge(seed: int, steps: int = 160, batch: int = 64, pictures: int = 1500) -> Judge:
    """A judge trained on drawn heads with small shifts and noise of colour, so that it reads imperfect pictures too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sample_rng(seed, 0, 12).integers(2**31)))
        judge = Judge()
    made, attributes, _ = heads(seed, 6, pictures)
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        generator = sample_generator(seed, 7, step)
        rows = torch.randint(pictures, (batch,), generator=generator)
        images = made.images[rows] + 0.1 * torch.randn(batch, 3, 32, 32, generator=generator)
        loss = sum(
            (F.cross_entropy(logits, attributes[rows, name]) for name, logits in enumerate(judge(images))),
            start=torch.zeros([]),
        )
        require_finite_loss(loss, "judge", step + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval().requires_grad_(False)


def save_clip(encoder: TextEncoder, folder: Path) -> None:
    """Write a CLIP and its tokenizer as transformers reads them."""
    encoder.clip.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


def captions_of(attributes: Tensor, seed: int, stream: int) -> Sequence[str]:
    """One caption for each row of attributes [N, 5]."""
    return [caption(row.tolist(), sample_rng(seed, stream, number)) for number, row in enumerate(attributes)]
