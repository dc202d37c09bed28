"""Pruners behind one interface: what they remove, what it costs, and that a target is met to the token."""

from itertools import pairwise

import pytest
import torch
from fitprune_reference import decoder, heads_of, layer_zero_input, rotate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fitprune import Recipe
from fitprune.costs import LLAVA_7B, DecoderShape, base_macs, layer_macs, reduction
from fitprune.evaluation.baselines import (
    METHODS,
    FastV,
    FitPrune,
    PyramidDrop,
    RandomBefore,
    SingleCut,
    Uniform,
    drawn,
    solve,
)
from fitprune.evaluation.pruners import match
from fitprune.evidence import speed
from fitprune.evidence.speed import AtOutput, Host
from fitprune.rules import Random
from tenfold import UserError
from tenfold.testing.hosts import IMAGE, SCENARIOS, Prompts, build

RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))
SHAPE = DecoderShape(layers=4, hidden=32, intermediate=48, heads=4, kv_heads=2)
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [0, 3, 4, 7, 8]}


@pytest.fixture(scope="module")
def model():
    return build("llava")


@pytest.fixture(scope="module")
def hosts(model):
    return {"llava": model, "qwen2_vl": build("qwen2_vl")}


@pytest.mark.parametrize(
    "method, saved",
    [
        (FastV(k=2, ratio=0.5), 47.4),
        (FastV(k=2, ratio=0.75), 70.7),
        (FastV(k=3, ratio=0.75), 68.4),
        (PyramidDrop(), 53.4),
        (RandomBefore(keep=192), 67.2),
        (RandomBefore(keep=128), 78.2),
        (RandomBefore(keep=64), 89.1),
        (FitPrune(Recipe.released("llava-1.5-7b", 60)), 59.7),
    ],
    ids=lambda value: getattr(value, "knobs", value),
)
def test_published_knobs_save_what_the_formula_says(method, saved):
    """Fails if a cut between layers is counted as one before ``o_proj``, or FastV cuts a layer earlier or later."""
    assert round(100 * method.reduction(LLAVA_7B, 576), 1) == saved
    assert method.flops(LLAVA_7B, 576) == 2 * method.macs(LLAVA_7B, 576)


@pytest.mark.parametrize("name", METHODS)
def test_counted_flops_are_those_that_run(name, monkeypatch):
    """On a whole tiny LLaVA against torch's counter. The rule, whose own products are no part of the formula, is
    replaced by a draw. Fails if ``at_output`` of a method differs from where its tokens are counted to leave."""
    host = Host(shape=DecoderShape(4, 32, 48, 4, 4, 8), vocabulary=50, prefix=3, visual=48, text=5)
    ours = speed.build(host, torch.float32, torch.device("cpu"), 0)
    ours.set_attn_implementation("eager")
    recipe = Recipe("tiny", 4, 48, (20, 0, 10, 4))
    method = solve(name, 0.4, host.shape, 48, recipe=recipe)
    monkeypatch.setattr(type(method), "rule", Random(0))
    visual = torch.zeros(1, host.tokens, dtype=torch.bool)
    visual[:, 3:51] = True
    embeds = torch.randn(1, host.tokens, 32, generator=torch.Generator().manual_seed(0))
    with method(ours, visual_mask=visual), torch.no_grad(), FlopCounterMode(display=False) as counter:
        ours(inputs_embeds=embeds, logits_to_keep=1)
    assert counter.get_total_flops() == method.flops(host.shape, 48, text_tokens=8) + 2 * 32 * 50


