"""LaVIN on disk: LLaMA, a CLIP tower and the authors' adapters into a folder of ours, and that folder opened again.

    lavin.json             sizes, skip list, format of the prompts, where the weights come from
    model*.safetensors     weights under our names; skipped attentions are left out
    tokenizer.model        LLaMA's

A folder holds all of a model, or its frozen parts alone (what a training starts from), or adapters alone (what a
training made), which are opened on top of the frozen parts.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eas.checkpoints import lavin_keys
from eas.checkpoints.description import check_divided, check_sites, check_sizes
from eas.checkpoints.lavin_sources import clip, llama, tower_sizes
from eas.checkpoints.lightning import read_lightning
from eas.lavin import LAVIN_7B, LAVIN_13B, Lavin, LavinConfig
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json, atomic_write_text, read_json
from tenfold.weights import StoredTensor, WeightFiles, check_fits, require_finite, write_weights

CONFIG, TOKENIZER, CARD, FORMAT = "lavin.json", "tokenizer.model", "README.md", "eas-lavin"
_BOUNDS = {"vocabulary": 10**6, "size": 4096}
# Sizes of what a tuning brings: adapters on the same frozen parts may differ in them.
_METHOD = ("skip", "adapter_rank", "pia_rank", "groups", "scale", "temperature", "dropout")
VISION_PROJECTION = 1024 * 768  # CLIP's, which LaVIN never uses and its count of the tower holds


@dataclass(frozen=True)
class LavinAbout:
    """What a folder says of itself.

    Attributes:
        prompt_format: of its questions. skipped: classes of objects beside the weights that were not read.
        host: fingerprint of the frozen parts that adapters were trained on. data: of what they were trained on.
        search: SHA-256 of the search result that gave the list; None: it was given.
    """

    prompt_format: str = "QCM-ALE"
    skipped: tuple[str, ...] = ()
    host: str = ""
    data: str = ""
    search: str | None = None


@dataclass(frozen=True)
class ConvertedLavin:
    """What was written: parameters of the method and frozen ones, and classes beside the weights that were not read."""

    output: Path
    config: LavinConfig
    trained: int
    frozen: int
    skipped: tuple[str, ...]


def convert_lavin(
    source: str | Path | None,
    target: str | Path,
    *,
    base: str | Path,
    tower: str | Path,
    skip: tuple[int, ...] = (),
    prompt_format: str = "QCM-ALE",
) -> ConvertedLavin:
    """Put a checkpoint of the authors' training together with its frozen parts; one tensor in memory at a time.

    Args:
        source: ``checkpoint-<epoch>.pth``; None: the frozen parts alone, for a training.
        base: LLaMA's folder. tower: CLIP ViT-L/14's.
        skip: the layers without attention: a checkpoint holds both modules of every layer and does not say it.

    Raises:
        UserError: a file that is missing or broken, weights that are missing, have no place or another shape.
    """
    state: dict[str, Tensor] = {}
    skipped: list[str] = []
    if source is not None:
        state, skipped = read_lightning(source, "model")
    method = lavin_keys.from_official_tensors(state)
    if stranger := next((name for name in method if not lavin_keys.is_method(name)), None):
        raise UserError(f"{stranger} is no weight of LaVIN-EAS", source, "adapters, projector, modality embedding")
    with llama(base) as (frozen, sizes), WeightFiles(tower) as files:
        vision = clip(files, tower)
        config = tower_sizes(replace(sizes, skip=tuple(sorted(skip))), vision, Path(tower))
        config = config if source is None else _sizes(config, method, source)
        with torch.device("meta"):
            both = dict(Lavin(config, both=True).trained())
            wanted = Lavin(config).state_dict()
        if source is None:
            wanted = {name: tensor for name, tensor in wanted.items() if not lavin_keys.is_method(name)}
        else:
            check_fits(both, method, source)
        require_finite(method, source or base)
        stored = {name: StoredTensor.of(value.float()) for name, value in method.items() if name in wanted}
        for name, tensor in (frozen | vision).items():
            if name in wanted:
                stored[name] = tensor
        _check(wanted, stored, base, tower)
        about = LavinAbout(prompt_format, tuple(skipped))
        _write(target, config, about, {name: stored[name] for name in wanted}, _tokenizer(Path(base)))
    trained = sum(stored[name].numbers for name in wanted if lavin_keys.is_method(name))
    total = sum(stored[name].numbers for name in wanted)
    return ConvertedLavin(Path(target), config, trained, total - trained, tuple(skipped))


def _write(
    target: str | Path,
    config: LavinConfig,
    about: LavinAbout,
    weights: Mapping[str, StoredTensor],
    tokenizer: Path | None = None,
    card: str | None = None,
) -> None:
    with atomic_directory(target) as folder:
        if card is not None:
            atomic_write_text(folder / CARD, card)
        atomic_write_json(folder / CONFIG, {"format": FORMAT, "config": asdict(config), "about": asdict(about)})
        write_weights(folder, weights)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, folder / TOKENIZER)


def write_adapters(target: str | Path, model: Lavin, about: LavinAbout) -> None:
    """Write what a tuning made, without the frozen parts, and a model card into a new folder, whole or not at all."""
    weights = {name: StoredTensor.of(value.detach().cpu()) for name, value in model.trained()}
    _write(target, model.config, about, weights, card=_card(model.config, about))


def _card(config: LavinConfig, about: LavinAbout) -> str:
    skipped = ", ".join(map(str, config.skip)) or "none"
    told = [
        f"Skips the attention of layers {skipped} of {config.layers}; adapter rank {config.adapter_rank}, PIA rank "
        f"{config.pia_rank} (Wu et al., 2024, arXiv 2403.15226).",
        f"Frozen parts: `{about.host}`: LLaMA and CLIP, whose licences hold for what is derived from them.",
        f"Trained on: `{about.data}`, prompts in the format {about.prompt_format}.",
        "Its run.json stands beside this folder.",
    ]
    if about.search:
        told.append(f"The list was found by the search with SHA-256 `{about.search}`.")
    header = "---\nlicense: other\nlibrary_name: eas\ntags:\n- eas\n- attention-skipping\n- adapters\n---\n"
    use = "```sh\neas eval FROZEN_PARTS --adapters THIS_FOLDER --benchmark scienceqa --data scienceqa\n```\n"
    return header + "# LaVIN-EAS adapters\n\n" + "".join(f"{line}\n" for line in told) + "\n" + use


def _tokenizer(base: Path) -> Path | None:
    # Meta's lies beside the folder of the weights.
    return next((one for one in (base / TOKENIZER, base.parent / TOKENIZER) if one.is_file()), None)


def _sizes(config: LavinConfig, method: Mapping[str, Tensor], where: str | Path) -> LavinConfig:
    """With the ranks that the method's weights show."""
    names = {"adapter_rank": "layers.0.adapter.A.bias", "pia_rank": "layers.0.pia.A.bias"}
    names |= {"tower_rank": f"{lavin_keys.VISUAL}transformer.resblocks.0.adapter.A.bias"}
    names |= {"hidden_proj": "adapter_proj.conv_A.bias"}
    if missing := [name for name in names.values() if name not in method]:
        raise UserError(f"no weight {missing[0]}", where, "a checkpoint of LaVIN-EAS")
    return replace(config, **{field: len(method[name]) for field, name in names.items()})  # type: ignore[arg-type]


