"""Costs: closed counts, full-size models without weights, and what really runs."""

import pytest
import torch

from inst_diff_edit import costs
from inst_diff_edit.evidence import speed
from inst_diff_edit.evidence.settings import BenchSettings
from inst_diff_edit.evidence.speed import METHODS, Bench, Size, speed_ups

TINY = Size((16, 32, 32, 32), (8, 8, 8, 8), 24, 8, 64, 4)


@pytest.fixture(scope="module")
def bench():
    return Bench(TINY, torch.device("cpu"), torch.float32, 0)


@pytest.mark.parametrize("method", METHODS)
def test_what_runs_is_what_was_counted(bench, method):
    """Fails if a formula counts a call too few, or a method runs one too many (a PNDM scheduler would)."""
    bench.seen = {"samples": 0, "calls": 0}
    bench.edit(method)
    expected = bench.cost(method)
    assert bench.seen == {"samples": expected.samples, "calls": expected.calls}


def test_the_sheet_s_table_of_costs():
    """Sample-forwards and calls at the published settings."""
    assert (costs.inst_diff_edit_cost().samples, costs.inst_diff_edit_cost().calls) == (250, 75)
    assert (costs.repository_diffedit_cost().samples, costs.repository_diffedit_cost().calls) == (1100, 550)
    assert (costs.diffusers_diffedit_cost().samples, costs.diffusers_diffedit_cost().calls) == (200, 81)
    direct = costs.inst_diff_edit_cost(1, final="latents")
    assert (direct.samples, direct.calls) == (costs.sdedit_cost().samples, costs.sdedit_cost().calls) == (50, 25)


def test_flops_of_a_convolution_by_hand():
    """Two per multiply-accumulate. Fails if the counter counts multiply-accumulates."""
    with torch.random.fork_rng():
        layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert costs.count(lambda: layer(torch.zeros(1, 3, 8, 8))) == 2 * 3 * 5 * 9 * 64


def test_the_inpainting_unets_flops_are_counted_as_on_the_whole_unet():
    """Fails if the plain UNet's are taken for it, or its first convolution is counted twice."""
    nine, context = torch.zeros(1, 9, 64, 64, device="meta"), torch.zeros(1, 77, 768, device="meta")
    unet = costs.eager(costs.unet(inpainting=True))
    whole = costs.count(lambda: unet(nine, torch.zeros(1, device="meta"), encoder_hidden_states=context))
    assert costs.sd_forward().unet_inpainting == whole > costs.sd_forward().unet


def test_the_inpainting_unet_differs_in_its_first_convolution_only():
    plain, nine = (costs.unet(inpainting=inpainting).state_dict() for inpainting in (False, True))
    assert [name for name in plain if plain[name].shape != nine[name].shape] == ["conv_in.weight"]
    assert list(nine["conv_in.weight"].shape) == [320, 9, 3, 3]


def test_speed_ups_are_ratios_of_the_same_run():
    methods = {name: {"seconds": 1.0 + n, "tflops": 2.0 * (n + 1)} for n, name in enumerate(METHODS)}
    rows = {(row["ours"], row["baseline"]): row for row in speed_ups(methods)}
    row = rows["official", "repository"]
    assert row["realised"] == pytest.approx(3.0) and row["predicted"] == pytest.approx(3.0)
    assert row["realised_over_predicted"] == pytest.approx(1.0)


def test_bench_writes_its_record(tmp_path):
    metrics = speed.run_bench(BenchSettings(device="cpu", repeats=1), 0, tmp_path / "bench.json", TINY)
    assert (tmp_path / "bench.json").is_file()
    assert all(row["counted_as_expected"] for row in metrics["methods"].values())