def slow(model, inputs, cuts, prompt=None):
    """Peers that cut between layers, one row, full maps, no cache.

    ``cuts``: layer -> visual tokens kept at its output. ``prompt``: what the pass over the prompt alone kept per layer;
    generated tokens, at the end, are never removed. Returns the last row's logits and the columns at every layer.
    """
    hidden, (cos, sin) = layer_zero_input(model, **inputs)
    hidden, cos, sin = hidden[0], cos[0], sin[0]
    visual = inputs["input_ids"][0] == IMAGE
    alive = torch.arange(len(visual))
    columns = [alive]
    for number, layer in enumerate(decoder(model).layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value = (
            heads_of(project(normed), attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = (rotate(x, cos[alive], sin[alive]) for x in (query, key))
        key, value = (x.repeat_interleave(len(query) // len(key), dim=0) for x in (key, value))
        logits = query @ key.transpose(1, 2) * attention.head_dim**-0.5
        maps = logits.masked_fill(torch.ones_like(logits[0], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        hidden = hidden + attention.o_proj((maps @ value).transpose(0, 1).flatten(1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if number in cuts:
            keep = torch.ones_like(alive, dtype=torch.bool)
            if prompt is None:
                image = visual[alive].nonzero()[:, 0].tolist()
                score = maps.mean(0)[-1]
                weakest = sorted(image, key=lambda j: (score[j].item(), -j))[: len(image) - cuts[number]]
                keep[weakest] = False
            else:
                kept = torch.isin(alive, prompt[number + 1])
                keep = kept | (alive >= prompt[0].shape[0])
            alive, hidden = alive[keep], hidden[keep]
        columns.append(alive)
    return model.lm_head(decoder(model).norm(hidden))[-1], columns


@torch.no_grad()
@pytest.mark.parametrize(
    "method, cuts",
    [(FastV(k=2, ratio=0.75), {1: 4}), (FastV(k=1, ratio=0.5), {0: 8}), (PyramidDrop((1, 3), 0.4), {0: 6, 2: 2})],
    ids=["FastV", "FastV after the first layer", "PyramidDrop"],
)
def test_cuts_between_layers_equal_a_slow_reference(model, method, cuts):
    """Prefill and cached decoding. Fails if the ranking is another layer's, the maximum over heads instead of the mean,
    or if the cut falls before the MLP's residual."""
    inputs = Prompts("llava").batch([[("image", 4), 6]])
    expected, columns = slow(model, inputs, cuts)
    with method(model) as running:
        output = model(**inputs)
        torch.testing.assert_close(output.logits[0, -1], expected, atol=1e-4, rtol=1e-4)
        for tokens, column in zip(running.entering, columns, strict=True):
            assert tokens.index[0].tolist() == column.tolist()
        generated = model.generate(**inputs, **OPTIONS)
    ids = inputs["input_ids"]
    for step in range(OPTIONS["max_new_tokens"]):
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": inputs["pixel_values"]}
        logits, _ = slow(model, whole, cuts, columns)
        logits[OPTIONS["suppress_tokens"]] = -torch.inf
        assert generated[0, inputs["input_ids"].shape[1] + step] == logits.argmax()
        ids = torch.cat((ids, logits.argmax().view(1, 1)), dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_batch_equals_single_rows_and_the_schedule_is_what_runs(hosts, name):
    """With left padding, and with several numbers of visual tokens. Fails if a count is not the row's own V's."""
    for host, rows in (("llava", SCENARIOS["left padding"][0]), ("qwen2_vl", SCENARIOS["mixed V"][0])):
        model, method = hosts[host], solve(name, 0.5, SHAPE, 16, recipe=RECIPE, seed=3)
        batch, prompts = Prompts(host).batch(rows), Prompts(host)
        with method(model):
            together = model.generate(**batch, **OPTIONS)[:, -4:]
            left = list(zip(*method.visual_tokens(), strict=True))
            for row, parts in enumerate(rows):
                single = prompts.batch([parts])
                assert torch.equal(model.generate(**single, **OPTIONS)[0, -4:], together[row])
                visual = int((batch["input_ids"][row] == IMAGE).sum())
                assert list(left[row]) == method.left(4, visual)
                assert method.surviving().sum(1).tolist() == method.left(4, visual)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_exit_restores_and_text_alone_is_untouched(model, name):
    """Bit for bit. Fails if a method leaves a hook behind, or counts text as visual."""
    method = solve(name, 0.5, SHAPE, 16, recipe=RECIPE)
    inputs, text = Prompts("llava").batch([[("image", 4), 6]]), Prompts("llava").batch([[9]])
    names = [sorted(vars(module)) for module in model.modules()]
    expected, plain = model(**inputs).logits, model(**text).logits
    with method(model):
        assert not torch.equal(model(**inputs).logits[:, -1], expected[:, -1])
        assert torch.equal(model(**text).logits, plain)
    assert [sorted(vars(module)) for module in model.modules()] == names
    assert torch.equal(model(**inputs).logits, expected)
    method.attach(model)
    with pytest.raises(UserError, match="already"):
        method.attach(model)
    method.detach()
    method.detach()
    assert torch.equal(model(**inputs).logits, expected)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(METHODS)),
    layers=st.integers(2, 40),
    width=st.sampled_from([(64, 160), (96, 192), (4096, 11008)]),
    visual=st.integers(4, 700),
    target=st.floats(0.02, 0.95),
    data=st.data(),
)
def test_a_target_is_met_within_one_token_per_layer(name, layers, width, visual, target, data):
    """Fails if a solver is off by one, searches a knob in the wrong direction, or settles for less than asked."""
    shape = DecoderShape(layers, *width, heads=4)
    remove = data.draw(st.lists(st.integers(0, 40), min_size=layers, max_size=layers))
    recipe = Recipe("any", layers, max(576, sum(remove)), tuple(remove))
    try:
        method = solve(name, target, shape, visual, recipe=recipe)
    except UserError as error:
        assert "saves at most" in str(error)
        most = float(str(error).split("at most ")[1].split("%")[0]) / 100
        assert most <= target + 1e-3
        return
    one_token = 1 - layers * layer_macs(visual - 1, visual - 1, shape) / base_macs(visual, shape)
    assert 0 <= method.reduction(shape, visual) - target <= one_token
    assert min(method.left(layers, visual)) >= 0


def test_a_matched_recipe_keeps_its_form():
    """Single removals go where the recipe removes most: a matched one stays close to it layer by layer."""
    released = Recipe.released("llava-1.5-7b", 60)
    for target in (0.55, 0.6, 0.65):
        matched = match(released, target, LLAVA_7B, 576)
        assert matched.reduction == pytest.approx(reduction(matched.remove, 576, LLAVA_7B))
        factor = sum(matched.remove) / sum(released.remove)
        for ours, theirs in zip(matched.remove, released.remove, strict=True):
            assert abs(ours - factor * theirs) <= 0.1 * theirs + 2
    assert match(Recipe.zero(32, 576), 0.3, LLAVA_7B, 576).reduction >= 0.3


def test_uniform_removes_the_same_number_in_every_layer():
    assert set(Uniform(per_layer=6).schedule(32).remove) == {6}
    assert Uniform(per_layer=100).schedule(32).remove[:7] == (100, 100, 100, 100, 100, 75, 0)
    spread = Uniform(per_layer=2.5).schedule(32).remove
    assert set(spread) == {2, 3} and sum(spread) == 80


def test_knobs_that_cannot_be_are_refused():
    for make in (
        lambda: FastV(k=0),
        lambda: FastV(ratio=1.2),
        lambda: PyramidDrop((8, 4)),
        lambda: PyramidDrop(keep=-0.1),
        lambda: RandomBefore(keep=600),
        lambda: SingleCut(layer=-1),
        lambda: Uniform(-1),
        lambda: FastV(k=4).schedule(4),
        lambda: PyramidDrop().schedule(24),
        lambda: SingleCut(layer=9).schedule(4),
        lambda: FitPrune(RECIPE).schedule(5),
        lambda: solve("fastest", 0.5, SHAPE, 16),
        lambda: solve("random", 0.5, SHAPE, 16),
        lambda: FastV.at_reduction(0.9, SHAPE, 16, k=2),
        lambda: FastV().visual_tokens(),
    ):
        with pytest.raises(UserError):
            make()


def test_seeds_belong_to_the_methods_that_draw():
    assert [name for name in METHODS if drawn(name)] == ["random", "random-before"]
    assert solve("random-before", 0.5, SHAPE, 16, seed=5).rule == Random(5)


def test_cutting_at_the_output_costs_more_than_before_the_projection():
    before, after = (cls(RECIPE).left(4, 16) for cls in (FitPrune, AtOutput))
    assert before == after
    spent = [layer_macs(entering, leaving, SHAPE) for entering, leaving in pairwise(before)]
    assert FitPrune(RECIPE).macs(SHAPE, 16) == sum(spent) < AtOutput(RECIPE).macs(SHAPE, 16)
