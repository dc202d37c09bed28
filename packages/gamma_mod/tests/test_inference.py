"""Inference: empty layers, ragged caches, beams, later turns, skipping that costs nothing, calibration."""

import copy
import threading

import pytest
import torch
from gamma_mod_fixtures import converted, generate, layers_of, prompts
from transformers import DynamicCache, StaticCache

from gamma_mod import calibrate, convert, kv_lengths, measure_skips
from tenfold import UserError
from tenfold.testing.hosts import build


@pytest.mark.parametrize("layers", [(1, 2), (0, 1, 2, 3)])
def test_a_layer_that_keeps_nothing_is_the_identity_and_its_cache_is_empty(layers):
    """Also the first and the last layer may skip everything: lengths are counted apart. Fails if an empty layer
    crashes, or if a later token's position there is not 0."""
    model, inputs = converted(layers=layers, prefill_threshold=1.0, decode_threshold=0.0), prompts()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
    lengths = kv_lengths(cache)
    assert all(lengths[layer] == [0, 0, 0] for layer in layers)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)), 1)
    with torch.no_grad():
        model(input_ids=torch.full((3, 1), 20), attention_mask=mask, past_key_values=cache)
    assert all(kv_lengths(cache)[layer] == [1, 1, 1] for layer in layers)


def test_everything_skipped_everywhere_leaves_the_embeddings():
    model, inputs = converted(layers=(0, 1, 2, 3), prefill_threshold=1.0), prompts(rows=[[("image", 4), 6]])
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[3])


def test_a_skipped_step_launches_nothing_in_that_layer():
    """Real skipping: below the decode threshold neither attention nor MLP of a layer runs. Fails if they do."""
    model, inputs = converted(prefill_threshold=0.0, decode_threshold=1.0), prompts()
    calls = []
    for layer in (0, 1, 2, 3):
        block = layers_of(model)[layer]
        block.mlp.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
        block.self_attn.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
    generate(model, inputs, steps=4)
    assert [calls.count(layer) for layer in (0, 1, 2, 3)] == [8, 2, 2, 8]


def test_rows_that_skip_append_nothing():
    """Lengths after a step are those of rows alone. Fails if a skipped row's slot counts."""
    model, inputs = converted(prefill_threshold=0.3, decode_threshold=0.5), prompts()
    with measure_skips(keep_tensors=True) as skips:
        output = generate(model, inputs, return_dict_in_generate=True)
    lengths = kv_lengths(output.past_key_values)
    for layer in (1, 2):
        kept = skips.kept["prefill", layer][0].sum(1) + torch.cat(skips.kept["decode", layer], 1).sum(1)
        assert lengths[layer] == kept.tolist()


def test_decisions_of_generated_tokens_depend_on_the_past_only():
    """Appending tokens changes no earlier decision. Fails if a decision looks at a budget over the sequence."""
    model, inputs = converted(prefill_threshold=0.3, decode_threshold=0.5), prompts(rows=[[("image", 4), 6]])
    found = []
    for steps in (3, 8):
        with measure_skips(keep_tensors=True) as skips:
            generate(model, inputs, steps=steps)
        found.append(torch.cat(skips.kept["decode", 2], 1))
    assert torch.equal(found[1][:, :2], found[0])
    with torch.no_grad(), measure_skips(keep_tensors=True) as whole:
        model(**inputs)
    shorter = {**inputs, "input_ids": inputs["input_ids"][:, :-3], "attention_mask": inputs["attention_mask"][:, :-3]}
    with torch.no_grad(), measure_skips(keep_tensors=True) as part:
        model(**shorter)
    assert torch.equal(whole.kept["prefill", 2][0][:, :-3], part.kept["prefill", 2][0])


