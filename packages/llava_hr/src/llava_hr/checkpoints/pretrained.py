"""What a training starts from: Vicuna, CLIP and a ConvNeXt, each from its own files, under this package's names.

    with ExitStack() as files:
        weights = initial(
            config,
            files,
            language_model="vicuna-7b-v1.5",
            clip="clip-vit-large-patch14-336",
            convnext="convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_320",
            projector="stage1/mm_projector.bin",
        )

Which ConvNeXt weights these are is said, not guessed (sheet section 4.3): the official scripts name one timm tag, and
their code loads another. Both are here by their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from llava_hr.checkpoints import projector as stage1
from llava_hr.checkpoints.keys import HIGH_RES_WEIGHTS
from llava_hr.checkpoints.load import find_model
from llava_hr.checkpoints.release import meta_state
from llava_hr.configuration import LlavaHrConfig
from tenfold import UserError
from tenfold.weights import StoredTensor, WeightFiles

Weights = dict[str, StoredTensor]

# Every tag by name, all of them on the hub as timm/<tag>.
CONVNEXT_TAGS = {tag: name for name, tags in HIGH_RES_WEIGHTS.items() for tag in tags.values()}
IMAGENET = 1000
_LAYER_SCALE = re.compile(r"(stages\.\d+\.blocks\.\d+)\.weight$")


def initial(
    config: LlavaHrConfig,
    files: ExitStack,
    *,
    language_model: str | Path,
    clip: str | Path,
    convnext: str | Path | None = None,
    projector: str | Path | None = None,
) -> Weights:
    """All weights that a training starts from: our name -> weight, read as long as ``files`` is open.

    MR-Adapters are not among them, and without ``projector`` neither are projector and final align: these start as the
    model's own rules say.

    Args:
        config: of the model; `vision_config.high_res_weights` is set to what is loaded, where that can be told.
        language_model: a Llama's folder or hub id.
        clip: CLIP's folder or hub id, the whole or its image half.
        convnext: a timm or open_clip file, a folder of one, a hub id, or a name of `CONVNEXT_TAGS`; None:
            `vision_config.high_res_weights`.
        projector: what stage 1 trained (`projector.read`).

    Raises:
        UserError: a broken, missing or foreign file; a weight that is missing or does not fit the config.
    """
    weights = read_language_model(language_model, files, tied=config.text_config.tie_word_embeddings)
    weights |= read_clip(clip, files)
    found, tag = read_convnext(convnext or config.vision_config.high_res_weights, files)
    architecture = CONVNEXT_TAGS.get(tag or "", config.vision_config.high_res_name)
    if architecture != config.vision_config.high_res_name:
        raise UserError(f"weights of {architecture}", convnext, config.vision_config.high_res_name)
    if tag is not None:
        config.vision_config.high_res_weights = tag
    weights |= found
    if projector is not None:
        weights |= {name: StoredTensor.of(tensor) for name, tensor in stage1.read(projector).items()}
    new = ("model.vision_tower.adapters.", *(() if projector is not None else stage1.TRAINED))
    expected = {name: tensor for name, tensor in meta_state(config).items() if not name.startswith(new)}
    sources = {
        "model.vision_tower.vit.": clip,
        "model.vision_tower.convnext.": convnext or config.vision_config.high_res_weights,
        "model.vision_tower.align.": projector,
        "model.multi_modal_projector.": projector,
    }
    for name in sorted(expected.keys() | weights.keys()):
        where = next((source for prefix, source in sources.items() if name.startswith(prefix)), language_model)
        if name not in weights:
            raise UserError(f"no {name}", where, "a value for each weight of the model")
        if name not in expected:
            raise UserError(f"{name} is too many", where, "the weights of the model's config")
        if weights[name].shape != tuple(expected[name].shape):
            raise UserError(
                f"{name} is {list(weights[name].shape)}", where, f"{list(expected[name].shape)} by the config"
            )
    return weights


def read_language_model(source: str | Path, files: ExitStack, tied: bool = False) -> Weights:
    """A language model's weights: its decoder, and its output matrix.

    Args:
        tied: the output matrix is the embedding again, where the files leave it out.

    Raises:
        UserError: no such model, a broken file, or one of something else.
    """
    stored = files.enter_context(WeightFiles(find_model(source))).tensors
    weights = {}
    for name, tensor in stored.items():
        if name.startswith("model.") and not name.endswith(".rotary_emb.inv_freq"):
            weights[f"model.language_model.{name.removeprefix('model.')}"] = tensor
        elif name == "lm_head.weight":
            weights[name] = tensor
    embedding = "model.language_model.embed_tokens.weight"
    if embedding not in weights:
        raise UserError("no language model", source, "weights named model.embed_tokens.weight, model.layers.*, ...")
    if tied:
        weights.setdefault("lm_head.weight", weights[embedding])
    return weights


def read_clip(source: str | Path, files: ExitStack) -> Weights:
    """The ViT out of a CLIP, or out of its image half; older files put `vision_model.` in front of its names.

    Raises:
        UserError: no such model, a broken file, or one of something else.
    """
    stored = files.enter_context(WeightFiles(find_model(source))).tensors
    inner = _inner(stored, "vision_model.")
    weights = {
        f"model.vision_tower.vit.{name}": tensor
        for name, tensor in inner.items()
        if name.startswith(("embeddings.", "pre_layrnorm.", "encoder.")) and name != "embeddings.position_ids"
    }
    if "model.vision_tower.vit.embeddings.class_embedding" not in weights:
        raise UserError("no CLIP vision tower", source, "weights named vision_model.embeddings.class_embedding, ...")
    return weights


def read_convnext(source: str | Path, files: ExitStack) -> tuple[Weights, str | None]:
    """A ConvNeXt's trunk, and the name of its weights where they tell it, by the size of their head.

    Args:
        source: a timm or open_clip file, a folder of one, a hub id, or a name of `CONVNEXT_TAGS`.

    Raises:
        UserError: no such file, a broken one, or one of something else.
    """
    path = Path(source)
    if not path.is_file():
        path = find_model(f"timm/{source}" if str(source) in CONVNEXT_TAGS and not path.exists() else source)
    stored = files.enter_context(WeightFiles(path)).tensors
    inner = _inner(stored, "visual.trunk.")
    weights = {
        # Files that transformers has renamed, LLaVA-HR's among them, call the layer scale `weight`.
        "model.vision_tower.convnext." + _LAYER_SCALE.sub(r"\1.gamma", name): tensor
        for name, tensor in inner.items()
        if name.startswith(("stem.", "stages."))
    }
    if "model.vision_tower.convnext.stem.0.weight" not in weights:
        raise UserError("no ConvNeXt", source, "weights named stem.0.weight, or visual.trunk.stem.0.weight (open_clip)")
    return weights, str(source) if str(source) in CONVNEXT_TAGS else _tag(inner, inner.keys() != stored.keys())


def _tag(inner: Mapping[str, StoredTensor], open_clip: bool) -> str | None:
    """The tag of a full-size trunk: its head has a row for each class of ImageNet, or for each dimension of CLIP."""
    last = inner.get("stages.3.downsample.1.weight")
    architecture = {1536: "convnext_large_mlp", 3072: "convnext_xxlarge"}.get(last.shape[0] if last else 0)
    if architecture is None:
        return None
    tags = HIGH_RES_WEIGHTS[architecture]
    if open_clip:  # its head lies outside of the trunk
        return next(tag for rows, tag in tags.items() if rows != IMAGENET)
    head = inner.get("head.fc.weight")
    return tags.get(head.shape[0]) if head else None


def _inner(stored: Mapping[str, StoredTensor], prefix: str) -> Weights:
    """What stands behind a prefix; all of it where nothing does."""
    inner = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    return inner or dict(stored)
