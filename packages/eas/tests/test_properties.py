"""How a model behaves while attentions are skipped, on eight tiny hosts of the real transformers classes."""

import copy

import pytest
import torch
from eas_fixtures import HOSTS, SCENARIOS, Prompts, build, greedy, plan, randomise, skipper
from torch import nn

from eas.attachment import STATE
from eas.skipper import Skipper
from tenfold import UserError

ROWS = [[("image", 4), 6], [("image", 4), 3], [("image", 4), 9]]


def single_inputs(prompts, rows, inputs, row):
    """One row of a batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    ids = inputs["input_ids"][row][real][None]
    own = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**own, **prompts.collate([prompts.images[row]], ids)}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scenario", ["left padding", "right padding", "mixed V", "image and text-only"])
def test_a_batch_answers_as_its_rows_do(host, scenario):
    """Fails if padding enters a mean, or one row's router or global vector reaches another's."""
    rows, padding = SCENARIOS[scenario]
    prompts = Prompts(host)
    inputs = prompts.batch(rows, padding)
    with torch.no_grad(), skipper()(model := build(host)):
        whole = model(**inputs).logits
        for row in range(len(rows)):
            real = inputs["attention_mask"][row].bool()
            alone = model(**single_inputs(prompts, rows, inputs, row)).logits[0]
            torch.testing.assert_close(whole[row][real], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("skip", [(0,), (3,), (0, 1, 3), (1, 2)])
def test_cached_decoding_equals_recomputation(host, skip):
    """Fails if the slots of kept layers are not consecutive, a skipped layer 0 hides the past, or w and g change."""
    prompts = Prompts(host)
    inputs = prompts.batch(ROWS, "left")
    with torch.no_grad(), skipper(skip)(model := build(host)) as attached:
        tokens, logits = greedy(model, inputs)
        with attached.prompt(inputs["attention_mask"]):
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            ids, mask = torch.cat((ids, tokens[:, :-1]), 1), torch.cat((mask, mask.new_ones(3, 3)), 1)
            again = {**inputs, "input_ids": ids, "attention_mask": mask}
            if "mm_token_type_ids" in inputs:
                again["mm_token_type_ids"] = nn.functional.pad(inputs["mm_token_type_ids"], (0, 3))
            uncached = model(**again, use_cache=False).logits[:, -4:]
    torch.testing.assert_close(uncached, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("host", HOSTS)
def test_sdpa_equals_eager(host):
    """Fails if a block depends on how attention is computed."""
    inputs = Prompts(host).batch(ROWS, "left")
    found = []
    for attention in ("sdpa", "eager"):
        with torch.no_grad(), skipper()(model := build(host, attention)):
            found.append(greedy(model, inputs))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("host", HOSTS)
def test_half_precision_stays_near(host):
    """Fails if a mean, a router or a hidden vector loses what float32 holds."""
    inputs = Prompts(host).batch(ROWS, "left")
    model = build(host)
    with torch.no_grad():
        for parameter in model.parameters():  # attention less sharp, which in a tiny host amplifies any rounding
            parameter.mul_(0.35 if parameter.ndim == 2 else 1)
        with randomise(skipper(), 0.1)(model) as attached:
            exact = model(**inputs).logits[:, -1]
        half = copy.deepcopy(model).bfloat16()
        for module in attached.modules():
            module.bfloat16()
        short = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
        with attached(half):
            near = half(**short).logits[:, -1].float()
    assert (near - exact).norm() / exact.norm() < 2e-2
    top = exact.topk(2).values
    sure = top[:, 0] - top[:, 1] > 0.1
    assert torch.equal(near.argmax(-1)[sure], exact.argmax(-1)[sure])


@pytest.mark.parametrize("host", HOSTS)
def test_leaving_restores_the_model_to_the_bit(host):
    """Fails if a hook, an attribute, a submodule or a cache slot stays behind."""
    model, inputs = build(host), Prompts(host).batch(ROWS, "left")
    model(**inputs)  # some hosts keep what they made in their first forward
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model(**inputs).logits
        with pytest.raises(RuntimeError), skipper()(model):
            model(**inputs)
            raise RuntimeError
        after = model(**inputs).logits
    assert torch.equal(before, after)
    assert list(model.state_dict()) == keys
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_skipped_and_fresh_adapters_change_no_bit(host):
    """Fails if an adapter does not start as the identity, or the block is another one than the host's."""
    model, inputs = build(host), Prompts(host).batch(ROWS, "left")
    with torch.no_grad():
        plain = greedy(model, inputs)
        with Skipper(plan(()))(model):
            attached = greedy(model, inputs)
        with Skipper(plan((), adapter_rank=0))(model):
            bare = greedy(model, inputs)
    for one in (attached, bare):
        assert torch.equal(one[0], plain[0]) and torch.equal(one[1], plain[1])


def test_same_seed_same_bits():
    """Fails if a module's start draws from a generator that others share."""
    states = []
    for _ in range(2):
        torch.rand(3)
        made = Skipper(plan(), seed=3)
        made.build(32)
        states.append([parameter.clone() for parameter in made.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*states, strict=True))
    state = torch.get_rng_state()
    Skipper(plan(), seed=4).build(32)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_are_never_changed():
    """Fails if a forward writes into what it was given."""
    inputs = Prompts("llava").batch(ROWS, "left")
    kept = {key: value.clone() for key, value in inputs.items()}
    with torch.no_grad(), skipper()(model := build("llava")):
        model(**inputs)
    assert all(torch.equal(inputs[key], kept[key]) for key in kept)


