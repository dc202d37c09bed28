"""A tiny LLaVA in transformers' layout and gates for it, as folders."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from dyvte import GateConfig, Gates, save_gates

WORDS = 62  # with <image> and <pad> 64


def tiny_host(folder, seed=0):
    """A LLaVA of two layers; its vocabulary leaves room for <image> and <pad>."""
    llama = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=WORDS + 1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    clip = CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=8,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=llama, vision_config=clip, image_token_index=WORDS, vision_feature_layer=-2,
        official_vocab_size=WORDS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).eval()
    # Words behind the official ones are the mean of the others, as a conversion makes them.
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.lm_head.weight):
            weight[WORDS:] = weight[:WORDS].mean(0)
    model.save_pretrained(folder)
    return model


def tiny_gates(folder, layers=2, hidden=16, seed=0):
    return save_gates(Gates(GateConfig(layers, hidden, 8)).initialise(seed), folder, {"base": "tiny"})
