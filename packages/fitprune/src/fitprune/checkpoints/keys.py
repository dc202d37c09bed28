"""Official LLaVA-1.5 releases and transformers' layout of the same model: names of the weights, and whole folders.

FitPrune adds no parameters, so the host's weights are all there are:

    part          official release                                transformers model
    decoder       model.{embed_tokens,layers,norm}.*              model.language_model.*
    head          lm_head.*                                       lm_head.*
    projector     model.mm_projector.{0,2}.*                      model.multi_modal_projector.linear_{1,2}.*
    vision tower  model.vision_tower.vision_tower.vision_model.*  model.vision_tower.*

Files in transformers' layout on the hub (llava-hf) spell them a third way, `language_model.model.*` and
`vision_tower.vision_model.*`, which every release of transformers reads; `convert` writes that one.

    convert("llava-v1.5-7b", "llava-1.5-7b-hf", to="hf", vision_tower="clip-vit-large-patch14-336")
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from fitprune.checkpoints import release as llava_release
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json
from tenfold.weights import SHARD_BYTES, StoredTensor, WeightFiles, count_numbers, write_weights

# Buffers that old releases carry and that are recomputed: rotary frequencies, and CLIP's 0, 1, 2, ...
RECOMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|embeddings\.position_ids)$")
# Weights with a row for each word.
WORD_ROWS = ("model.embed_tokens.weight", "lm_head.weight")


class _Part(NamedTuple):
    """A part of the model: what its names begin with."""

    official: str
    transformers: str
    hub: str
    # Spellings that only some releases of transformers write.
    variants: tuple[str, ...] = ()

    def spellings(self, to: str) -> list[str]:
        """What names may begin with before they are renamed ``to``: longest first, as one may begin with another."""
        if to != "official":
            return [self.official]
        return sorted((self.transformers, self.hub, *self.variants), key=len, reverse=True)


_TOWER = _Part(
    "model.vision_tower.vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.vision_model.",
    ("model.vision_tower.vision_model.", "vision_tower."),
)
_PARTS = (
    _TOWER,
    *(
        _Part(
            f"model.mm_projector.{index}.",
            f"model.multi_modal_projector.linear_{number}.",
            f"multi_modal_projector.linear_{number}.",
        )
        for index, number in ((0, 1), (2, 2))
    ),
    *(
        _Part(f"model.{name}.", f"model.language_model.{name}.", f"language_model.model.{name}.")
        for name in ("embed_tokens", "layers", "norm")
    ),
    _Part("lm_head.", "lm_head.", "language_model.lm_head."),
)


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under official names, renamed for `LlavaForConditionalGeneration.load_state_dict`.

    Buffers that are recomputed (`RECOMPUTED`) are left out; tensors are passed on, not copied.

    Raises:
        UserError: a name that LLaVA-1.5 does not have.
    """
    return {new: state_dict[old] for old, new in renamed(state_dict, "transformers").items()}


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `LlavaForConditionalGeneration`, or of llava-hf's files, under official names.

    Buffers that are recomputed (`RECOMPUTED`) are left out; tensors are passed on, not copied.

    Raises:
        UserError: a name that LLaVA-1.5 does not have.
    """
    return {new: state_dict[old] for old, new in renamed(state_dict, "official").items()}


def renamed(names: Iterable[str], to: str, where: Path | None = None) -> dict[str, str]:
    """Old name -> new name, buffers that are recomputed left out.

    Args:
        names: official ones for ``to`` "transformers" or "hub"; transformers' or llava-hf's for "official".
        where: the folder that they come from, for the message.

    Raises:
        UserError: a name that LLaVA-1.5 does not have, or two names of one weight.
    """
    new = {name: _rename(name, to, where) for name in names if not RECOMPUTED.search(name)}
    if len(set(new.values())) < len(new):
        twice = next(name for name, count in Counter(new.values()).items() if count > 1)
        raise UserError(
            f"{' and '.join(old for old in new if new[old] == twice)} are the same weight", where, "one of them"
        )
    return new


def _rename(name: str, to: str, where: Path | None) -> str:
    for part in _PARTS:
        for prefix in part.spellings(to):
            if name.startswith(prefix):
                return getattr(part, to) + name.removeprefix(prefix)
    layout = "transformers' names" if to == "official" else "official names"
    raise UserError(f"LLaVA-1.5 has no weight {name}", where, layout)


@dataclass(frozen=True)
class Conversion:
    """What `convert` made.

    Attributes:
        output: the new folder.
        language_model, projector, vision_tower: parameters of the release; the head counts as language model.
        words: size of the vocabulary before and after.
        left_out: buffers of the source that are recomputed and were not copied.
    """

    output: Path
    language_model: int
    projector: int
    vision_tower: int
    words: tuple[int, int]
    left_out: tuple[str, ...]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: Literal["hf", "official"],
    vision_tower: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Convert a folder of LLaVA-1.5, an official release or one in transformers' layout, into the other.

    Weights keep their values and types bit for bit. Towards transformers the vocabulary grows by `<image>` and `<pad>`,
    filled up to a multiple of 64; new rows are the mean of the others, whose logit greedy decoding never picks. On the
    way back they are cut off, and the vision tower is written into the release, under the names that the authors' code
    gives it.

    Args:
        source: folder of safetensors or `pytorch_model.bin` files, with their index if they are shards.
        output: a folder that does not exist yet; it appears whole or not at all.
        to: "hf" from an official release, "official" from transformers' layout.
        vision_tower: folder of openai/clip-vit-large-patch14-336, which most releases do not contain.
        shard_bytes: size of an output file; one is held in memory at a time.

    Raises:
        UserError: a broken, missing or foreign file; a weight that is missing, unexpected or of another shape; a
            release without vision tower when `vision_tower` is None; `output` exists.
    """
    source, output = Path(source), Path(output)
    if to not in ("hf", "official"):
        raise UserError(f"cannot convert to {to!r}", expected="hf or official")
    with ExitStack() as files:
        if to == "hf":
            return _to_hf(source, output, None if vision_tower is None else Path(vision_tower), shard_bytes, files)
        return _to_official(source, output, shard_bytes, files)


