"""A model as a folder: config.json, model.safetensors (or shards), vocab.txt and a model card; and as a Hub repository.

The same folder serves `DITSam.from_pretrained`, `dit-sam` and the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dit_sam.config import SIZES, DITConfig
from dit_sam.text_encoder import Vocabulary
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json, atomic_write_text, read_json
from tenfold.weights import StoredTensor, WeightFiles, write_weights

CONFIG, WORDS, CARD = "config.json", "vocab.txt", "README.md"
FORMAT = "dit_sam"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class Stored(NamedTuple):
    """What a folder holds."""

    config: DITConfig
    vocabulary: Vocabulary | None
    state: dict[str, Tensor]
    where: Path


def read_folder(name: str | Path, revision: str | None = None) -> Stored:
    """Read a folder, or a repository of the Hub (needs the extra `hub`).

    Raises:
        UserError: no such folder or repository; a file that is missing, broken or of another model.
    """
    folder = Path(name)
    if not folder.exists() and _REPOSITORY.fullmatch(str(name)):
        folder = _download(str(name), revision)
    if not (folder / CONFIG).is_file():
        raise UserError("no model", folder, f"a folder with {CONFIG} and weights, as `dit-sam convert` writes it")
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise UserError("a model of another kind", folder / CONFIG, f'"format": "{FORMAT}"')
    config = DITConfig.from_dict(values, folder / CONFIG)
    vocabulary = Vocabulary.load(folder / WORDS) if (folder / WORDS).exists() else None
    if vocabulary is not None and len(vocabulary) != config.words:
        raise UserError(f"{len(vocabulary)} word pieces", folder / WORDS, f"{config.words}, as the model has")
    with WeightFiles(folder) as files:
        state = {key: stored.read() for key, stored in files.tensors.items()}
    return Stored(config, vocabulary, state, folder)


def write_folder(
    folder: str | Path,
    config: DITConfig,
    vocabulary: Vocabulary | None,
    state: Mapping[str, StoredTensor],
    *,
    trained: str | None = None,
    run: str | None = None,
    replace: bool = False,
) -> None:
    """Write a folder whole or not at all.

    Args:
        trained: what the model was trained on. run: the id of its run record. Both stand in the card.
        replace: an existing folder.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    with atomic_directory(folder, replace=replace) as place:
        atomic_write_json(place / CONFIG, {"format": FORMAT, **config.to_dict()})
        if vocabulary is not None:
            vocabulary.save(place / WORDS)
        write_weights(place, state)
        atomic_write_text(place / CARD, model_card(config, trained, run))


def model_card(config: DITConfig, trained: str | None, run: str | None) -> str:
    """The folder's README.md: YAML for the Hub, then what the model is and how it is used."""
    size = next((name for name, numbers in SIZES.items() if numbers["width"] == config.width), None)
    base = {"vit_b": "facebook/sam-vit-base", "vit_l": "facebook/sam-vit-large", "vit_h": "facebook/sam-vit-huge"}
    head = ["---", "license: apache-2.0", "library_name: dit-sam", "pipeline_tag: image-segmentation"]
    head += [f"base_model: {base[size]}"] if size else []
    head += ["tags:", "- referring-image-segmentation", "- segment-anything", f"- {config.variant}"]
    head += [f"run_id: {run}"] if run else []
    text = [
        *head,
        "---",
        "",
        f"# DIT ({config.variant}) at {config.input_size} pixels",
        "",
        "Segments what a sentence refers to: SAM whose image encoder reads the sentence "
        "(Deep Instruction Tuning for Segment Anything Model, ACM Multimedia 2024, arXiv:2404.00650).",
        "",
        f"Trained on: {trained or 'not stated'}.",
        "",
        "```python",
        "import dit_sam",
        "",
        'predictor = dit_sam.DitPredictor.from_pretrained("this folder")',
        "predictor.set_image(image)  # uint8 [height, width, 3], RGB",
        'masks, scores, low_res = predictor.predict(text="the second cup from the left")',
        "```",
        "",
    ]
    return "\n".join(text)


def _hub() -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise UserError("huggingface_hub is not installed", None, 'pip install "dit-sam[hub]"') from error


def _download(name: str, revision: str | None) -> Path:
    hub = _hub()
    try:
        return Path(hub.snapshot_download(name, revision=revision))
    # Its errors are OSErrors and ValueErrors of many names, by connection, name and rights.
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:160]
        raise UserError(f"no such folder, and not to be had from the Hub ({reason})", name, "a model") from error


def push(folder: Path, repository: str, private: bool, token: str | None) -> str:
    """Upload a folder; returns the commit's address."""
    hub = _hub()
    hub.create_repo(repository, private=private, token=token, exist_ok=True)
    return str(hub.upload_folder(repo_id=repository, folder_path=folder, token=token))