def test_a_later_turn_on_the_same_cache_is_the_whole_prompt():
    """Fails if the mask or the positions of tokens behind a ragged past are wrong."""
    model = converted(prefill_threshold=0.5)
    inputs = prompts(rows=[[("image", 4), 6], [("image", 4), 9]])
    cut = inputs["input_ids"].shape[1] - 4
    with torch.no_grad():
        expected = model(**inputs).logits[:, cut:]
        cache = DynamicCache(config=model.config)
        first = {**inputs, "input_ids": inputs["input_ids"][:, :cut]}
        model(**first | {"attention_mask": inputs["attention_mask"][:, :cut]}, past_key_values=cache)
        rest = {"input_ids": inputs["input_ids"][:, cut:], "attention_mask": inputs["attention_mask"]}
        found = model(**rest, past_key_values=cache).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_beams_carry_their_caches():
    """Fails if lengths are not reordered with the rows."""
    model, inputs = converted(prefill_threshold=0.5, decode_threshold=0.5), prompts()
    together = generate(model, inputs, num_beams=3)
    alone = prompts(rows=[[("image", 4), 6]])
    first = generate(model, alone, num_beams=3)
    assert torch.equal(together[0, -6:], first[0, -6:])


def test_without_decode_skipping_every_token_is_computed():
    model, inputs = converted(prefill_threshold=0.5, decode_threshold=1.0, decode_skip=False), prompts()
    with measure_skips() as skips:
        generate(model, inputs)
    assert skips.decode == 0


def test_other_caches_are_refused():
    model, inputs = converted(), prompts()
    dense = build("llava")
    full = DynamicCache(config=dense.config)
    with torch.no_grad():
        dense(**inputs, past_key_values=full)
    longer = {"input_ids": torch.full((3, 1), 20)}
    with pytest.raises(UserError, match="made by an unconverted model"), torch.no_grad():
        model(**longer, past_key_values=full)
    static = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(UserError, match="this kind of KV cache"), torch.no_grad():
        model(**inputs, past_key_values=static)
    with pytest.raises(UserError, match="cannot be cropped"), torch.no_grad():
        model(**inputs, past_key_values=(own := DynamicCache(config=model.config)))
        own.crop(-2)


@pytest.mark.parametrize("skip", [0.2, 0.5, 0.8])
def test_calibration_reaches_the_wanted_skip(skip):
    """Fails if quantiles of an unskipped pass are taken for the threshold, or if the threshold is not set."""
    model, samples = converted(sharpness=1.0), [prompts(), prompts("llava", [[("image", 4), 30]])]
    found = calibrate(model, samples, skip)
    with torch.no_grad(), measure_skips() as skips:
        for sample in samples:
            model(**sample)
    assert abs(skips.prefill - skip) < 0.05 and skips.prefill == pytest.approx(found.skip)
    assert model.gamma_mod.config.prefill_threshold == found.threshold
    assert set(found.per_layer) == {1, 2}


def test_calibration_refuses_what_it_cannot_use():
    with pytest.raises(UserError, match="not converted"):
        calibrate(build("llava"), [prompts()])
    with pytest.raises(UserError, match="training mode"):
        calibrate(converted().train(), [prompts()])
    with pytest.raises(UserError, match="no samples"):
        calibrate(converted(), [])
    with pytest.raises(UserError, match="skip 1"):
        calibrate(converted(), [prompts()], skip=1)


def test_the_released_threshold_skips_nothing_after_no_training():
    """Why `calibrate` exists: an untrained router's probabilities are nowhere near 0.005."""
    model, inputs = convert(build("llava"), (1, 2)), prompts()
    with torch.no_grad(), measure_skips() as skips:
        model(**inputs)
    assert skips.prefill == 0


def test_threads_share_one_model():
    """A pass belongs to its thread. Fails if one thread's padding or counts reach another."""
    model = converted(prefill_threshold=0.5)
    batches = [prompts(), prompts(rows=[[("image", 4), 12]]), prompts(rows=[[("image", 4), 2]] * 2)]
    expected = [generate(model, batch, steps=4) for batch in batches]
    found = [None] * len(batches)

    def work(index):
        for _ in range(3):
            found[index] = generate(model, batches[index], steps=4)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_a_copy_is_a_model_of_its_own():
    model, inputs = converted(prefill_threshold=0.5), prompts()
    other = copy.deepcopy(model)
    expected = generate(model, inputs)
    model.gamma_mod.remove()
    assert torch.equal(generate(other, inputs), expected)
    assert other.gamma_mod is not None and not hasattr(model, "gamma_mod")


def test_layers_outside_their_model_are_refused():
    model = converted()
    with pytest.raises(UserError, match="outside its model's forward"):
        model.model.language_model(inputs_embeds=torch.zeros(1, 3, 32))
