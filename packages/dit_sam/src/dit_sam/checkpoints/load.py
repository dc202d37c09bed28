"""A model to train: SAM's and BERT's weights, or another DIT model's, with what is missing drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dit_sam.checkpoints.keys import without_prefix
from dit_sam.config import DITConfig
from dit_sam.model import DITSam
from dit_sam.text_encoder import Vocabulary
from tenfold import UserError
from tenfold.weights import WeightFiles, check_fits, read_weights, require_finite

# Weights that no pre-trained model has.
_NEW = ("text_proj.", "image_encoder.text_path.")


def from_sam(sam: nn.Module | str | Path, bert: str | Path, config: DITConfig, *, seed: int = 0) -> DITSam:
    """SAM that reads text: its weights, BERT's, and a new way of the text into the encoder.

    At first the text slots are empty, and the model is not SAM: it has no windows, and empty slots take part in
    attention.

    Args:
        sam: of `segment_anything.sam_model_registry`, or its checkpoint (sam_vit_b_01ec64.pth).
        bert: the folder of bert-base-uncased: vocab.txt and weights.
        config: its dimensions must be those of both.
        seed: of what is drawn.

    Raises:
        UserError: weights that are missing, broken or of other shapes.
    """
    where: str | Path = "the SAM model"
    if isinstance(sam, nn.Module):
        state: Mapping[str, Tensor] = sam.state_dict()
    else:
        where, state = sam, read_weights(sam)
    words = Vocabulary.load(Path(bert))
    if len(words) != config.words:
        raise UserError(f"{len(words)} word pieces", bert, f"{config.words}")
    text = read_bert(bert)
    torch.manual_seed(seed)
    model = DITSam(config, words)
    own = model.state_dict()
    old = {name: value for name, value in own.items() if not name.startswith(_NEW)}
    if config.decoder_depth > 2:  # SAM has two layers; the baselines with more draw theirs
        old = {name: value for name, value in old.items() if not _extra_layer(name)}
    visual = {name: value for name, value in old.items() if not name.startswith("text_encoder.")}
    check_fits(visual, state, where)
    check_fits({name: own[f"text_encoder.{name}"] for name in text}, text, bert)
    missing = without_prefix(old, "text_encoder.").keys() - text.keys()
    if missing:
        raise UserError(f"{len(missing)} weights missing, such as {min(missing)}", bert, "those of BERT")
    taken = {**state, **{f"text_encoder.{name}": value for name, value in text.items()}}
    require_finite(taken, where)
    model.load_state_dict({**own, **taken})
    return model


def _extra_layer(name: str) -> bool:
    parts = name.split(".")
    return parts[:3] == ["mask_decoder", "transformer", "layers"] and int(parts[3]) >= 2


def read_bert(folder: str | Path) -> dict[str, Tensor]:
    """The weights of a BERT folder under BertModel's names; heads of its pre-training are left out.

    Raises:
        UserError: no weights, or broken ones.
    """
    with WeightFiles(folder) as files:
        names = {name: name.removeprefix("bert.") for name in files.tensors if not name.startswith("cls.")}
        # Old files call the norms' weight and bias gamma and beta, and hold the positions' numbers.
        renamed = {
            name: new.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            for name, new in names.items()
            if not new.endswith("position_ids")
        }
        return {new: files.tensors[name].read() for name, new in renamed.items()}


def extended(start: str | Path, config: DITConfig, *, seed: int = 0) -> DITSam:
    """A DIT model's weights in one of another variant or with more decoder layers; `seed` draws what is missing.

    Raises:
        UserError: no model there, or one of another size.
    """
    model = DITSam.from_pretrained(start)
    if model.config == config:
        return model
    torch.manual_seed(seed)
    new = DITSam(config, model.vocabulary)
    own, theirs = new.state_dict(), model.state_dict()
    other = [name for name in own if name in theirs and own[name].shape != theirs[name].shape]
    if other:
        shapes = f"{list(theirs[other[0]].shape)} there, {list(own[other[0]].shape)} here"
        raise UserError(f"a model of another size: {other[0]}", start, shapes)
    new.load_state_dict({**own, **{name: value for name, value in theirs.items() if name in own}})
    return new
