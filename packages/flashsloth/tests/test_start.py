"""How new parts begin (sheet sections 3.2, 3.3 and 3.6)."""

import pytest
import torch
from flashsloth_fixtures import tiny_config

from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.training.start import new_parts


@pytest.mark.parametrize("way", ["constructor", "training"])
def test_new_parts_begin_as_in_the_official_code(way):
    """EmbQ N(0, 0.02) with zero bias, SAP and projector torch's default, queries U(+-1/sqrt(d)). Fails if the general
    rule of the language model reaches them (seen: rules on modules, which are visited after their layers)."""
    config = tiny_config()
    config.text_config.initializer_range = 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = FlashSlothForConditionalGeneration(config).state_dict()
    state = whole if way == "constructor" else new_parts(config, 0)
    embq = torch.cat([value.flatten() for name, value in state.items() if ".embq." in name and "proj" in name
                      and name.endswith("weight")])  # fmt: skip
    assert embq.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(value.any() for name, value in state.items() if ".embq." in name and name.endswith("proj.bias"))
    for name in ("model.pooling.mlp.0.weight", "model.multi_modal_projector.linear_2.weight"):
        bound = state[name].shape[1] ** -0.5
        assert 0.9 * bound < state[name].abs().max().item() <= bound
    token = state["model.query_tokens.token"]
    assert 0.9 * token.shape[1] ** -0.5 < token.abs().max().item() <= token.shape[1] ** -0.5
