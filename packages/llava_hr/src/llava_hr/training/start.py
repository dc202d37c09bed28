"""What a stage starts from: a config, and a value for every weight.

Weights are given by name, whatever DeepSpeed makes of the model: under ZeRO-3 a model is created in pieces, one on
each rank, and code that loads weights inside of it (as timm's does in the official training) finds tensors of size
zero. Here the model is created empty; each weight is gathered, filled in on the first rank, and shared out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.initialization import no_init_weights

from llava_hr.checkpoints import projector as stage1
from llava_hr.checkpoints import release
from llava_hr.checkpoints.keys import is_official
from llava_hr.checkpoints.load import find_model
from llava_hr.checkpoints.pretrained import CONVNEXT_TAGS, initial
from llava_hr.configuration import HIGH_RES_ENCODERS, LlavaHrConfig
from llava_hr.miniature import encoders
from llava_hr.miniature import model as mini
from llava_hr.modeling import LlavaHrForConditionalGeneration, LlavaHrProjector
from llava_hr.training.settings import TrainSettings
from llava_hr.vision import FinalAlign, MRAdapter
from tenfold import UserError
from tenfold.cli.stages import StageName
from tenfold.hosts import checkpoints
from tenfold.hosts.loading import loading_from
from tenfold.weights import StoredTensor, WeightFiles

if TYPE_CHECKING:
    from llava_hr.processing import LlavaHrProcessor
    from tenfold.data.instruct import InstructData

Weights = Mapping[str, StoredTensor]

ADAPTERS = "model.vision_tower.adapters."
# Part of the miniature's pre-trained weights -> our names.
_MINI = {
    "vit": "model.vision_tower.vit.",
    "convnext": "model.vision_tower.convnext.",
    "language_model": "model.language_model.",
    "lm_head": "lm_head.",
}


def resolved(settings: TrainSettings) -> TrainSettings:
    """The settings with a folder or file of this machine for all that the training starts from; the hub's is fetched.

    Raises:
        UserError: something is not named, not there, or the hub does not have it.
    """
    model = settings.model
    found: dict[str, str] = {}
    if model.start is not None:
        found["start"] = str(find_model(model.start))
    elif model.size != "mini":
        for name, option, what in (("language_model", "--lm", "language model"), ("clip", "--clip", "CLIP")):
            source = getattr(model, name)
            if source is None:
                raise UserError(f"no {what} to start from", option, "a folder, or a hub id")
            found[name] = str(find_model(source))
        source = model.convnext or model_config(settings, settings.running[0]).vision_config.high_res_weights
        if Path(source).is_file():
            found["convnext"] = source
        else:
            tagged = source in CONVNEXT_TAGS and not Path(source).exists()
            found["convnext"] = str(find_model(f"timm/{source}" if tagged else source))
    if model.projector is not None and not Path(model.projector).exists():
        raise UserError("no such file", model.projector, "what stage 1 trained: mm_projector.bin")
    return settings.model_copy(update={"model": model.model_copy(update=found)})


def model_config(settings: TrainSettings, name: StageName) -> LlavaHrConfig:
    """The config of a stage's model alone; arguments and errors as for `open_model`."""
    with ExitStack() as files:
        return open_model(settings, name, files)[0]


def open_model(
    settings: TrainSettings, name: StageName, files: ExitStack
) -> tuple[LlavaHrConfig, dict[str, StoredTensor] | None]:
    """The config of a stage's model (its image size, and adapters in stage 2 only), and the weights of a whole model.

    Dimensions are those of `size`, or of the language model and CLIP where these are folders.

    Returns:
        The config; the weights of `model.start`, None where the stage starts from parts. They are read when asked for,
        while `files` is open.

    Raises:
        UserError: a folder without a usable config; sizes that do not fit each other.
    """
    model, stage = settings.model, settings.stage(name)
    whole: dict[str, StoredTensor] | None = None
    if model.start is not None and Path(model.start).is_dir():
        config, whole = _whole(Path(model.start), files)
    else:
        config = mini.mini_config() if model.size == "mini" else LlavaHrConfig.named(model.size)
    values = config.to_dict()
    if model.language_model is not None and Path(model.language_model).exists():
        values["text_config"] = _language_config(Path(model.language_model)).to_dict()
    if model.clip is not None and Path(model.clip).exists():
        values["vision_config"]["low_res_config"] = _clip_config(Path(model.clip)).to_dict()
    if "high_res_name" in model.config.get("vision_config", {}):
        # Another architecture brings its own sizes, but for those that are given too.
        for field in HIGH_RES_ENCODERS["convnext_large_mlp"]:
            values["vision_config"].pop(field)
    _merge(values, model.config)
    values["vision_config"] |= {"image_size": stage.image_size, "adapters": name == "finetune"}
    values |= {"image_aspect_ratio": stage.image_aspect_ratio, "conversation": stage.conversation}
    with loading_from("model.config", "values that the model can have"):
        return LlavaHrConfig.from_dict(values), whole


def make_processor(settings: TrainSettings, config: LlavaHrConfig) -> LlavaHrProcessor:
    """Images and text as a stage's model takes them; sets the config's `image_token_id`.

    Raises:
        UserError: no tokenizer beside the language model, or a broken one.
    """
    model = settings.model
    if model.size == "mini":
        return release.processor(mini.mini_tokenizer(), config)
    folder = Path(model.start or model.language_model or "")
    return release.processor(release.read_tokenizer(folder, config.text_config.vocab_size), config)


