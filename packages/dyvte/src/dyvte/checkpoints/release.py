"""Official checkpoints and ours, both ways.

    to_gates      an official DyVTE checkpoint -> a folder of gates alone
    to_host       the LLaVA around them (or a plain LLaVA-1.5 release) -> transformers' layout
    to_official   a LLaVA-1.5 in transformers' layout and gates -> one official checkpoint

Files are copied tensor by tensor: a shard is in memory at a time, never the model.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from dyvte.checkpoints.keys import RECOMPUTED, gates_to_official, host_from_official, host_to_official
from dyvte.checkpoints.load import load_gates, save_gates
from dyvte.gates import Gates
from tenfold import UserError
from tenfold.hosts.loading import loading_from
from tenfold.runs import atomic_directory, atomic_write_json, read_json
from tenfold.weights import StoredTensor, WeightFiles, write_weights

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
LLAMA = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
)
CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
TOWER = "model.vision_tower.vision_tower."
WORD_ROWS = ("model.embed_tokens.weight", "lm_head.weight")


def to_gates(source: str | Path, folder: str | Path) -> Gates:
    """Write the gates of an official checkpoint into a folder of their own, in their stored type.

    Raises:
        UserError: as `load_gates`; the folder exists.
    """
    gates = load_gates(source)
    save_gates(gates, folder, {"base": "an official DyVTE checkpoint", "data": None, "run": None})
    return gates


def to_host(
    source: str | Path,
    folder: str | Path,
    *,
    vision_tower: str | Path | None = None,
    processor: str | Path | None = None,
) -> LlavaConfig:
    """Write the LLaVA-1.5 of an official checkpoint, with or without gates, in transformers' layout.

    Args:
        source: a folder with `config.json` and weights under official names.
        folder: a new folder.
        vision_tower: CLIP's folder; most releases leave the tower to its own checkpoint.
        processor: a folder whose tokenizer and image processor are copied (a port of llava-hf); by default what the
            source has.

    Raises:
        UserError: a broken or foreign config; weights that are missing, unexpected or of another shape.
    """
    source, folder = Path(source), Path(folder)
    release = _object(source / "config.json")
    if "mm_vision_tower" not in release:
        raise UserError(f"no official release (model_type {release.get('model_type')!r})", source, "mm_vision_tower")
    with WeightFiles(source) as files:
        stored = {n: t for n, t in files.tensors.items() if not RECOMPUTED.search(n)}
        tower_files = None
        if not any(name.startswith(TOWER) for name in stored):
            if vision_tower is None:
                raise UserError(
                    "no vision tower inside", source, f"--vision-tower FOLDER of {release['mm_vision_tower']}"
                )
            tower_files = WeightFiles(vision_tower).__enter__()
            own = {n: t for n, t in tower_files.tensors.items() if n.startswith("vision_model.")}
            stored |= {TOWER + n: t for n, t in own.items() if not RECOMPUTED.search(n)}
        try:
            config = _llava_config(release, _tower_config(release, source, vision_tower), source)
            names = host_from_official(stored, source)
            text: Any = config.text_config
            words = text.vocab_size
            tensors = {new: _grown(stored[old], old, words) for old, new in names.items()}
            _check({old: stored[old] for old in names}, config, release["vocab_size"], source)
            with atomic_directory(folder) as new:
                config.save_pretrained(new)
                _copy_tokenizer(Path(processor) if processor is not None else source, new)
                write_weights(new, tensors)
        finally:
            if tower_files is not None:
                tower_files.__exit__(None, None, None)
    return config


def to_official(host: str | Path, gates: str | Path, folder: str | Path) -> int:
    """Write one official checkpoint of a LLaVA-1.5 in transformers' layout and gates; returns its parameters.

    Raises:
        UserError: a host that is no LLaVA-1.5, gates for another one, low-rank gates; the folder exists.
    """
    host, folder = Path(host), Path(folder)
    settings = _object(host / "config.json")
    if settings.get("model_type") != "llava":
        raise UserError(f"model_type {settings.get('model_type')!r}", host, "llava, in transformers' layout")
    with loading_from(host, "a config.json as save_pretrained writes it"):
        config = LlavaConfig.from_dict(settings)
    text: Any = config.text_config
    if text.model_type != "llama":
        raise UserError(f"a decoder of type {text.model_type}", host, "llama: the official code has no other")
    own = load_gates(gates)
    own.validate(text.num_hidden_layers, text.hidden_size, str(host))
    weights = {name: StoredTensor.of(tensor) for name, tensor in own.state_dict().items()}
    inside = {official: weights[name] for name, official in gates_to_official(weights, gates).items()}
    words: Any = getattr(config, "official_vocab_size", text.vocab_size)
    if type(words) is not int or not 1 <= words <= text.vocab_size:
        raise UserError(f"official_vocab_size {words!r}", host / "config.json", f"1 to {text.vocab_size}")
    with WeightFiles(host) as files:
        spelled = {_present(name): tensor for name, tensor in files.tensors.items() if not RECOMPUTED.search(name)}
        names = host_to_official(spelled, host)
        official = {new: _grown(spelled[old], new, words) for old, new in names.items()}
        with atomic_directory(folder) as new:
            atomic_write_json(new / "config.json", official_config(config, words))
            _copy_tokenizer(host, new)
            write_weights(new, official | inside)
    return sum(tensor.numbers for tensor in (official | inside).values())


def _present(name: str) -> str:
    """Files of llava-hf spell names as earlier transformers did; as they are in the model today."""
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("model.vision_tower.vision_model.", "model.vision_tower."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of settings", path, "a JSON object")
    return content


def _tower_config(release: dict[str, Any], source: Path, vision_tower: str | Path | None) -> dict[str, Any]:
    for folder in (vision_tower, source / "vision_tower"):
        if folder is not None and (Path(folder) / "config.json").is_file():
            content = _object(Path(folder) / "config.json")
            content = content.get("vision_config", content)
            return {name: content[name] for name in (*CLIP_L_336, "num_channels", "layer_norm_eps") if name in content}
    return CLIP_L_336


def _llava_config(release: dict[str, Any], tower: dict[str, Any], source: Path) -> LlavaConfig:
    missing = [name for name in (*LLAMA[:4], "vocab_size", "mm_vision_select_layer") if name not in release]
    if missing or release.get("mm_projector_type") != "mlp2x_gelu":
        what = f"no {missing[0]}" if missing else f"projector {release.get('mm_projector_type')!r}"
        raise UserError(what, source / "config.json", "an official LLaVA-1.5 config (mlp2x_gelu)")
    words = release["vocab_size"]
    with loading_from(source, "an official LLaVA-1.5 config"):
        llama = LlamaConfig(
            **{name: release[name] for name in LLAMA if name in release},
            num_key_value_heads=release.get("num_key_value_heads") or release["num_attention_heads"],
            vocab_size=-(-(words + 2) // 64) * 64,  # room for <image> and <pad>, as in the ports of llava-hf
            pad_token_id=words + 1,
        )
        return LlavaConfig(
            text_config=llama,
            vision_config=CLIPVisionConfig(**tower),
            image_token_index=words,
            vision_feature_layer=release["mm_vision_select_layer"],
            vision_feature_select_strategy="default",
            dtype=release.get("torch_dtype", "float16"),
            architectures=["LlavaForConditionalGeneration"],
            official_vocab_size=words,  # type: ignore[call-arg]
        )


def official_config(config: LlavaConfig, words: int) -> dict[str, Any]:
    llama: Any = config.text_config
    tower: Any = config.vision_config
    return {name: getattr(llama, name) for name in LLAMA} | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": words,
        "num_key_value_heads": llama.num_key_value_heads,
        "pad_token_id": 0,
        "torch_dtype": str(config.dtype or "float16").removeprefix("torch."),
        "image_aspect_ratio": "pad",
        "mm_hidden_size": tower.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "use_mm_proj": True,
    }


def _check(stored: dict[str, StoredTensor], config: LlavaConfig, words: int, where: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    state = model.state_dict()
    expected = {official: tuple(state[name].shape) for name, official in host_to_official(state).items()}
    expected |= {name: (words, *expected[name][1:]) for name in WORD_ROWS}
    found = {name: tensor.shape for name, tensor in stored.items()}
    if wrong := sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name)):
        got, needed = found.get(wrong[0], "missing"), expected.get(wrong[0], "no such weight")
        raise UserError(f"{len(wrong)} weights do not fit, first {wrong[0]}: {got}", where, f"{needed} by its config")


def _grown(tensor: StoredTensor, name: str, words: int) -> StoredTensor:
    """With ``words`` rows where it has a row for each word: new ones are the mean, whose logit is never the largest."""
    if name not in WORD_ROWS or tensor.shape[0] == words:
        return tensor

    def read() -> torch.Tensor:
        rows = tensor.read()
        if len(rows) >= words:
            return rows[:words]
        mean = rows.mean(0, dtype=torch.float32).to(rows.dtype)
        return torch.cat((rows, mean.expand(words - len(rows), -1)))

    return replace(tensor, shape=(words, *tensor.shape[1:]), read=read)


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
