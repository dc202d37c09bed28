"""The measurement: the same captions in every way, the ratios from what was timed, one record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dtnet_models import tiny_config
from rich.console import Console

from dtnet import costs
from dtnet.commands.tables import bench_tables
from dtnet.config import DTNetConfig
from dtnet.evidence import speed
from dtnet.evidence.speed import AGAIN, EARLY, KEPT, BenchSettings, macs, run_bench

SETTINGS = BenchSettings(beams=3, max_len=6, batches=(1, 2), repeats=2, device="cpu")


def test_every_way_is_timed_on_the_same_captions(tmp_path: Path) -> None:
    found = run_bench(SETTINGS, 0, tmp_path / "bench.json", tiny_config())
    assert [row["batch"] for row in found["batches"]] == [1, 2]
    for row in found["batches"]:
        assert row["same_tokens"] and row["largest_log_prob_difference"] < 1e-4
        assert {name: len(values) for name, values in row["all_seconds"].items()} == {KEPT: 2, EARLY: 2, AGAIN: 2}
        assert row["realised"] == row["seconds"][AGAIN] / row["seconds"][KEPT]
        assert row["captions_per_second"][KEPT] == row["batch"] / row["seconds"][KEPT]
        assert row["realised_over_predicted"] == row["realised"] / row["predicted"]
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["verb"] == "bench" and record["metrics"]["batches"] == found["batches"]
    console = Console(width=140)
    with console.capture() as captured:
        console.print(bench_tables(found))
    assert "All three ways gave the same captions" in captured.get()


def test_a_search_that_finds_other_words_is_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if tokens are not compared."""
    search = speed.reprojecting_beam_search

    def other(*args, **options):
        found = search(*args, **options)
        found.tokens[0, 0, 0] += 1
        return found

    monkeypatch.setattr(speed, "reprojecting_beam_search", other)
    with pytest.raises(RuntimeError, match="disagree"):
        run_bench(SETTINGS, 0, None, tiny_config())


def test_the_prediction_is_the_count_at_full_size() -> None:
    """11,107 against 2,291 millions. Fails if the encoder is left out, or steps are counted by another length."""
    settings = BenchSettings()
    config = DTNetConfig()
    assert round(macs(config, settings, AGAIN) / 1e6) == 11107
    assert round(macs(config, settings, KEPT) / 1e6) == 2291
    assert macs(config, BenchSettings(max_len=10), KEPT) < 0.8 * macs(config, settings, KEPT)
    assert costs.encoder_macs(config) < macs(config, BenchSettings(max_len=1), KEPT)


def test_large_batches_are_left_to_those_who_ask() -> None:
    """On the CPU 50 images by the authors' way take minutes."""
    assert speed.BATCHES == (1, 10) and speed.FULL_BATCHES == (1, 10, 50)


def test_bf16_is_measured_and_says_so(tmp_path: Path) -> None:
    found = run_bench(SETTINGS.model_copy(update={"precision": "bf16", "batches": (1,)}), 0, None, tiny_config())
    assert found["batches"][0]["seconds"][KEPT] > 0
    assert torch.get_default_dtype() == torch.float32
