"""Multiply-accumulates: the closed formulas against the notes' table and against what torch counts on real modules."""

from dataclasses import replace

import pytest
import torch
from dtnet_models import tiny_config, tiny_features, tiny_model, tiny_tokens
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dtnet.beam import beam_search
from dtnet.config import DTNetConfig
from dtnet.costs import (
    caption_macs,
    encoder_macs,
    geometry_macs,
    layer_macs,
    memory_macs,
    router_macs,
    step_macs,
    table,
    teacher_macs,
)
from dtnet.evidence.official_style import reprojecting_beam_search
from dtnet.model import DTNet


def counted(work) -> int:
    """MACs as torch counts them: the explicit softmax, whose products it knows."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def test_the_table_at_full_size():
    """In millions. Fails if a term is left out or counted twice."""
    rounded = {name: round(value, 1) for name, value in table().items()}
    assert rounded == {
        "input projection": 51.4,
        "gmc": 53.8,
        "cpc": 102.8,
        "amc": 38.9,
        "small cells and routers": 0.1,
        "encoder layer": 195.6,
        "encoder": 638.0,
        "decoder step, t = 10": 16.4,
        "decoder step, t = 10, re-projected": 107.6,
        "caption": 1653.1,
        "caption, re-projected": 10469.0,
    }
    config = DTNetConfig()
    static = encoder_macs(replace(config, cells=("gmc", "cpc")))
    assert static / 1e6 == pytest.approx(521.2, abs=0.05)
    assert encoder_macs(config) / static == pytest.approx(1.22, abs=0.005)
    whole = (encoder_macs(config) + caption_macs(config)) / 1e6
    official = (encoder_macs(config) + caption_macs(config, cached=False)) / 1e6
    assert (round(whole), round(official)) == (2291, 11107)
    assert official / whole == pytest.approx(4.8, abs=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cells": ("gmc", "cpc")},
        {"cells": ("lmc", "amc", "cac")},
        {"routing": "spatial"},
        {"routing": "channel"},
        {"routing": "uniform"},
        {"d_v": 8, "heads": 4, "grid": 5, "encoder_layers": 1},
    ],
)
def test_the_encoder_costs_what_torch_counts(changes):
    model = tiny_model(**changes)
    batch = 3
    expected = batch * encoder_macs(model.config) + geometry_macs(model.config)
    assert counted(lambda: model.encode(tiny_features(model, batch))) == expected


def test_the_full_size_encoder_costs_what_torch_counts():
    """On the meta device: shapes, no numbers."""
    with torch.device("meta"):
        model = DTNet(DTNetConfig()).eval()
        config, features = model.config, torch.empty(2, 49, 2048)
        assert counted(lambda: model.encode(features)) == 2 * encoder_macs(config) + geometry_macs(config)


def test_the_decoder_costs_what_torch_counts():
    model = tiny_model()
    config, batch = model.config, 3
    features, tokens = tiny_features(model, batch), tiny_tokens(model, batch)
    encoded = model.encode(features)
    assert counted(lambda: model.decoder(tokens, encoded.memory)) == batch * teacher_macs(config, tokens.shape[1])
    cache = model.decoder.start(encoded.memory)
    assert counted(lambda: model.decoder.start(encoded.memory)) == batch * memory_macs(config)
    words = torch.full((batch, 5), 4)
    for position in range(1, 4):
        cost = counted(lambda words=words, cache=cache: model.decoder.step(words, cache))
        assert cost == batch * 5 * step_macs(config, position)
        cache = model.decoder.step(words, cache)[1]


def test_the_search_costs_what_torch_counts_cached_and_official():
    """Fails if the cached search projects anything twice, or the image once a beam."""
    model = tiny_model()
    config, features = model.config, tiny_features(model, 2)
    encoder = 2 * encoder_macs(config) + geometry_macs(config)
    cached = counted(lambda: beam_search(model, features, 4, 9, early_stop=False))
    assert cached == encoder + 2 * caption_macs(config, 4, 9)
    official = counted(lambda: reprojecting_beam_search(model, features, 4, 9))
    assert official == encoder + 2 * caption_macs(config, 4, 9, cached=False)


def test_soft_routing_saves_nothing():
    """All cells are computed whatever their weights; the routers cost next to nothing."""
    config = DTNetConfig()
    uniform = replace(config, routing="uniform")
    routers = router_macs(config, 3) + router_macs(config, 2)
    assert layer_macs(config) - layer_macs(uniform) == routers < 0.001 * layer_macs(config)
    assert router_macs(tiny_config(), 1) == 0
