"""What users of transformers' models do with any of them: embeddings, assistants, labels, errors that are caught."""

import pytest
import torch
from llava_hr_fixtures import VOCABULARY, count_runs, tiny_config, tiny_inputs, tiny_model

WORD = 7  # a placeholder that the vocabulary has


@pytest.fixture(scope="module")
def model():
    """Its placeholder has an embedding. It never ends its answer."""
    model = tiny_model(config=tiny_config(image_token_id=WORD))
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("beams", [1, 2])
def test_embeddings_in_place_of_ids_with_images(model, beams):
    """Fails if images are not placed where the placeholder's embedding is, also of beams, or in a decoding step."""
    row = tiny_inputs(model)[0]
    ids = row.pop("input_ids")
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams}
    expected = model.generate(input_ids=ids, **row, **options)[:, ids.shape[1] :]
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **row, **options), expected)


def test_without_images_a_placeholder_is_a_word_only_where_allowed(model):
    """Fails if the option is not asked, or the images' place gets another word's embedding."""
    row = tiny_inputs(model)[0]
    row.pop("pixel_values")
    with pytest.raises(ValueError, match="4 placeholders in input_ids, 0 visual tokens"):  # caught as the library's own
        model(**row)
    model.config.allow_missing_images = True
    try:
        embeds = model.get_input_embeddings()(row["input_ids"])
        expected = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        assert torch.allclose(model.model(**row).last_hidden_state, expected, atol=1e-5)
    finally:
        model.config.allow_missing_images = False


def test_an_assistant_sees_the_image_once():
    """Fails if the assistant's prefill loses the images, or runs its tower again for every guess."""
    model, assistant = tiny_model(), tiny_model(seed=1)
    for one in (model, assistant):
        one.generation_config.eos_token_id = None
    row = tiny_inputs(model)[0]
    plain = model.generate(**row, max_new_tokens=8, do_sample=False)
    runs, handle = count_runs(assistant.model.vision_tower)
    with handle:
        assert torch.equal(model.generate(**row, max_new_tokens=8, do_sample=False, assistant_model=assistant), plain)
    assert runs == [1]


def test_labels_may_be_the_ids():
    """TRL's trainer copies them. Fails if a placeholder, one beyond the vocabulary, is taken for a target."""
    model = tiny_model()
    row = tiny_inputs(model)[0]
    ids = row["input_ids"]
    assert ids.max() == VOCABULARY
    expected = model(**row, labels=ids.masked_fill(ids == VOCABULARY, -100)).loss
    assert torch.equal(model(**row, labels=ids).loss, expected)


def test_a_processor_refuses_what_it_would_not_do(tmp_path):
    """As ValueErrors. Fails if one of two given values wins, a prompt is cut, or nothing at all is processed."""
    from llava_hr_text_fixtures import processor

    made = processor(tmp_path)
    ids = made(text="USER: a red square", truncation=True, max_length=40)["input_ids"]
    assert made(text="USER: a red square", truncation=None)["input_ids"] == ids
    for call, message in (
        ({"text_kwargs": {"padding": False}, "padding": "max_length"}, "option 'padding' is given twice"),
        ({"truncation": True, "max_length": len(ids[0]) - 1}, "prompts are not cut: prompt 0"),
        ({"truncation": "only_second", "max_length": 4}, "truncation 'only_second'"),
        ({"text": None}, "nothing to process"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**({"text": "USER: a red square"} | call))
