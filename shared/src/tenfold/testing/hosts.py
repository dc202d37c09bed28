"""Tiny hosts with random weights, of the real transformers classes, and prompts for them."""

from functools import cache
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

IMAGE, VIDEO, PAD, VOCAB = 3, 4, 0, 64
PREFIX = [1, 5, 6]
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
CLIP, SIGLIP = {"model_type": "clip_vision_model", **VISION}, {"model_type": "siglip_vision_model", **VISION}
LLAMA, QWEN = {"model_type": "llama", **TEXT}, {"model_type": "qwen2", **TEXT}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_TEXT = {**TEXT, "rope_parameters": MROPE}
QWEN_IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
}
PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def _llava():
    return LlavaForConditionalGeneration, LlavaConfig(text_config=LLAMA, vision_config=CLIP, image_token_index=IMAGE)


def _llava_next():
    config = LlavaNextConfig(
        text_config=LLAMA, vision_config=CLIP, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextForConditionalGeneration, config


def _onevision():
    config = LlavaOnevisionConfig(
        text_config=QWEN,
        vision_config=SIGLIP,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaOnevisionForConditionalGeneration, config


def _qwen2_vl():
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(text_config=QWEN_TEXT, vision_config={**vision, "spatial_merge_size": 2}, **QWEN_IDS)
    return Qwen2VLForConditionalGeneration, config


def _qwen2_5_vl():
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 24,
        "out_hidden_size": 32,
    }
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_IDS)


def _internvl():
    vision = {**VISION, "image_size": [16, 16], "patch_size": [4, 4]}
    return InternVLForConditionalGeneration, InternVLConfig(
        text_config=QWEN, vision_config=vision, image_token_id=IMAGE
    )


def _idefics3():
    config = Idefics3Config(text_config=LLAMA, vision_config=VISION, image_token_id=IMAGE, scale_factor=2)
    return Idefics3ForConditionalGeneration, config


def _smolvlm():
    config = SmolVLMConfig(text_config=LLAMA, vision_config=VISION, image_token_id=IMAGE, scale_factor=2)
    return SmolVLMForConditionalGeneration, config


HOSTS = {
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
    "llava_next": _llava_next,
    "onevision": _onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
}


def build(host, attention="sdpa"):
    """A host with weights large enough that attention is sharp and logits are apart."""
    model_class, config = HOSTS[host]()
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    model = model_class._from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1 or "class_embedding" in name or "newline" in name:
            scale = 1.0 if "embed" in name else 1.6
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale / parameter.shape[-1] ** 0.5
    model.generation_config.eos_token_id = None
    return model.eval()


@cache
def _counting(host):
    return build(host)


class Prompts:
    """Prompts of a host: rows are lists of parts, a number of text tokens or ``("image", size)``."""

    def __init__(self, host):
        self.host = host
        self.generator = torch.Generator().manual_seed(1)
        self.images = []  # per row of the last batch, the tensors of its images

    def text(self, count):
        return torch.randint(10, VOCAB, (count,), generator=self.generator).tolist()

    def random(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def image(self, size):
        """Token ids and tensors of an image; ``size`` scales its number of visual tokens where the host allows."""
        if self.host == "llava":
            return [IMAGE] * 16, {"pixel_values": self.random(1, 3, 16, 16)}
        if self.host.startswith("qwen"):
            height, width = 2 * size, 8
            pixels = self.random(height * width, 3 * 2 * 4 * 4)
            tensors = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}
            return [7, *[IMAGE] * (height * width // 4), 8], tensors
        if self.host in ("llava_next", "onevision"):
            sides = {2: (16, 32), 3: (12, 32), 4: (20, 16), 6: (32, 30)}[size]
            tiles = 5 if min(sides) > 20 else 3
            tensors = {"pixel_values": self.random(1, tiles, 3, 16, 16), "image_sizes": torch.tensor([sides])}
            features = _counting(self.host).get_image_features(**tensors).pooler_output
            return [IMAGE] * sum(len(part) for part in features), tensors
        tensors = {"pixel_values": self.random(size, 3, 16, 16)}  # tiles of four visual tokens each
        if self.host == "internvl":
            return [9, *[IMAGE] * (4 * size), 9], tensors
        return [token for _ in range(size) for token in (9, *[IMAGE] * 4)], tensors  # each tile after its own mark

    def batch(self, rows, padding="left", prefix=PREFIX):
        """Inputs of a forward for rows of parts."""
        ids, self.images = [], []
        for row in rows:
            tokens, images = list(prefix), []
            for part in row:
                if isinstance(part, int):
                    tokens += self.text(part)
                else:
                    image, tensors = self.image(part[1])
                    tokens += image
                    images.append(tensors)
            ids.append(tokens)
            self.images.append(images)
        width = max(map(len, ids))
        gaps = [width - len(row) for row in ids]
        left = padding == "left"
        pad = [[PAD] * gap + row if left else row + [PAD] * gap for gap, row in zip(gaps, ids, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) if left else [1] * (width - gap) + [0] * gap for gap in gaps]
        inputs = {"input_ids": torch.tensor(pad), "attention_mask": torch.tensor(mask)}
        return {**inputs, **self.collate(self.images, inputs["input_ids"])}

    def collate(self, images, input_ids):
        """The image arguments of a forward, rows in order."""
        tensors = [image for row in images for image in row]
        extra = {"mm_token_type_ids": (input_ids == IMAGE).int()} if self.host.startswith("qwen") else {}
        if not tensors:
            return extra
        if self.host in ("idefics3", "smolvlm"):  # [rows, tiles, ...], missing tiles are zero
            tiles = [torch.cat([self.random(0, 3, 16, 16), *(i["pixel_values"] for i in row)]) for row in images]
            return {"pixel_values": torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True)}
        if self.host in ("llava_next", "onevision"):  # [images, tiles, ...]
            tiles = [image["pixel_values"][0] for image in tensors]
            padded = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True)
            return {"pixel_values": padded, "image_sizes": torch.cat([image["image_sizes"] for image in tensors])}
        return {key: torch.cat([image[key] for image in tensors]) for key in tensors[0]} | extra


SCENARIOS = {
    "single": ([[("image", 4), 6]], "left"),
    "left padding": ([[("image", 4), 6], [("image", 4), 3], [("image", 4), 9]], "left"),
    "right padding": ([[("image", 4), 6], [("image", 4), 3], [("image", 4), 9]], "right"),
    "mixed V": ([[("image", 4), 6], [("image", 6), 2, ("image", 2), 5], [("image", 2), 7]], "left"),
    "image and text-only": ([[("image", 4), 4], [14], [("image", 4), 9]], "left"),
    "two images": ([[("image", 4), 4, ("image", 3), 6]], "left"),
}