@dataclass(frozen=True)
class Start:
    """What a stage starts from, opened once.

    Attributes:
        config: of its model.
        data: its samples, with the processor that they go through.
        whole: the weights of the whole model that it starts from; None where it starts from parts.
        files: what is open for them.
        weights: a value for every weight, read when asked for while `files` is open; None where another rank has them.
    """

    config: LlavaHrConfig
    data: InstructData
    whole: Weights | None
    files: ExitStack
    weights: Weights | None = None


def starting_weights(
    settings: TrainSettings, start: Start, seed: int, projector: Path | None
) -> dict[str, StoredTensor]:
    """Every weight that a stage starts from, by our names; they are read when asked for, while `start.files` is open.

    Args:
        settings: where language model and encoders come from. start: of the stage.
        seed: of what is new.
        projector: what an earlier stage 1 trained, or None.

    Raises:
        UserError: a folder or file that is missing, broken, or of another model.
    """
    weights: dict[str, StoredTensor] = {}
    model, config = settings.model, start.config
    if start.whole is not None:
        weights = dict(start.whole)
        if projector is not None:
            weights |= _stored(stage1.read(projector))
    elif model.size == "mini":
        for name, value in encoders.weights().items():
            part, _, rest = name.partition(".")
            if part in _MINI:
                weights[_MINI[part] + rest] = StoredTensor.of(value)
        if projector is not None:
            weights |= _stored(stage1.read(projector))
    else:
        assert model.language_model is not None and model.clip is not None
        weights = initial(
            config,
            start.files,
            language_model=model.language_model,
            clip=model.clip,
            convnext=model.convnext,
            projector=projector,
        )
    if not config.vision_config.adapters:
        weights = {name: value for name, value in weights.items() if not name.startswith(ADAPTERS)}
    weights = _stored(new_parts(config, seed)) | weights
    expected = {name: tuple(value.shape) for name, value in release.meta_state(config).items()}
    checkpoints.check_weights(weights, expected, Path(model.start or model.language_model or encoders.path()))
    return weights


def handed_on(path: Path) -> dict[str, StoredTensor]:
    """What stage 1 trained, for stage 2: projector and final align by their names."""
    return _stored(stage1.read(path))


def new_parts(config: LlavaHrConfig, seed: int) -> dict[str, Tensor]:
    """What no released model has: projector, final align and adapters as they begin, drawn by the seed."""
    vision: Any = config.vision_config
    width, channels = vision.hidden_size, vision.high_res_dims[-1]
    adapters = vision.num_groups - 1 if vision.adapters else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            stage1.TRAINED[0]: LlavaHrProjector(config),
            stage1.TRAINED[1]: FinalAlign(width, channels),
            ADAPTERS: nn.ModuleList(MRAdapter(width, channels) for _ in range(adapters)),
        }
    return {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}


def build(config: LlavaHrConfig, weights: Weights | None, dtype: torch.dtype, zero3: bool) -> nn.Module:
    """A model with all of its weights; every rank calls this.

    Args:
        config: of the model.
        weights: of `starting_weights`. Under ZeRO-3 the first rank's are taken; others may give None.
        dtype: of the model; under ZeRO-3 that of DeepSpeed's config.
        zero3: whether parameters are shared out over the ranks as they are created. transformers must know of it (a
            `TrainingArguments` with the DeepSpeed config is alive).
    """
    if zero3:
        model = LlavaHrForConditionalGeneration._from_config(config)
        return _fill_pieces(model, weights)
    with no_init_weights():
        model = LlavaHrForConditionalGeneration._from_config(config, dtype=dtype)
    assert weights is not None
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(weights[name].read())
    return model


def _fill_pieces(model: nn.Module, weights: Weights | None) -> nn.Module:
    """Fill in parameters that DeepSpeed has partitioned, one after the other."""
    from deepspeed import zero

    for name, value in model.named_parameters():
        with zero.GatheredParameters([value], modifier_rank=0), torch.no_grad():
            if weights is not None:
                value.copy_(weights[name].read())
    return model


def _whole(folder: Path, files: ExitStack) -> tuple[LlavaHrConfig, dict[str, StoredTensor]]:
    """Config and weights of a whole LLaVA-HR, official or ours."""
    settings = checkpoints.read_settings(folder)
    if is_official(settings):
        opened = release.read_release(folder, files)
        return opened.config, dict(opened.tensors)
    if settings.get("model_type") != LlavaHrConfig.model_type:
        what = f"not a LLaVA-HR (model_type {settings.get('model_type')!r})"
        raise UserError(what, folder / "config.json", f"{LlavaHrConfig.model_type}, or an official LLaVA-HR")
    return checkpoints.read_config(LlavaHrConfig, folder), files.enter_context(WeightFiles(folder)).tensors


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {name: StoredTensor.of(value) for name, value in tensors.items()}


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, change in changes.items():
        if isinstance(change, Mapping) and isinstance(values.get(name), dict):
            _merge(values[name], change)
        else:
            values[name] = change


def _language_config(folder: Path) -> Any:
    config = _config(folder)
    if not hasattr(config, "vocab_size") or not hasattr(config, "num_hidden_layers"):
        raise UserError(f"not a language model (model_type {config.model_type!r})", folder / "config.json", "Llama's")
    return config


def _clip_config(folder: Path) -> Any:
    config = _config(folder)
    config = getattr(config, "vision_config", config)
    if config.model_type != "clip_vision_model":
        raise UserError(f"not CLIP (model_type {config.model_type!r})", folder / "config.json", "CLIP's")
    return config


def _config(folder: Path) -> Any:
    with loading_from(folder, "a model's folder"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
