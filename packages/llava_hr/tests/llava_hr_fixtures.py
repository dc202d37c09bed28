"""Tiny models and inputs for the tests: 64-pixel images, a 28-pixel low resolution, 4 visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llava_hr.configuration import LlavaHrConfig, LlavaHrVisionConfig
from llava_hr.modeling import LlavaHrForConditionalGeneration

VOCABULARY = 60
MIXED = (1, 0, 2, 1)  # images per row: rows with one, none and several


def tiny_config(
    image_size: int = 64, adapters: bool = True, vocab_size: int = VOCABULARY, image_token_id: int | None = None
) -> LlavaHrConfig:
    """All parts at widths of 8 to 24; the placeholder lies one beyond the vocabulary, as in the full-size models."""
    vision = LlavaHrVisionConfig(
        low_res_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 42,
            "patch_size": 14,
        },
        image_size=image_size,
        min_low_size=28,
        high_res_dims=[4, 6, 8, 12],
        high_res_depths=[1, 1, 2, 1],
        adapters=adapters,
    )
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    placeholder = vocab_size if image_token_id is None else image_token_id
    return LlavaHrConfig(text_config=text, vision_config=vision, image_token_id=placeholder)


def tiny_model(
    seed: int = 0, config: LlavaHrConfig | None = None, trained: bool = True
) -> LlavaHrForConditionalGeneration:
    """A tiny model in eval mode.

    Args:
        seed: of its weights.
        config: ``tiny_config()`` unless given.
        trained: shake every weight, as training would: the adapters are no identity, the layer scale is not 1e-6.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaHrForConditionalGeneration(config or tiny_config()).eval()
        if trained:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.3 / max(1, parameter[0].numel()) ** 0.5)
    return model


def tiny_images(count: int, seed: int = 0, side: int = 64) -> Tensor:
    """Normalised images ``[count, 3, side, side]``."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def tiny_inputs(
    model: LlavaHrForConditionalGeneration, images: tuple[int, ...] = (1,), seed: int = 0, words: int = 5
) -> list[dict[str, Tensor]]:
    """Prompts of one row each, with the given number of images: ``input_ids``, ``attention_mask`` and, with images,
    ``pixel_values``. Row i has ``words + i`` tokens, and for each image its placeholders and one more."""
    generator = torch.Generator().manual_seed(seed)
    config, rows = model.config, []
    for index, count in enumerate(images):
        text = torch.randint(3, config.text_config.vocab_size, (words + index,), generator=generator)
        placeholders = torch.full((config.num_image_tokens,), config.image_token_id)
        input_ids = torch.cat([text[:2], *[placeholders, text[2:3]] * count, text[2:]])[None]
        row = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if count:
            row["pixel_values"] = tiny_images(count, seed=100 * seed + index, side=config.vision_config.image_size)
        rows.append(row)
    return rows


def batched(rows: list[dict[str, Tensor]], side: str = "left", pad: int = 0) -> dict[str, Tensor]:
    """Rows of ``tiny_inputs`` as one batch, padded on one side."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": []}
    for row in rows:
        missing = longest - row["input_ids"].shape[1]
        padding = (missing, 0) if side == "left" else (0, missing)
        batch["input_ids"].append(torch.nn.functional.pad(row["input_ids"], padding, value=pad))
        batch["attention_mask"].append(torch.nn.functional.pad(row["attention_mask"], padding, value=0))
    result = {name: torch.cat(tensors) for name, tensors in batch.items()}
    if pixels := [row["pixel_values"] for row in rows if "pixel_values" in row]:
        result["pixel_values"] = torch.cat(pixels)
    return result


def count_runs(module):
    """A list that gets the number of images of every run of a tower, and the hook's handle."""
    runs = []
    handle = module.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))
    return runs, handle


def greedy(model, inputs, steps):
    """Greedy decoding by recomputation: the whole prompt, images included, in every step."""
    ids, rest = inputs["input_ids"], {k: v for k, v in inputs.items() if k == "pixel_values"}
    logits = []
    for _ in range(steps):
        logits.append(model(input_ids=ids, **rest).logits[:, -1])
        ids = torch.cat((ids, logits[-1].argmax(dim=-1, keepdim=True)), dim=1)
    return ids[:, inputs["input_ids"].shape[1] :], torch.stack(logits, dim=1)


class AttentionMaps(TorchDispatchMode):
    """Sees every operation that makes a floating-point tensor of shape `[..., tokens, tokens]`."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.seen = tokens, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            square = isinstance(value, torch.Tensor) and value.shape[-2:] == (self.tokens, self.tokens)
            if square and value.is_floating_point():
                self.seen.append(str(func))
        return result
