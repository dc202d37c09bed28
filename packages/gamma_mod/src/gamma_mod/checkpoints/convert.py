"""`gamma-mod convert`: an official release to a host without router plus this package's two files, and back.

The host stays in its own official layout, which that host's own tools read (LLaVA-HR's: `llava-hr convert`);
`gamma_mod.json` and `gamma_mod.safetensors` stand beside it. Both ways weights are copied bit for bit, one shard in
memory at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gamma_mod.checkpoints.keys import router_key
from gamma_mod.checkpoints.release import HOST_TYPES, MOD, read_release
from gamma_mod.config import GammaModConfig
from gamma_mod.placement import place
from gamma_mod.storage import CONFIG, WEIGHTS, read_beside, write_beside
from tenfold import UserError
from tenfold.hosts.checkpoints import read_settings
from tenfold.runs import atomic_directory, atomic_write_json
from tenfold.weights import SHARD_BYTES, StoredTensor, WeightFiles, count_numbers, write_weights

_WEIGHT_SUFFIXES = (".bin", ".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        output: the folder.
        parameters: of host and router, the router counted once.
        layers: the converted layers.
    """

    output: Path
    parameters: int
    layers: tuple[int, ...]


def convert_release(
    source: Path, target: Path, *, routing_ratio: float | None = None, shard_bytes: int = SHARD_BYTES
) -> Converted:
    """An official release to a host in its official layout, and the two files of this package.

    Args:
        routing_ratio: what it was trained with, for training it further; not on record in a release.

    Raises:
        UserError: as `read_release`; ``target`` exists; a ratio out of range.
    """
    with ExitStack() as files:
        release = read_release(source, files)
        config = release.config
        if routing_ratio is not None:
            config = config.changed(routing_ratio=routing_ratio)
        with atomic_directory(target) as folder:
            write_weights(folder, release.host, shard_bytes)
            settings = {name: value for name, value in release.settings.items() if name != MOD}
            settings |= {"model_type": HOST_TYPES[release.settings["model_type"]]}
            if "architectures" in settings:
                settings["architectures"] = [_host_class(name) for name in settings["architectures"]]
            atomic_write_json(folder / "config.json", settings)
            write_beside(folder, config, release.router, release.num_layers)
            _copy_others(source, folder, leave=("config.json",))
        total = count_numbers(release.host.values()) + release.router.numel()
    return Converted(target, total, config.layers)


def convert_back(source: Path, target: Path, *, shard_bytes: int = SHARD_BYTES) -> Converted:
    """A host in its official layout with this package's files beside it, to one folder as the authors release it.

    Raises:
        UserError: a file is missing or broken; a host whose official code knows no conversion; routers that are not
            shared, which the official layout cannot hold; ``target`` exists.
    """
    config, router, num_layers = read_beside(source)
    settings = read_settings(source)
    types = {host: released for released, host in HOST_TYPES.items()}
    if settings.get("model_type") not in types:
        what = f"a host of model_type {settings.get('model_type')!r}"
        raise UserError(what, source / "config.json", f"{' or '.join(types)}, in the official layout")
    if router.ndim != 2:
        raise UserError("routers that are not shared", source / WEIGHTS, "one router for all layers")
    with ExitStack() as files:
        host = files.enter_context(WeightFiles(source)).tensors
        stored = dict(host) | {router_key(layer): StoredTensor.of(router) for layer in config.layers}
        with atomic_directory(target) as folder:
            write_weights(folder, stored, shard_bytes)
            mod = _official_mod(config, num_layers)
            architectures = [_released_class(name) for name in settings.get("architectures") or ()]
            kept = {name: value for name, value in settings.items() if name != "architectures"}
            kept |= {"model_type": types[settings["model_type"]], MOD: mod}
            if architectures:
                kept["architectures"] = architectures
            atomic_write_json(folder / "config.json", kept)
            _copy_others(source, folder, leave=("config.json", CONFIG, WEIGHTS))
        total = count_numbers(host.values()) + router.numel()
    return Converted(target, total, config.layers)


def _official_mod(config: GammaModConfig, num_layers: int) -> dict[str, Any]:
    named = num_layers > 4 and config.layers == place("arank_mod", num_layers)
    return {
        "mod_enable": True,
        "mod_mode": "arank_mod" if named else "custom",
        "mod_layers_idx": list(config.layers),
        "capacity_factor": 0.5,  # without effect there
        "router_aux_loss_coef": config.aux_coefficient,
    }


def _host_class(name: str) -> str:
    return {"MoDLlavaLlamaForCausalLM": "LlavaLlamaForCausalLM", "MoDMGMLlamaForCausalLM": "MGMLlamaForCausalLM"}.get(
        name, name
    )


def _released_class(name: str) -> str:
    return {"LlavaLlamaForCausalLM": "MoDLlavaLlamaForCausalLM", "MGMLlamaForCausalLM": "MoDMGMLlamaForCausalLM"}.get(
        name, name
    )


def _copy_others(source: Path, target: Path, leave: Iterable[str]) -> None:
    """Tokenizer, generation settings and folders that the config names; no weights, and no index of them."""
    for path in sorted(source.iterdir()):
        if path.name in leave or path.suffix in _WEIGHT_SUFFIXES or path.name.endswith(".index.json"):
            continue
        if path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
