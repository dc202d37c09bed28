"""Folding: a prompt's adapters and PIAs vanish into the matrices behind them."""

import pytest
import torch
from eas_fixtures import Prompts, build, skipper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eas.adapters import PIA, Adapter
from eas.folding import affine, fold
from tenfold import UserError

STEP = torch.tensor([[11]])


def prefill(model, rows=1, count=6):
    inputs = Prompts("llava").batch([[("image", 4), count]] * rows, "left")
    if rows > 1:
        inputs["input_ids"][1, -1] += 1
    return model(**inputs, use_cache=True).past_key_values


def decode(model, cache, steps=4):
    logits = [model(input_ids=STEP + step, past_key_values=cache, use_cache=True).logits for step in range(steps)]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "internvl", "smolvlm"])
@pytest.mark.parametrize("skip", [(0,), (3,), (1, 3)])
def test_folded_equals_unfolded(host, skip):
    """Fails if M, b, the gain of the dropped norm or a layer's own bias (Qwen's queries have one) is wrong."""
    inputs = Prompts(host).batch([[("image", 4), 6]], "left")
    with torch.no_grad(), skipper(skip)(model := build(host)) as attached:
        plain = decode(model, model(**inputs, use_cache=True).past_key_values)
        cache = model(**inputs, use_cache=True).past_key_values
        with attached.folded(cache):
            folded = decode(model, cache)
    torch.testing.assert_close(folded, plain, atol=1e-5 * plain.abs().max().item(), rtol=1e-5)


def test_the_released_order_of_the_bias_is_not_exact():
    """Fails if the authors' order (the bias times the folded matrix) is taken by default, or is the exact one."""
    with torch.no_grad(), skipper()(model := build("llava")) as attached:
        plain = decode(model, prefill(model))
        cache = prefill(model)
        with attached.folded(cache, as_released=True):
            released = decode(model, cache)
    assert (released - plain).abs().max() > 1e-2 * plain.abs().max()


def test_folding_leaves_no_trace_and_changes_no_weight():
    """Fails if a host's matrix is written to, or a folded layer stays."""
    with torch.no_grad(), skipper()(model := build("llava")) as attached:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        plain = decode(model, prefill(model))
        with attached.folded(prefill(model)):
            pass
        again = decode(model, prefill(model))
    assert torch.equal(plain, again)
    after = model.state_dict() | {}
    assert all(torch.equal(after[key], before[key]) for key in after)


def test_several_prompts_are_not_folded():
    """Fails if one prompt's matrices serve another's tokens; beams of one prompt may be."""
    with torch.no_grad(), skipper()(model := build("llava")) as attached:
        with pytest.raises(UserError, match="2 different prompts"), attached.folded(prefill(model, rows=2)):
            pass
        beams = model(**{k: v.repeat_interleave(2, 0) for k, v in Prompts("llava").batch([[("image", 4), 6]]).items()})
        with attached.folded(beams.past_key_values):
            pass
        with pytest.raises(UserError, match="no prompt in this cache"), attached.folded(object()):
            pass


def test_a_quantised_matrix_is_refused_and_runs_unfolded():
    """Fails if a matrix that cannot take an update is folded: PIA beside it is what serves there."""
    model = build("llava")

    class Quantised(nn.Linear):
        pass

    with torch.no_grad(), skipper()(model) as attached:
        plain = decode(model, prefill(model))
        model.model.language_model.layers[1].mlp.gate_proj.__class__ = Quantised
        cache = prefill(model)
        assert torch.equal(decode(model, prefill(model)), plain)
        with pytest.raises(UserError, match="gate_proj of layer 1 cannot be folded: Quantised"), attached.folded(cache):
            pass
        assert not any(layer.folded for layer in attached.attachment.layers)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [Adapter, PIA])
def test_the_affine_map_is_the_module(kind, groups):
    """Fails if groups, the scale or the half of PIA are lost on the way to M and b."""
    generator = torch.Generator().manual_seed(groups)
    module = kind(16, 8, groups=groups, scale=0.7, temperature=3.0, dropout=0.0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    tokens = torch.randn(1, 5, 16, generator=generator)
    mean = tokens.mean(1)
    state = (module.globe(mean),) if kind is PIA else ()
    router = module.route(mean)
    one = affine(module, router[0], *(rows[0] for rows in state))
    torch.testing.assert_close(tokens @ one.matrix().T + one.bias, module(tokens, router, *state), atol=1e-4, rtol=1e-4)


def test_a_low_rank_fold_never_builds_m():
    """Fails if folding multiplies by a dense d x d matrix: its cost is 2 out d h MACs and a bias."""
    module = Adapter(64, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fold(torch.randn(96, 64), affine(module, torch.tensor([0.5, 0.5])))
    assert counter.get_total_flops() <= 2 * (2 * 96 * 64 * 4 + 96 * 64 + 64 * 4)
