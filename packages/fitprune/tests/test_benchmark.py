"""The benchmark: that it measures what it says, at dimensions small enough for a test."""

import io
import json

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from fitprune.commands.tables import bench_tables
from fitprune.costs import DecoderShape, alive, layer_macs
from fitprune.evaluation.baselines import METHODS, FitPrune
from fitprune.evidence import search_speed
from fitprune.evidence.search_speed import candidates_by_loop, compare_selections, drawn_scores
from fitprune.evidence.settings import BenchSettings
from fitprune.evidence.speed import EAGER, GENERIC, PRUNED, UNPRUNED, AtOutput, Bench, Host, resample, run_bench
from fitprune.recipe import Recipe
from fitprune.rules import Random
from fitprune.search import candidates
from tenfold import UserError
from tenfold.cli.app import citations
from tenfold.runs import RunRecord

SHAPE = DecoderShape(layers=32, hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=8)
HOST = Host(shape=SHAPE, vocabulary=50, prefix=3, visual=48, text=5)
PEERS = ("fastv", "uniform", "random-before")
SETTINGS = BenchSettings(device="cpu", dtype="float32", repeats=2, decode_tokens=3, methods=PEERS)
RECIPE = Recipe("tiny", 3, 48, (20, 0, 10))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    return run_bench(SETTINGS, 0, file, HOST), file


@pytest.fixture(scope="module")
def bench():
    host = Host(shape=DecoderShape(3, 32, 48, 4, 2, 8), vocabulary=50, prefix=3, visual=48, text=5)
    everything = SETTINGS.model_copy(update={"methods": tuple(METHODS)})
    return Bench(everything, host, RECIPE, torch.device("cpu"), 0)


def test_fewer_layers_remove_what_they_stand_for():
    """Fails if resample drops the rest of an uneven division."""
    remove = Recipe.released("llava-1.5-7b", 60).remove
    assert resample(remove, 4) == (304, 52, 91, 2)
    assert resample(remove, 32) == remove
    for layers in (1, 3, 5, 7, 31):
        assert len(resample(remove, layers)) == layers
        assert sum(resample(remove, layers)) == sum(remove)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_loop_and_the_cumulative_sum_choose_the_same(share):
    generator = torch.Generator().manual_seed(3)
    score, visual = torch.rand(60, generator=generator), torch.rand(60, generator=generator) > 0.3
    kept = float(score[visual].sum()) * share
    assert torch.equal(candidates_by_loop(score, visual, kept), candidates(score, visual, kept))


def test_criteria_layers_and_tolerances_are_one_call():
    """The same tokens as one at a time. Fails if a leading dimension is mixed up with another."""
    scores, kept = drawn_scores(40, 3, torch.device("cpu")), torch.tensor([[5.0, 20.0], [0.5, 39.0], [60.0, 0.0]])
    visual = torch.arange(40) % 5 > 0
    together = candidates(scores, visual, kept.double())
    for layer in range(3):
        for criterion in range(2):
            alone = candidates_by_loop(scores[layer, criterion], visual, kept[layer, criterion].item())
            assert torch.equal(together[layer, criterion], alone)


def test_the_search_is_refused_a_figure_when_the_two_disagree(bench, monkeypatch):
    monkeypatch.setattr(search_speed, "candidates", lambda score, visual, kept: ~visual.expand_as(score))
    with pytest.raises(AssertionError, match="disagree"):
        bench.search()


def test_the_search_is_timed_at_the_prompts_size_and_a_larger_one(measured):
    search = measured[0]["search"]
    assert search["selections"] == 4 * 2 * 5
    assert (search["visual_tokens"], search["larger"]["visual_tokens"]) == (48, 5 * 48)
    for figures in (search, search["larger"]):
        assert figures["ratio"] == pytest.approx(figures["loop_milliseconds"] / figures["milliseconds"])
        assert figures["at_once_ratio"] == pytest.approx(figures["loop_milliseconds"] / figures["at_once_milliseconds"])


def test_selections_are_timed_one_by_one():
    """Per selection, both criteria of a layer in one call. Fails if a call's time is given to each of its criteria."""
    scores = drawn_scores(8, 2, torch.device("cpu"))
    figures = compare_selections(scores, torch.ones(8, dtype=torch.bool), lambda work: (work(), 1.0, None))
    assert figures["milliseconds"] == 500
    assert figures["at_once_milliseconds"] == 1000 / (2 * 2 * 5)
    assert figures["ratio"] == 2


