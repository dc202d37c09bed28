"""Official checkpoints (`<name>_best.pth`, `<name>_last.pth`) into this package's folders, and back.

    convert("dtnet_best.pth", "dtnet-coco", vocabulary="vocab_transformer_grid.pkl")
    convert("dtnet-coco", "dtnet_best.pth", to="official")

An official file is a dict of the whole training state, or just its `state_dict`. What converts is the weights; their
shapes say all dimensions but the dropouts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from dtnet.config import DTNetConfig
from dtnet.model import DTNet
from dtnet.vocabulary import Vocabulary
from tenfold import UserError
from tenfold.runs import atomic_write_bytes
from tenfold.weights import check_fits, load_into, read_weights, without_wrapper

# Prefixes, this package's and the official ones (spelling included), below `encoder.layers.<i>.`; each is unique.
_ATTENTION = {"q": "attention.fc_q", "k": "attention.fc_k", "v": "attention.fc_v", "o": "attention.fc_o"}
_FEED_FORWARD = {"fc1": "fc1", "fc2": "fc2", "norm": "layer_norm"}
_REP = "spatialmultibranch.lp.repblock"
_STAGE = {
    "point.0": "brb_1x1{}.conv",
    "point.1": "brb_1x1{}.bn",
    "three.0": "brb_3x3{}.conv1",
    "three.1": "brb_3x3{}.bn1",
    "three.2": "brb_3x3{}.conv2",
    "three.3": "brb_3x3{}.bn2",
    "identity": "brb_identity{}",
}
_ROUTER = {"spatial_branch": "spatial_router", "channel_branch": "channel_router", "joint": "finnal_router"}
_ENCODER_LAYER = {
    **{f"spatial.gmc.attention.{ours}": f"mhatt.{theirs}" for ours, theirs in _ATTENTION.items()},
    "spatial.gmc.attention.norm": "mhatt.layer_norm",
    "spatial.gmc.norm": "lnorm",
    **{f"spatial.lmc.cell.stage1.{ours}": f"{_REP}.{theirs.format('')}" for ours, theirs in _STAGE.items()},
    **{f"spatial.lmc.cell.stage2.{ours}": f"{_REP}.{theirs.format('_2')}" for ours, theirs in _STAGE.items()},
    "spatial.lmc.norm": "spatialmultibranch.lnorm2",
    "spatial.amc.cell.rows": "spatialmultibranch.smlp.proj_h",
    "spatial.amc.cell.columns": "spatialmultibranch.smlp.proj_w",
    "spatial.amc.cell.fuse": "spatialmultibranch.smlp.fuse",
    "spatial.amc.norm": "spatialmultibranch.lnorm4",
    "channel.cac.cell.squeeze": "channelmultibranch.se.se.fc.0",
    "channel.cac.cell.excite": "channelmultibranch.se.se.fc.2",
    "channel.cac.norm": "channelmultibranch.lnorm3",
    **{f"channel.cpc.{ours}": f"pwff.{theirs}" for ours, theirs in _FEED_FORWARD.items()},
    **{f"spatial_router.{ours}": f"spatialrouter.{theirs}" for ours, theirs in _ROUTER.items()},
    **{f"channel_router.{ours}": f"channelrouter.{theirs}" for ours, theirs in _ROUTER.items()},
    "spatial_norm": "lnorm2",
    "channel_norm": "lnorm3",
}
_DECODER_LAYER = {
    **{f"self_attention.{ours}": f"self_att.{theirs}" for ours, theirs in _ATTENTION.items()},
    "self_attention.norm": "self_att.layer_norm",
    **{f"cross_attention.{ours}": f"enc_att.{theirs}" for ours, theirs in _ATTENTION.items()},
    "cross_attention.norm": "enc_att.layer_norm",
    "self_norm": "lnorm1",
    "cross_norm": "lnorm2",
    **{f"feed_forward.{ours}": f"pwff.{theirs}" for ours, theirs in _FEED_FORWARD.items()},
}
_OUTER = {
    "encoder.geometry": "encoder.WGs",
    "encoder.fc": "encoder.fc",
    "encoder.norm": "encoder.layer_norm",
    "decoder.word_embedding": "decoder.word_emb",
    "decoder.position_embedding": "decoder.pos_emb",
    "decoder.fc": "decoder.fc",
}
_TABLES = {"encoder": _ENCODER_LAYER, "decoder": _DECODER_LAYER, "": _OUTER}
_LAYER = re.compile(r"((encoder|decoder)\.layers\.\d+\.)(.+)")

# What the official decoder keeps while it decodes; saved with the weights, and of no use.
_BUFFERS = re.compile(
    r"decoder\.(running_mask_self_attention|running_seq|layers\.\d+\.self_att\.running_(keys|values))"
)


def to_official(key: str) -> str:
    """The official name of one of this package's weights. Raises KeyError for a name that is none."""
    return _renamed(key, official=True)


