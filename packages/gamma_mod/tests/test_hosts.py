"""Any host whose decoder is a stack of pre-norm blocks: converted, it runs forward, backward and generates."""

import copy

import pytest
import torch
from gamma_mod_fixtures import converted, generate, labels_of, layers_of, prompts

from gamma_mod import choosing, convert, measure_skips
from tenfold.testing.hosts import HOSTS, SCENARIOS, Prompts, build

EVERYTHING = {"prefill_threshold": 0.0, "decode_threshold": 0.0}


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_trains_and_generates(host):
    """Fails if a host's layers, positions, caches or placeholders are not understood."""
    model = converted(host, prefill_threshold=0.5)
    inputs = prompts(host)
    output = model.train()(**inputs, labels=labels_of(inputs))
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.auxiliary_loss > 0
    assert model.gamma_mod.router.weight.grad.abs().sum() > 0
    with measure_skips() as skips:
        tokens = generate(model.eval(), inputs)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 6
    assert 0.1 < skips.prefill < 0.9 and skips.decode is not None


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "internvl"])
def test_nothing_skipped_differs_by_the_scale_alone(host, scenario):
    """With thresholds 0 every token is computed: what remains is p in front of the MLP; a router that says keep with
    certainty gives the unconverted model, its tokens too. Fails if positions, packing or masks are wrong."""
    rows, padding = SCENARIOS[scenario]
    inputs = Prompts(host).batch(rows, padding)
    dense = build(host)
    with torch.no_grad():
        expected = dense(**inputs).logits
    model = convert(build(host), (0, 1, 3), **EVERYTHING)
    _always_keep(model)
    with torch.no_grad():
        found = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], expected[real], atol=1e-4)
    if padding == "left":  # behind right padding, generate reads the logits of padding: the library warns of it
        assert torch.equal(generate(model, inputs), generate(dense, inputs))


def _always_keep(model):
    """Make every keep probability one: the router's logits are replaced by far apart ones."""
    model.gamma_mod.router.forward = lambda normed, which=0: torch.stack(
        (torch.full(normed.shape[:-1], -40.0), torch.full(normed.shape[:-1], 40.0)), -1
    )


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "internvl"])
def test_a_batch_gives_what_its_rows_give(host, padding):
    """Fails if a row's padding, its number of kept tokens or its skipped tokens reach another row."""
    model = converted(host, prefill_threshold=0.5)
    inputs = prompts(host, padding=padding)
    with torch.no_grad():
        together = model(**inputs).logits
    singles = _rows(host, inputs)
    for row, single in enumerate(singles):
        real = inputs["attention_mask"][row].bool()
        with torch.no_grad():
            alone = model(**single).logits[0]
        assert torch.allclose(together[row, real], alone, atol=1e-4), row


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "internvl"])
def test_batched_decoding_gives_what_single_rows_give(host):
    """Rows that skip a layer leave no entry in its cache. Fails if they do, or if a slot behind a row is attended."""
    model = converted(host, prefill_threshold=0.5, decode_threshold=0.5)
    inputs = prompts(host)
    with measure_skips() as skips:
        together = generate(model, inputs)
    assert 0 < skips.decode < 1
    for row, single in enumerate(_rows(host, inputs)):
        alone = generate(model, single)
        assert torch.equal(together[row, -6:], alone[0, -6:]), row


@pytest.mark.parametrize("host", ["llava", "qwen2_vl", "internvl"])
def test_sdpa_and_eager_agree(host):
    """Fails if an explicit mask says something else than the causal kernel."""
    inputs = prompts(host)
    found = []
    for attention in ("sdpa", "eager"):
        model = converted(host, attention=attention, prefill_threshold=0.5)
        with torch.no_grad(), measure_skips(keep_tensors=True) as skips:
            logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        found.append((logits, skips.kept["prefill", 2][0], generate(model, inputs)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("rows", [None, [[("image", 4), 6]]])
def test_cached_decoding_is_recomputation_where_thresholds_are_equal(rows):
    """Compact positions count kept tokens, so a token decided alone or in the prompt is the same. Fails if a decoded
    token's position or cache differs from those of a prompt."""
    inputs = prompts(rows=rows)
    model = converted(prefill_threshold=0.5, decode_threshold=0.5)
    tokens = generate(model, inputs)
    length = inputs["input_ids"].shape[1]
    for step in range(6):
        longer = {**inputs, "input_ids": tokens[:, : length + step]}
        longer["attention_mask"] = torch.cat(
            (inputs["attention_mask"], torch.ones(len(tokens), step, dtype=torch.long)), 1
        )
        with torch.no_grad():
            logits = model(**longer, use_cache=False).logits[:, -1]
        assert torch.equal(logits.argmax(-1), tokens[:, length + step]), step


def test_bfloat16_follows_float32():
    """Relative L2 of the logits below 2e-2, and the same tokens wherever float32 is not in doubt; with equal choices,
    as a probability near the threshold may fall either way."""
    inputs = prompts()
    model = converted(prefill_threshold=0.5)
    for block in layers_of(model):  # the tiny host is sharp: by itself it is off by 2.6e-2
        for parameter in block.parameters():
            parameter.data *= 0.5 if parameter.ndim > 1 else 1.0
    with torch.no_grad(), measure_skips(keep_tensors=True) as skips:
        exact = model(**inputs).logits
    half = copy.deepcopy(model).bfloat16()
    cast = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    as_before = choosing(lambda layer, _p, _run: (skips.kept["prefill", layer][0], None))
    with torch.no_grad(), as_before:
        rounded = half(**cast).logits.float()
    real = inputs["attention_mask"].bool()
    assert (rounded[real] - exact[real]).norm() / exact[real].norm() < 2e-2
    first, second = exact[real].topk(2).values.T
    sure = first - second > 0.1
    assert torch.equal(rounded[real].argmax(-1)[sure], exact[real].argmax(-1)[sure])


def test_removing_a_conversion_restores_the_model_exactly():
    """Fails if a method, a hook or a parameter is left behind."""
    plain = build("llava")
    model = build("llava")
    inputs = prompts()
    before = {name: id(module) for name, module in model.named_modules()}
    attributes = set(vars(model)) | set(vars(layers_of(model)[1]))
    convert(model, (1, 2))
    model.gamma_mod.remove()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert set(vars(model)) | set(vars(layers_of(model)[1])) == attributes
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_inputs_and_the_global_generator_are_left_alone():
    inputs = prompts()
    copies = {name: value.clone() for name, value in inputs.items()}
    model = build("llava")
    state = torch.random.get_rng_state()
    convert(model, (1, 2), prefill_threshold=0.5)
    generate(model, inputs)
    model.train()(**inputs, labels=labels_of(inputs)).loss.backward()
    assert all(torch.equal(inputs[name], copies[name]) for name in copies)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first, second, other = (convert(build("llava"), (1,), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.gamma_mod.router.weight, second.gamma_mod.router.weight)
    assert not torch.equal(first.gamma_mod.router.weight, other.gamma_mod.router.weight)
    inputs = prompts()
    with torch.no_grad():
        assert torch.equal(first(**inputs).logits, second(**inputs).logits)


def _rows(host, inputs):
    """Every row of a batch by itself, without padding, its images too."""
    maker = Prompts(host)
    maker.batch([[("image", 4), 6], [("image", 4), 3], [("image", 4), 9]])
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        ids = inputs["input_ids"][row, mask][None]
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), **maker.collate([maker.images[row]], ids)}
