"""Official names and ours."""

import json
from pathlib import Path

import pytest
import torch
from e3_facenet_fixtures import TINY, TINY_D, make_generator

from e3_facenet.checkpoints.keys import FILTER, clip_from_openai, from_official, renamed, to_official
from e3_facenet.discriminator import Discriminator
from e3_facenet.evidence.claims import official_keys
from tenfold import UserError

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "official_keys.json").read_text())


def test_full_size_networks_have_the_released_names_and_shapes():
    """Fails if a layer, a shape or a rule of names changes: 226 and 109 names, 82,756,100 and 36,961,857 numbers."""
    outcome = official_keys()
    assert outcome.passed and outcome.value == "335 names agree", outcome.detail


@pytest.mark.parametrize(("part", "network"), [("G_ema", "generator"), ("D", "discriminator")])
def test_names_go_there_and_back(part, network):
    """Fails if two official names meet in one of ours."""
    names = [name for name in GOLDEN[part]["keys"] if not name.endswith(FILTER)]
    ours = [renamed(name, network) for name in names]
    assert len(set(ours)) == len(names)
    assert [renamed(name, network, back=True) for name in ours] == names


def test_states_go_there_and_back():
    """Fails if a tensor is lost or changed on the way."""
    for network, module in (("generator", make_generator()), ("discriminator", Discriminator(TINY_D))):
        state = module.state_dict()
        again = from_official(to_official(state, network), network)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[name], state[name]) for name in state)


def test_another_filter_and_unknown_names_are_refused():
    state = to_official(make_generator(config=TINY).state_dict(), "generator")
    name = next(name for name in state if name.endswith(FILTER))
    with pytest.raises(UserError, match="another blur filter"):
        from_official(state | {name: torch.ones(4, 4)}, "generator")
    with pytest.raises(UserError, match=r"unknown name 'synthesis.hash'"):
        from_official(state | {"synthesis.hash": torch.ones(1)}, "generator")


def test_openai_names_split_the_fused_projection():
    """Fails if q, k and v are swapped or a projection is not transposed."""
    fused = torch.arange(18.0).view(6, 3)
    found = clip_from_openai({"transformer.resblocks.1.attn.in_proj_weight": fused, "visual.proj": torch.ones(4, 2)})
    assert torch.equal(found["text_model.encoder.layers.1.self_attn.k_proj.weight"], fused[2:4])
    assert found["visual_projection.weight"].shape == (2, 4)
