"""What a training starts from: a config, and a value for every weight.

Weights are given by name, whatever DeepSpeed makes of the model: under ZeRO-3 a model is created in pieces, one on
each rank. Here the model is created empty; each weight is gathered, filled in on the first rank, and shared out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.initialization import no_init_weights

from flashsloth.checkpoints import release
from flashsloth.checkpoints import tokenizer as words
from flashsloth.checkpoints.load import find_model
from flashsloth.configuration import FlashSlothConfig
from flashsloth.miniature import model as mini
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from flashsloth.training.plan import STAGE_1
from flashsloth.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli.stages import StageName
from tenfold.hosts import checkpoints
from tenfold.hosts.loading import loading_from
from tenfold.runs import sample_generator
from tenfold.weights import StoredTensor, WeightFiles

Weights = Mapping[str, StoredTensor]
SAP = "model.pooling."
# What no released model has, and where a training's seed goes.
NEW = (*STAGE_1, "model.query_tokens.", "model.embq.")


def resolved(settings: TrainSettings) -> TrainSettings:
    """The settings with a folder of this machine for all that the training starts from; the hub's is fetched.

    Raises:
        UserError: something is not named, not there, or the hub does not have it.
    """
    model, found = settings.model, {}
    if model.start is not None:
        found["start"] = str(find_model(model.start))
    elif model.size != "mini":
        for name, option, what in (("language_model", "--lm", "Phi-2"), ("siglip", "--siglip", "SigLIP")):
            source = getattr(model, name)
            if source is None:
                raise UserError(f"no {what} to start from", option, "a folder, or a hub id")
            found[name] = str(find_model(source))
    if model.stage1 is not None and not Path(model.stage1).is_file():
        raise UserError("no such file", model.stage1, "what stage 1 trained: stage1.safetensors")
    return settings.model_copy(update={"model": model.model_copy(update=found)})


def model_config(settings: TrainSettings) -> FlashSlothConfig:
    """The config of the model that is trained: of `size`, or of the folders that the training starts from.

    Raises:
        UserError: a folder without a usable config; sizes that do not fit each other.
    """
    model = settings.model
    if model.start is not None and Path(model.start).is_dir():
        config = _whole_config(Path(model.start))
    else:
        config = mini.mini_config() if model.size == "mini" else FlashSlothConfig.named(model.size)
    values = config.to_dict()
    if model.language_model is not None and Path(model.language_model).is_dir():
        values["text_config"] = _foreign(Path(model.language_model), "phi")
    if model.siglip is not None and Path(model.siglip).is_dir():
        tower = _foreign(Path(model.siglip), "siglip_vision_model")
        # One layer less than it was built with, no head (section 3.1).
        values["vision_config"] = tower | {
            "num_hidden_layers": tower["num_hidden_layers"] - 1,
            "vision_use_head": False,
        }
        values["embq_width"] = None
    values |= {"train_vision": settings.train_vision, "instruction_tuned": True} | settings.model.config
    with loading_from("model.config", "values that the model can have"):
        return FlashSlothConfig.from_dict(values)


def make_processor(settings: TrainSettings, config: FlashSlothConfig) -> FlashSlothProcessor:
    """Images and text as the model takes them.

    Raises:
        UserError: no tokenizer beside the language model, or a broken one.
    """
    model = settings.model
    if model.size == "mini" and model.start is None:
        return mini.mini_processor(config.num_image_tokens)
    folder = Path(model.start or model.language_model or "")
    made = words.build(folder) if model.start is None else release.read_tokenizer(folder, config)
    return release.processor(made, config)


def starting_weights(
    settings: TrainSettings,
    config: FlashSlothConfig,
    stage: StageName,
    seed: int,
    stage1: Path | None,
    files: ExitStack,
) -> dict[str, StoredTensor]:
    """Every weight that a stage starts from, by our names; they are read when asked for, while `files` is open.

    Args:
        seed: of what is new.
        stage1: what stage 1 trained, or None.

    Raises:
        UserError: a folder or file that is missing, broken, or of another model.
    """
    model = settings.model
    where = Path(model.start or model.language_model or mini.ASSETS)
    weights = _stored(new_parts(config, seed))
    if model.start is not None:
        weights |= _whole(Path(model.start), files)
    elif model.size == "mini":
        weights |= _stored(mini.pretrained())
    else:
        assert model.language_model is not None and model.siglip is not None
        weights |= _language_model(Path(model.language_model), files)
        weights |= _tower(Path(model.siglip), config, files)
    if stage1 is not None:
        trained = load_file(stage1)
        kept = {name: value for name, value in trained.items() if not name.startswith(SAP)}
        weights |= _stored(kept if settings.reinit_sap_in_stage2 and stage == "finetune" else trained)
    checkpoints.check_weights(
        weights, {name: tuple(one.shape) for name, one in release.meta_state(config).items()}, where
    )
    return weights


def new_parts(config: FlashSlothConfig, seed: int) -> dict[str, Tensor]:
    """Projector, SAP, query tokens and EmbQ as they begin, drawn by the seed."""
    small = FlashSlothConfig.from_dict(config.to_dict())
    small.text_config.num_hidden_layers = small.embq_layer + 1
    small.vision_config.num_hidden_layers = 1
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(small)
    parts: dict[str, Tensor] = {}
    for prefix in NEW:
        part = model.get_submodule(prefix.removesuffix("."))
        part.to_empty(device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=sample_generator(seed, NEW.index(prefix), 0))))
            part.apply(lambda module: _forget(module))
            part.apply(model._init_weights)
        parts |= {prefix + name: value for name, value in part.state_dict().items()}
    return parts


def _forget(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]


def build(config: FlashSlothConfig, weights: Weights | None, dtype: torch.dtype, zero3: bool) -> nn.Module:
    """A model with all of its weights; every rank calls this.

    Args:
        weights: of `starting_weights`. Under ZeRO-3 the first rank's are taken; others may give None.
        dtype: of the model; under ZeRO-3 that of DeepSpeed's config.
        zero3: whether parameters are shared out over the ranks as they are created. transformers must know of it (a
            `TrainingArguments` with the DeepSpeed config is alive).
    """
    if zero3:
        from deepspeed import zero

        model = FlashSlothForConditionalGeneration._from_config(config)
        for name, value in model.named_parameters():
            with zero.GatheredParameters([value], modifier_rank=0), torch.no_grad():
                if weights is not None:
                    value.copy_(weights[name].read())
        return model
    with no_init_weights():
        model = FlashSlothForConditionalGeneration._from_config(config, dtype=dtype)
    assert weights is not None
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(weights[name].read())
    return model


def _whole_config(folder: Path) -> FlashSlothConfig:
    settings = checkpoints.read_settings(folder)
    if release.is_official(settings):
        with ExitStack() as files:
            return release.read_release(folder, files).config
    return checkpoints.read_config(FlashSlothConfig, folder)


def _whole(folder: Path, files: ExitStack) -> dict[str, StoredTensor]:
    if release.is_official(checkpoints.read_settings(folder)):
        return dict(release.read_release(folder, files).tensors)
    return dict(files.enter_context(WeightFiles(folder)).tensors)


def _language_model(folder: Path, files: ExitStack) -> dict[str, StoredTensor]:
    found = {}
    for name, tensor in files.enter_context(WeightFiles(folder)).tensors.items():
        if name.startswith("lm_head."):
            found[name] = tensor
        elif name.startswith("model.") and not name.endswith("rotary_emb.inv_freq"):
            found[f"model.language_model.{name.removeprefix('model.')}"] = tensor
    return found


def _tower(folder: Path, config: FlashSlothConfig, files: ExitStack) -> dict[str, StoredTensor]:
    """The layers that are kept; a whole SigLIP has its image half under `vision_model.`."""
    kept = tuple(f"encoder.layers.{layer}." for layer in range(config.vision_config.num_hidden_layers))
    found = {}
    for name, tensor in files.enter_context(WeightFiles(folder)).tensors.items():
        inner = name.removeprefix("vision_model.")
        if inner.startswith(("embeddings.patch", "embeddings.position_embedding", *kept)):
            found[f"model.vision_tower.{inner}"] = tensor
    return found


def _foreign(folder: Path, kind: str) -> dict[str, Any]:
    with loading_from(folder, "a model's folder"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    if config.model_type != kind:
        raise UserError(f"model_type {config.model_type!r}", folder / "config.json", kind)
    return config.to_dict()


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {name: StoredTensor.of(value) for name, value in tensors.items()}
