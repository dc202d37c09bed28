"""Every host, attention, batch shape and way of decoding against a slow reference that runs one row at a time.

Cells: eight hosts x {sdpa, eager} x SCENARIOS x {prefill, greedy, beam, second turn}. One kind of cell is refused, with
its message: right padding under ``generate``, which itself would read the logits of padding.
"""

import pytest
import torch
from dyvte_reference import logits_of, slow, spread_gates

from dyvte.exits import VisualExit
from tenfold import UserError
from tenfold.testing.hosts import HOSTS, SCENARIOS, Prompts, build

SPECIAL = [0, 3, 4, 7, 8, 9]  # padding and placeholders: a random model would generate them
THRESHOLD = 10.0  # spreads the exits over all layers
STEPS = 4
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
MAIN = ("llava", "qwen2_vl")
CELLS = [
    pytest.param((name, attention), id=f"{name}-{attention}", marks=[] if name in MAIN else pytest.mark.slow)
    for name in HOSTS
    for attention in ("sdpa", "eager")
]


@pytest.fixture(scope="module", params=CELLS)
def host(request):
    name, attention = request.param
    model = build(name, attention)
    return name, model, spread_gates(model, seed=1)


@pytest.fixture(params=list(SCENARIOS))
def scenario(request):
    return request.param


def last_logits(output, tokens):
    """Logits at the last real token of every row."""
    if not tokens.pad_end:
        return output.logits[:, -1]
    return torch.stack([output.logits[row, count - 1] for row, count in enumerate(tokens.num_real)])


@torch.no_grad()
@pytest.mark.parametrize("compact_every", [1, 3])
def test_prefill_equals_the_reference(host, scenario, compact_every):
    """Fails if padding enters a mean, if sample 0 decides for all, if positions are renumbered, or if the keys of rows
    that have left are seen, or cached, until the compaction."""
    name, model, gates = host
    inputs = Prompts(name).batch(*SCENARIOS[scenario])
    expected, exits, survivors = logits_of(model, gates, THRESHOLD, **inputs)
    exit = VisualExit(gates, THRESHOLD, compact_every=compact_every)
    with exit(model):
        output = model(**inputs, use_cache=True)
        assert exit.exit_layers() == [row[0] for row in exits]
        torch.testing.assert_close(last_logits(output, exit.entering[-1]), expected, **TOLERANCE)
        lengths, entering = exit.kv_lengths(output.past_key_values), exit.entering
    assert lengths == [[len(row[layer]) for row in survivors] for layer in range(4)]
    if compact_every == 1:
        for layer, tokens in enumerate(entering):
            for row, per_layer in enumerate(survivors):
                assert tokens.index[row][tokens.real[row]].tolist() == per_layer[layer]


@torch.no_grad()
@pytest.mark.parametrize("way", ["greedy", "uncached", "beam"])
def test_generation_equals_the_reference(host, scenario, way):
    """Fails if a layer's cache mask has layer 0's length, if generated tokens take the position of the cut prompt, or
    if without a cache the answer's own tokens enter the decision."""
    name, model, gates = host
    inputs = Prompts(name).batch(*SCENARIOS[scenario])
    options = {"max_new_tokens": STEPS, "num_beams": 2 if way == "beam" else 1, "do_sample": False}
    options["suppress_tokens"] = SPECIAL
    exit = VisualExit(gates, THRESHOLD)
    if scenario == "right padding":
        with exit(model), pytest.raises(UserError, match="right padding under generate"):
            model.generate(**inputs, **options)
        return
    lengths = inputs["attention_mask"].sum(1).tolist()
    with exit(model):
        fast = model.generate(**inputs, use_cache=way != "uncached", **options)
    with slow(model, gates, THRESHOLD, lengths):
        expected = model.generate(**inputs, use_cache=False, **options)
    assert torch.equal(fast, expected)


@torch.no_grad()
@pytest.mark.parametrize("compact_every", [1, 2])
def test_second_turn_is_gated_again_and_keeps_the_first_turn(host, scenario, compact_every):
    """Two prompts and their answers in one cache, answers fed token by token.

    Fails if the second turn inherits the first one's exit, counts cached columns, or masks deeper layers by layer 0's
    cache.
    """
    name, model, gates = host
    prompts = Prompts(name)
    rows, padding = SCENARIOS[scenario]
    first = prompts.batch(rows, padding)
    first_images = prompts.images
    image = prompts.image(2)[0]
    pictured = [any(isinstance(part, tuple) for part in row) for row in rows]
    second = prompts.batch([[3, ("image", 2), 4] if p else [7 + len(image)] for p in pictured], prefix=[])
    answers = [torch.randint(10, 64, (len(rows), 2), generator=prompts.generator) for _ in range(2)]

    turns = [first["input_ids"], answers[0], second["input_ids"], answers[1]]
    ids = torch.cat(turns, dim=1)
    mask = torch.cat((first["attention_mask"], torch.ones_like(ids[:, first["input_ids"].shape[1] :])), dim=1)
    images = [a + b for a, b in zip(first_images, prompts.images, strict=True)]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if name.startswith("qwen"):
        picture = prompts.collate(images, ids)
        del picture["pixel_values"]
        positions = model.model.get_rope_index(ids, attention_mask=mask, **picture)[0]

    bounds = torch.tensor([0, *(turn.shape[1] for turn in turns)]).cumsum(0).tolist()
    real = mask.cumsum(1)
    spans = []
    for row in range(len(rows)):
        count = [0] + [int(real[row, bound - 1]) for bound in bounds[1:]]
        spans.append([(count[0], count[1]), (count[2], count[3])])

    exit = VisualExit(gates, THRESHOLD, compact_every=compact_every)
    with exit(model):
        cache, got, stops = None, [], []
        for start, stop, extra in steps(bounds, first, second):
            output = model(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=positions[..., start:stop],
                past_key_values=cache,
                use_cache=True,
                **extra,
            )
            cache = output.past_key_values
            got.append(last_logits(output, exit.entering[-1]) if extra and start == 0 else output.logits[:, -1])
            stops.append(stop)
        lengths = exit.kv_lengths(cache)
        second_exits = exit.exit_layers(cache)
    for logits, stop in zip(got, stops, strict=True):
        present = [[span for span in row if span[1] <= int(real[i, stop - 1])] for i, row in enumerate(spans)]
        seen = prompts.collate(images if stop >= bounds[3] else first_images, ids[:, :stop])
        expected, exits, survivors = logits_of(
            model,
            gates,
            THRESHOLD,
            present,
            input_ids=ids[:, :stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[..., :stop],
            **seen,
        )
        torch.testing.assert_close(logits, expected, **TOLERANCE)
    assert second_exits == [row[1] for row in exits]
    assert lengths == [[len(row[layer]) for row in survivors] for layer in range(4)]


def steps(bounds, first, second):
    """(start, stop, images) of every forward: the prompts whole, the answers token by token."""
    text = ("input_ids", "attention_mask")
    yield 0, bounds[1], {key: value for key, value in first.items() if key not in text}
    for start in range(bounds[1], bounds[2]):
        yield start, start + 1, {}
    yield bounds[2], bounds[3], {key: value for key, value in second.items() if key not in text}
    for start in range(bounds[3], bounds[4]):
        yield start, start + 1, {}
