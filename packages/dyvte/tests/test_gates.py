"""Gates, what they read, and the rule by which a row leaves."""

import json
from pathlib import Path

import pytest
import torch

from dyvte.checkpoints.keys import gates_to_official
from dyvte.gates import GateConfig, Gates, prefers_exit
from dyvte.states import pooled_states, text_block
from tenfold import UserError

KEYS = json.loads((Path(__file__).parent / "goldens" / "official_keys.json").read_text())
FULL = {"llava-1.5-7b": GateConfig(32, 4096), "llava-1.5-13b": GateConfig(40, 5120)}


@pytest.mark.parametrize("host", FULL)
def test_full_size_gates_have_the_official_names_shapes_and_parameters(host):
    """Fails if a bias, another width or another name appears."""
    state = Gates(FULL[host], device="meta").state_dict()
    official = {new: list(state[old].shape) for old, new in gates_to_official(state).items()}
    assert official == KEYS[host]["method_keys"]
    assert sum(tensor.numel() for tensor in state.values()) == KEYS[host]["method_parameters"]


def test_xavier_bounds_are_the_published_ones_and_values_round_to_half():
    """7B: W1 within 0.02420, W2 within 0.05410; as the start checkpoint stores them, in float16."""
    gates = Gates(GateConfig(1, 4096)).initialise(0, half=True)
    w1, w2 = gates[0].w1.weight, gates[0].w2.weight
    assert 0.0241 < w1.abs().max() <= 0.02421 and 0.053 < w2.abs().max() <= 0.05411
    assert torch.equal(w1, w1.half().float())
    assert torch.equal(w1, Gates(GateConfig(1, 4096)).initialise(0, half=True)[0].w1.weight)


def test_initialising_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    Gates(GateConfig(2, 8, 4)).initialise(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_ties_and_nan_keep():
    logits = torch.tensor([[1.0, 1.0], [1.0, 1.1], [float("nan"), 1.0], [0.0, float("nan")], [-1.0, 1.0]])
    assert prefers_exit(logits).tolist() == [False, True, False, False, True]
    assert prefers_exit(logits, 0.5).tolist() == [False, False, False, False, True]


def test_low_rank_gates_are_smaller_and_count_as_such():
    from dyvte.costs import gate_parameters

    for config in (GateConfig(2, 16, 32), GateConfig(2, 16, 32, rank=3)):
        gates = Gates(config)
        assert sum(p.numel() for p in gates.parameters()) == gate_parameters(config)
        assert gates[1](torch.zeros(5, 32)).shape == (5, 2)
    with pytest.raises(UserError, match=r"no layers\.0\.w1\.0\.weight"):
        gates_to_official(Gates(GateConfig(2, 16, 32, rank=3)).state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 0}, "layers: 0"),
        ({"hidden": "x"}, "hidden: 'x'"),
        ({"width": 2.5}, "width: 2.5"),
        ({"states": []}, "gates that read"),
        ({"states": ["last_text", "mean_text"]}, "gates that read"),
        ({"states": ["cross"]}, "visual_tokens"),
        ({"visual_tokens": 4}, "visual_tokens"),
        ({"more": 1}, "unknown setting of gates 'more'"),
    ],
)
def test_a_broken_configuration_is_one_line(change, words):
    with pytest.raises(UserError, match=words):
        GateConfig.of({"layers": 2, "hidden": 8, "width": 4, **change}, "gates.json")


def test_the_text_block_follows_the_last_visual_token_and_skips_padding():
    """Two images with text between: that text is in no mean. A row without an image has no block."""
    visual = torch.tensor([[0, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]).bool()
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1] * 7]).bool()
    assert text_block(visual, real).tolist() == [[False] * 4 + [True, True, False], [False] * 7]


def test_states_are_pooled_as_the_paper_orders_them():
    """Fails if the mean holds the last token, padding, or infinities of padding, or if the order is turned round."""
    hidden = torch.arange(12.0).view(1, 6, 2).repeat(2, 1, 1)
    hidden[1, 5] = torch.inf  # padding may hold anything
    text = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0]]).bool()
    visual = torch.tensor([[0, 1, 1, 0, 0, 0]] * 2).bool()
    x = pooled_states(hidden, text)
    assert x.tolist() == [[7.0, 8.0, 10.0, 11.0], [5.0, 6.0, 8.0, 9.0]]
    four = pooled_states(hidden, text, visual, ("mean_visual", "last_visual", "mean_text", "last_text"))
    assert four[0].tolist() == [2.0, 3.0, 4.0, 5.0, 7.0, 8.0, 10.0, 11.0]
    one = pooled_states(hidden, torch.tensor([[0, 0, 0, 0, 0, 1]] * 2).bool())
    assert one[0, :2].isnan().all() and one[0, 2:].tolist() == [10.0, 11.0]
