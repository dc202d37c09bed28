"""What a DTNet costs, counted: multiply-accumulates of its matrix products and convolutions (FLOPs are 2 x MACs).

Norms, activations, softmax and sums are left out, and so is the geometry bias (`geometry_macs`), which does not depend
on the image.
"""

from __future__ import annotations

from collections.abc import Mapping

from dtnet.config import DTNetConfig


def cell_macs(config: DTNetConfig) -> dict[str, int]:
    """One layer's cells, for one image, by name."""
    n, d, heads = config.positions, config.d_model, config.heads
    every = {
        "lmc": 2 * n * (1 + 1 + 9),
        "amc": 2 * n * config.grid * d + 3 * n * d**2,
        "gmc": n * d * heads * 2 * (config.d_k + config.d_v) + n**2 * heads * (config.d_k + config.d_v),
        "cac": 2 * d * (d // config.se_reduction),
        "cpc": 2 * n * d * config.d_ff,
    }
    return {name: every[name] for name in config.cells}


def router_macs(config: DTNetConfig, paths: int) -> int:
    """A router over `paths` cells, for one image."""
    if config.routing == "uniform" or paths == 1:
        return 0
    n, d = config.positions, config.d_model
    over_positions, over_channels = n // config.router_reductions[0], d // config.router_reductions[1]
    spatial = n * over_positions + over_positions * paths
    channel = d * over_channels + over_channels * paths
    joint = 2 * paths * paths + paths * paths
    return {"joint": spatial + channel + joint, "spatial": spatial, "channel": channel}[config.routing]


def layer_macs(config: DTNetConfig) -> int:
    """One dynamic encoder layer, for one image. All cells are computed, whatever their weights."""
    spaces = (config.spatial_cells, config.channel_cells)
    return sum(cell_macs(config).values()) + sum(router_macs(config, len(cells)) for cells in spaces)


def encoder_macs(config: DTNetConfig) -> int:
    """The whole encoder, for one image: the input projection and every layer."""
    return config.positions * config.d_in * config.d_model + config.encoder_layers * layer_macs(config)


def geometry_macs(config: DTNetConfig) -> int:
    """The geometry bias: once a batch."""
    return 64 * config.heads * config.positions**2 if "gmc" in config.cells else 0


def teacher_macs(config: DTNetConfig, length: int) -> int:
    """The decoder over a caption of `length` words at once, with full (not halved) attention matrices."""
    n, d, width = config.positions, config.d_model, config.heads * (config.d_k + config.d_v)
    projections = 3 * length * d * width + n * d * width  # twice q and o, once k and v | k and v of the image
    attention = (length**2 + length * n) * width
    layer = projections + attention + 2 * length * d * config.d_ff
    return config.decoder_layers * layer + length * d * config.vocabulary_size


def memory_macs(config: DTNetConfig) -> int:
    """Keys and values of the image for the decoder's cross-attention: once an image."""
    width = config.heads * (config.d_k + config.d_v)
    return config.decoder_layers * config.positions * config.d_model * width


def step_macs(config: DTNetConfig, position: int, *, cached: bool = True) -> int:
    """The decoder's work for one word of one beam.

    Args:
        position: t, the words that self-attention sees, this one included.
        cached: keys and values are kept; otherwise those of all t words and of the image are projected again, as in the
            official code.
    """
    n, d, width = config.positions, config.d_model, config.heads * (config.d_k + config.d_v)
    own = d * width + (1 if cached else position) * d * width + position * width  # q, o | k, v | attention
    cross = d * width + (0 if cached else n * d * width) + n * width
    layer = own + cross + 2 * d * config.d_ff
    return config.decoder_layers * layer + d * config.vocabulary_size


def caption_macs(config: DTNetConfig, beam_size: int = 5, max_len: int = 20, *, cached: bool = True) -> int:
    """The decoder's work for one image: all `max_len` steps, of one beam in the first and of all in the others.

    With a cache, the keys and values of the image besides.
    """
    first, *rest = (step_macs(config, position, cached=cached) for position in range(1, max_len + 1))
    return first + beam_size * sum(rest) + (memory_macs(config) if cached else 0)


def table(config: DTNetConfig | None = None) -> Mapping[str, float]:
    """Millions of MACs, at full size by default: the encoder, one layer's cells, and a caption of 5 beams."""
    config = DTNetConfig() if config is None else config
    cells = cell_macs(config)
    small = layer_macs(config) - sum(cells.get(name, 0) for name in ("gmc", "cpc", "amc"))
    rows: dict[str, int] = {
        "input projection": config.positions * config.d_in * config.d_model,
        **{name: cells[name] for name in ("gmc", "cpc", "amc") if name in cells},
        "small cells and routers": small,
        "encoder layer": layer_macs(config),
        "encoder": encoder_macs(config),
        "decoder step, t = 10": step_macs(config, 10),
        "decoder step, t = 10, re-projected": step_macs(config, 10, cached=False),
        "caption": caption_macs(config),
        "caption, re-projected": caption_macs(config, cached=False),
    }
    return {name: macs / 1e6 for name, macs in rows.items()}
