"""Every host, attention, batch shape and way of decoding against the equations, row by row and without a cache.

Cells: {llava, qwen2_vl} x {sdpa, eager} x SCENARIOS x {prefill, greedy, beam}, a second turn; six other families are
slow. The reference computes the blocks of `eas.attachment` from dense matrices. Not a cell: right padding under
`generate`, with which transformers itself reads the logits of padding.
"""

from contextlib import contextmanager

import pytest
import torch
from eas_fixtures import HOSTS, SCENARIOS, Prompts, build, skipper

from tenfold.hosts.structure import decoder_layers

SKIP = (0, 3)  # the first and the last layer
SPECIAL = [0, 3, 4, 7, 8, 9]  # padding and placeholders: a random model would write them
STEPS = 4
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
MAIN = ("llava", "qwen2_vl")
CELLS = [
    pytest.param((name, attention), id=f"{name}-{attention}", marks=[] if name in MAIN else pytest.mark.slow)
    for name in HOSTS
    for attention in ("sdpa", "eager")
]


@pytest.fixture(scope="module", params=CELLS)
def host(request):
    name, attention = request.param
    return name, build(name, attention)


@pytest.fixture(params=list(SCENARIOS))
def scenario(request):
    return request.param


@contextmanager
def equations(model, attached, prompt):
    """The blocks as the sheet writes them, for rows whose first `prompt` tokens are the prompt."""
    layers = decoder_layers(model)

    def forward_of(number, layer):
        pia, adapter = attached.pias.get(number), attached.adapters.get(number)

        def forward(hidden, *args, **kwargs):
            tokens = layer.input_layernorm(hidden)
            mean = tokens[:, :prompt].mean(1)
            module = pia if number in SKIP else adapter
            router = module.router
            weights = torch.softmax(torch.nn.functional.linear(mean, router.weight, router.bias) / 10, -1)
            up = weights[:, 0, None, None] * module.B.dense() + weights[:, 1, None, None] * module.D.dense()
            shift = (weights[:, :1] * module.B.bias + weights[:, 1:] * module.D.bias)[:, None]
            if number in SKIP:
                low = tokens @ pia.C.weight.T + pia.C.bias + (mean @ pia.A.weight.T + pia.A.bias)[:, None]
                tokens = tokens + 0.5 * low @ up.transpose(1, 2) + shift
                return hidden + layer.mlp(layer.post_attention_layernorm.weight * tokens)
            low = tokens @ adapter.A.weight.T + adapter.A.bias
            tokens = tokens + low @ up.transpose(1, 2) + shift
            hidden = hidden + layer.self_attn(hidden_states=tokens, **kwargs)[0]
            return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

        return forward

    for number, layer in enumerate(layers):
        layer.forward = forward_of(number, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def alone(prompts, inputs, row):
    """One row of a batch, without its padding."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prompts.collate([prompts.images[row]], ids)}


@torch.no_grad()
def test_prefill_equals_the_equations(host, scenario):
    """Fails if padding, another row or a later token enters router or global vector, or a block is another one."""
    name, model = host
    prompts, attached = Prompts(name), skipper(SKIP)
    inputs = prompts.batch(*SCENARIOS[scenario])
    with attached(model):
        found = model(**inputs, use_cache=True).logits
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        one = alone(prompts, inputs, row)
        with equations(model, attached, one["input_ids"].shape[1]):
            expected = model(**one, use_cache=False).logits[0]
        torch.testing.assert_close(found[row][mask], expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3], ids=["greedy", "beam"])
def test_generation_equals_the_equations(host, scenario, beams):
    """Fails if a decoded token moves router or global vector, a slot of the cache is another layer's, or beams of one
    row take the state of another."""
    name, model = host
    rows, padding = SCENARIOS[scenario]
    prompts, attached = Prompts(name), skipper(SKIP)
    inputs = prompts.batch(rows, "left" if padding == "right" else padding)
    options = {"max_new_tokens": STEPS, "num_beams": beams, "do_sample": False, "suppress_tokens": SPECIAL}
    with attached(model):
        found = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for row in range(len(rows)):
        one = alone(prompts, inputs, row)
        length = one["input_ids"].shape[1]
        with equations(model, attached, length):
            expected = model.generate(**one, use_cache=False, **options)[0, length:]
        assert torch.equal(found[row], expected)


@torch.no_grad()
def test_a_second_turn_keeps_the_first_prompts_state(host):
    """Two rows, a prompt, an answer token by token, a second question in one pass and an answer to it.

    Fails if the second question renews router or global vector, or the slots behind it are shifted.
    """
    name, model = host
    prompts, attached = Prompts(name), skipper(SKIP)
    inputs = prompts.batch([[("image", 4), 6], [("image", 4), 6]])
    length = inputs["input_ids"].shape[1]
    later = torch.randint(10, 64, (2, 9), generator=prompts.generator)
    with attached(model):
        out = model(**inputs, use_cache=True)
        cache, found = out.past_key_values, [out.logits[:, -1]]
        for start, stop in ((0, 1), (1, 2), (2, 7), (7, 8), (8, 9)):
            step = later[:, start:stop]  # no padding, so no mask: Qwen would number a mask's positions anew
            found.append(model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1])
    ids = torch.cat((inputs["input_ids"], later), 1)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prompts.collate(prompts.images, ids)}
    with equations(model, attached, length):
        expected = model(**whole, use_cache=False).logits
    for at, logits in zip((0, 1, 2, 7, 8, 9), found, strict=True):
        torch.testing.assert_close(logits, expected[:, length - 1 + at], **TOLERANCE)
