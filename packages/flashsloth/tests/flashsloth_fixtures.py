"""Tiny models and inputs for the tests: 42-pixel images, 6 x 6 patches, 4 visual tokens, 3 queries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flashsloth.configuration import FlashSlothConfig
from flashsloth.modeling import FlashSlothForConditionalGeneration

VOCABULARY = 60
MIXED = (1, 0, 2, 1)  # images per row: rows with one, none and several
DOT, NEWLINE, USER, COLON, END, QUERY, IMAGE = 3, 4, 5, 6, 57, 58, 59
FIRST, LAST = 10, 50  # words


def tiny_config(**changes) -> FlashSlothConfig:
    """All parts at widths of 8 to 24; EmbQ before the second of four layers."""
    values = {
        "text_config": {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "partial_rotary_factor": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "max_position_embeddings": 512,
            "resid_pdrop": 0.1,
            "bos_token_id": None,
            "eos_token_id": END,
            "pad_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 42,
            "patch_size": 7,
            "vision_use_head": False,
        },
        "query_count": 3,
        "embq_layer": 1,
        "dot_token_id": DOT,
        "newline_token_id": NEWLINE,
        "user_token_ids": (USER, COLON),
        "end_token_id": END,
        "query_token_id": QUERY,
        "image_token_id": IMAGE,
    }
    return FlashSlothConfig(**(values | changes))


def tiny_model(seed: int = 0, config: FlashSlothConfig | None = None) -> FlashSlothForConditionalGeneration:
    """A tiny model in eval mode, with every weight shaken, as training would. It never ends its answer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FlashSlothForConditionalGeneration(config or tiny_config()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.5 / max(1, parameter[0].numel()) ** 0.5)
            model.lm_head.weight.mul_(4)  # so that answers differ
            model.model.embq.up_projector.weight.mul_(4)
    model.generation_config.eos_token_id = None
    return model


def tiny_images(count: int, seed: int = 0, views: int = 1) -> Tensor:
    """Normalised images ``[count, 3, 42, 42]``, in HD ``[count, 5, 3, 42, 42]``."""
    shape = (count, 3, 42, 42) if views == 1 else (count, views, 3, 42, 42)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(FIRST, LAST, (count,), generator=generator).tolist()


def turn(config: FlashSlothConfig, images: int, question: list[int]) -> list[int]:
    """``USER: <image>\\n... question <queries> ASSISTANT:`` as ids; the last id is the role."""
    front = ([config.image_token_id] * config.num_image_tokens + [config.newline_token_id]) * images
    return [USER, COLON, *front, *question, *[config.query_token_id] * config.query_count, 7]


def tiny_inputs(
    model: FlashSlothForConditionalGeneration, images: tuple[int, ...] = (1,), seed: int = 0
) -> list[dict[str, Tensor]]:
    """Prompts of one row each, with the given number of images; row i asks in ``5 + 4 i`` words."""
    generator = torch.Generator().manual_seed(seed)
    config, rows = model.config, []
    for index, count in enumerate(images):
        ids = words(3, generator) + turn(config, count, words(5 + 4 * index, generator))
        row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if count:
            row["pixel_values"] = tiny_images(count, 100 * seed + index, config.views)
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


def runs_of(module):
    """A list that gets one entry a run of a module, its first input's length, and the hook's handle."""
    runs = []
    handle = module.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))
    return runs, handle


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
