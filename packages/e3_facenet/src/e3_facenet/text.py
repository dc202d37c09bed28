"""Captions into what the generator reads: CLIP's global vector and all its token states (section 3.1).

    encoder = TextEncoder(CLIPModel.from_pretrained(...), tokenizer)
    text = encoder(["The woman has wavy hair."])      # text.t [1, 512], text.tokens [1, 77, 512]

Two habits of the reference matter, because the weights know them: captions are padded with id 0, and nothing is masked;
the enhancer attends to padding as well.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold import UserError

if TYPE_CHECKING:
    from transformers import CLIPModel

logger = logging.getLogger(__name__)

OFFICIAL_CLIP = "openai/clip-vit-base-patch32"
# CLIP's normalisation of pictures in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Text:
    """Encoded captions: `t` [B, t_dim], not normalised; `tokens` [B, T, token_dim], padding included."""

    t: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device | str) -> Text:
        """The same on another device."""
        return Text(self.t.to(device), self.tokens.to(device))


class TextEncoder(nn.Module):
    """A frozen CLIP as the text encoder, and for the contrastive loss its picture side.

    Args:
        clip: transformers' CLIPModel.
        tokenizer: anything that maps a string to ids with start and end tokens when called (transformers' tokenizers).
    """

    def __init__(self, clip: CLIPModel, tokenizer: Any = None) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        words: Any = clip.config.text_config
        self.length: int = words.max_position_embeddings

    def train(self, mode: bool = True) -> TextEncoder:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Token ids [B, T], padded with 0 as OpenAI's tokenizer does.

        Raises:
            UserError: a caption that is no text, or longer than the encoder's positions (never cut in silence).
        """
        rows = torch.zeros(len(captions), self.length, dtype=torch.long)
        for row, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise UserError(f"{type(caption).__name__} instead of a caption", repr(caption)[:60], "a string")
            if not caption.strip():
                logger.warning("an empty caption: the face is drawn from the noise alone")
            found = self.tokenizer(caption)["input_ids"]
            if len(found) > self.length:
                raise UserError(f"{len(found)} tokens", f"the caption {caption[:40]!r}...", f"at most {self.length}")
            rows[row, : len(found)] = torch.tensor(found)
        return rows

    def forward(self, captions: Sequence[str] | Tensor) -> Text:
        """Encode captions (or ids [B, T]). The global vector is taken at the largest id: the end token."""
        ids = captions if isinstance(captions, Tensor) else self.ids(captions)
        ids = ids.to(self.device)
        with torch.no_grad():
            # No attention mask but the causal one: padding positions are states like others.
            states = self.clip.text_model(input_ids=ids).last_hidden_state
            pooled = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
            t = self.clip.text_projection(pooled)
        return Text(t.float(), states.float())

    def picture_features(self, images: Tensor, rescale: bool = False) -> Tensor:
        """Picture embeddings, normalised: [B, 3, H, W] -> [B, t_dim], with gradients.

        Args:
            rescale: map [-1, 1] to [0, 1] first. The released training does NOT; `losses.clip_loss` says so.
        """
        size = self.clip.config.vision_config.image_size
        images = (images.float() + 1) / 2 if rescale else images.float()
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        pooled = self.clip.vision_model(pixel_values=(images - mean) / std).pooler_output
        return F.normalize(self.clip.visual_projection(pooled), dim=-1)


def load_text_encoder(
    source: str | Path, device: torch.device | str = "cpu", tokenizer: str | Path | None = None
) -> TextEncoder:
    """A CLIP from a local folder in transformers' format, or by its name on the hub.

    Args:
        tokenizer: its folder; default: where the model is.

    Raises:
        UserError: no such folder, or not a CLIP.
    """
    from transformers import AutoTokenizer, CLIPModel

    from tenfold.hosts.loading import loading_from

    with loading_from(source, "a CLIP in transformers' format"):
        clip: Any = CLIPModel.from_pretrained(source, trust_remote_code=False)
        words = AutoTokenizer.from_pretrained(tokenizer or source, trust_remote_code=False)
    if any(not bool(p.isfinite().all()) for p in clip.parameters()):
        raise UserError("weights that are not finite", source, "a trained CLIP")
    return TextEncoder(clip.to(device), words)


def model_card(text: str) -> str:
    """README.md of a model folder: what it is, what it is for, and what it must not be used for."""
    return f"""---
library_name: e3_facenet
license: other
pipeline_tag: text-to-3d
base_model: {OFFICIAL_CLIP}
tags: [text-to-3d, face, nerf, gan, e3-facenet]
---
# E3-FaceNet

Text to 3D-aware faces in one pass ([arXiv 2403.06702](https://arxiv.org/abs/2403.06702)).

{text or "Weights of this package's own training or conversion."}

## Intended use and misuse

For research on text-to-3D generation and editing of synthetic faces. Faces are invented; they must not be presented as
photographs of people, used to identify, imitate or harass anyone, or to infer traits of real people from text. The
training data (CelebA, FFHQ) over-represent some groups, and captions repeat their annotators' prejudices. Pictures
carry their caption, seed and edits as metadata. Weights converted from the authors' release are for non-commercial
research only (the code they descend from is under NVIDIA's source code licence).
"""