def test_every_variant_is_measured_and_compared(measured):
    figures, _ = measured
    for part in ("prefill", "decode"):
        assert figures[part].keys() == {UNPRUNED, PRUNED, GENERIC, EAGER, *PEERS}
        for row in figures[part].values():
            assert 0 < row["fastest"] <= row["slowest"]
            assert row["realised_over_predicted"] == pytest.approx(row["realised"] / row["predicted"])
        assert figures[part][UNPRUNED]["realised"] == figures[part][UNPRUNED]["predicted"] == 1
        assert all(figures[part][name]["predicted"] > 1 for name in (PRUNED, *PEERS))
    assert figures["prefill"][PRUNED]["predicted"] > figures["prefill"][GENERIC]["predicted"] > 1
    assert figures["scoring"]["seconds"] > 0
    assert figures["knobs"].keys() == set(PEERS) and figures["left_out"] == {}


def test_peers_are_measured_at_the_flops_of_the_recipe(bench):
    """Fails if a peer is solved for another budget than the recipe's."""
    shape, target = bench.host.shape, FitPrune(RECIPE).reduction(bench.host.shape, 48)
    token = 1 - 3 * layer_macs(47, 47, shape) / (3 * layer_macs(48, 48, shape))
    assert bench.peers.keys() == set(METHODS)
    for method in bench.peers.values():
        assert 0 <= method.reduction(shape, 48) - target <= token


def test_what_cannot_save_as_much_is_left_out_and_named():
    recipe = Recipe("tiny", 1, 48, (47,))
    host = Host(shape=DecoderShape(1, 32, 48, 4, 2, 8), vocabulary=50, prefix=3, visual=48, text=5)
    bench = Bench(SETTINGS, host, recipe, torch.device("cpu"), 0)
    assert "fastv" in bench.left_out and "saves at most" in bench.left_out["fastv"]
    with pytest.raises(UserError, match="no such method"):
        Bench(SETTINGS.model_copy(update={"methods": ("slowv",)}), host, recipe, torch.device("cpu"), 0)


def test_the_recipe_is_the_released_one_resampled_to_the_layers(measured):
    figures, _ = measured
    assert (figures["host"]["layers"], figures["host"]["of"]) == (4, 32)
    assert figures["recipe"]["remove"] == [count * 48 // 576 for count in (304, 52, 91, 2)]


def test_the_result_is_a_run_record_that_can_be_cited(measured):
    from fitprune.commands.app import package

    figures, file = measured
    record = RunRecord.load(file)
    assert record.verb == "bench"
    assert record.metrics == json.loads(json.dumps(figures))
    assert record.hardware.threads == torch.get_num_threads()
    assert record.id in citations(package, file)[-1]


@pytest.mark.parametrize("variant", [UNPRUNED, PRUNED, GENERIC, *METHODS])
def test_predicted_flops_are_those_that_run(bench, variant, monkeypatch):
    """Fails if the generic variant drops before o_proj, or a formula forgets a product or the language-model head.

    Scores are computed beside the fused attention, by formula on their own: here random tokens leave.
    """
    for kind in (AtOutput, *METHODS.values()):
        monkeypatch.setattr(kind, "rule", Random(0))
    bench.model.set_attn_implementation("eager")  # the same products; older counters do not see the fused kernel's
    with bench._pruned(variant), torch.no_grad(), FlopCounterMode(display=False) as counter:
        bench._prefill()
    assert counter.get_total_flops() == bench._prefill_flops(variant)


def test_both_places_to_drop_give_the_same_answer(bench):
    """Fails if the generic variant removes other tokens, or none."""
    bench.model.set_attn_implementation("sdpa")
    outputs, left = [], []
    for variant in (PRUNED, GENERIC):
        with bench._pruned(variant), torch.no_grad():
            output = bench._prefill()
        outputs.append(output.logits)
        left.append([layer.keys.shape[2] for layer in output.past_key_values.layers])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    assert left[0] == left[1] == [tokens + 8 for tokens in alive(RECIPE.remove, 48)[:-1]]


def test_decoding_reads_the_weights_and_the_cache(bench):
    """Fails if the embedding is counted, or the cache at the wrong lengths."""
    decoder = sum(
        p.numel() for name, p in bench.model.named_parameters() if ".layers." in name and "vision" not in name
    )
    lengths = [tokens + 8 + 2 for tokens in (48, 28, 28)]
    cache = sum(2 * length * 2 * 8 for length in lengths)
    assert bench._decode_bytes(PRUNED) == 4 * (decoder + 50 * 32 + cache)


def test_the_prompt_is_llavas_at_full_width():
    host = Host()
    assert host.tokens == 676
    assert host.shape.hidden == 4096 and host.vocabulary == 32000
    assert layer_macs(576, 576, host.shape) == 119_286_005_760


def test_the_tables_state_predicted_and_realised(measured):
    figures, _ = measured
    stream = io.StringIO()
    Console(width=140, file=stream).print(bench_tables(figures))
    text = stream.getvalue()
    row = next(line for line in text.splitlines() if "pruned at the layer" in line)
    for name in ("predicted", "realised", "realised_over_predicted"):
        assert f"{figures['prefill'][GENERIC][name]:.2f}" in row
    assert "4 of 32 layers" in text
    assert "times faster" in text and "fastv k=" in text