@pytest.mark.parametrize("skip", [(0,), (3,), (0, 3), (1, 2)])
def test_the_cache_has_a_slot_for_each_attention_that_stays(skip):
    """Fails if a skipped attention computes, keeps or allocates keys and values: bytes are (n - K) / n."""
    inputs = Prompts("llava").batch(ROWS, "left")
    model = build("llava")
    with torch.no_grad():
        full = model(**inputs, use_cache=True).past_key_values
        with skipper(skip)(model):
            left = model(**inputs, use_cache=True).past_key_values
    size = lambda cache: sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)  # noqa: E731
    assert len(left.layers) == 4 - len(skip)
    assert size(left) * 4 == size(full) * (4 - len(skip))
    assert left.get_seq_length() == inputs["input_ids"].shape[1]


def test_beams_keep_their_prompt():
    """Fails if beams of a row meet another row's state: beam search in a batch equals one row at a time."""
    prompts = Prompts("llava")
    inputs = prompts.batch(ROWS, "left")
    with torch.no_grad(), skipper((0, 2))(model := build("llava")):
        together, _ = greedy(model, inputs, num_beams=3)
        for row in range(3):
            alone, _ = greedy(model, single_inputs(prompts, ROWS, inputs, row), num_beams=3)
            assert torch.equal(together[row], alone[0])


def test_a_static_cache_gives_the_same_tokens():
    """Fails if the slots of a cache of fixed length are those of the layers."""
    inputs = Prompts("llava").batch(ROWS, "left")
    with torch.no_grad(), skipper((0, 2))(model := build("llava")):
        dynamic, _ = greedy(model, inputs)
        static, _ = greedy(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(dynamic, static)


def test_a_later_turn_keeps_the_first_prompts_state():
    """Fails if a second turn on the same cache computes router and global vector anew."""
    inputs = Prompts("llava").batch([[("image", 4), 6]], "left")
    with torch.no_grad(), skipper()(model := build("llava")):
        cache = model(**inputs, use_cache=True).past_key_values
        first = {layer: rows.clone() for layer, rows in getattr(cache, STATE).globe.items()}
        model(input_ids=torch.tensor([[11, 12, 13]]), past_key_values=cache, use_cache=True)
        assert all(torch.equal(getattr(cache, STATE).globe[layer], rows) for layer, rows in first.items())


def test_two_caches_do_not_meet():
    """Fails if the state of a prompt lives on a module: two prompts decoded in turns equal each alone."""
    one, two = (Prompts("llava").batch([[("image", 4), count]], "left") for count in (4, 9))
    step = torch.tensor([[11]])
    with torch.no_grad(), skipper()(model := build("llava")):
        alone = model(input_ids=step, past_key_values=model(**one, use_cache=True).past_key_values).logits
        first, second = (model(**inputs, use_cache=True).past_key_values for inputs in (one, two))
        model(input_ids=step, past_key_values=second)
        between = model(input_ids=step, past_key_values=first).logits
    assert torch.equal(alone, between)


def test_a_cache_of_another_model_or_plan_is_refused():
    """Fails if decoding goes on with means of nothing."""
    inputs = Prompts("llava").batch([[("image", 4), 6]], "left")
    model, step = build("llava"), torch.tensor([[11]])
    with torch.no_grad():
        plain = model(**inputs, use_cache=True).past_key_values
        with skipper()(model), pytest.raises(UserError, match="a cache without this prompt's state"):
            model(input_ids=step, past_key_values=plain)
        both = Skipper(plan(), both=True)
        with both(model):
            cache = model(**inputs, use_cache=True).past_key_values
            both.set_skip((0, 2))
            with pytest.raises(UserError, match="another skip list"):
                model(input_ids=step, past_key_values=cache)


@pytest.mark.parametrize("training", [True, False])
def test_answers_do_not_reach_the_means(training):
    """Fails if router or global vector see tokens after the first label: an answer changed leaves earlier logits."""
    inputs = Prompts("llava").batch([[("image", 4), 9]], "left")
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, -1] = 20
    with torch.no_grad(), skipper()(model := build("llava").train(training)):
        one, two = (model(**which, labels=labels).logits[:, :-1] for which in (inputs, changed))
        assert torch.equal(one, two)
        unlabelled = model(**changed).logits[:, :-1]
    assert not torch.equal(one, unlabelled)


def test_gradient_checkpointing_gives_the_same_gradients():
    """Fails if a checkpointed block computes another formula (the authors' does), or its means are lost."""
    inputs = Prompts("llava").batch(ROWS, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :22] = -100
    gradients = []
    for checkpointing in (False, True):
        model = build("llava").requires_grad_(False)
        with skipper()(model) as attached:
            model.train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            for parameter in attached.parameters():
                parameter.requires_grad_(True).grad = None
            model(**inputs, labels=labels).loss.backward()
            gradients.append([parameter.grad.clone() for parameter in attached.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[0])