def from_official(key: str) -> str:
    """This package's name of an official weight. Raises KeyError for a name that is none."""
    return _renamed(key, official=False)


def _renamed(key: str, official: bool) -> str:
    match = _LAYER.fullmatch(key)
    before, part, rest = match.groups() if match else ("", "", key)
    for ours, theirs in _TABLES[part].items():
        old, new = (ours, theirs) if official else (theirs, ours)
        if rest.startswith(f"{old}."):
            return f"{before}{new}{rest[len(old) :]}"
    raise KeyError(key)


def import_state(state: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """An official state dict under this package's names, without the decoding buffers.

    Raises:
        UserError: a value that is no tensor, or a name that no DTNet has.
    """
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{key!r} is no tensor", where, "an official DTNet checkpoint, or its state_dict")
        if _BUFFERS.fullmatch(key):
            continue
        try:
            ours[from_official(key)] = tensor
        except KeyError as error:
            raise UserError(f"no DTNet weight: {key}", where, "an official DTNet checkpoint") from error
    return ours


def export_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This package's state dict under official names, with the empty decoding buffers the official code asks for."""
    official = {to_official(key): tensor for key, tensor in state.items()}
    official["decoder.running_mask_self_attention"] = torch.zeros(1, 1, 0, dtype=torch.uint8)
    official["decoder.running_seq"] = torch.zeros(1, dtype=torch.long)
    width = official["decoder.fc.weight"].shape[1]
    for layer in range(_depth(state, "decoder")):
        for name in ("keys", "values"):
            official[f"decoder.layers.{layer}.self_att.running_{name}"] = torch.zeros(0, width)
    return official


def infer_config(state: Mapping[str, Tensor], where: str | Path) -> DTNetConfig:
    """The dimensions of the model that these weights (under this package's names) belong to.

    Of a router's reduction only the width that it leads to is stored: the official one if it leads there, else the
    first that does. Dropouts and special words are the defaults.

    Raises:
        UserError: a weight that every DTNet has is missing.
    """
    try:
        shape = {key: tuple(tensor.shape) for key, tensor in state.items()}
        layer = "encoder.layers.0."
        d, d_in = shape["encoder.fc.weight"]
        vocabulary, _ = shape["decoder.word_embedding.weight"]
        heads = sum(re.fullmatch(r"encoder\.geometry\.\d+\.weight", key) is not None for key in state)
        grid = shape[f"{layer}spatial.amc.cell.rows.weight"][0]
        reductions = (
            _reduction(grid**2, shape[f"{layer}spatial_router.spatial_branch.0.weight"][0], 7),
            _reduction(d, shape[f"{layer}spatial_router.channel_branch.0.weight"][0], 16),
        )
        return DTNetConfig(
            d_in=d_in,
            grid=grid,
            d_model=d,
            heads=heads,
            d_k=shape[f"{layer}spatial.gmc.attention.q.weight"][0] // max(heads, 1),
            d_v=shape[f"{layer}spatial.gmc.attention.v.weight"][0] // max(heads, 1),
            d_ff=shape[f"{layer}channel.cpc.fc1.weight"][0],
            encoder_layers=_depth(state, "encoder"),
            decoder_layers=_depth(state, "decoder"),
            vocabulary_size=vocabulary,
            max_len=shape["decoder.position_embedding.weight"][0] - 1,
            router_reductions=reductions,
            se_reduction=_reduction(d, shape[f"{layer}channel.cac.cell.squeeze.weight"][0], 16),
        )
    except KeyError as error:
        raise UserError(f"no weight {error.args[0]}", where, "a DTNet with its five cells and joint routers") from error
    except (ValueError, IndexError) as error:
        raise UserError("weights of another shape than a DTNet's", where, "matrices where it has matrices") from error


def _depth(state: Mapping[str, Tensor], part: str) -> int:
    return len({key.split(".")[2] for key in state if key.startswith(f"{part}.layers.")})


def _reduction(width: int, hidden: int, official: int) -> int:
    if width // official == hidden:
        return official
    return next((r for r in range(1, width + 1) if width // r == hidden), 1)


def read_official(path: str | Path, config: DTNetConfig | None = None) -> DTNet:
    """The model in an official checkpoint, in eval mode.

    Args:
        path: .pth (the dict of a training, or a bare state dict) or .safetensors with official names.
        config: its dimensions; None: as the shapes say.

    Raises:
        UserError: a missing, broken or truncated file, another model's, or weights that do not fit.
    """
    content = read_weights(path)
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    ours = import_state(without_wrapper(state), path)
    config = infer_config(ours, path) if config is None else config
    with torch.device("meta"):  # refuse before anything large is made
        check_fits(DTNet(config).state_dict(), ours, path)
    model = DTNet(config)
    load_into(model, ours, path)
    return model.eval()


def convert(
    source: str | Path,
    target: str | Path,
    to: Literal["dtnet", "official"] = "dtnet",
    vocabulary: str | Path | None = None,
) -> Path:
    """Write a checkpoint in the other format, whole or not at all.

    Args:
        source: to "dtnet": an official .pth or .safetensors; to "official": a folder of `save_pretrained`.
        target: to "dtnet": a folder that does not exist yet; to "official": a file, .pth (a dict with `state_dict`, as
            the official evaluation reads it) or .safetensors.
        vocabulary: to "dtnet": the words, the official pickle or a vocabulary.json; without them the model has no text.

    Returns:
        The target.

    Raises:
        UserError: a target that exists, or what `read_official`, `DTNet.from_pretrained`, `save_pretrained` raise.
    """
    target = Path(target)
    if target.exists():
        raise UserError("already exists", target, "a new name")
    if to == "dtnet":
        words = None if vocabulary is None else Vocabulary.load(vocabulary)
        model = read_official(source)
        model.vocabulary = words
        model.save_pretrained(target)
        return target
    if to != "official":
        raise UserError(f"format {to!r}", "convert", "dtnet or official")
    if target.suffix not in (".pth", ".pt", ".safetensors"):
        raise UserError("unknown kind of file", target, ".pth, .pt or .safetensors")
    model = DTNet.from_pretrained(source)
    if model.config.routing != "joint" or len(model.config.cells) != 5:
        raise UserError("a variant of the model", source, "five cells and joint routers, as the official code has")
    state = {key: tensor.contiguous() for key, tensor in export_state(model.state_dict()).items()}
    if target.suffix == ".safetensors":
        atomic_write_bytes(target, save(state, metadata={"format": "pt"}))
    else:
        buffer = io.BytesIO()
        torch.save({"state_dict": state}, buffer)
        atomic_write_bytes(target, buffer.getvalue())
    return target
