"""Tiny hosts with random weights, and prompts for them, of the real transformers classes."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

IMAGE, PAD, VOCAB = 3, 0, 64
PREFIX = [1, 5, 6]


def randomise(model, seed=0):
    """Weights large enough that attention is sharp and logits are apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "class_embedding" in name:
            scale = 1.0 if "embed" in name else 1.6
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale / parameter.shape[-1] ** 0.5
    return model.eval()


TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_VISION = {
    "depth": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "hidden_size": 32,
    "mlp_ratio": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def llava(attention="sdpa"):
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**CLIP), image_token_index=IMAGE
    )
    return randomise(LlavaForConditionalGeneration._from_config(config, attn_implementation=attention))


def qwen2_vl(attention="sdpa"):
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config=QWEN_VISION,
        image_token_id=IMAGE,
        video_token_id=4,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    return randomise(Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=attention))


HOSTS = {"llava": llava, "qwen2_vl": qwen2_vl}


class Prompts:
    """Prompts of a host: rows are lists of parts, an ``int`` n for n text tokens or an image size for an
    image."""

    def __init__(self, host):
        self.host = host
        self.generator = torch.Generator().manual_seed(1)

    def text(self, count):
        return torch.randint(10, VOCAB, (count,), generator=self.generator).tolist()

    def image(self, size):
        """Token ids, pixels and grid of an image; ``size`` scales it where the host allows."""
        if self.host == "llava":
            return [IMAGE] * 16, torch.randn(1, 3, 16, 16, generator=self.generator), None
        height, width = 2 * size, 8
        pixels = torch.randn(height * width, 3 * 2 * 4 * 4, generator=self.generator)
        return [7] + [IMAGE] * (height * width // 4) + [8], pixels, torch.tensor([[1, height, width]])

    def batch(self, rows, padding="left", prefix=PREFIX):
        """Inputs of a forward for rows of parts: ``("image", size)`` or a number of text tokens."""
        ids, pixels, grids = [], [], []
        for row in rows:
            tokens = list(prefix)
            for part in row:
                if isinstance(part, int):
                    tokens += self.text(part)
                else:
                    image, values, grid = self.image(part[1])
                    tokens += image
                    pixels.append(values)
                    grids.append(grid)
            ids.append(tokens)
        width = max(map(len, ids))
        fill = [[PAD] * (width - len(row)) for row in ids]
        ones = [[1] * len(row) for row in ids]
        zeros = [[0] * len(gap) for gap in fill]
        join = (lambda gap, row: gap + row) if padding == "left" else (lambda gap, row: row + gap)
        inputs = {
            "input_ids": torch.tensor([join(*pair) for pair in zip(fill, ids, strict=True)]),
            "attention_mask": torch.tensor([join(*pair) for pair in zip(zeros, ones, strict=True)]),
        }
        if pixels:
            inputs["pixel_values"] = torch.cat(pixels)
        if self.host == "qwen2_vl":
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
            if pixels:
                inputs["image_grid_thw"] = torch.cat(grids)
        return inputs


SCENARIOS = {
    "single": ([[("image", 4), 6]], "left"),
    "left padding": ([[("image", 4), 6], [("image", 4), 3], [("image", 4), 9]], "left"),
    "right padding": ([[("image", 4), 6], [("image", 4), 3], [("image", 4), 9]], "right"),
    "mixed V": ([[("image", 4), 6], [("image", 6), 2, ("image", 2), 5], [("image", 2), 7]], "left"),
    "image and text-only": ([[("image", 4), 4], [14], [("image", 4), 9]], "left"),
    "two images": ([[("image", 4), 4, ("image", 3), 6]], "left"),
}
