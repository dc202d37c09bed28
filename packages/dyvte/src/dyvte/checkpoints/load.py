"""Gates on disk: a folder of their own, an official checkpoint that has them inside, or a repository on the hub.

Official training writes them into a full copy of LLaVA, 14 GB around 1 GB; here they are saved alone:

    gates/gates.json            dimensions, what they read, what they were trained on
    gates/gates.safetensors
    gates/README.md             a model card
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dyvte.checkpoints.keys import GATES, gate_config, gates_from_official
from dyvte.gates import GateConfig, Gates
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_bytes, atomic_write_json, atomic_write_text, read_json
from tenfold.weights import WeightFiles, load_into

CONFIG, WEIGHTS, CARD = "gates.json", "gates.safetensors", "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_CARD = """---
license: apache-2.0
base_model: {base}
tags:
- vision-language
- dynamic-visual-token-exit
- dyvte
---

# DyVTE gates for {base}

{layers} gates of width {width} for a decoder of width {hidden}, which let the visual tokens leave after the layer from
which on they no longer change the answer (Wu et al., NeurIPS 2025). The base model is unchanged; its licence applies to
it.

Trained on: {data}. Run: {run}.

    gates = dyvte.load_gates("this folder")
    with dyvte.VisualExit(gates)(model):
        model.generate(**inputs)
"""


def save_gates(gates: Gates, folder: str | Path, made: Mapping[str, Any] | None = None) -> Path:
    """Write gates into a new folder, whole or not at all.

    Args:
        gates: on any device.
        folder: must not exist yet.
        made: plain facts that are kept with them: "base" (the host), "data", "run", ...

    Raises:
        UserError: the folder exists or cannot be written.
    """
    with atomic_directory(folder) as new:
        write_gates(gates, new, made)
    return Path(folder)


def write_gates(gates: Gates, folder: Path, made: Mapping[str, Any] | None = None) -> None:
    """The three files of `save_gates`, into a folder that is there."""
    facts = dict(made or {})
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in gates.state_dict().items()}
    atomic_write_json(folder / CONFIG, {"gates": gates.config.to_dict(), "made": facts})
    atomic_write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    told = {name: facts.get(name) or "not recorded" for name in ("base", "data", "run")}
    config = gates.config
    atomic_write_text(
        folder / CARD, _CARD.format(**told, layers=config.layers, width=config.width, hidden=config.hidden)
    )


def load_gates(source: str | Path, *, dtype: torch.dtype | None = None, revision: str | None = None) -> Gates:
    """Gates from a folder of `save_gates`, an official checkpoint (a folder or a file), or a repository on the hub.

    Args:
        source: where; a name like ``user/gates`` that is no path here is looked up on the hub.
        dtype: None keeps the stored one.
        revision: of the repository on the hub.

    Returns:
        The gates, on the CPU, in eval mode, without gradients.

    Raises:
        UserError: nothing there, a broken or truncated file, weights that are missing, of another shape or not
            finite, or a checkpoint without gates.
    """
    path = _find(source, revision)
    if (path / CONFIG).is_file():
        config, weights = _own(path)
    else:
        config, weights = _official(path)
    gates = Gates(config, dtype=dtype or next(iter(weights.values())).dtype)
    load_into(gates, weights, path)
    return gates.eval().requires_grad_(False)


def push_gates(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a folder of `save_gates` to a repository on the hub; returns its address.

    Raises:
        UserError: the folder holds no gates.
    """
    load_gates(folder)
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=[CONFIG, WEIGHTS, CARD])
    return str(address)


def _find(source: str | Path, revision: str | None) -> Path:
    path = Path(source)
    if path.exists():
        return path
    if not HUB_ID.fullmatch(str(source)):
        raise UserError("no such gates", source, "a folder, a checkpoint, or a repository on the hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"not on the hub, or it cannot be reached ({reason[:80]})", source, "a local folder") from error


def _own(folder: Path) -> tuple[GateConfig, dict[str, torch.Tensor]]:
    where = folder / CONFIG
    content = read_json(where)
    if not isinstance(content, dict) or not isinstance(content.get("gates"), dict):
        raise UserError("no dimensions of gates", where, '{"gates": {...}}')
    config = GateConfig.of(content["gates"], where)
    if not (folder / WEIGHTS).is_file():
        raise UserError("no such file", folder / WEIGHTS, "the weights beside gates.json")
    with WeightFiles(folder / WEIGHTS) as files:
        return config, _read(files, {name: name for name in files.tensors}, config, folder)


def _official(path: Path) -> tuple[GateConfig, dict[str, torch.Tensor]]:
    with WeightFiles(path) as files:
        names = gates_from_official(files.tensors)
        if strange := [name for name in files.tensors if name.startswith(GATES) and name not in names]:
            raise UserError(f"a gate weight {strange[0]}", path, f"{GATES}0.w1.weight and so on")
        config = gate_config({ours: files.tensors[name].shape for name, ours in names.items()}, path)
        return config, _read(files, names, config, path)


def _read(files: WeightFiles, names: Mapping[str, str], config: GateConfig, where: Path) -> dict[str, torch.Tensor]:
    """The named tensors; shapes are compared before any value is read or memory taken."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Gates(config, device="meta").state_dict().items()}
    found = {ours: files.tensors[name].shape for name, ours in names.items()}
    if found != expected:
        wrong = next(name for name in sorted(found.keys() | expected) if found.get(name) != expected.get(name))
        got, needed = found.get(wrong, "nothing"), expected.get(wrong, "nothing")
        raise UserError(f"{wrong} is {list(got) if isinstance(got, tuple) else got}", where, f"{needed} by its config")
    return {ours: files.tensors[name].read() for name, ours in names.items()}
