"""Golden cases: the reference implementation's inputs, weights and outputs, against this package.

A case is a json file that names its ``computation`` and dimensions, with a safetensors file beside it. All dimensions
are read from the json, so that any folder of cases can be checked. Weights carry official names and come in through
`llava_hr.checkpoints.keys`. Here stand the vision tower and its parts; the whole model, the text and the metrics are in
`parity_model`, `parity_text` and `parity_metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from llava_hr.checkpoints.keys import to_ours
from llava_hr.configuration import LlavaHrVisionConfig
from llava_hr.vision import FinalAlign, LlavaHrVisionTower, LowResEmbedding, MRAdapter
from tenfold.ledger.goldens import Comparison, Computation

TOWER = "model.vision_tower."
# The prose tolerances of the cases as (absolute, relative). Decisions, ids, masks and counts are compared exactly.
TOLERANCES = {
    "forward": (1e-5, 1e-4),
    "adapter gradients": (1e-6, 1e-3),
    "tower": (2e-4, 1e-4),
    "gates": (1e-5, 0.0),
    "low-resolution image": (1e-5, 0.0),
    "low-resolution sum": (1e-3, 0.0),
    "logits": (2e-4, 1e-4),
    "loss": (0.0, 1e-4),
    "gradients": (1e-5, 1e-3),
}


@torch.enable_grad()
def _mr_adapter(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    prefix = "align_stages_latent.0."
    for name, (low_side, _) in config["subcases"].items():
        adapter = MRAdapter(config["low_dim"], config["high_dim"])
        load_part(adapter, tensors, "adapters.0.")
        low, high = (tensors[f"in/{name}.{key}"].clone().requires_grad_() for key in ("low", "high"))
        grid = (low_side, low_side)
        fused, gate = adapter(low, high, grid)
        loss = (fused * tensors[f"in/{name}.probe"]).mean()
        loss.backward()
        for key, value in {
            "fused": fused,
            "gate": gate,
            "conv_branch": adapter.low_branch(low, grid),
            "high_aligned": adapter.high_branch(high, grid),
            "loss": loss[None],
        }.items():
            compare.close(f"{name} {key}", value, tensors[f"out/{name}.{key}"], "forward")
        for key, value in {"grad_low": low.grad, "grad_high": high.grad}.items():
            compare.close(f"{name} {key}", value, tensors[f"out/{name}.{key}"], "adapter gradients")
        for key, parameter in adapter.named_parameters():
            if (golden := tensors.get(f"out/{name}.grad/{TOWER}{prefix}{key}")) is not None:
                compare.close(f"{name} gradient of {key}", parameter.grad, golden, "adapter gradients")


def _final_align(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    align = FinalAlign(config["low_dim"], config["high_dim"])
    load_part(align, tensors, "align.")
    for name, (low_side, _) in config["subcases"].items():
        features = align(tensors[f"in/{name}.low"], tensors[f"in/{name}.high"], (low_side, low_side))
        compare.close(name, features, tensors[f"out/{name}.features"], "forward")


def _low_res_embedding(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    width, patch = config["hidden_size"], config["patch_size"]
    embedding = LowResEmbedding(
        CLIPVisionConfig(
            hidden_size=width, patch_size=patch, image_size=config["native_image_size"], num_attention_heads=1
        )
    )
    norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
    load_part(embedding.eval(), tensors, "vit.embeddings.")
    load_part(norm, tensors, "vit.pre_layrnorm.")
    for size in config["input_sizes"]:
        grid = (size // patch, size // patch)
        golden = {key: tensors[f"out/{size}.{key}"] for key in ("position_embedding", "tokens")}
        compare.close(f"{size} px positions", embedding.positions(grid), golden["position_embedding"], "forward")
        tokens = norm(embedding(tensors[f"in/{size}.pixel_values"]))
        compare.close(f"{size} px tokens", tokens, golden["tokens"], "forward")


def _high_res_convnext(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    vision = LlavaHrVisionConfig(
        low_res_config={"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 4},
        **_convnext_fields(config),
    )
    tower = LlavaHrVisionTower(vision).eval()
    load_part(tower.convnext, tensors, "convnext.")
    pixels, seen = tensors["in/pixel_values"], {}
    parts = {"stem": tower.convnext.stem} | {f"stage{i}": stage for i, stage in enumerate(tower.convnext.stages)}
    for name, part in parts.items():
        pixels = seen[name] = part(pixels)
    for name, value in seen.items():
        compare.close(name, value, tensors[f"out/{name}"], "forward")
    high = tower.high_res(tensors["in/pixel_values"])
    compare.close("H", high, tensors[f"out/stage{len(config['depths']) - 1}"], "forward")


def _vision_tower(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    for name, sub in case["config"]["subcases"].items():
        adapters = not sub["freeze_vision"]
        vision = vision_config(case["config"], sub["image_size"], adapters)
        tower = LlavaHrVisionTower(vision).eval()
        weights = {key: value for key, value in tensors.items() if adapters or "align_stages_latent" not in key}
        load_part(tower, weights, "")
        pixels = golden_image(tensors, f"{name}.image", sub["image_size"])
        low = tower.low_res_image(pixels)
        compare.equal(f"{name} low-resolution size", list(low.shape[-2:]), [sub["low_res_size"]] * 2)
        corner = tensors[f"out/{name}.low_res_corner"]
        ours = low[..., : corner.shape[-2], : corner.shape[-1]]
        compare.close(f"{name} low-resolution corner", ours, corner, "low-resolution image")
        ratio = low.sum() / tensors[f"out/{name}.low_res_sum"]
        compare.close(f"{name} sum, relative", ratio, torch.ones_like(ratio), "low-resolution sum")
        compare.equal(f"{name} high grid", list(tower.high_res(pixels).shape[-2:]), sub["high_grid"])

        features, gates = tower(pixels, output_gates=True)
        compare.equal(f"{name} tokens", [features.shape[1], tower.num_tokens], [sub["tokens"]] * 2)
        rows = features[:, tensors[f"in/{name}.feature_rows"]]
        compare.close(f"{name} features", rows, tensors[f"out/{name}.features"], "tower")
        if adapters:
            compare.close(f"{name} gates", gates.T, tensors[f"out/{name}.gates"], "gates")


def vision_config(config: Mapping[str, Any], image_size: int, adapters: bool) -> LlavaHrVisionConfig:
    """The tower of a case: its ``clip`` and ``conv`` entries."""
    return LlavaHrVisionConfig(
        low_res_config=dict(config["clip"]),
        image_size=image_size,
        adapters=adapters,
        **_convnext_fields(config["conv"]),
    )


def golden_image(tensors: Mapping[str, Tensor], name: str, side: int) -> Tensor:
    """``[batch, 3, side, side]``: coarse pixels repeated, plus a fine pattern tiled."""
    coarse, fine = tensors[f"in/{name}_coarse"], tensors[f"in/{name}_fine"]
    repeats, tiles = side // coarse.shape[-1], side // fine.shape[-1]
    enlarged = coarse.repeat_interleave(repeats, dim=2).repeat_interleave(repeats, dim=3)
    return enlarged + fine.repeat(1, 1, tiles, tiles)


def load_part(module: nn.Module, tensors: Mapping[str, Tensor], part: str) -> None:
    """Load a case's weights of one part of the tower, strictly; ``part`` as in ``model.vision_tower.<part>``."""
    prefix = TOWER + part
    weights = {name: tensor for name, tensor in official_weights(tensors).items() if name.startswith(prefix)}
    module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in weights.items()}, strict=True)


def official_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A case's weights under our names."""
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("weights/")}
    return to_ours({name.removeprefix("weights/"): tensor for name, tensor in weights.items()})


def _convnext_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    # No epsilon in a case means timm's own, that of ConvNeXt-L.
    eps = 1e-6 if config["norm_eps"] is None else config["norm_eps"]
    return {"high_res_dims": config["dims"], "high_res_depths": config["depths"], "high_res_eps": eps}


COMPUTATIONS: dict[str, Computation] = {
    "mr_adapter": _mr_adapter,
    "final_align": _final_align,
    "low_res_embedding": _low_res_embedding,
    "high_res_convnext": _high_res_convnext,
    "vision_tower": _vision_tower,
}