def _to_hf(source: Path, output: Path, vision_tower: Path | None, shard_bytes: int, files: ExitStack) -> Conversion:
    release = llava_release.read_official_config(source)
    tower = llava_release.read_tower_config(source, release, vision_tower)
    tokenizer = llava_release.read_tokenizer(source, release.vocab_size)
    image, pad = llava_release.added_ids(tokenizer, release.vocab_size)
    config = llava_release.transformers_config(release, tower, image, pad)

    stored = files.enter_context(WeightFiles(source)).tensors
    if not any(name.startswith(_TOWER.official) for name in stored):
        stored = stored | _clip_tower(vision_tower, release.mm_vision_tower, source, files)
    names = renamed(stored, "hub", source)
    _check({name: stored[name] for name in names}, config, release.vocab_size, source)
    words = cast(Any, config.text_config).vocab_size
    tensors = {new: _resized(stored[old], old, words) for old, new in sorted(names.items(), key=itemgetter(1))}

    with atomic_directory(output) as folder:
        config.save_pretrained(folder)
        GenerationConfig(
            bos_token_id=release.bos_token_id, eos_token_id=release.eos_token_id, pad_token_id=pad
        ).save_pretrained(folder)
        if tokenizer is not None:
            pads = release.image_aspect_ratio == "pad"
            llava_release.processor(tokenizer, config, pads=pads).save_pretrained(folder)
        if (source / "tokenizer.model").is_file():
            shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
        write_weights(folder, tensors, shard_bytes)
    return _conversion(
        output, {name: stored[name] for name in names}, (release.vocab_size, words), stored.keys() - names.keys()
    )


