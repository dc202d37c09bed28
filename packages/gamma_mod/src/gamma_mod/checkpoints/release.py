"""An official gamma-MoD release, opened: its settings, the host's weights, the router.

Releases are folders of a LLaVA-HR (or Mini-Gemini) in its official layout whose config.json has a field ``mod`` and
whose converted layers hold the router. What is what is read off the config's ``model_type`` and ``mod``, never off the
folder's name: the authors' loader takes every folder with "mod" in its name, "a-model" too, for a converted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gamma_mod.checkpoints.keys import is_derived, is_router, shared_router
from gamma_mod.config import GammaModConfig
from gamma_mod.placement import place
from tenfold import UserError
from tenfold.hosts.checkpoints import read_settings
from tenfold.weights import StoredTensor, WeightFiles, require_finite

# Released model types -> the host's own.
HOST_TYPES = {"mod_llava_llama": "llava", "mod_mgm": "mgm"}
MOD = "mod"


@dataclass(frozen=True)
class Release:
    """An official folder.

    Attributes:
        folder: where it lies.
        settings: its config.json.
        config: the conversion in our terms. The routing ratio is not on record (``capacity_factor`` has no effect in
            the authors' code); it matters to training only.
        num_layers: decoder layers.
        host: official name -> weight of the host.
        router: ``[2, width]``.
    """

    folder: Path
    settings: dict[str, Any]
    config: GammaModConfig
    num_layers: int
    host: Mapping[str, StoredTensor]
    router: Tensor


def is_release(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a converted model in the official layout."""
    return settings.get("model_type") in HOST_TYPES and isinstance(settings.get(MOD), dict)


def read_release(folder: Path, files: ExitStack) -> Release:
    """Open a release; the host's weights are read when they are asked for, as long as ``files`` is open.

    Raises:
        UserError: not a release; a broken, missing or truncated file; routers that are missing, not finite, of another
            shape, or differ between layers.
    """
    settings = read_settings(folder)
    path = folder / "config.json"
    if not is_release(settings):
        what = f"not a gamma-MoD release (model_type {settings.get('model_type')!r})"
        raise UserError(what, path, f"model_type {' or '.join(HOST_TYPES)} and a field mod")
    num_layers, width = (_integer(settings, name, path) for name in ("num_hidden_layers", "hidden_size"))
    layers = _layers(settings[MOD], num_layers, path)
    stored = files.enter_context(WeightFiles(folder)).tensors
    routers = {name: tensor.read() for name, tensor in stored.items() if is_router(name)}
    router = shared_router(routers, layers, folder)
    if tuple(router.shape) != (2, width):
        raise UserError(f"a router of shape {list(router.shape)}", folder, f"[2, {width}] by its config")
    require_finite({"router.weight": router}, folder)
    host = {name: tensor for name, tensor in stored.items() if name not in routers and not is_derived(name)}
    if not host:
        raise UserError("no weights beside the router", folder, "a whole model")
    coefficient = settings[MOD].get("router_aux_loss_coef", 0.01)
    if not isinstance(coefficient, int | float) or isinstance(coefficient, bool):
        raise UserError(f"router_aux_loss_coef {coefficient!r}", path, "a number")
    config = GammaModConfig.preset("released", layers=layers, aux_coefficient=float(coefficient))
    return Release(folder, settings, config, num_layers, host, router)


def _layers(mod: Mapping[str, Any], num_layers: int, path: Path) -> tuple[int, ...]:
    """``mod_layers_idx`` is the truth; where it is not there, the placement by name."""
    layers = mod.get("mod_layers_idx")
    if layers is None:
        return place(str(mod.get("mod_mode")), num_layers)
    if not isinstance(layers, list) or not layers or any(type(layer) is not int for layer in layers):
        raise UserError("mod_layers_idx", path, "a list of layers")
    if sorted(set(layers)) != layers or layers[0] < 0 or layers[-1] >= num_layers:
        raise UserError(f"mod_layers_idx {str(layers)[:60]}", path, f"0 to {num_layers - 1}, each once, in order")
    return tuple(layers)


def _integer(settings: Mapping[str, Any], name: str, path: Path) -> int:
    value = settings.get(name)
    if type(value) is not int or not 0 < value < 1 << 20:
        raise UserError(f"{name} {value!r}", path, "a positive integer")
    return value
