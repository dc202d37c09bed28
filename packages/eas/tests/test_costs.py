"""Costs by closed formulas, against the published counts and torch's own counter on real modules."""

import pytest
import torch
from eas_fixtures import plan, skipper
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from eas import costs
from eas.adapters import PIA, Adapter

GMACS = {
    "7b": {0: 833.6, 4: 798.9, 8: 764.2, 10: 746.8, 12: 729.4},
    "13b": {0: 1631.3, 4: 1577.2, 8: 1523.0, 10: 1496.0, 12: 1468.9},
}
TRAINED = {
    "7b": {0: 3_781_296, 2: 4_436_768, 4: 5_092_240, 6: 5_747_712, 8: 6_403_184, 10: 7_058_656, 12: 7_714_128},
    "13b": {0: 5_390_080, 4: 7_028_704, 8: 8_667_328, 12: 10_305_952},
}
ROWS = [(name, removed, value) for name, row in GMACS.items() for removed, value in row.items()]


@pytest.mark.parametrize(("name", "removed", "value"), ROWS)
def test_macs_of_a_prompt(name, removed, value):
    """Fails if a term of the formula is lost: every entry of the table at 128 tokens, to its last digit."""
    assert costs.prefill_macs(costs.NAMED[name], 128, removed, costs.LAVIN) / 1e9 == pytest.approx(value, abs=0.06)


@pytest.mark.parametrize(("tokens", "full", "less", "saved"), [(356, 2339, 2040, 12.8), (636, 4225, 3673, 13.1)])
def test_macs_of_llava(tokens, full, less, saved):
    """Fails if the square of the tokens does not count, or folded still pays for an adapter."""
    found = [costs.prefill_macs(costs.LLAMA_7B, tokens, removed, None) / 1e9 for removed in (0, 12)]
    assert found == pytest.approx([full, less], abs=0.5)
    assert 100 * (1 - found[1] / found[0]) == pytest.approx(saved, abs=0.05)


TRAINED_ROWS = [(name, removed, value) for name, row in TRAINED.items() for removed, value in row.items()]


@pytest.mark.parametrize(("name", "removed", "value"), TRAINED_ROWS)
def test_trained_parameters_of_lavin(name, removed, value):
    """Fails if one parameter is counted twice or forgotten."""
    assert costs.lavin_parameters(costs.NAMED[name], removed) == value


def test_parameters_equal_the_modules():
    """Fails if a formula and the module it counts part ways."""
    ranks = costs.RankSizes(8, 12, 4)
    for bias in (False, True):
        module = Adapter(32, 8, groups=4, router_bias=bias)
        assert sum(p.numel() for p in module.parameters()) == costs.adapter_parameters(32, ranks, bias)
    assert sum(p.numel() for p in PIA(32, 12, groups=4).parameters()) == costs.pia_parameters(32, ranks)


def test_equal_parameters_need_three_times_the_rank():
    """Fails if the fair arm without skipping trains more or fewer weights than a rank more or less would.

    Twice the weights in all (7.71 against 3.78 M), but 1.16 M of them have no rank: rank 8 must grow to 24, not to 16.
    """
    rank = costs.equal_parameter_rank(costs.LLAMA_7B, 12, costs.LAVIN)
    aim = costs.lavin_parameters(costs.LLAMA_7B, 12)
    gaps = {h: abs(costs.lavin_parameters(costs.LLAMA_7B, 0, costs.RankSizes(h, 32)) - aim) for h in range(8, 40, 2)}
    assert rank == min(gaps, key=gaps.get) == 24


def test_folding_costs():
    """Fails if the dense fold is not 6.6, 7.3 and 8.6 TMAC at K = 0, 4, 12, or the low-rank one more than 0.09."""
    dense = [costs.dense_fold_macs(costs.LLAMA_7B, removed) / 1e12 for removed in (0, 4, 12)]
    low = [costs.low_rank_fold_macs(costs.LLAMA_7B, removed, costs.LAVIN) / 1e12 for removed in (0, 4, 12)]
    assert dense == pytest.approx([6.6, 7.3, 8.6], abs=0.06)
    assert low == pytest.approx([0.026, 0.046, 0.085], abs=0.001) and low[2] <= 0.09


def test_what_skipping_can_give():
    """Fails if the bound on the speed-up by skipping alone is not 1.14, in compute and in bytes."""
    full, less = (costs.prefill_macs(costs.LLAMA_7B, 128, removed, costs.LAVIN) for removed in (0, 12))
    assert full / less == pytest.approx(1.14, abs=0.005)
    full, less = (costs.decode_bytes(costs.LLAMA_7B, 128, removed, None) for removed in (0, 12))
    assert full / less == pytest.approx(1.14, abs=0.01)
    assert costs.cache_bytes(costs.LLAMA_7B, 100, 12) * 32 == costs.cache_bytes(costs.LLAMA_7B, 100, 0) * 20


@pytest.mark.parametrize("skip", [(), (0, 3), (1, 2, 3)])
def test_torch_counts_the_same(skip):
    """Fails if the formula counts what does not run, or the blocks run what it does not count.

    Ours computes the global vector from the mean token: per skipped layer ``(L - 1) d h'`` MACs less than the formula,
    which is the authors' way.
    """
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, use_cache=False
    )
    model, tokens = LlamaForCausalLM(config).eval(), 11
    ids = torch.arange(tokens)[None]
    ranks = costs.RankSizes(4, 8)
    with torch.no_grad(), skipper(skip)(model), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=1)
    expected = costs.prefill_macs(costs.Shape.of(config), tokens, len(skip), ranks)
    expected -= len(skip) * (tokens - 1) * 32 * ranks.pia
    counted = counter.get_total_flops() / 2
    rotary = tokens * 4  # frequencies times positions
    means = 4 * tokens * 32  # the mean token is a product with the weights of the mean
    biases = 4 * 2 * 32 + 4 * tokens * 0
    assert counted == pytest.approx(expected + rotary + means + biases, abs=4 * 2 * 32 + 8)
    assert plan(skip).kept
