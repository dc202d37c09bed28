"""Official models at full size, without weights: names and shapes, on the meta device."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from gamma_mod.checkpoints.keys import RELEASES, ReleaseShape, Shapes, vision_shapes


def official_host(name: str) -> tuple[ReleaseShape, Shapes]:
    """A dense host by name: its dimensions, and the names and shapes of its weights.

    Args:
        name: of `RELEASES`, or "llava_7b", which stands in transformers' layout.
    """
    shape = RELEASES.get(name, RELEASES["llava_hr_7b"])
    with torch.device("meta"):
        if name in RELEASES:
            model: torch.nn.Module = LlamaForCausalLM(llama_config(shape))
        else:
            clip = CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
                patch_size=14, projection_dim=768,
            )  # fmt: skip
            model = LlavaForConditionalGeneration(LlavaConfig(text_config=llama_config(shape), vision_config=clip))
    found = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    return shape, found | (vision_shapes(shape) if name in RELEASES else {})


def llama_config(shape: ReleaseShape) -> LlamaConfig:
    """Vicuna's configuration at these dimensions."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    )
