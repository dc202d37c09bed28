"""D8: the paper's TFLOPs from the closed formula, and the formula against torch's counter on real modules."""

import pytest
import torch
from gamma_mod_fixtures import converted, layers_of, prompts
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from gamma_mod import convert, costs, measure_skips
from gamma_mod.costs import VICUNA_7B, VICUNA_13B, model_flops

# Section 9: shape, prompt, converted layers, skip, TFLOPs computed there, the paper's.
ROWS = [
    (VICUNA_7B, 1400, 0, 0.0, 19.16, 19.2),
    (VICUNA_7B, 1400, 28, 0.379, 12.59, 12.6),
    (VICUNA_7B, 1400, 28, 0.577, 9.26, 9.3),
    (VICUNA_7B, 1400, 28, 0.489, 10.73, 10.7),
    (VICUNA_7B, 1400, 28, 0.355, 13.00, 13.0),
    (VICUNA_7B, 1400, 28, 0.515, 10.30, 10.3),
    (VICUNA_7B, 1400, 28, 0.164, 16.28, 16.3),
    (VICUNA_7B, 1400, 28, 0.743, 6.52, 6.5),
    (VICUNA_7B, 1400, 32, 0.347, 12.28, 12.3),
    (VICUNA_7B, 1400, 21, 0.252, 15.86, 15.9),
    (VICUNA_7B, 800, 0, 0.0, 10.70, 10.7),
    (VICUNA_7B, 800, 28, 0.310, 7.73, 7.7),
    (VICUNA_7B, 800, 28, 0.564, 5.34, 5.3),
    (VICUNA_13B, 1400, 0, 0.0, 37.13, 37.1),
    (VICUNA_13B, 1400, 36, 0.349, 25.13, 25.1),
    (VICUNA_13B, 1400, 36, 0.551, 18.35, 18.4),
    (VICUNA_7B, 4000, 0, 0.0, 60.20, 60.2),
    (VICUNA_7B, 4000, 28, 0.362, 39.43, 39.4),
    (VICUNA_7B, 4000, 28, 0.581, 27.81, 27.8),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[4]}")
def test_the_papers_tflops_come_out(row):
    """Fails if a coefficient, the number of converted layers or the rounding of kept tokens is another."""
    shape, tokens, converted_layers, skip, computed, paper = row
    found = model_flops(shape, tokens, skip, converted_layers) / 1e12
    assert abs(found - computed) <= 0.0051 and abs(found - paper) <= 0.06


def test_one_published_row_needs_other_layers_than_it_names():
    """ "1 MoD per 2 layers": 17.4 with 16 of 32 layers, the printed 16.1 only with 28."""
    assert round(model_flops(VICUNA_7B, 1400, 0.175, 16) / 1e12, 2) == 17.41
    assert round(model_flops(VICUNA_7B, 1400, 0.175, 28) / 1e12, 1) == 16.1


def test_the_formula_is_what_a_layer_computes():
    """Closed formula against torch's counter on a converted model's prefill, layer by layer kept as measured. Fails if
    a skipped token is computed, or a product is left out of the formula."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = convert(LlamaForCausalLM(config).eval(), (1, 2), prefill_threshold=0.5)
    model.gamma_mod.router.weight.data *= 8
    ids = torch.arange(2, 32)[None]
    with torch.no_grad(), measure_skips(keep_tensors=True) as skips, FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    shape = costs.DecoderShape.of(config)
    kept = [30, int(skips.kept["prefill", 1][0].sum()), int(skips.kept["prefill", 2][0].sum()), 30]
    assert 0 < kept[1] < 30
    router, head = 2 * 2 * 30 * 64 * 2, 2 * 30 * 64 * 50
    assert counter.get_total_flops() == costs.prefill_flops(kept, shape) + router + head
    assert costs.true_layer_flops(30, VICUNA_7B) == costs.layer_flops(30, VICUNA_7B)


def test_training_skip_is_not_the_routing_ratio():
    """r = 0.5 of 1,059 routable tokens skips 529 of 1,400: 37.8 %; FLOPs 65.8 % of dense (section 9)."""
    assert costs.budget(1400, 1059, 0.5) == 871
    assert round(costs.training_skip(1400, 1059, 0.5), 3) == 0.378
    dense = model_flops(VICUNA_7B, 1400, 0.0, 0)
    assert round(costs.training_flops(VICUNA_7B, 1400, 1059, 0.5, 28) / dense, 3) == 0.658
    kept_token_layers = (4 * 1400 + 28 * 871) / (32 * 1400)
    assert round(kept_token_layers, 3) == 0.669


def test_the_cache_shrinks_with_the_skip():
    """49.5 % of the dense cache at a skip of 0.577, and a real cache holds exactly the kept tokens."""
    assert round(costs.kv_kept(32, 28, 0.577), 3) == 0.495
    model, inputs = converted(prefill_threshold=0.5), prompts(rows=[[("image", 4), 6]])
    with torch.no_grad(), measure_skips() as skips:
        cache = model(**inputs, use_cache=True).past_key_values
    lengths = [part.keys.shape[2] for part in cache.layers]
    total = inputs["input_ids"].shape[1] * len(layers_of(model))
    assert sum(lengths) / total == pytest.approx(costs.kv_kept(4, 2, skips.prefill))


def test_parameters_of_the_router():
    assert costs.router_parameters(4096) == 8192 and costs.router_parameters(5120) == 10240


def test_a_token_that_skips_reads_nothing_of_that_layer():
    every = costs.decode_bytes([True] * 32, [1401] * 32, VICUNA_7B)
    none = costs.decode_bytes([False] * 32, [1401] * 32, VICUNA_7B)
    assert none == 2 * 4096 * 32000
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 * 1401
    assert every - none == 2 * 32 * layer
