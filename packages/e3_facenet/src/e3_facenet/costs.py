"""Multiply-accumulates of one view from closed formulas (FLOPs are twice that), and of parameters by part.

With n = (r / 2)^2 input pixels of the block of resolution r, T tokens and inner = heads head_dim:

    foreground   rays samples (60 h + 7 h^2 + h + h c + 3 c)      28 samples at full size
    block        n ci co + 5/4 n co^2 + 16 (4 n) co + 4 n co^2 + 3 (4 n) co
    enhancer     2 n ci inner + 2 T inner d + 2 n T inner + n ci + w n
    folded       scores n heads T ci (or through q), values n heads T, conv n ci, FC w n, and a text's K, V
"""

from __future__ import annotations

from e3_facenet.config import GeneratorConfig

TOKENS = 77


def field_macs(config: GeneratorConfig) -> dict[str, int]:
    """Foreground and background of one view: coarse and fine samples of every ray."""
    rays, c = config.nerf_resolution**2, config.feature_channels
    h, b = config.fg_hidden, config.bg_hidden
    fg = 60 * h + (config.fg_blocks - 1) * h * h + h + h * c + 3 * c
    bg = (80 + config.bg_dim) * b + (config.bg_blocks - 1) * b * b + b + b * c + 3 * c
    return {"foreground": rays * 2 * config.ray_samples * fg, "background": rays * config.bg_samples * bg}


def block_macs(config: GeneratorConfig, resolution: int) -> int:
    """One upsampling block."""
    n = (resolution // 2) ** 2
    d_in, d_out = config.block_channels(resolution)
    adapter = n * d_out * d_out * 5 // 4
    return n * d_in * d_out + adapter + 16 * 4 * n * d_out + 4 * n * d_out**2 + 3 * 4 * n * d_out


def enhancer_macs(config: GeneratorConfig, resolution: int, tokens: int = TOKENS) -> int:
    """One enhancer in its plain form, keys and values included."""
    n, d_in = (resolution // 2) ** 2, config.block_channels(resolution)[0]
    inner = config.heads * config.head_dim
    attention = 2 * n * d_in * inner + 2 * tokens * inner * config.token_dim + 2 * n * tokens * inner
    return attention + n * d_in + config.w_dim * n


def folded_macs(config: GeneratorConfig, resolution: int, tokens: int = TOKENS, text: bool = True) -> int:
    """One enhancer in its folded form.

    Args:
        text: count a text's keys and values as well, which all its views share.
    """
    n, d_in = (resolution // 2) ** 2, config.block_channels(resolution)[0]
    inner, scores = config.heads * config.head_dim, config.heads * tokens
    pixel = min(scores * d_in, inner * (d_in + tokens)) + scores + d_in + config.w_dim
    return n * pixel + (2 * tokens * inner * config.token_dim if text else 0)


def view_macs(config: GeneratorConfig, folded: bool = False, edit: bool = False) -> int:
    """One whole view; an edit runs every enhancer twice."""
    enhancer = folded_macs if folded else enhancer_macs
    total = sum(field_macs(config).values())
    for resolution in config.blocks:
        total += block_macs(config, resolution) + enhancer(config, resolution) * (2 if edit else 1)
    return total


def enhancer_share(config: GeneratorConfig) -> float:
    """The enhancers' share of a view in the plain form."""
    return sum(enhancer_macs(config, r) for r in config.blocks) / view_macs(config)
