"""`dit-sam convert`: a release of the authors into this package's folder, and back.

    convert("seg_best.pth", "my-dit", bert="bert-base-uncased", variant="layer_wise")
    convert_back("my-dit", "again.pth")                    # {"state_dict": ...} under the authors' names

What a release holds and nothing uses is kept beside the model, in `unused.safetensors`, so that the way back is exact.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from dit_sam.checkpoints.keys import to_official, unused_shapes
from dit_sam.checkpoints.release import read_release, release_config
from dit_sam.config import DITConfig
from dit_sam.folder import read_folder, write_folder
from dit_sam.model import DITSam
from dit_sam.text_encoder import Vocabulary
from tenfold import UserError
from tenfold.runs import atomic_directory, read_json
from tenfold.weights import StoredTensor, check_fits, read_weights, require_finite

UNUSED = "unused.safetensors"


class Converted(NamedTuple):
    """What a conversion made: the file or folder, and the model's dimensions."""

    path: Path
    config: DITConfig


def convert(
    release: str | Path,
    folder: str | Path,
    *,
    bert: str | Path,
    variant: str | None = None,
    dims: str | Path | None = None,
) -> Converted:
    """A release as a folder.

    Args:
        release: the authors' .pth, or a state dict under their names.
        folder: a new one.
        bert: vocab.txt, or the folder of bert-base-uncased that holds it: a release has no words.
        variant: layer_wise or e2e: their weights look alike. Others are told from the weights.
        dims: a config.json for models of other heads than the published ones; None: by the weights' shapes.

    Raises:
        UserError: a broken file, weights that are missing, unknown, of another shape or not finite, a variant that
            must be said, a vocabulary of another size; the folder exists.
    """
    words = Vocabulary.load(bert)
    found = read_release(release)
    config = release_config(found, variant, release)
    if dims is not None:
        values = read_json(dims)
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name != "format"}
        named = DITConfig.from_dict(values, dims)
        config = replace(named, variant=config.variant)
    with torch.device("meta"):
        expected = DITSam(config).state_dict()
    state = found.used
    check_fits(expected, state, release)
    require_finite(state, release)
    if len(words) != config.words:
        raise UserError(f"{len(words)} word pieces", bert, f"{config.words}, as the release has")
    unused = found.unused
    other = {
        name: shape
        for name, shape in unused_shapes(config).items()
        if name in unused and tuple(unused[name].shape) != shape
    }
    if other:
        name = next(iter(other))
        raise UserError(f"{name} of shape {list(unused[name].shape)}", release, str(list(other[name])))
    with atomic_directory(folder) as place:
        inner = place / "model"
        stored = {name: StoredTensor.of(value) for name, value in state.items()}
        write_folder(inner, config, words, stored, trained="as the authors' release, see its name")
        for file in inner.iterdir():
            file.rename(place / file.name)
        inner.rmdir()
        if unused:
            save_file({name: value.contiguous() for name, value in unused.items()}, place / UNUSED)
    return Converted(Path(folder), config)


def convert_back(folder: str | Path, file: str | Path) -> Converted:
    """A folder as {"state_dict": ...} under the authors' names, a .pth for their code.

    Weights that nothing uses are those of the release, or zeros.

    Raises:
        UserError: no model there; the file exists or cannot be written.
    """
    file = Path(file)
    if file.exists():
        raise UserError("exists", file, "a new file")
    stored = read_folder(folder)
    state = to_official(stored.state)
    kept = read_weights(Path(folder) / UNUSED) if (Path(folder) / UNUSED).exists() else {}
    for name, shape in unused_shapes(stored.config).items():
        state[name] = kept.get(name, torch.zeros(shape))
    temporary = file.with_name(f".tmp-{file.name}")
    try:
        torch.save({"state_dict": state}, temporary)
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot be written ({error.strerror})", file, "a writable place") from error
    return Converted(file, stored.config)
