"""The three-stage study: blocks against whole maps, stages, and what the verb writes."""

import json

import pytest
import torch
from dyvte_fixtures import answered, host, rows

from dyvte.analysis import MEASURES, profile, stages, watch
from dyvte.branches import run_branches
from dyvte.evaluation.settings import AnalyzeSettings
from dyvte.evaluation.study import run_analyze, without_image
from dyvte.exits import VisualExit
from dyvte.gates import GateConfig
from dyvte.observation import Observed
from tenfold.testing.hosts import IMAGE


def by_hand(query, key, visual, text):
    """The measures from one whole map, of one row without padding."""
    logits = query @ key.repeat_interleave(query.shape[0] // key.shape[0], 0).transpose(1, 2) * query.shape[-1] ** -0.5
    width = query.shape[1]
    maps = logits.masked_fill(torch.ones(width, width).triu(1).bool(), -torch.inf).softmax(-1).amax(0)
    entropy = -(maps * maps.clamp(min=1e-45).log())
    v, t = visual, text
    parts = [maps[v][:, v].sum() / v.sum(), maps[t][:, v].sum() / t.sum(), maps[t][:, t].sum() / t.sum()]
    return torch.stack([*parts, entropy[t][:, v].sum() / t.sum(), entropy[t][:, t].sum() / t.sum()])


@pytest.mark.parametrize("block_rows", [1, 5, None])
def test_blocks_equal_whole_maps(block_rows):
    """Fails if a block's causality, its heads or the division by the queries is off."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 4, 14, 8, generator=generator), torch.randn(1, 2, 14, 8, generator=generator)
    visual = torch.tensor([[0] * 3 + [1] * 6 + [0] * 5]).bool()
    text = torch.tensor([[0] * 9 + [1] * 5]).bool()
    found = profile(Observed(query, key, 8**-0.5), visual, text, block_rows=block_rows)
    torch.testing.assert_close(found[0], by_hand(query[0], key[0], visual[0], text[0]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_is_not_in_a_profile():
    """A row in a padded batch has the measures that it has alone."""
    model, _ = host()
    inputs = rows()
    exit = VisualExit(exit_at=3)
    with exit(model), watch(model, exit.present) as together:
        model(**inputs, use_cache=False)
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        one = {"input_ids": inputs["input_ids"][row][real][None], "pixel_values": inputs["pixel_values"][row : row + 1]}
        with exit(model), watch(model, exit.present) as alone:
            model(**one, use_cache=False)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row], b[0], atol=1e-5, rtol=1e-5)


def test_stages_are_found_in_the_published_pattern():
    """W_c of LLaVA-1.5-7B as read off the paper's plot: fusion 0-2, intra-modality until it recovers, reasoning."""
    cross = [2.4, 1.8, 0.6, 0.3, 0.35, 0.4, 0.5, 0.7, 1.2, 2.0, 2.6, 2.5, 2.4, 2.2, 2.0, 1.8]
    found = stages(cross)
    assert (found.fusion, found.reasoning, found.layers) == (3, 8, 16)
    flat = stages([1.0, 2.0, 3.0])  # no minimum: one stage
    assert (flat.fusion, flat.reasoning) == (3, 3)


@torch.no_grad()
def test_an_exit_before_the_first_layer_is_blind_to_the_picture():
    """Fails if the answer without an image depends on it."""
    from tenfold.hosts.loading import Host

    model, _ = host()
    inputs, labels = answered(model, rows())
    opened = Host(model, None, "")
    first = without_image(opened, inputs, labels)
    inputs["pixel_values"] = inputs["pixel_values"] + 5
    assert torch.equal(first, without_image(opened, inputs, labels))
    config = GateConfig(4, 32, 8)
    assert run_branches(model, inputs, labels, [3], config).targets.shape[1] == 2
    assert (inputs["input_ids"] == IMAGE).any()


def test_the_verb_writes_a_table_and_a_picture(tmp_path):
    """The mini host: the dense model is right more often than without the image, and the last layer may always exit."""
    found = run_analyze(AnalyzeSettings(limit=16, device="cpu"), 0, tmp_path / "study")
    layers = len(found.exits)
    assert len(found.answers) == layers + 2 and found.exits[-1] == 1.0
    assert found.answers[-1] == found.answers[-2] and found.answers[-1] > found.answers[0]
    table = json.loads((tmp_path / "study" / "layers.json").read_text())
    assert set(table["measures"]) == set(MEASURES) and (tmp_path / "study" / "layers.png").stat().st_size > 5000
    assert (tmp_path / "study" / "run.json").is_file()
