"""Tiny models for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dtnet.blocks import AttentionBlock
from dtnet.config import DTNetConfig
from dtnet.evidence.parity.model import golden_model
from dtnet.model import DTNet

GOLDENS = Path(__file__).parent / "goldens"


def tiny_config(**changes: Any) -> DTNetConfig:
    sizes = {
        **{"d_in": 12, "grid": 4, "d_model": 32, "heads": 2, "d_k": 8, "d_v": 12, "d_ff": 20},
        **{"encoder_layers": 2, "decoder_layers": 2, "vocabulary_size": 23, "max_len": 12, "router_reductions": (4, 8)},
    }
    return DTNetConfig(**{**sizes, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> DTNet:
    """A model in eval mode whose every part matters.

    New LayerNorms have no gain, so that the mean over channels is 0: what reads it would see nothing.
    """
    model = DTNet(tiny_config(**changes), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.weight.data += 0.5 * torch.randn(module.weight.shape, generator=generator)
            if name.startswith("encoder"):
                module.bias.data += 0.5 * torch.randn(module.bias.shape, generator=generator)
        # Words that depend on the image, the words before and the position, rather than one word again and again.
        if isinstance(module, nn.Embedding):
            module.weight.data *= 4
        if isinstance(module, AttentionBlock):
            module.q.weight.data *= 3
            module.v.weight.data *= 3
            module.o.weight.data *= 3
    model.decoder.fc.weight.data *= 2
    return model


def tiny_features(model: DTNet, batch: int = 3, seed: int = 1) -> Tensor:
    shape = (batch, model.config.positions, model.config.d_in)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_tokens(model: DTNet, batch: int = 3, length: int = 7) -> Tensor:
    """Captions padded on the right, of different lengths."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(4, model.config.vocabulary_size, (batch, length), generator=generator)
    tokens[:, 0] = model.config.bos_id
    for row in range(batch):
        tokens[row, length - row :] = model.config.pad_id
    return tokens


def golden(case: str) -> tuple[DTNet, dict[str, Tensor], dict[str, Any]]:
    """The model, tensors and json of a golden case."""
    tensors = load_file(GOLDENS / f"{case}.safetensors")
    facts = json.loads((GOLDENS / f"{case}.json").read_text())
    return golden_model(facts["config"], tensors), tensors, facts
