"""`llava-hr convert`: official folders and files into this package's, and back (sheet section 4).

    convert("llava-hr-7b-sft-1024", "llava-hr-7b")
    convert("llava-hr-7b", "official", to="official")
    convert("mm_projector.bin", "projector.safetensors")  # stage 1, either way

Weights keep their values and types bit for bit. What the official files hold and no computation uses (ConvNeXt's head,
CLIP's last norm, buffers) goes, with the official config and tokenizer files, into a folder `official` of the output;
with it the way back gives every tensor and every side file again. The weights' files are safetensors, whatever they
were.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_hr.checkpoints import projector
from llava_hr.checkpoints.keys import (
    ADAPTERS,
    CONVNEXT,
    TOWER,
    TOWER_FOLDER,
    UNUSED,
    VIT,
    TowerConfig,
    config_to_official,
    config_to_ours,
    renamed,
    to_official,
    unused_shapes,
)
from llava_hr.checkpoints.load import find_model
from llava_hr.checkpoints.release import (
    Release,
    copy_own_tokenizer,
    copy_side_files,
    generation_config,
    meta_state,
    processor,
    read_release,
    read_tokenizer,
)
from llava_hr.configuration import LlavaHrConfig
from tenfold import UserError
from tenfold.hosts.checkpoints import check_weights, compared, read_config, require_type
from tenfold.runs import atomic_directory, atomic_write_json, read_json
from tenfold.weights import (
    SHARD_BYTES,
    StoredTensor,
    WeightFiles,
    count_numbers,
    has_weights,
    write_file,
    write_weights,
)

logger = logging.getLogger(__name__)

# In a converted folder: what only the way back needs.
KEPT = "official"
UNUSED_FILE = "unused.safetensors"
FORMATS = ("ours", "official")
# Part of the model -> what our names begin with.
PARTS = {
    "language model": ("model.language_model.", "lm_head."),
    "ConvNeXt": ("model.vision_tower.convnext.",),
    "ViT": ("model.vision_tower.vit.",),
    "MR-Adapters": ("model.vision_tower.adapters.",),
    "final align": ("model.vision_tower.align.",),
    "projector": ("model.multi_modal_projector.",),
}


@dataclass(frozen=True)
class Conversion:
    """What `convert` made.

    Attributes:
        output: the new folder or file.
        parameters: numbers in each part of the model, by the names of `PARTS`.
        kept_aside: official tensors that no computation uses, kept for the way back; or that came back from there.
        made_up: official tensors that no computation uses and that had to be filled in, as no file had them: norms with
            1 and 0, the rest with 0.
    """

    output: Path
    parameters: Mapping[str, int]
    kept_aside: tuple[str, ...] = ()
    made_up: tuple[str, ...] = ()


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: str = "ours",
    tokenizer: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Convert a stage-2 folder, or a stage-1 file, from the official format or into it.

    Args:
        source: a folder or hub id; or what stage 1 wrote: `mm_projector.bin`, its folder, `projector.safetensors`.
        output: a folder (or for stage 1 a file) that does not exist yet; it appears whole or not at all.
        to: "ours" or "official". Stage-1 files tell it by their names.
        tokenizer: folder of the language model's tokenizer, where the source has none.
        shard_bytes: size of an output file; one is held in memory at a time.

    Raises:
        UserError: a broken, missing or foreign file; a weight that is missing, unexpected or of another shape;
            MR-Adapters in the weights and not in the config, or the other way round; no tokenizer; `output` exists.
    """
    source, output = Path(source), Path(output)
    if to not in FORMATS:
        raise UserError(f"cannot convert to {to!r}", expected=" or ".join(FORMATS))
    if not source.is_file():
        source = find_model(source)
    if (source / projector.OFFICIAL_FILE).is_file() and not has_weights(source):
        source /= projector.OFFICIAL_FILE
    if source.is_file():
        return Conversion(output, count_parts(projector.convert(source, output)))
    with ExitStack() as files:
        words = None if tokenizer is None else Path(tokenizer)
        return (_to_ours if to == "ours" else _to_official)(source, output, words, shard_bytes, files)


