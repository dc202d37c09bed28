"""What a conversion adds to a checkpoint: ``gamma_mod.json`` (the knobs) and ``gamma_mod.safetensors`` (the router).

Both stand in the folder of the host's own files, so a host can be loaded without them, and they without the host.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gamma_mod.config import GammaModConfig
from tenfold import UserError
from tenfold.runs import atomic_write_bytes, atomic_write_json, atomic_write_text, read_json

CONFIG, WEIGHTS = "gamma_mod.json", "gamma_mod.safetensors"
FORMAT = "gamma_mod/1"
ROUTER = "router.weight"


def write_beside(folder: str | os.PathLike[str], config: GammaModConfig, router: Tensor, num_layers: int) -> None:
    """Write both files into a folder.

    Args:
        router: ``[2, width]``, or ``[layers, 2, width]`` where they are not shared.
        num_layers: decoder layers of the host.
    """
    described: dict[str, Any] = {"format": FORMAT, "num_layers": num_layers, "width": router.shape[-1]}
    atomic_write_bytes(Path(folder) / WEIGHTS, save({ROUTER: router.detach().cpu().contiguous()}))
    atomic_write_json(Path(folder) / CONFIG, described | {"config": config.to_dict()})


def write_card(
    folder: str | os.PathLike[str], config: GammaModConfig, base: str | None = None, run: str | None = None
) -> None:
    """A model card, where there is none yet: what was converted, how, and by which run.

    Args:
        base: hub id of the host; anything else, such as a folder of this machine, is left out.
        run: id of the run that trained it; with one, a card that is there is replaced.
    """
    path = Path(folder) / "README.md"
    if path.exists() and run is None:
        return
    known = base is not None and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", base) and not Path(base).exists()
    head = ["---", "library_name: transformers", "license: other", "tags:", "- gamma-mod", "- mixture-of-depths"]
    head += [f"base_model: {base}"] if known else []
    layers = ", ".join(map(str, config.layers))
    lines = [
        *head,
        "---",
        "",
        "# A mixture-of-depths model (gamma-MoD)",
        "",
        f"Decoder layers {layers} let tokens pass by. Routing ratio in training {config.routing_ratio:g}, protected: "
        f"{config.protect}; thresholds at inference {config.prefill_threshold:g} (prompts) and "
        f"{config.decode_threshold:g} (generated tokens).",
        "",
        f"Trained by run `{run}`." if run else "Not trained by a run of gamma-mod, or not recorded by one.",
        "",
        "Load it with `gamma_mod.load`, or the dense host alone with transformers. The licence is that of the host.",
        "",
    ]
    atomic_write_text(path, "\n".join(lines))


def read_beside(folder: str | os.PathLike[str]) -> tuple[GammaModConfig, Tensor, int]:
    """Read them: the knobs, the router's weight, and the host's number of layers.

    Raises:
        UserError: a file is missing or not what `write_beside` wrote; a weight that is not finite.
    """
    path = Path(folder) / CONFIG
    described = read_json(path)
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise UserError("no gamma-MoD conversion", path, f"a json object of format {FORMAT}")
    config = GammaModConfig.from_dict(described.get("config"), path)
    num_layers, width = described.get("num_layers"), described.get("width")
    if type(num_layers) is not int or type(width) is not int or not 0 < width < 1 << 20:
        raise UserError("num_layers or width", path, "integers")
    if config.layers[-1] >= num_layers:
        raise UserError(f"layer {config.layers[-1]}", path, f"0 to {num_layers - 1}")
    weights = Path(folder) / WEIGHTS
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"not readable: {error}", weights, "a safetensors file") from error
    shape = (2, width) if config.shared_router or len(config.layers) == 1 else (len(config.layers), 2, width)
    router = tensors.get(ROUTER)
    if router is None or set(tensors) != {ROUTER} or tuple(router.shape) != shape or not router.is_floating_point():
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:3])
        raise UserError(found or "no tensor", weights, f"{ROUTER} {list(shape)}")
    if not bool(torch.isfinite(router).all()):
        raise UserError("a router that is not finite", weights, "finite weights")
    return config, router, num_layers
