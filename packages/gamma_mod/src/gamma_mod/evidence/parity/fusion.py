"""LLaVA-HR's dual-tower fusion (section 3.7), for its golden case alone: this package holds no LLaVA-HR model.

The modules stand here so that names and shapes of the released towers are read by something; `llava-hr` is the package
that runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.ledger.goldens import Comparison


class FinalAlign(nn.Module):
    """``fast_proj(f) + slow_proj(resized s)``."""

    def __init__(self, fast: int, slow: int) -> None:
        super().__init__()
        self.fast_proj, self.slow_proj = nn.Linear(fast, fast), nn.Linear(slow, fast)

    def forward(self, fast: Tensor, slow: Tensor) -> Tensor:
        return self.fast_proj(fast) + self.slow_proj(as_tokens(slow, fast.shape[1]))


class LatentAdapter(nn.Module):
    """``f + local(f) + gate * s``: a depthwise branch on the fast tokens, and the slow features behind a gate."""

    def __init__(self, fast: int, slow: int) -> None:
        super().__init__()
        self.slow_conv, self.slow_proj = nn.Conv2d(slow, slow, 1), nn.Conv2d(slow, fast, 1)
        self.fast_conv = nn.Conv2d(fast, fast, 7, padding=3, groups=fast)
        self.fast_proj = nn.Conv2d(fast, fast, 1)
        self.gate = nn.Sequential(nn.Linear(2 * fast, fast // 2), nn.GELU(), nn.Linear(fast // 2, 1))

    def forward(self, fast: Tensor, slow: Tensor) -> Tensor:
        batch, tokens, width = fast.shape
        side = round(tokens**0.5)
        aligned = as_tokens(self.slow_proj(F.gelu(self.slow_conv(slow))), tokens)
        picture = fast.transpose(1, 2).reshape(batch, width, side, side)
        local = self.fast_proj(F.gelu(self.fast_conv(picture))).flatten(2).transpose(1, 2)
        fast = fast + local
        gate = torch.tanh(self.gate(torch.cat((fast, aligned), -1).mean(1)))[:, None]  # [batch, 1, 1]
        return fast + gate * aligned


def as_tokens(features: Tensor, tokens: int) -> Tensor:
    """``[batch, channels, side, side]`` -> ``[batch, tokens, channels]``, resized to a square of ``tokens``."""
    side, wanted = features.shape[-1], round(tokens**0.5)
    if side < wanted:
        features = F.interpolate(features.float(), (wanted, wanted), mode="bilinear", align_corners=True).to(features)
    elif side > wanted:
        features = F.avg_pool2d(features, side // wanted)
    return features.flatten(2).transpose(1, 2)


def resample(positions: Tensor, side: int) -> Tensor:
    """``[1, 1 + n^2, width]`` -> ``[1, 1 + side^2, width]``, the first one kept apart; bicubic, antialiased."""
    first, grid = positions[:, :1], positions[:, 1:]
    old = round(grid.shape[1] ** 0.5)
    picture = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, (side, side), mode="bicubic", antialias=True)
    return torch.cat((first, picture.flatten(2).transpose(1, 2)), 1)


def llava_hr_fusion(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    """The final alignment and a latent adapter at slow grids of each kind, and the resampled positions."""
    config = case["config"]
    modules: dict[str, Any] = {"align_stages.0.": FinalAlign, "align_stages_latent.0.": LatentAdapter}
    built: list[Any] = []
    for prefix, module in modules.items():
        part = module(config["fast_dim"], config["slow_dim"])
        prefix = f"weights/{prefix}"
        part.load_state_dict({name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)})
        built.append(part)
    align, latent = built
    for name in config["slow_grids"]:
        slow = tensors[f"in/slow_{name}"]
        compare.close(f"align {name}", align(tensors["in/fast"], slow), tensors[f"out/align_{name}"], "forward")
        compare.close(f"latent {name}", latent(tensors["in/fast"], slow), tensors[f"out/latent_{name}"], "forward")
    for name in [name for name in tensors if name.startswith("out/pos_embed_")]:
        side = int(name.rsplit("x", 1)[1])
        compare.close("positions", resample(tensors["in/pos_embed"], side), tensors[name], "forward")
