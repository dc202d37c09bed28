"""The measurement: the same captions in every way, the ratios from what was timed, one record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dtnet_models import tiny_config, tiny_features, tiny_model
from rich.console import Console

from dtnet import costs
from dtnet.beam import beam_search
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
        assert row["most_that_can_be"] == row["seconds"][AGAIN] / row["seconds_of_products_alone"]
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


def test_the_products_alone_are_those_of_a_kept_search() -> None:
    """Without attention's own products, which read no weight. Fails if a weight is left out, or read twice."""
    model = tiny_model()
    features = tiny_features(model, 2)
    seen: dict[str, int] = {}

    def watch(name: str) -> Any:
        return lambda *_: seen.__setitem__(name, seen.get(name, 0) + 1)

    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, module in linears.items():
        module.register_forward_hook(watch(name))
    with torch.no_grad():
        speed.products_alone(model, features, SETTINGS)
        alone, seen = dict(seen), {}
        beam_search(model, features, SETTINGS.beams, SETTINGS.max_len, early_stop=False)
    assert alone == seen and alone["decoder.fc"] == SETTINGS.max_len
