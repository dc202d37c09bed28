"""What stage 1 trains, as a file of its own: the projector and the final combination (sheet sections 4.1 and 5).

The official one is `mm_projector.bin`, a pickle with keys `model.mm_projector.*` and
`model.vision_tower.align_stages.0.*`; this package's is `projector.safetensors`, with its own names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from llava_hr.checkpoints.keys import renamed
from tenfold import UserError
from tenfold.runs import atomic_write_bytes
from tenfold.weights import StoredTensor, WeightFiles

OFFICIAL_FILE, FILE = "mm_projector.bin", "projector.safetensors"
# Weights that stage 1 trains, by our names.
TRAINED = ("model.multi_modal_projector.", "model.vision_tower.align.")
NAMES = tuple(
    f"{part}{layer}.{kind}"
    for part, layers in zip(TRAINED, (("linear_1", "linear_2"), ("fast_proj", "slow_proj")), strict=True)
    for layer in layers
    for kind in ("weight", "bias")
)
# Wrappers put their own names in front: DistributedDataParallel, PEFT, and savers that write the inner model only.
_WRAPPED = re.compile(
    r"^(module\.|base_model\.model\.)*(model\.)?(?=(mm_projector|vision_tower|multi_modal_projector)\.)"
)


def read(path: str | Path) -> dict[str, Tensor]:
    """The weights that stage 1 trained, under our names.

    Args:
        path: an `mm_projector.bin` or `projector.safetensors`, a folder that holds one of these, or a folder of a whole
            model, official or ours.

    Raises:
        UserError: no such file; a broken or foreign one; a weight that is missing, or that stage 1 does not train.
    """
    path = Path(path)
    whole = False
    if path.is_dir():
        found = next((path / name for name in (FILE, OFFICIAL_FILE) if (path / name).is_file()), None)
        whole, path = found is None, found or path
    with WeightFiles(path) as weights:
        stored = {_WRAPPED.sub("model.", name): tensor for name, tensor in weights.tensors.items()}
        official = any(name.startswith("model.mm_projector.") for name in stored)
        names = renamed(stored, "ours", path) if official else {name: name for name in stored}
        found_names = {new: old for old, new in names.items() if not whole or new in NAMES}
        if missing := [name for name in NAMES if name not in found_names]:
            raise UserError(f"no {missing[0]}", path, "projector and final align, as stage 1 writes them")
        if unexpected := [name for name in found_names if name not in NAMES]:
            raise UserError(f"stage 1 does not train {unexpected[0]}", path, "projector and final align")
        # Copies: the file is closed when this returns.
        return {name: stored[found_names[name]].read().clone() for name in NAMES}


def write(path: str | Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write what stage 1 trained, whole or not at all: officially for a name that ends in .bin, else as safetensors.

    Args:
        path: replaced where it exists.
        state_dict: weights under our names, `NAMES` among them; others are left out.

    Raises:
        UserError: one of `NAMES` is missing, or the file cannot be written.
    """
    path = Path(path)
    if missing := [name for name in NAMES if name not in state_dict]:
        raise UserError(f"no {missing[0]}", path, "projector and final align")
    trained = {name: state_dict[name].detach().cpu().contiguous().clone() for name in NAMES}
    if path.suffix != ".bin":
        atomic_write_bytes(path, save(trained, metadata={"format": "pt"}))
        return
    buffer = io.BytesIO()
    torch.save({new: trained[old] for old, new in renamed(trained, "official").items()}, buffer)
    atomic_write_bytes(path, buffer.getvalue())


def convert(source: Path, output: Path) -> dict[str, StoredTensor]:
    """Turn an official file into ours or ours into an official one, and return the weights.

    Raises:
        UserError: as `read`; both names end alike; the output exists.
    """
    if (source.suffix == ".safetensors") == (output.suffix == ".safetensors"):
        raise UserError("both files are of one format", output, f"a name such as {FILE} or {OFFICIAL_FILE}")
    if output.exists():
        raise UserError("already exists", output, "a file that does not exist yet")
    weights = read(source)
    write(output, weights)
    return {name: StoredTensor.of(tensor) for name, tensor in weights.items()}
