"""What goes into the language model and comes out: batches, caches, images, generation (sheet section 3.7)."""

import pytest
import torch
from llava_hr_fixtures import (
    MIXED,
    VOCABULARY,
    AttentionMaps,
    batched,
    count_runs,
    greedy,
    tiny_config,
    tiny_images,
    tiny_inputs,
    tiny_model,
)
from torch import nn
from transformers import AutoModelForImageTextToText

from llava_hr.configuration import LlavaHrConfig
from llava_hr.modeling import LlavaHrForConditionalGeneration
from tenfold import UserError


@pytest.fixture(scope="module")
def model():
    """Shared by tests that leave it as it is. It never ends its answer, so lengths are known."""
    model = tiny_model()
    model.generation_config.eos_token_id = None
    return model


# --- batches, caches, implementations


def test_a_batch_of_mixed_rows_equals_single_rows(model):
    """Rows with one, no and two images, padded on the left. Fails if images go to the wrong rows or if padding
    shifts positions."""
    rows = tiny_inputs(model, MIXED)
    batch = batched(rows)
    logits = model(**batch).logits
    generated = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, -6:]
    for index, row in enumerate(rows):
        alone = model(**row).logits[0]
        torch.testing.assert_close(logits[index, -len(alone) :], alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(model.generate(**row, max_new_tokens=6, do_sample=False)[0, -6:], generated[index])


def test_positions_count_a_rows_own_tokens(model):
    """Fails if padding is counted: the language model gets 0..n-1 per row."""
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    rows = tiny_inputs(model, (0, 0), words=3)
    model(**batched(rows))
    model(**batched(rows, side="right"))
    handle.remove()
    assert seen[0].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]] and seen[1].tolist() == [[0, 1, 2, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("cache", [None, "static"])
def test_cached_decoding_equals_recomputation(model, cache):
    """Fails if the cache, its positions or the images at the prefill are wrong."""
    row = tiny_inputs(model, (2,))[0]
    tokens, logits = greedy(model, row, 8)
    output = model.generate(
        **row,
        max_new_tokens=8,
        do_sample=False,
        cache_implementation=cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences[:, -8:], tokens)
    torch.testing.assert_close(torch.stack(output.logits, dim=1), logits, atol=1e-5, rtol=1e-4)


def test_generation_without_a_cache_keeps_the_images(model):
    """Fails if images are dropped after the first step although everything is computed again."""
    row = tiny_inputs(model)[0]
    tokens = model.generate(**row, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(tokens[:, -4:], greedy(model, row, 4)[0])


def test_sdpa_equals_eager(model, tmp_path):
    """In both towers. Fails if the choice does not reach the vision transformer."""
    model.save_pretrained(tmp_path)
    eager = LlavaHrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    batch = batched(tiny_inputs(model, MIXED))
    kinds = [m.model.vision_tower.vit.config._attn_implementation for m in (model, eager)]
    assert kinds == ["sdpa", "eager"]
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(eager(**batch).logits[mask], model(**batch).logits[mask], atol=1e-5, rtol=1e-4)
    ours, theirs = (m.generate(**batch, max_new_tokens=6, do_sample=False)[:, -6:] for m in (model, eager))
    assert torch.equal(ours, theirs)
    eager.set_attn_implementation("sdpa")
    assert eager.model.vision_tower.vit.config._attn_implementation == "sdpa"


def test_bfloat16_is_close_to_float32(model, tmp_path):
    """Fails if a part computes in another dtype, or the pixels are not cast."""
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    batch = batched(tiny_inputs(model, MIXED))
    mask = batch["attention_mask"].bool()
    exact, rounded = model(**batch).logits[mask], half(**batch).logits[mask]
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()
    assert half.generate(**batch, max_new_tokens=3).shape[1] <= batch["input_ids"].shape[1] + 3


def test_the_same_inputs_give_the_same_bits_and_stay_as_they_were(model):
    batch = batched(tiny_inputs(model, MIXED))
    before = {name: tensor.clone() for name, tensor in batch.items()}
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in batch.items())


def test_no_attention_map_is_made_at_the_prefill(model):
    """Fails if the language model or the tower runs eager attention."""
    row = tiny_inputs(model, words=40)[0]
    tokens = row["input_ids"].shape[1]
    with torch.no_grad(), AttentionMaps(tokens) as maps:
        model(**row, use_cache=True)
    assert not maps.seen


# --- images


def test_the_projector_by_hand(model):
    """``Linear, exact GELU, Linear`` of the tower's features. Fails with another activation or a norm in between."""
    images, projector = tiny_images(1), model.model.multi_modal_projector
    hidden = projector.linear_1(model.model.vision_tower(images))
    expected = projector.linear_2(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(model.encode_images(images), expected, atol=1e-6, rtol=1e-6)


def test_an_image_is_encoded_once_for_several_turns(model):
    """Fails if visual tokens give other logits than pixels, or if the tower runs again."""
    batch = batched(tiny_inputs(model, MIXED))
    expected = model(**batch).logits
    visual_tokens = model.encode_images(batch.pop("pixel_values"))
    assert visual_tokens.shape == (4, model.config.num_image_tokens, 24)
    runs, handle = count_runs(model.model.vision_tower)
    output = model(**batch, visual_tokens=visual_tokens)
    assert torch.equal(output.logits, expected) and output.image_hidden_states is visual_tokens
    tokens = model.generate(**batch, visual_tokens=visual_tokens, max_new_tokens=4, do_sample=False)
    handle.remove()
    assert not runs and tokens.shape[1] == batch["input_ids"].shape[1] + 4


def test_the_tower_runs_once_per_answer_and_never_for_text(model):
    """Fails if text-only rows are sent through the tower, or images again at each step."""
    runs, handle = count_runs(model.model.vision_tower)
    model.generate(**batched(tiny_inputs(model, (0, 1, 0, 2))), max_new_tokens=4)
    assert runs == [3]
    model.generate(**batched(tiny_inputs(model, (0, 0))), max_new_tokens=4)
    handle.remove()
    assert runs == [3]


def test_a_second_turn_continues_the_cache(model):
    """Fails if positions or earlier images go wrong: a later turn with a second image equals one long prompt."""
    first, second = tiny_inputs(model, (1, 1))
    answer = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat((answer.sequences, second["input_ids"]), dim=1)
    continued = model.generate(
        input_ids=ids,
        pixel_values=second["pixel_values"],
        past_key_values=answer.past_key_values,
        max_new_tokens=4,
        do_sample=False,
    )
    pixels = torch.cat((first["pixel_values"], second["pixel_values"]))
    afresh = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4, do_sample=False)
    assert torch.equal(continued, afresh)


@pytest.mark.parametrize("given", ["pixel_values", "visual_tokens"])
def test_copies_of_a_row_keep_its_images_together(model, given):
    """For beams and several answers. Fails if images are repeated one by one: two of a row would come as 1, 1, 2, 2."""
    batch = batched(tiny_inputs(model, MIXED))
    expected = model(**batch).logits.repeat_interleave(3, dim=0)
    if given == "visual_tokens":
        batch["visual_tokens"] = model.encode_images(batch.pop("pixel_values"))
    input_ids, inputs = model._expand_inputs_for_generation(expand_size=3, **batch)
    assert torch.equal(input_ids, batch["input_ids"].repeat_interleave(3, dim=0))
    torch.testing.assert_close(model(input_ids=input_ids, **inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_beams_of_a_batch_equal_those_of_single_rows(model):
    """Fails if beams read the images of other rows, or if the tower runs for each beam."""
    rows = tiny_inputs(model, MIXED)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False}
    runs, handle = count_runs(model.model.vision_tower)
    together = model.generate(**batched(rows), **options)[:, -4:]
    handle.remove()
    assert runs == [4]
    assert torch.equal(together, torch.cat([model.generate(**row, **options)[:, -4:] for row in rows]))


def test_the_repetition_penalty_passes_over_placeholders(model):
    """Fails if the placeholder lies further beyond the vocabulary than transformers' processors allow: by one."""
    row = tiny_inputs(model)[0]
    assert row["input_ids"].max() == VOCABULARY
    plain = model.generate(**row, max_new_tokens=8, do_sample=False)
    tokens = model.generate(**row, max_new_tokens=8, do_sample=False, repetition_penalty=50.0)
    assert len(set(tokens[0, -8:].tolist())) == 8 > len(set(plain[0, -8:].tolist()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("pixel_values"), "4 placeholders in input_ids, 0 visual tokens"),
        (lambda row: row.update(pixel_values=tiny_images(2)), "4 placeholders in input_ids, 8 visual tokens"),
        (lambda row: row.update(visual_tokens=torch.zeros(1, 4, 24)), "images are given twice"),
        (lambda row: row.update(inputs_embeds=torch.zeros(1, 4, 24)), "either input_ids or inputs_embeds"),
        (lambda row: row.update(inputs_embeds=torch.zeros(1, 9, 24), input_ids=None), "input_ids with placeholders"),
    ],
)
def test_images_that_do_not_fit_are_refused(model, change, message):
    row = tiny_inputs(model)[0]
    change(row)
    with pytest.raises(UserError, match=message):
        model(**row)


def test_a_model_without_adapters_runs():
    model = tiny_model(config=tiny_config(image_size=32, adapters=False))
    row = tiny_inputs(model)[0]
    assert row["pixel_values"].shape[-1] == 32
    assert model.generate(**row, max_new_tokens=2).shape[1] > row["input_ids"].shape[1]


def test_another_language_model_can_be_inside(tmp_path):
    """Fails if the model or its configuration takes the language model for a Llama."""
    config = tiny_config().to_dict()
    config["text_config"] |= {"model_type": "qwen2", "num_key_value_heads": 2}
    model = tiny_model(config=LlavaHrConfig(**config))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded.model.language_model).__name__ == "Qwen2Model"
    batch = batched(tiny_inputs(model, MIXED))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **options), model.generate(**batch, **options))
    config["text_config"]["model_type"] = "nothing"
    with pytest.raises(UserError, match="unknown model_type"):
        LlavaHrConfig(**config)


def test_the_tower_can_be_replaced():
    """What the comparisons of variants rely on: any module from pixels to features."""

    class Blocks(nn.Module):
        num_tokens, hidden_size = 4, 16

        def forward(self, pixel_values):
            return (
                nn.functional.adaptive_avg_pool2d(pixel_values, 2).flatten(2).transpose(1, 2).repeat(1, 1, 6)[:, :, :16]
            )

    model = tiny_model()
    model.model.vision_tower = Blocks()
    assert model(**tiny_inputs(model)[0]).logits.isfinite().all()
