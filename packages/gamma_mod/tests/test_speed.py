"""D9, D13 at tiny dimensions: what bench and rehearsal do, and that no map of tokens x tokens is made."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from gamma_mod_fixtures import converted, prompts
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from gamma_mod import convert, costs
from gamma_mod.checkpoints.keys import ReleaseShape
from gamma_mod.costs import DecoderShape
from gamma_mod.evidence.rehearsal import rehearse
from gamma_mod.evidence.settings import BenchSettings
from gamma_mod.evidence.speed import Bench, run_bench
from tenfold.runs.rehearsal import Steps

TINY = DecoderShape(layers=6, hidden=32, intermediate=64, heads=2, kv_heads=2, head_dim=16, vocabulary=50)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation returns."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return out


def test_no_map_of_tokens_by_tokens_is_made():
    """A prompt of 600 tokens through converted layers: every tensor stays below tokens x tokens. Fails if a mask or a
    score map of that size is made, also for a batch of unequal rows."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    model = convert(LlamaForCausalLM(config).eval(), (0, 1, 2), prefill_threshold=0.5)
    model.gamma_mod.router.weight.data *= 20
    ids = torch.randint(0, 20, (2, 600), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Largest() as seen:
        model(input_ids=ids, logits_to_keep=1)
    assert seen.most < 600 * 600


def test_the_bench_predicts_from_what_was_kept(tmp_path):
    """Fails if skipped tokens are counted, or if decoding is predicted for layers that were skipped."""
    settings = BenchSettings(device="cpu", tokens=40, skip=0.5, dtype="float32", repeats=1, decode_tokens=3)
    figures = run_bench(settings, 0, tmp_path / "bench.json", TINY)
    kept = [20 if layer in (3, 4) else 40 for layer in range(6)]
    head = 2 * 32 * 50
    dense = costs.prefill_flops([40] * 6, TINY) + head
    assert figures["prefill"]["predicted"] == pytest.approx(dense / (costs.prefill_flops(kept, TINY) + head))
    assert figures["skip"]["prefill"] == 0.5 and figures["decode"]["predicted"] >= 1
    assert json.loads((tmp_path / "bench.json").read_text())["verb"] == "bench"
    whole = run_bench(settings.model_copy(update={"skip": 0.0}), 0, None, TINY)
    assert whole["prefill"]["predicted"] == 1


def test_the_bench_times_training_steps():
    settings = BenchSettings(device="cpu", tokens=40, dtype="float32", repeats=1, decode_tokens=1, training=True)
    bench = Bench(settings, TINY, torch.device("cpu"), 0)
    found = bench.train()
    assert found["predicted"] > 1 and found["dense"]["seconds"] > 0
    assert not hasattr(bench.model, "gamma_mod") and not bench.model.training


def test_waits_of_a_decoding_step_are_one_a_converted_layer(monkeypatch):
    """A skip decision has to reach the host, nothing else of ours does; without decode skipping nothing at all. Fails
    if a second value is read, or if one is read where nothing may be skipped."""
    reads = []
    for name in ("tolist", "item", "__bool__", "__int__"):
        own = getattr(torch.Tensor, name)

        def counted(self, *args, own=own, **kwargs):
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith("gamma_mod"):
                reads.append(caller)
            return own(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    inputs = prompts(rows=[[("image", 4), 6]])
    for skip, expected in ((True, 2), (False, 0)):
        model = converted(prefill_threshold=0.5, decode_skip=skip)
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(**inputs, past_key_values=cache)
            mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
            reads.clear()
            model(input_ids=torch.tensor([[20]]), attention_mask=mask, past_key_values=cache)
        assert len(reads) == expected, reads


def test_the_rehearsal_walks_the_whole_way(tmp_path):
    """At tiny dimensions, from files of a release to an answer. Fails if a tensor changes on the way or a step is left
    out."""
    shape = ReleaseShape(
        32, 48, 6, 2, slow=(4, 6, 8, 12), slow_depths=(1, 1, 1, 1), fast=16, fast_intermediate=24, fast_layers=2,
        fast_patches=9, vocabulary=200,
    )  # fmt: skip
    found = rehearse(tmp_path / "run", steps := Steps(), shape=shape, tokens=70)
    assert steps.rows[0]["step"].startswith("write") and len(steps.rows) == 7
    assert found["evaluated"]["questions"] == 2 and found["evaluated"]["skip"]["prefill"] is not None
    assert found["new_tokens"] >= 1 and 0 <= found["skip_prefill"] <= 1
    assert found["written"] == found["parameters"] + 2 * 32  # two converted layers, one router
    assert replace(shape, layers=5).converted == (3,)