def _check(wanted: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], base: Any, tower: Any) -> None:
    for name, tensor in wanted.items():
        where = tower if name.startswith(lavin_keys.VISUAL) else base
        if name not in stored:
            raise UserError(f"no weight {name}", where, "all of the frozen parts")
        if stored[name].shape != tuple(tensor.shape):
            raise UserError(f"{name} {list(stored[name].shape)}", where, f"{list(tensor.shape)}")


def read_lavin_about(folder: str | Path) -> tuple[LavinConfig, LavinAbout]:
    """A folder's sizes and what it says of itself. Raises UserError for a missing or broken ``lavin.json``."""
    path = Path(folder) / CONFIG
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"format", "config", "about"} or content["format"] != FORMAT:
        raise UserError("no LaVIN of ours", path, f"format {FORMAT}, config, about: what eas convert writes")
    about, names = content["about"], [field.name for field in fields(LavinAbout)]
    if not isinstance(about, dict) or not {"prompt_format"} <= set(about) <= set(names):
        raise UserError("about is of another form", path, ", ".join(names))
    skipped = about.get("skipped", [])
    if not isinstance(skipped, list) or not all(isinstance(one, str) for one in skipped):
        raise UserError("skipped is no list of texts", path, "classes beside the weights")
    told = LavinAbout(**about | {"skipped": tuple(skipped)})
    texts = (told.prompt_format, told.host, told.data, "" if told.search is None else told.search)
    if not all(isinstance(one, str) for one in texts):
        raise UserError("prompt_format, host, data or search is no text", path, "texts")
    values = content["config"]
    check_sizes(LavinConfig(), values, path, _BOUNDS)
    check_sites(values["skip"], values["layers"], path)
    config = LavinConfig(**values | {"skip": tuple(values["skip"])})
    pairs = [(config.width, 2 * config.heads), (config.vision_width, config.vision_heads), (config.size, config.patch)]
    pairs += [(rank, config.groups) for rank in (config.adapter_rank, config.pia_rank, config.tower_rank, config.width)]
    check_divided([*pairs, (config.vision_layers, config.features), (config.vision_width, config.groups)], path)
    if not config.temperature > 0 or not config.norm_eps > 0:
        raise UserError("temperature or norm_eps 0", path, "above 0")
    return config, told