def _to_official(source: Path, output: Path, shard_bytes: int, files: ExitStack) -> Conversion:
    config = llava_release.read_transformers_config(source)
    words = llava_release.official_vocabulary(config)
    stored = files.enter_context(WeightFiles(source)).tensors
    names = renamed(stored, "official", source)
    official = {new: stored[old] for old, new in names.items()}
    _check(official, config, cast(Any, config.text_config).vocab_size, source)
    tensors = {name: _resized(tensor, name, words) for name, tensor in sorted(official.items())}

    settings = llava_release.official_config(config, words, pads=llava_release.pads_images(source))
    with atomic_directory(output) as folder:
        atomic_write_json(folder / "config.json", settings)
        ids = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        atomic_write_json(folder / "generation_config.json", ids)
        if settings["mm_vision_tower"] == llava_release.TOWER_FOLDER:
            dimensions = llava_release.tower_dimensions(config).model_dump()
            atomic_write_json(
                folder / llava_release.TOWER_FOLDER / "config.json", {"model_type": "clip_vision_model", **dimensions}
            )
        llava_release.copy_tokenizer(source, folder)
        write_weights(folder, tensors, shard_bytes)
    return _conversion(output, tensors, (cast(Any, config.text_config).vocab_size, words), stored.keys() - names.keys())


def _clip_tower(folder: Path | None, name: str, release: Path, files: ExitStack) -> dict[str, StoredTensor]:
    """The vision tower from its own checkpoint, under official names; a whole CLIP's text half is left out."""
    if folder is None:
        raise UserError("this release has no vision tower inside", release, f"a folder of {name} (--vision-tower)")
    stored = files.enter_context(WeightFiles(folder)).tensors
    prefix = "vision_model."
    tower = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    if not tower:
        raise UserError("no vision tower", folder, f"weights named {prefix}*, as in {name}")
    return {_TOWER.official + key: tensor for key, tensor in tower.items()}


def _check(official: Mapping[str, StoredTensor], config: LlavaConfig, words: int, where: Path) -> None:
    """Refuse weights (under official names) that are not exactly those of the config."""
    expected = official_shapes(config, words)
    # A tied head is the embedding again; files carry it or not.
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = sorted(expected.keys() - official.keys() - optional)
    unexpected = sorted(official.keys() - expected.keys())
    if missing:
        raise UserError(f"{len(missing)} weights missing, first {missing[0]}", where, "all of its config")
    if unexpected:
        raise UserError(f"{len(unexpected)} weights too many, first {unexpected[0]}", where, "those of its config")
    for name, tensor in official.items():
        if tensor.shape != expected[name]:
            raise UserError(f"{name} is {list(tensor.shape)}", where, f"{list(expected[name])} by its config")


def official_shapes(config: LlavaConfig, words: int | None = None) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of every weight that a model of this config has.

    Args:
        words: size of the vocabulary, where it is not the config's.
    """
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in to_official(model.state_dict()).items()}
    if words is not None:
        shapes |= {name: (words, *shapes[name][1:]) for name in WORD_ROWS}
    return shapes


def _resized(tensor: StoredTensor, name: str, words: int) -> StoredTensor:
    """The tensor, with ``words`` rows where it has a row for each word."""
    if name not in WORD_ROWS or tensor.shape[0] == words:
        return tensor

    def read() -> Tensor:
        rows = tensor.read()
        if len(rows) >= words:
            return rows[:words]
        # The mean's logit is the mean of all logits.
        mean = rows.mean(0, dtype=torch.float32).to(rows.dtype)
        return torch.cat((rows, mean.expand(words - len(rows), -1)))

    return replace(tensor, shape=(words, *tensor.shape[1:]), read=read)


def _conversion(
    output: Path, official: Mapping[str, StoredTensor], words: tuple[int, int], left_out: Iterable[str]
) -> Conversion:
    tower, projector = _TOWER.official, "model.mm_projector."

    def count(prefix: str) -> int:
        return count_numbers(tensor for name, tensor in official.items() if name.startswith(prefix))

    return Conversion(
        output=output,
        language_model=count("") - count(projector) - count(tower),
        projector=count(projector),
        vision_tower=count(tower),
        words=words,
        left_out=tuple(sorted(left_out)),
    )
