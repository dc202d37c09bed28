"""Official names and ours, both ways.

The official modules store the constant blur filter with nearly every layer; here it is one constant, left out of our
files, checked when an official file is read and put back when one is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from e3_facenet.layers import blur_filter
from tenfold import UserError

FILTER = "resample_filter"

# Official -> ours. Every rule is a pair of templates; {} stands for a number.
_GENERATOR = (
    ("synthesis.alpha", "alpha"),
    ("mapping.fc{}.", "mapping.layers.{}."),
    ("mapping.", "mapping."),
    ("synthesis.fg_nerf.blocks.{}.", "field.foreground.layers.{+}."),
    ("synthesis.fg_nerf.fc_in.", "field.foreground.layers.0."),
    ("synthesis.fg_nerf.sigma_out.", "field.foreground.sigma."),
    ("synthesis.fg_nerf.feat_out.", "field.foreground.feature."),
    ("synthesis.fg_nerf.to_rgb.", "field.foreground.to_rgb."),
    ("synthesis.bg_nerf.blocks.{}.", "field.background.layers.{+}."),
    ("synthesis.bg_nerf.fc_in.", "field.background.layers.0."),
    ("synthesis.bg_nerf.sigma_out.", "field.background.sigma."),
    ("synthesis.bg_nerf.feat_out.", "field.background.feature."),
    ("synthesis.bg_nerf.to_rgb.", "field.background.to_rgb."),
    ("synthesis.b{}_attn.norm1.", "enhancers.{}.norm."),
    ("synthesis.b{}_attn.attn.to_out.0.", "enhancers.{}.to_out."),
    ("synthesis.b{}_attn.attn.", "enhancers.{}."),
    ("synthesis.b{}_offset.conv.", "enhancers.{}.squeeze."),
    ("synthesis.b{}_offset.mapping.", "enhancers.{}.offset."),
    ("synthesis.b{}.", "blocks.{}."),
)
_DISCRIMINATOR = (
    ("alpha", "alpha"),
    ("mapping.fc{}.", "mapping.layers.{}."),
    ("mapping.", "mapping."),
    ("b4_text.", "match."),
    ("b4.", "real."),
    ("b{}.", "blocks.{}."),
)


def _compile(rules: Iterable[tuple[str, str]], back: bool) -> list[tuple[re.Pattern[str], str, int]]:
    compiled = []
    for official, ours in rules:
        shift = 1 if "{+}" in ours else 0
        ours = ours.replace("{+}", "{}")
        source, target = (ours, official) if back else (official, ours)
        pattern = re.compile(re.escape(source).replace(r"\{\}", r"(\d+)") + ("$" if not source.endswith(".") else ""))
        compiled.append((pattern, target, -shift if back else shift))
    return compiled


_RULES = {
    (network, back): _compile(rules, back)
    for network, rules in (("generator", _GENERATOR), ("discriminator", _DISCRIMINATOR))
    for back in (False, True)
}
# Going back, the more particular rule comes first: layer 0 is fc_in, and an enhancer's parts are two modules.
for (_, _back), _rules in _RULES.items():
    if _back:
        _rules.sort(key=lambda rule: ("layers\\.0" not in rule[0].pattern, -len(rule[0].pattern)))


def renamed(name: str, network: str, back: bool = False) -> str | None:
    """One name, official to ours or back; None where no rule knows it.

    Args:
        network: "generator" or "discriminator".
    """
    for pattern, target, shift in _RULES[network, back]:
        found = pattern.match(name)
        if found:
            numbers = [str(int(number) + shift) for number in found.groups()]
            return target.format(*numbers) + name[found.end() :]
    return None


def from_official(state: Mapping[str, Tensor], network: str, where: object = None) -> dict[str, Tensor]:
    """An official state dict under our names, filters checked and left out.

    Raises:
        UserError: a name that no rule knows, or a filter that is another one.
    """
    ours = {}
    for name, tensor in state.items():
        if name.endswith(FILTER):
            if not torch.allclose(tensor.float(), blur_filter(), atol=1e-6):
                raise UserError(f"another blur filter in {name}", where, "[1, 3, 3, 1] a side")
            continue
        mapped = renamed(name, network)
        if mapped is None:
            raise UserError(f"unknown name {name!r}", where, f"the names of an official {network}")
        ours[mapped] = tensor
    return ours


def to_official(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """Our state dict under official names, with the filters that the official modules expect."""
    official: dict[str, Tensor] = {}
    for name, tensor in state.items():
        mapped = renamed(name, network, back=True)
        assert mapped is not None, name
        official[mapped] = tensor
    for name in list(official):
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and _has_filter(owner, network):
            official[f"{owner}.{FILTER}"] = blur_filter()
        block = re.match(r"(synthesis\.)?b\d+(?=\.conv0\.weight$)", name)
        if block:
            official[f"{block[0]}.{FILTER}"] = blur_filter()
    return official


def _has_filter(owner: str, network: str) -> bool:
    """Which official layers carry the filter: every convolution class but ToRGB, the NeRF's outputs and plain ones."""
    if network == "discriminator":
        return owner.rpartition(".")[2] in ("fromrgb", "conv0", "conv1", "conv")
    pattern = r"synthesis\.([fb]g_nerf\.(fc_in|blocks\.\d+|to_rgb)|b\d+\.conv[01](\.adapter\.[01])?)"
    return re.fullmatch(pattern, owner) is not None


def clip_from_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's CLIP names (either tower or both) to those of transformers' CLIPModel.

    The fused in_proj splits into q, k and v; projections are transposed.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        visual = name.startswith("visual.")
        tower = "vision_model" if visual else "text_model"
        name = name.removeprefix("visual.")
        if name == "logit_scale":
            ours[name] = tensor
        elif name in ("proj", "text_projection"):
            ours[("visual_projection" if visual else "text_projection") + ".weight"] = tensor.T.contiguous()
        elif name.startswith("transformer.resblocks."):
            number, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
            for target, part in _layer(rest, tensor):
                ours[f"{tower}.encoder.layers.{number}.{target}"] = part
        else:
            ours[f"{tower}.{_PLAIN[name]}"] = tensor
    return ours


_PLAIN = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # transformers spells it so
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}


def _layer(rest: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return [(f"self_attn.{n}_proj.{kind}", p) for n, p in zip("qkv", tensor.chunk(3), strict=True)]
    names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    owner, _, leaf = rest.rpartition(".")
    return [(f"{names[owner]}.{leaf}", tensor)]