def open_lavin(
    folder: str | Path, *, dtype: torch.dtype | None = None, adapters: str | Path | None = None
) -> tuple[Lavin, str]:
    """The model of a folder, in eval mode, on the CPU, and the format of its prompts.

    Args:
        dtype: of the frozen weights; None: as they are stored. What a tuning made stays in float32.
        adapters: a folder that `eas tune` wrote: the frozen weights alone are taken from `folder`.

    Raises:
        UserError: a broken file, or weights that do not fit what ``lavin.json`` says.
    """
    config, about = read_lavin_about(folder)
    if adapters is not None:
        tuned, about = read_lavin_about(adapters)
        if replace(tuned, **{name: getattr(config, name) for name in _METHOD}) != config:
            raise UserError("adapters of another LaVIN", adapters, f"those of {folder}")
        config = tuned
    with torch.device("meta"):
        model = Lavin(config)
    wanted = model.state_dict()
    with ExitStack() as stack:
        stored = stack.enter_context(WeightFiles(folder)).tensors
        if adapters is not None:
            stored = {name: one for name, one in stored.items() if name in wanted and not lavin_keys.is_method(name)}
            stored = {**stored, **stack.enter_context(WeightFiles(adapters)).tensors}
        elif not any(map(lavin_keys.is_method, stored)):
            raise UserError("frozen weights alone", folder, "adapters to them, which eas tune writes")
        check_fits(wanted, {name: _Shape(one.shape) for name, one in stored.items()}, adapters or folder)  # type: ignore[misc]
        for name, one in stored.items():
            method = lavin_keys.is_method(name)
            value = _read(name, one, adapters if method and adapters else folder, None if method else dtype)
            model.load_state_dict({name: value}, strict=False, assign=True)
    return model.eval(), about.prompt_format


def read_frozen(folder: str | Path, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The frozen weights of a folder, whatever a tuning made beside them.

    Raises:
        UserError: a broken file, or a number that is none.
    """
    with WeightFiles(folder) as files:
        frozen = {name: one for name, one in files.tensors.items() if not lavin_keys.is_method(name)}
        return {name: _read(name, one, folder, dtype).to(device) for name, one in frozen.items()}


def _read(name: str, stored: StoredTensor, where: str | Path, dtype: torch.dtype | None) -> Tensor:
    value = stored.read()
    require_finite({name: value}, where)
    return value if dtype is None else value.to(dtype)


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]


def key_report(host: str, golden: Mapping[str, Any]) -> tuple[int, int, list[str]]:
    """Compare names, shapes and counts at full size, without memory.

    Args:
        host: "lavin_7b" or "lavin_13b". golden: ``official_keys.json``.

    Returns:
        Names, parameters of adapters in a checkpoint, and what differs.
    """
    entry, config = golden[host], LAVIN_7B if host == "lavin_7b" else LAVIN_13B
    with torch.device("meta"):
        model = Lavin(config, both=True)
    ours = {
        lavin_keys.PREFIX + lavin_keys.to_official(name): list(lavin_keys.official_shape(name, tuple(value.shape)))
        for name, value in model.trained()
    }
    theirs = entry["keys"]
    wrong = [
        f"{name}: {ours.get(name, 'missing')}, official {theirs.get(name, 'none')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    method = sum(value.numel() for _, value in model.trained())
    frozen = {name: value.numel() for name, value in model.named_parameters() if not lavin_keys.is_method(name)}
    visual = sum(count for name, count in frozen.items() if name.startswith(lavin_keys.VISUAL))
    counts = {"all_adapter_named": method, "visual": visual + VISION_PROJECTION, "llama": sum(frozen.values()) - visual}
    for name in (one for one in entry["counts"] if one.startswith("active_trainable_skip")):
        removed = int(name.removeprefix("active_trainable_skip"))
        unused = re.compile(rf"layers\.({'|'.join(map(str, range(removed)))})\.adapter\..*") if removed else None
        kept = re.compile(rf"layers\.({'|'.join(map(str, range(removed, config.layers)))})\.pia\..*")
        counts[name] = sum(
            value.numel()
            for one, value in model.trained()
            if not kept.fullmatch(one) and not (unused and unused.fullmatch(one))
        )
    wrong += [
        f"{name}: {count:,} parameters, official {entry['counts'][name]:,}"
        for name, count in counts.items()
        if count != entry["counts"][name]
    ]
    return len(ours), method, wrong