def count_parts(tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Numbers in each part of the model, of weights under our names."""
    return {
        part: count_numbers(tensor for name, tensor in tensors.items() if name.startswith(prefixes))
        for part, prefixes in PARTS.items()
    }


def _to_ours(source: Path, output: Path, words: Path | None, shard_bytes: int, files: ExitStack) -> Conversion:
    release = read_release(source, files)
    read = read_tokenizer(words or source, release.config.text_config.vocab_size)
    made = processor(read, release.config)
    with atomic_directory(output) as folder:
        release.config.save_pretrained(folder)
        generation_config(release.config).save_pretrained(folder)
        made.save_pretrained(folder)
        _keep(release, folder / KEPT, words or source)
        write_weights(folder, dict(sorted(release.tensors.items())), shard_bytes)
    return Conversion(output, count_parts(release.tensors), kept_aside=tuple(release.unused))


def _keep(release: Release, folder: Path, words: Path) -> None:
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        if (release.folder / name).is_file():
            shutil.copyfile(release.folder / name, folder / name)
    copy_side_files(words, folder)
    if release.unused:
        write_file(folder / UNUSED_FILE, release.unused)


def _to_official(source: Path, output: Path, words: Path | None, shard_bytes: int, files: ExitStack) -> Conversion:
    require_type(source, LlavaHrConfig)
    config = read_config(LlavaHrConfig, source)
    stored = files.enter_context(WeightFiles(source)).tensors
    check_weights(stored, {name: tuple(tensor.shape) for name, tensor in meta_state(config).items()}, source)
    tensors = {new: stored[old] for old, new in renamed(stored, "official", source).items()}

    kept = source / KEPT
    unused = _read_unused(kept / UNUSED_FILE, files)
    made_up = {name: _filled(name, shape, config) for name, shape in unused_shapes(config).items() if not unused}
    with atomic_directory(output) as folder:
        _write_official_config(folder, kept / "config.json", config, {name: t.shape for name, t in tensors.items()})
        if (kept / "generation_config.json").is_file():
            shutil.copyfile(kept / "generation_config.json", folder / "generation_config.json")
        else:
            generation_config(config).save_pretrained(folder)
        if words is not None:
            read_tokenizer(words, config.text_config.vocab_size)
            copy_side_files(words, folder)
        elif kept.is_dir():
            copy_side_files(kept, folder)
        else:
            copy_own_tokenizer(source, folder)
        if not (folder / "tokenizer.model").is_file():
            logger.warning("%s: no tokenizer.model, which the official code reads (--tokenizer FOLDER)", output)
        write_weights(folder, dict(sorted((tensors | unused | made_up).items())), shard_bytes)
    return Conversion(output, count_parts(stored), kept_aside=tuple(unused), made_up=tuple(made_up))


def _read_unused(path: Path, files: ExitStack) -> dict[str, StoredTensor]:
    if not path.is_file():
        return {}
    unused = files.enter_context(WeightFiles(path)).tensors
    if wrong := next((name for name in unused if not UNUSED.match(name)), None):
        raise UserError(f"{wrong} is not for this file", path, "tensors that no computation uses")
    return unused


def _filled(name: str, shape: tuple[int, ...], config: LlavaHrConfig) -> StoredTensor:
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    value = 1.0 if name.endswith("norm.weight") else 0.0
    return StoredTensor(shape, dtype, lambda: torch.full(shape, value, dtype=dtype))


def _write_official_config(
    folder: Path, original: Path, config: LlavaHrConfig, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """The original config where it still says the same, with what has changed since; a new one without an original."""
    settings = config_to_official(config)
    if settings["mm_vision_tower"] == TOWER_FOLDER:
        low = config.vision_config.low_res_config
        tower = {name: getattr(low, name) for name in TowerConfig.model_fields}
        dimensions = ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
        tower |= {"model_type": "clip_vision_model"} | {name: getattr(low, name) for name in dimensions}
        atomic_write_json(folder / TOWER_FOLDER / "config.json", tower)
    if not original.is_file():
        atomic_write_json(folder / "config.json", settings)
        return
    content = read_json(original)
    low = config.vision_config.low_res_config
    tower_config = TowerConfig.model_validate({name: getattr(low, name) for name in TowerConfig.model_fields})
    before = config_to_official(config_to_ours(content, shapes, original, tower_config))
    changed = {name: value for name, value in settings.items() if value != before[name]}
    if changed:
        atomic_write_json(folder / "config.json", content | changed)
    else:
        shutil.copyfile(original, folder / "config.json")


@dataclass(frozen=True)
class KeyReport:
    """Our full-size model against the list of an official one's weights.

    Attributes:
        model: "7b", "13b" or "x-13b".
        count: weights compared, unused ones included.
        parameters: numbers in them.
        wrong: a line for each that is missing, too many or of another shape; and for each number that differs.
    """

    model: str
    count: int
    parameters: int
    wrong: list[str] = field(default_factory=list)


def key_report(model: str, golden: Mapping[str, Any]) -> KeyReport:
    """Compare a full-size model, on the meta device, with the official list of names and shapes.

    Args:
        model: "7b", or as the list has it, "llava-hr-7b".
        golden: content of `official_keys.json`.

    Raises:
        UserError: the list does not have this model.
    """
    name = f"llava-hr-{model.removeprefix('llava-hr-')}"
    if name not in golden["keys"]:
        raise UserError(f"no list of weights for {model}", expected=", ".join(golden["keys"]))
    size = name.removeprefix("llava-hr-")
    config = LlavaHrConfig.named(size)
    theirs = {key: tuple(shape) for key, shape in golden["keys"][name].items()}
    theirs |= _language_model_keys(golden, size.rpartition("-")[2])
    ours = {key: tuple(tensor.shape) for key, tensor in to_official(meta_state(config)).items()} | unused_shapes(config)
    wrong = compared(ours, theirs)
    counts = _parameter_counts(ours)
    for part, number in counts.items():
        if number != golden["parameter_counts"][name][part]:
            wrong.append(f"{part}: {number:,} parameters, official {golden['parameter_counts'][name][part]:,}")
    return KeyReport(size, len(theirs), counts["total"], wrong)


def _language_model_keys(golden: Mapping[str, Any], size: str) -> dict[str, tuple[int, ...]]:
    dims = {**golden["dims"], **golden["dims"][size]}
    shapes = {}
    for pattern, shape in golden["language_model_keys"].items():
        for layer in range(dims["L"]) if "{i}" in pattern else (0,):
            shapes[pattern.replace("{i}", str(layer))] = tuple(dims[name] for name in shape)
    return shapes


def _parameter_counts(official: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    def count(*prefixes: str) -> int:
        return sum(torch.Size(shape).numel() for key, shape in official.items() if key.startswith(prefixes))

    align, projector = count(f"{TOWER}align_stages.0."), count("model.mm_projector.")
    return {
        "clip": count(VIT),
        "convnext_with_head": count(CONVNEXT),
        "convnext_head": count(f"{CONVNEXT}head."),
        "convnext_used": count(CONVNEXT) - count(f"{CONVNEXT}head."),
        "mr_adapters_3": count(ADAPTERS),
        "mr_adapter_one": count(f"{ADAPTERS}0."),
        "final_align": align,
        "projector": projector,
        "llm": count("") - count(TOWER) - projector,
        "vision_tower": count(TOWER),
        "total": count(""),
        "stage1_trainable": align + projector,
    }
