"""`flashsloth convert`: releases into this package's folders, and back (sheet section 4).

    convert("FlashSloth-3.2B", "flashsloth-3.2b")
    convert("flashsloth-3.2b", "release", to="official")

Weights keep their values and types bit for bit, one shard in memory at a time; the weights' files are safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flashsloth.checkpoints import release, tokenizer
from flashsloth.checkpoints.keys import renamed
from flashsloth.checkpoints.load import find_model
from flashsloth.configuration import FlashSlothConfig, write_card
from tenfold import UserError
from tenfold.hosts import checkpoints
from tenfold.runs import atomic_directory, atomic_write_json
from tenfold.weights import SHARD_BYTES, StoredTensor, WeightFiles, count_numbers, write_weights

FORMATS = ("ours", "official")
# Part of the model -> what our names begin with.
PARTS = {
    "language model": ("model.language_model.", "lm_head."),
    "vision tower": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "EmbQ": ("model.embq.",),
    "SAP": ("model.pooling.",),
    "query tokens": ("model.query_tokens.",),
}
_TOWER = "model.vision_tower."


@dataclass(frozen=True)
class Conversion:
    """What `convert` made.

    Attributes:
        output: the new folder.
        parameters: numbers in each part of the model, by the names of `PARTS`.
        tower_difference: the largest difference of a weight between the model's vision tower and SigLIP's, where a
            SigLIP was named; 0: the tower was not trained.
    """

    output: Path
    parameters: Mapping[str, int]
    tower_difference: float | None = None


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: str = "ours",
    words: str | Path | None = None,
    siglip: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Convert a folder, from the official layout or into it.

    Args:
        source: a folder or hub id.
        output: a folder that does not exist yet; it appears whole or not at all.
        to: "ours" or "official".
        words: folder with Phi-2's vocab.json and merges.txt, where the source has no tokenizer.
        siglip: a folder of google/siglip-so400m-patch14-384, to compare the vision tower with.
        shard_bytes: size of an output file; one is held in memory at a time.

    Raises:
        UserError: a broken, missing or foreign file; a weight that is missing, unexpected or of another shape; no
            tokenizer; `output` exists.
    """
    if to not in FORMATS:
        raise UserError(f"cannot convert to {to!r}", expected=" or ".join(FORMATS))
    folder, target = find_model(source), Path(output)
    known = None if words is None else Path(words)
    with ExitStack() as files:
        work = _to_ours if to == "ours" else _to_official
        tensors = work(folder, target, known, shard_bytes, files)
        difference = None if siglip is None else tower_difference(tensors, Path(siglip))
        parameters = {
            part: count_numbers(tensor for name, tensor in tensors.items() if name.startswith(prefixes))
            for part, prefixes in PARTS.items()
        }
    return Conversion(target, parameters, difference)


def _to_ours(
    source: Path, output: Path, words: Path | None, shard_bytes: int, files: ExitStack
) -> Mapping[str, StoredTensor]:
    opened = release.read_release(source, files)
    made = release.processor(release.read_tokenizer(words or source, opened.config), opened.config)
    with atomic_directory(output) as folder:
        opened.config.save_pretrained(folder)
        release.generation_config(opened.config).save_pretrained(folder)
        made.save_pretrained(folder)
        write_weights(folder, dict(sorted(opened.tensors.items())), shard_bytes)
        write_card(folder, opened.config)
    return opened.tensors


def _to_official(
    source: Path, output: Path, words: Path | None, shard_bytes: int, files: ExitStack
) -> Mapping[str, StoredTensor]:
    checkpoints.require_type(source, FlashSlothConfig)
    config = checkpoints.read_config(FlashSlothConfig, source)
    official = release.config_to_official(config)
    stored = files.enter_context(WeightFiles(source)).tensors
    checkpoints.check_weights(
        stored, {name: tuple(one.shape) for name, one in release.meta_state(config).items()}, source
    )
    tensors = {new: stored[old] for old, new in renamed(stored, "official", source).items()}
    made = release.read_tokenizer(words or source, config)
    with atomic_directory(output) as folder:
        atomic_write_json(folder / "config.json", official)
        own = {"bos_token_id": config.text_config.bos_token_id, "eos_token_id": config.text_config.eos_token_id}
        atomic_write_json(folder / "generation_config.json", {**own, "transformers_version": "4.38.0"})
        tokenizer.write_official(made, folder)
        write_weights(folder, dict(sorted(tensors.items())), shard_bytes)
    return stored


def tower_difference(tensors: Mapping[str, StoredTensor], siglip: Path) -> float:
    """The largest absolute difference between a model's vision tower and SigLIP's (part two, A6).

    Args:
        tensors: of the model, under our names.
        siglip: a folder in transformers' layout; of another dtype, its weights are rounded to the model's first.

    Raises:
        UserError: weights that are missing there, or of another shape.
    """
    with WeightFiles(siglip) as theirs:
        largest = 0.0
        for name in (name for name in tensors if name.startswith(_TOWER)):
            inner = name.removeprefix(_TOWER)
            found = next(
                (theirs.tensors[key] for key in (f"vision_model.{inner}", inner) if key in theirs.tensors), None
            )
            if found is None or found.shape != tensors[name].shape:
                has = "none" if found is None else str(list(found.shape))
                raise UserError(f"{inner}: {has}", siglip, f"{list(tensors[name].shape)}, as the model's tower has it")
            ours = tensors[name].read()
            largest = max(largest, (ours.float() - found.read().to(ours.dtype).float()).abs().max().item())
    return largest
