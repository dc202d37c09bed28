"""Costs: the paper's tables to the digit, and the formulas against torch's own counter on real decoder
layers."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, Qwen2VLTextConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

from fitprune import Pruner, Recipe
from fitprune.costs import (
    LLAVA_7B,
    DecoderShape,
    alive_macs,
    base_macs,
    decode_macs,
    fastv_alive,
    kv_bytes,
    kv_kept,
    layer_macs,
    mean_entering,
    prompt_flops,
    pyramid_alive,
    reduction,
    scoring_macs,
    true_layer_macs,
    true_prefill_macs,
)
from fitprune.statistics import AttentionMass
from tenfold.testing.hosts import Prompts, build

RECIPE = Recipe.released("llava-1.5-7b", 60)


@pytest.mark.parametrize("text, base, pruned", [(60, 8.45, 3.87), (100, 9.00, 4.40)])
def test_whole_prompt_teraflops_of_the_headline(text, base, pruned):
    """The published 4.4 TFLOPs is the 60 % recipe with 100 text tokens."""
    assert round(prompt_flops((0,) * 32, 576, text, LLAVA_7B) / 1e12, 2) == base
    assert round(prompt_flops(RECIPE.remove, 576, text, LLAVA_7B) / 1e12, 2) == pruned


def test_headline_counts():
    assert base_macs(576, LLAVA_7B) == 3_817_152_184_320
    assert round(mean_entering(RECIPE.remove, 576), 1) == 245.0
    assert round(kv_kept(RECIPE.remove, 576), 3) == 0.425
    assert layer_macs(576, 576, LLAVA_7B) == 119_286_005_760


@pytest.mark.parametrize(
    "entering, saved",
    [
        (fastv_alive(576, 2, 0.5, 32), 47.4),
        (fastv_alive(576, 2, 0.75, 32), 70.7),
        (fastv_alive(576, 3, 0.75, 32), 68.4),
        (pyramid_alive(576, (8, 16, 24), 0.5, 32), 53.4),
        ([192] * 32, 67.2),
        ([128] * 32, 78.2),
        ([64] * 32, 89.1),
    ],
)
def test_peers_at_the_same_formula(entering, saved):
    assert round(100 * (1 - alive_macs(entering, LLAVA_7B) / base_macs(576, LLAVA_7B)), 1) == saved


def test_low_ratios_deliver_less_than_their_label():
    delivered = [
        round(100 * reduction(Recipe.released("llava-1.5-7b", p).remove, 576, LLAVA_7B), 2) for p in (10, 20, 30)
    ]
    assert delivered == [6.44, 15.35, 27.90]


LAYERS = {
    "llama, tiny": (LlamaDecoderLayer, LlamaConfig, 32, 48, 4, 2),
    "llama, full width": (LlamaDecoderLayer, LlamaConfig, 4096, 11008, 32, 32),
    "qwen2-vl, full width": (Qwen2VLDecoderLayer, Qwen2VLTextConfig, 3584, 18944, 28, 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_cost_equals_torchs_counter(name):
    """On the meta device, eager attention (its matrices are plain products). Fails if grouped heads are
    miscounted."""
    layer_class, config_class, hidden, intermediate, heads, kv_heads = LAYERS[name]
    config = config_class(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    config._attn_implementation = "eager"
    shape = DecoderShape.of(config)
    tokens = 141
    with torch.device("meta"):
        layer = layer_class(config, layer_idx=0)
        states = torch.empty(1, tokens, hidden)
        rotary = (torch.empty(1, tokens, hidden // heads),) * 2
    with FlopCounterMode(display=False) as counter:
        layer(states, position_embeddings=rotary)
    assert counter.get_total_flops() == 2 * true_layer_macs(tokens, tokens, shape)
    if kv_heads == heads:
        assert true_layer_macs(tokens, tokens, shape) == layer_macs(tokens, tokens, shape)


@torch.no_grad()
@pytest.mark.parametrize("early", [True, False], ids=["before o_proj", "layer output"])
def test_pruned_prefill_costs_what_the_formula_says(early, monkeypatch):
    """The running model, counted: each removal saves its o_proj and MLP only when tokens leave before
    them."""
    model = build("llava", "eager")
    inputs = Prompts("llava").batch([[("image", 4), 6]])
    recipe = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))
    monkeypatch.setattr("fitprune.attachment.is_plain_pre_norm", lambda module: early)
    monkeypatch.setattr(
        "fitprune.rules.token_mass",
        lambda tokens, *_: AttentionMass(*torch.rand(2, *tokens.visual.shape)),
    )
    with Pruner(recipe)(model), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    flops = {module: sum(ops.values()) for module, ops in counter.get_flop_counts().items()}
    decoder = "LlavaForConditionalGeneration.model.language_model"
    # Older transformers make the rotary angles by a product, once per pass; it belongs to no layer.
    counted = flops[decoder] - flops.get(f"{decoder}.rotary_emb", 0)
    shape = DecoderShape.of(model.config)
    text = inputs["input_ids"].shape[1] - 16
    expected = true_prefill_macs(recipe.remove, 16, text, shape, drops_before_projection=early)
    assert counted == 2 * expected


def test_scoring_overhead_is_about_one_percent_of_a_layer():
    """676 tokens, rows from the image on: less than the 1.6 GMACs of all rows against the visual columns."""
    assert scoring_macs(676, 641, LLAVA_7B) < 676 * 576 * 4096
    assert scoring_macs(3, 2, DecoderShape(1, 8, 8, 1)) == 8 * (2 + 3)


def test_decoding_reads_the_ragged_cache():
    full, ragged = [676] * 32, [tokens + 100 for tokens in RECIPE.alive()[:-1]]
    assert kv_bytes(full, LLAVA_7B) == 676 * 32 * 2 * 4096 * 2
    assert kv_bytes(ragged, LLAVA_7B) / kv_bytes(full, LLAVA_7B) == pytest.approx((245.0 + 100) / 676, abs=1e-3)
    assert decode_macs(full, LLAVA_7B) - decode_macs(ragged, LLAVA_7B) == 2 * 4096 * (sum(full) - sum(ragged))
