"""Properties of an exit: what must stay exactly as it was, what must agree, and what is refused."""

import copy
import threading
from itertools import pairwise

import pytest
import torch
from dyvte_fixtures import SPECIAL, THRESHOLD, host, rows, single
from dyvte_releases import tiny_host
from transformers import StaticCache

from dyvte import GateConfig, Gates, VisualExit
from tenfold import UserError
from tenfold.testing.hosts import SCENARIOS, Prompts

OPTIONS = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SPECIAL}


def snapshot(model):
    """Everything that an attachment touches: attributes of modules, hooks, configurations."""
    return [
        (
            name,
            sorted(vars(module)),
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            id(module.forward.__func__),
        )
        for name, module in model.named_modules()
    ]


@torch.no_grad()
@pytest.mark.parametrize("scenario", ["single", "left padding", "mixed V", "image and text-only"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_rows_that_never_exit_equal_the_dense_model_bit_for_bit(name, scenario):
    """Fails if an attached layer touches positions, masks or states although nothing left."""
    model, gates = host(name)
    inputs = Prompts(name).batch(*SCENARIOS[scenario])
    expected = model(**inputs).logits
    tokens = model.generate(**inputs, **OPTIONS)
    with VisualExit(gates, threshold=float("inf"))(model) as exit:
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model.generate(**inputs, **OPTIONS), tokens)
        assert set(exit.exit_layers()) == {None}


@torch.no_grad()
def test_text_only_prompts_equal_the_dense_model_bit_for_bit():
    """Fails if tokens of a prompt without an image leave, as in the released code."""
    model, gates = host()
    inputs = Prompts("llava").batch([[30], [12]])
    expected = model.generate(**inputs, **OPTIONS)
    with VisualExit(gates, threshold=-100.0)(model):
        assert torch.equal(model.generate(**inputs, **OPTIONS), expected)


@torch.no_grad()
def test_text_only_and_kept_rows_in_a_batch_with_exits_agree_with_the_dense_model():
    """Fails if the exit of one row reaches another."""
    model, gates = host()
    inputs = Prompts("llava").batch(*SCENARIOS["image and text-only"])
    expected = model(**inputs).logits[:, -1]
    with VisualExit(gates)(model) as exit:
        found = model(**inputs).logits[:, -1]
        exits = exit.exit_layers()
    assert exits[1] is None and exits[0] is not None
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_leaving_the_context_restores_the_model():
    """Fails if detach leaves a hook, an attribute, a configuration or a generate behind, also after an error inside."""
    model, gates = host()
    inputs = rows()
    before, expected = snapshot(model), model(**inputs).logits
    with VisualExit(gates)(model):
        assert not torch.equal(model(**inputs).logits[:, -1], expected[:, -1])
    with pytest.raises(UserError), VisualExit(gates)(model):
        model(**inputs, labels=inputs["input_ids"])
    assert snapshot(model) == before
    assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_same_input_twice_gives_the_same_bits_and_inputs_stay_untouched():
    model, gates = host("qwen2_vl")
    inputs = Prompts("qwen2_vl").batch(*SCENARIOS["mixed V"])
    kept, state = copy.deepcopy(inputs), torch.get_rng_state()
    with VisualExit(gates, THRESHOLD)(model):
        first, second = (model(**inputs).logits for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(inputs[key], kept[key]) for key in kept)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
def test_batch_equals_single_rows(padding):
    """Fails if sample 0 decides for all, or if padding enters the mean."""
    model, gates = host()
    inputs = rows(lengths=(6, 3, 9, 5), padding=padding)
    with VisualExit(gates, THRESHOLD)(model) as exit:
        output = model(**inputs)
        together = exit.exit_layers()
        last = [int(row.sum()) for row in exit.entering[-1].real]
        for row in range(4):
            alone = model(**single(inputs, row)).logits[0, -1]
            at = -1 if padding == "left" else last[row] - 1
            assert exit.exit_layers() == [together[row]]
            torch.testing.assert_close(output.logits[row, at], alone, atol=1e-4, rtol=1e-4)
    assert len(set(together)) > 1


@torch.no_grad()
@pytest.mark.parametrize("compact_every", [2, 3, 4])
def test_compacting_less_often_changes_no_number(compact_every):
    """Fails if keys of a row that has left are seen, or cached, until the compaction."""
    model, gates = host("qwen2_vl")
    inputs = Prompts("qwen2_vl").batch(*SCENARIOS["left padding"])
    found = []
    for every in (1, compact_every):
        with VisualExit(gates, THRESHOLD, compact_every=every)(model) as exit:
            output = model(**inputs, use_cache=True)
            facts = exit.exit_layers(output.past_key_values), exit.kv_lengths(output.past_key_values)
            found.append((output.logits[:, -1], facts, model.generate(**inputs, **OPTIONS)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    assert found[0][1] == found[1][1] and torch.equal(found[0][2], found[1][2])


@torch.no_grad()
def test_check_every_asks_the_gates_of_every_so_many_layers_only():
    model, gates = host()
    with VisualExit(gates, threshold=-1e6, check_every=3)(model) as exit:
        model(**rows())
        assert exit.exit_layers() == [2, 2, 2]


@torch.no_grad()
def test_a_higher_threshold_never_exits_sooner():
    """Fails if the knob's sign is turned round."""
    model, gates = host()
    inputs, exits = rows(lengths=(6, 3, 9, 12)), []
    for threshold in (-20.0, 0.0, 10.0, 25.0):
        with VisualExit(gates, threshold)(model) as exit:
            model(**inputs)
            exits.append([99 if e is None else e for e in exit.exit_layers()])
    assert all(a <= b for low, high in pairwise(exits) for a, b in zip(low, high, strict=True))
    assert exits[0] != exits[-1]


@torch.no_grad()
def test_gates_that_are_not_numbers_keep_the_image():
    """Fails if NaN is taken for an exit."""
    model, gates = host()
    broken = copy.deepcopy(gates)
    for gate in broken:
        gate.w2.weight.data.fill_(float("nan"))
    with VisualExit(broken)(model) as exit:
        model(**rows())
        assert exit.exit_layers() == [None] * 3


@torch.no_grad()
def test_one_token_of_text_keeps_the_image():
    """The mean of nothing is NaN, which keeps."""
    model, gates = host()
    with VisualExit(gates, threshold=-1e6)(model) as exit:
        model(**Prompts("llava").batch([[("image", 4), 1]]))
        assert exit.exit_layers() == [None]


@torch.no_grad()
def test_bf16_follows_fp32(tmp_path):
    """Relative L2 of the logits below 2e-2 at the same exits, greedy tokens equal wherever fp32's margin is clear."""
    model = tiny_host(tmp_path)
    ids = torch.tensor([[1, 5, *[62] * 4, 7, 8, 9, 10]])
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "pixel_values": pixels}
    half = copy.deepcopy(model).to(torch.bfloat16)
    lowered = {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in inputs.items()}
    with VisualExit(exit_at=1)(model):
        exact = model(**inputs).logits[:, -1]
    with VisualExit(exit_at=1)(half):
        rough = half(**lowered).logits[:, -1].float()
    assert ((rough - exact).norm() / exact.norm()) < 2e-2
    top = exact.topk(2).values
    if top[0, 0] - top[0, 1] > 0.1:
        assert rough.argmax() == exact.argmax()


@torch.no_grad()
def test_two_interleaved_generations_keep_their_own_exits():
    """Fails if the exit's state lives on the model, as in the released code."""
    model, gates = host()
    inputs = rows(lengths=(6, 3, 9))
    prompts = [single(inputs, row) for row in (0, 1)]
    with VisualExit(gates, THRESHOLD)(model) as exit:
        alone = [model.generate(**one, **OPTIONS)[0, -4:].tolist() for one in prompts]
        caches, tokens, lengths = [], [], []
        for one in prompts:
            output = model(**one, use_cache=True)
            caches.append(output.past_key_values)
            tokens.append([pick(output.logits)])
            lengths.append(one["input_ids"].shape[1])
        for step in range(3):
            for number in (0, 1):
                mask = torch.ones(1, lengths[number] + step + 1, dtype=torch.int64)
                output = model(
                    input_ids=torch.tensor([[tokens[number][-1]]]),
                    attention_mask=mask,
                    past_key_values=caches[number],
                )
                tokens[number].append(pick(output.logits))
        exits = [exit.exit_layers(cache) for cache in caches]
    assert tokens == alone and exits[0] != exits[1]


def pick(logits):
    row = logits[0, -1].clone()
    row[SPECIAL] = -torch.inf
    return int(row.argmax())


@torch.no_grad()
def test_two_threads_are_served():
    """Fails if a pass of one thread reads the state of another's."""
    model, gates = host()
    inputs = rows(lengths=(6, 3))
    found = {}
    with VisualExit(gates, THRESHOLD)(model) as exit:
        expected = []
        for row in (0, 1):
            expected.append((model(**single(inputs, row)).logits, exit.exit_layers()))

        def work(row):
            with torch.no_grad():
                for _ in range(5):
                    found[row] = (model(**single(inputs, row)).logits, exit.exit_layers())

        threads = [threading.Thread(target=work, args=(row,)) for row in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for row in (0, 1):
        assert torch.equal(found[row][0], expected[row][0]) and found[row][1] == expected[row][1]


def _assisted(model, inputs):
    model.generate(**inputs, prompt_lookup_num_tokens=2, **OPTIONS)


def _static(model, inputs):
    model(**inputs, past_key_values=StaticCache(model.config.get_text_config(), max_cache_len=64))


def _labels(model, inputs):
    model(**inputs, labels=inputs["input_ids"])


def _square_mask(model, inputs):
    model(**{**inputs, "attention_mask": torch.ones(1, 1, 25, 25)})


def _cropped(model, inputs):
    cache = model(**inputs, use_cache=True).past_key_values
    cache.crop(-1)
    model(input_ids=torch.tensor([[11]]), attention_mask=torch.ones(1, 25, dtype=torch.int64), past_key_values=cache)


def _split_image(model, inputs):
    model(input_ids=inputs["input_ids"][:, :10], pixel_values=inputs["pixel_values"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("use", "words"),
    [
        (_assisted, "assisted generation"),
        (_static, "a static cache"),
        (_labels, "labels under an exit"),
        (_square_mask, "an attention mask that is not"),
        (_cropped, "changed between passes"),
        (_split_image, "no text after the image"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(use, words):
    """Fails if it runs and gives other numbers, or if the message says something else."""
    model, gates = host()
    with VisualExit(gates)(model), pytest.raises(UserError, match=words):
        use(model, single(rows(), 0))


@torch.no_grad()
def test_a_cache_of_another_attachment_is_refused():
    model, gates = host()
    inputs = single(rows(), 0)
    with VisualExit(gates)(model):
        cache = model(**inputs, use_cache=True).past_key_values
    with VisualExit(gates)(model), pytest.raises(UserError, match="made elsewhere"):
        model(input_ids=torch.tensor([[11]]), past_key_values=cache)


@pytest.mark.parametrize(
    ("exit", "words"),
    [
        (VisualExit(), "neither gates nor exit_at"),
        (VisualExit(exit_at=4), "exit_at 4"),
        (VisualExit(exit_at=-2), "exit_at -2"),
        (VisualExit(Gates(GateConfig(5, 32, 4))), "gates for 5 layers of width 32"),
        (VisualExit(Gates(GateConfig(4, 16, 4))), "gates for 4 layers of width 16"),
        (VisualExit(Gates(GateConfig(4, 32, 4)), threshold=float("nan")), "threshold that is not a number"),
        (VisualExit(Gates(GateConfig(4, 32, 4)), compact_every=0), "compact_every 0"),
        (VisualExit(Gates(GateConfig(4, 32, 4)), check_every=0), "check_every 0"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_and_leaves_the_model_alone(exit, words):
    model, _ = host()
    before = snapshot(model)
    with pytest.raises(UserError, match=words):
        exit.attach(model)
    assert snapshot(model) == before


def test_a_second_attachment_and_a_compiled_model_are_refused():
    model, gates = host()
    with VisualExit(gates)(model), pytest.raises(UserError, match="already attached"):
        VisualExit(gates).attach(model)
    with pytest.raises(UserError, match="compiled"):
        VisualExit(gates).attach(torch.compile(model))


@torch.no_grad()
@pytest.mark.parametrize(
    "states", [("mean_visual",), ("last_visual", "mean_text"), ("mean_visual", "last_visual", "mean_text", "last_text")]
)
def test_gates_that_read_other_states_decide_per_row(states):
    """Tables 4 and 7: batch and single rows agree."""
    model, _ = host()
    gates = Gates(GateConfig(4, 32, 8, states=states)).initialise(3)
    inputs = rows()
    with VisualExit(gates, 0.2)(model) as exit:
        model(**inputs)
        together = exit.exit_layers()
        for row in range(3):
            model(**single(inputs, row))
            assert exit.exit_layers() == [together[row]]


@torch.no_grad()
def test_gates_that_read_attention_run_and_want_their_own_image_size():
    """Table 8's gates; fails if such a gate is fed another vector, as in the released inference code."""
    model, _ = host()
    states = ("visual_self", "cross", "text_self")
    gates = Gates(GateConfig(4, 32, 8, states=states, visual_tokens=16)).initialise(2)
    inputs = rows()
    with VisualExit(gates)(model) as exit:
        exit.trace = trace = []
        model(**inputs)
        together = exit.exit_layers()
        assert trace[0][0].shape == (3, 48)
        model(**single(inputs, 1))
        assert exit.exit_layers() == [together[1]]
    other = Gates(GateConfig(4, 32, 8, states=states, visual_tokens=9)).initialise(2)
    with VisualExit(other)(model), pytest.raises(UserError, match="an image of 16 visual tokens"):
        model(**inputs)
