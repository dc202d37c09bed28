"""Official names of weights, and ours.

A released model is its host's weights under the host's own names, plus the one shared router, stored under a name a
converted layer: ``model.layers.{i}.router.weight [2, width]``. A safetensors writer may have kept only the first of
them. Ours is the host and one router.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tenfold import UserError

ROUTER_KEY = re.compile(r"^(?P<prefix>.*\blayers\.)(?P<layer>\d+)\.router\.weight$")
DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")  # a buffer of the library of the time, not a weight


def router_key(layer: int) -> str:
    """The official name of a converted layer's router."""
    return f"model.layers.{layer}.router.weight"


def is_router(name: str) -> bool:
    """Whether an official name is a router's."""
    return ROUTER_KEY.match(name) is not None


def is_derived(name: str) -> bool:
    """Whether an official name is a buffer that models compute for themselves."""
    return DERIVED.search(name) is not None


def router_layer(name: str) -> int:
    """The layer of a router's official name."""
    match = ROUTER_KEY.match(name)
    if match is None:
        raise UserError(f"{name} names no router", "weights", router_key(0))
    return int(match["layer"])


def shared_router(routers: Mapping[str, Tensor], layers: Iterable[int], where: str | Path | None) -> Tensor:
    """The one router behind the names of a release.

    Args:
        routers: official name -> ``[2, width]``; all converted layers', or the first one's alone.
        layers: the converted layers of the release's configuration.

    Raises:
        UserError: no router, a router of a layer that is not converted, or routers that differ (the ablation
            "router not shared" was not released).
    """
    layers = sorted(layers)
    if not routers:
        raise UserError("no router", where, router_key(layers[0] if layers else 0))
    found = {router_layer(name): tensor for name, tensor in routers.items()}
    strangers = sorted(found.keys() - set(layers))
    missing = sorted(set(layers) - found.keys())
    if strangers or (missing and len(found) > 1):
        wrong = strangers or missing
        what = "is not converted" if strangers else "has no router"
        raise UserError(f"layer {wrong[0]} {what}", where, f"routers of layers {layers[0]} to {layers[-1]}")
    first, *others = (found[layer] for layer in sorted(found))
    if first.ndim != 2 or first.shape[0] != 2:
        raise UserError(f"a router of shape {list(first.shape)}", where, "[2, width]")
    if any(not torch.equal(first, other) for other in others):
        raise UserError("routers that differ between layers", where, "one shared router")
    return first


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Official tensors -> (the host's, the routers'); derived buffers are left out."""
    routers = {name: tensor for name, tensor in tensors.items() if is_router(name)}
    host = {name: tensor for name, tensor in tensors.items() if name not in routers and not is_derived(name)}
    return host, routers


@dataclass(frozen=True)
class ReleaseShape:
    """Dimensions of a released LLaVA-HR, as far as names and shapes of its weights go (sections 3.7 and 4)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    slow: tuple[int, ...] = (192, 384, 768, 1536)  # widths of ConvNeXt's stages
    slow_depths: tuple[int, ...] = (3, 3, 27, 3)
    slow_pre_logits: bool = True  # ConvNeXt-L's classifier, which nothing uses, has a hidden layer
    fast: int = 1024  # CLIP ViT-L/14-336
    fast_intermediate: int = 4096
    fast_layers: int = 24
    fast_patches: int = 24 * 24
    vocabulary: int = 32000

    @property
    def converted(self) -> tuple[int, ...]:
        return tuple(range(3, self.layers - 1))


RELEASES = {
    "llava_hr_7b": ReleaseShape(4096, 11008, 32, 32),
    "llava_hr_13b": ReleaseShape(5120, 13824, 40, 40),
    "llava_hr_x_13b": ReleaseShape(
        5120, 13824, 40, 40, slow=(384, 768, 1536, 3072), slow_depths=(3, 4, 30, 3), slow_pre_logits=False
    ),
}
Shapes = dict[str, tuple[int, ...]]


def vision_shapes(shape: ReleaseShape) -> Shapes:
    """Official names and shapes of what a release holds beside its language model: towers, adapters, projector."""
    tower = "model.vision_tower."
    found: Shapes = {}
    found |= _linear("model.mm_projector.0", shape.hidden, shape.fast)
    found |= _linear("model.mm_projector.2", shape.hidden, shape.hidden)
    found |= _clip(f"{tower}fast_vision_tower.vision_tower.vision_model.", shape)
    found |= _convnext(f"{tower}slow_vision_tower.vision_tower.", shape)
    slow, fast = shape.slow[-1], shape.fast
    for adapter in range(3):
        name = f"{tower}align_stages_latent.{adapter}."
        found |= _conv(f"{name}slow_conv", slow, slow, 1) | _conv(f"{name}slow_proj", fast, slow, 1)
        found |= _conv(f"{name}fast_conv", fast, 1, 7) | _conv(f"{name}fast_proj", fast, fast, 1)
        found |= _linear(f"{name}gate.0", fast // 2, 2 * fast) | _linear(f"{name}gate.2", 1, fast // 2)
    found |= _linear(f"{tower}align_stages.0.fast_proj", fast, fast)
    return found | _linear(f"{tower}align_stages.0.slow_proj", fast, slow)


def _clip(name: str, shape: ReleaseShape) -> Shapes:
    width, inner = shape.fast, shape.fast_intermediate
    found: Shapes = {
        f"{name}embeddings.class_embedding": (width,),
        f"{name}embeddings.patch_embedding.weight": (width, 3, 14, 14),
        f"{name}embeddings.position_embedding.weight": (shape.fast_patches + 1, width),
    }
    for layer in range(shape.fast_layers):
        block = f"{name}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{block}self_attn.{part}", width, width)
        found |= _linear(f"{block}mlp.fc1", inner, width) | _linear(f"{block}mlp.fc2", width, inner)
        found |= _norm(f"{block}layer_norm1", width) | _norm(f"{block}layer_norm2", width)
    return found | _norm(f"{name}pre_layrnorm", width) | _norm(f"{name}post_layernorm", width)


def _convnext(name: str, shape: ReleaseShape) -> Shapes:
    found = _conv(f"{name}stem.0", shape.slow[0], 3, 4) | _norm(f"{name}stem.1", shape.slow[0])
    for stage, (width, depth) in enumerate(zip(shape.slow, shape.slow_depths, strict=True)):
        where = f"{name}stages.{stage}."
        if stage:
            before = shape.slow[stage - 1]
            found |= _norm(f"{where}downsample.0", before) | _conv(f"{where}downsample.1", width, before, 2)
        for block in range(depth):
            inside = f"{where}blocks.{block}."
            found[f"{inside}weight"] = (width,)  # the layer scale, once called gamma
            found |= _conv(f"{inside}conv_dw", width, 1, 7) | _norm(f"{inside}norm", width)
            found |= _linear(f"{inside}mlp.fc1", 4 * width, width) | _linear(f"{inside}mlp.fc2", width, 4 * width)
    last = shape.slow[-1]
    found |= _norm(f"{name}head.norm", last) | _linear(f"{name}head.fc", 1000, last)
    return found | (_linear(f"{name}head.pre_logits.fc", last, last) if shape.slow_pre_logits else {})


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _conv(name: str, out: int, into: int, side: int) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
