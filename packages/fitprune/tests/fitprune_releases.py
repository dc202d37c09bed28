"""A tiny official LLaVA-1.5 release with random weights, as files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from tenfold.weights import WeightFiles

OFFICIAL_KEYS = json.loads((Path(__file__).parent / "goldens" / "official_keys.json").read_text())
WORDS = 70
TOWER = "model.vision_tower.vision_tower.vision_model."
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
RELEASE = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float16",
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "vision_tower",
    "mm_use_im_start_end": False,
    "use_mm_proj": True,
}


def tiny_weights():
    """Random fp16 weights under official names; the names come from the golden file and CLIP's paper, not from the
    key map under test."""
    generator = torch.Generator().manual_seed(0)
    d, m, v, vm = 32, 48, 16, 24
    sizes = {32000: WORDS, 4096: d, 11008: m, 1024: v}
    shapes = {}
    for pattern, shape in OFFICIAL_KEYS["host_keys_pattern"].items():
        for layer in range(3) if "{0..31}" in pattern else (0,):
            shapes[pattern.replace("{0..31}", str(layer))] = [sizes[size] for size in shape]
    tower = {
        "embeddings.class_embedding": [v],
        "embeddings.patch_embedding.weight": [v, 3, 4, 4],
        "embeddings.position_embedding.weight": [17, v],
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        tower |= {f"{norm}.weight": [v], f"{norm}.bias": [v]}
    for layer in range(2):
        block = f"encoder.layers.{layer}."
        for name in ("q", "k", "v", "out"):
            tower |= {f"{block}self_attn.{name}_proj.weight": [v, v], f"{block}self_attn.{name}_proj.bias": [v]}
        for name in ("layer_norm1", "layer_norm2"):
            tower |= {f"{block}{name}.weight": [v], f"{block}{name}.bias": [v]}
        tower |= {f"{block}mlp.fc1.weight": [vm, v], f"{block}mlp.fc1.bias": [vm]}
        tower |= {f"{block}mlp.fc2.weight": [v, vm], f"{block}mlp.fc2.bias": [v]}
    shapes |= {TOWER + name: shape for name, shape in tower.items()}
    return {name: (torch.randn(shape, generator=generator) * 0.3).half() for name, shape in shapes.items()}


def write_release(folder, weights=None, config=None, shards=2, pickled=False, vision_config=True):
    """An official release: config, numbered shards with their index, a tokenizer with the words and nothing else."""
    weights = tiny_weights() if weights is None else weights
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RELEASE | (config or {})))
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    save = torch.save if pickled else save_file
    names = sorted(weights)
    weight_map = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        shard = names[number::shards]
        save({key: weights[key] for key in shard}, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if vision_config:
        (folder / "vision_tower").mkdir()
        (folder / "vision_tower" / "config.json").write_text(json.dumps(VISION))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    words = ["<unk>", "<s>", "</s>", "USER", "ASSISTANT", ":", "what", "shape", "is", "it"]
    words += [f"word{number}" for number in range(WORDS - len(words))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    inner.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>", "pad_token": "<unk>"}))


def read_weights(folder):
    with WeightFiles(folder) as weights:
        return {name: tensor.read().clone() for name, tensor in weights.tensors.items()}
