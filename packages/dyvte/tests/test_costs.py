"""Closed formulas against counted modules and the paper's tables."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from dyvte import costs
from dyvte.costs import LLAMA_7B, DecoderShape
from dyvte.gates import GateConfig, Gates


def counted(work):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_layer_costs_what_torch_counts(kv_heads):
    """Fails if grouped key heads, the MLP or the two attention products are counted otherwise. Eager attention runs
    the full matrices that the formula counts."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).model
    found = counted(lambda: model(torch.ones(1, 11, dtype=torch.int64), use_cache=False))
    rotary = 2 * 11 * 4  # the table of angles is a product in transformers: frequencies x positions
    assert found - 3 * costs.layer_flops(11, DecoderShape.of(config)) in (0, rotary)


def test_a_gate_costs_what_torch_counts():
    for config in (GateConfig(1, 16, 8), GateConfig(1, 16, 8, rank=3)):
        gate = Gates(config)[0]
        assert counted(lambda gate=gate: gate(torch.zeros(1, 32))) == costs.gate_flops(config)


def test_the_worked_headline():
    """7B at 640 tokens: dense 8.91 TFLOPs; 8, 16, 17, 24 full layers 3.16, 5.07, 5.31, 6.99; KV 320 and 185 MiB."""
    encoder = costs.CLIP_L_336 + costs.projector_flops(576, 4096)
    for exit_layer, tflops in ((None, 8.91), (7, 3.16), (15, 5.07), (16, 5.31), (23, 6.99)):
        assert round((encoder + costs.prefill_flops(640, 576, exit_layer, LLAMA_7B)) / 1e12, 2) == tflops
    assert costs.kv_bytes(640, 576, None, LLAMA_7B) == 320 * 2**20
    assert costs.kv_bytes(640, 576, 16, LLAMA_7B) == 185 * 2**20


def test_flops_fall_with_every_earlier_exit():
    """LayerSkip's users asked why a changed exit layer changes nothing."""
    row = [costs.prefill_flops(640, 576, e, LLAMA_7B) for e in range(-1, 32)]
    assert row == sorted(row) and len(set(row)) == 33


def test_an_exit_at_the_last_layer_costs_the_dense_prefill():
    assert costs.prefill_flops(640, 576, 31, LLAMA_7B) == costs.prefill_flops(640, 576, None, LLAMA_7B)


def test_a_delayed_compaction_costs_what_it_says():
    one = costs.layer_flops(640, LLAMA_7B) - costs.layer_flops(64, LLAMA_7B)
    assert costs.delay_flops(640, 576, 1, LLAMA_7B) == 0
    assert costs.delay_flops(640, 576, 3, LLAMA_7B) == one
    assert round(one / costs.prefill_flops(640, 576, None, LLAMA_7B), 3) == 0.028


def test_implied_layers_invert_the_formula():
    tflops = costs.mean_exit_tflops("gqa", 16.4, LLAMA_7B)
    assert costs.implied_full_layers("gqa", tflops, LLAMA_7B) == pytest.approx(17.4)


def test_decoding_reads_weights_and_what_is_left_of_the_cache():
    dense, exited = (costs.decode_bytes(640, 576, [e], LLAMA_7B) for e in (None, 16))
    assert dense - exited == costs.kv_bytes(640, 576, None, LLAMA_7B) - costs.kv_bytes(640, 576, 16, LLAMA_7B)
    assert 1 < dense / exited < 1.02  # at batch 1 the weights are nearly all that is read
