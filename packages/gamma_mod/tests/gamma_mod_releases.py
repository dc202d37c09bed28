"""Tiny official releases: config, sharded weights under official names, the router under every converted layer's."""

import json

import torch
from safetensors.torch import save_file

from gamma_mod.checkpoints.keys import router_key

WIDTH, LAYERS, CONVERTED = 16, 5, (1, 2, 3)
CONFIG = {
    "architectures": ["MoDLlavaLlamaForCausalLM"],
    "model_type": "mod_llava_llama",
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "mm_vision_tower": "vision_tower",
    "vision_tower_slow": "convnext",
    "mod": {
        "mod_enable": True,
        "mod_mode": "custom",
        "mod_layers_idx": list(CONVERTED),
        "capacity_factor": 0.5,
        "router_aux_loss_coef": 0.01,
    },
}


def weights(routers=CONVERTED):
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (40, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (40, WIDTH)}
    shapes |= {"model.mm_projector.0.weight": (WIDTH, 8), "model.vision_tower.align_stages.0.fast_proj.bias": (8,)}
    for layer in range(LAYERS):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (WIDTH, WIDTH)
    found = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    router = torch.randn(2, WIDTH, generator=generator).half()
    return found | {router_key(layer): router.clone() for layer in routers}


def write_release(folder, routers=CONVERTED, shards=2, suffix=".bin", config=CONFIG, tensors=None):
    """A release in two pickled shards with their index, as the authors' are."""
    folder.mkdir()
    tensors = weights(routers) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"temperature": 0.9}')
    (folder / "tokenizer.model").write_bytes(b"tokens")
    names = sorted(tensors)
    parts = [names[start::shards] for start in range(shards)]
    stem = "pytorch_model" if suffix == ".bin" else "model"
    index = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05d}-of-{shards:05d}{suffix}"
        if suffix == ".bin":
            torch.save({name: tensors[name] for name in part}, folder / file)
        else:
            save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder
