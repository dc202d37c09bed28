"""A tiny model's folder for evaluations.

64 pixels, 4 visual tokens, the miniature's tokenizer. Weights are random, and scaled so that answers depend on image
and question and most of them end after a few tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from llava_hr_fixtures import tiny_config, tiny_model

from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.miniature import model as mini
from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor

SIDE, SEED = 64, 2


def make_processor(**options) -> LlavaHrProcessor:
    """Prompts of vicuna_v1, images padded."""
    given = {"conversation": "vicuna_v1", "num_image_tokens": 4, **options}
    return LlavaHrProcessor(LlavaHrImageProcessor(size=SIDE, image_aspect_ratio="pad"), mini.mini_tokenizer(), **given)


def make_model(seed: int = SEED, adapters: bool = True) -> LlavaHrForConditionalGeneration:
    words = len(mini.vocabulary())
    model = tiny_model(seed, tiny_config(adapters=adapters, vocab_size=words, image_token_id=words))
    with torch.no_grad():
        for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            layer.weight.mul_(10)
        for layer in model.model.language_model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight.mul_(6)
    return model


def write_model(folder: Path, seed: int = SEED, adapters: bool = True) -> Path:
    """A model and its processor, as `save_pretrained` writes them."""
    make_model(seed, adapters).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder
