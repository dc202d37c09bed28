"""What users of transformers' models do with any of them: embeddings, assistants, labels, errors that are caught."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from llava_hr_fixtures import VOCABULARY, batched, count_runs, tiny_config, tiny_images, tiny_inputs, tiny_model
from llava_hr_text_fixtures import processor as processor_in
from PIL import Image

from llava_hr.checkpoints.load import load
from llava_hr.commands.convert import look
from llava_hr.evaluation.answers import Answerer, Query
from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.modeling import LlavaHrForConditionalGeneration
from tenfold import UserError
from tenfold.data.benchmark_answers import spread

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
    made = processor_in(tmp_path)
    ids = made(text="USER: a red square", truncation=True, max_length=40)["input_ids"]
    assert made(text="USER: a red square", truncation=None)["input_ids"] == ids
    pt = {"return_tensors": "pt"}
    for both in ({"text_kwargs": pt, "images_kwargs": pt}, {"common_kwargs": pt, **pt}):
        assert made(text="USER: a red square", **both)["input_ids"].tolist() == ids
    for call, message in (
        ({"text_kwargs": {"padding": False}, "padding": "max_length"}, "option 'padding' is given twice"),
        ({"text_kwargs": {"return_tensors": "pt"}, "return_tensors": "pt"}, "option 'return_tensors' is given twice"),
        ({"text_kwargs": {"padding": False}, "images_kwargs": {"padding": True}}, "option 'padding' is given twice"),
        ({"truncation": True, "max_length": len(ids[0]) - 1}, "prompts are not cut: prompt 0"),
        ({"truncation": "only_second", "max_length": 4}, "truncation 'only_second'"),
        ({"text": None}, "nothing to process"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**({"text": "USER: a red square"} | call))


def test_a_models_plan_names_its_head():
    """Fails if tensor parallelism shards the embedding and leaves a head that is tied to it whole."""
    assert tiny_model().tp_plan["lm_head"] == "colwise_gather_output"


def test_the_towers_attention_is_chosen_as_any_models(tmp_path):
    """Fails if the tower is no model to transformers, or its choice does not reach the ViT inside it."""
    model = tiny_model()
    tower = model.model.vision_tower
    assert tower._supports_sdpa and tower.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    eager = LlavaHrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation={"vision_config": "eager"})
    tower = eager.model.vision_tower
    assert tower.config._attn_implementation == tower.vit.config._attn_implementation == "eager"
    assert eager.model.language_model.config._attn_implementation == "sdpa"
    images = tiny_images(1)
    torch.testing.assert_close(eager.encode_images(images), model.encode_images(images), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_towers_layers_are_told_where_they_are_asked_for(model):
    """By transformers' names. Fails if a layer is left out, hooks stay, or a tuple is asked for in vain."""
    pixels = torch.rand(2, 3, *[model.config.vision_config.image_size] * 2)
    layers = len(model.model.vision_tower.vit.encoder.layers)
    plain = model.get_image_features(pixels)
    assert plain.hidden_states is None and plain.attentions is None
    model.model.vision_tower.set_attn_implementation("eager")
    told = model.get_image_features(pixels, output_hidden_states=True, output_attentions=True)
    model.model.vision_tower.set_attn_implementation("sdpa")
    assert len(told.hidden_states) == layers + 1 and len(told.attentions) == layers
    assert all(torch.allclose(one.sum(-1), torch.ones(())) for one in told.attentions)
    assert torch.allclose(told.pooler_output, plain.pooler_output, atol=1e-5)
    assert model.get_image_features(pixels).hidden_states is None
    assert isinstance(model.get_image_features(pixels, return_dict=False), tuple)


def test_what_the_readme_keeps_of_an_image_is_its_visual_tokens():
    """Fails if `encode_images` keeps the activations, 6 GiB a picture at 7B, or the library's name is missing."""
    model = tiny_model().train()
    images = tiny_images(2)
    assert not model.encode_images(images).requires_grad
    found = model.get_image_features(images)
    assert found.pooler_output.requires_grad and torch.equal(found.pooler_output, model.encode_images(images))
    assert torch.equal(found.last_hidden_state, model.model.vision_tower(images))


def test_pixels_of_another_size_are_refused_beside_placeholders(tmp_path):
    """Fails if `size` changes the pixels of a call, and not its placeholders."""
    made = processor_in(tmp_path)
    picture = np.zeros((40, 50, 3), np.uint8)
    with pytest.raises(ValueError, match="size 64 with placeholders for images of 32 pixels"):
        made(picture, made.prompt("what?"), size=64)
    assert made(picture, made.prompt("what?"), size={"shortest_edge": 32})["input_ids"]
    assert made([picture], size=64, return_tensors="pt")["pixel_values"].shape[-1] == 64


def test_a_second_question_needs_no_pixels(tmp_path):
    """Fails if ids about an image whose visual tokens are known can only be made with the image."""
    made = processor_in(tmp_path)
    picture, text = np.zeros((40, 50, 3), np.uint8), made.prompt("what?")
    again = made(text=text, num_images=1)
    assert again["input_ids"] == made(picture, text)["input_ids"] and "pixel_values" not in again
    for call in ({"num_images": 2}, {"num_images": 1, "images": picture}):
        with pytest.raises(ValueError, match="num_images"):
            made(text=text, **call)


@pytest.mark.parametrize("given", ["pixel_values", "visual_tokens"])
def test_wrong_counts_of_images_are_one_line_with_beams_too(given):
    """Fails if torch's error about a split comes out, or an image is dropped."""
    model = tiny_model()
    batch = batched(tiny_inputs(model, (1, 1)))
    wrong = dict(batch)
    wrong["pixel_values"] = batch["pixel_values"][:1]
    # As many as images in all, but a row with a part of one.
    row = batch["input_ids"].clone()
    first, second = ((one == VOCABULARY).nonzero()[0] for one in row)
    row[0, first + 3], row[1, second - 1] = 5, VOCABULARY
    torn = {**batch, "input_ids": row}
    for case in (wrong, torn):
        if given == "visual_tokens":
            case["visual_tokens"] = model.encode_images(case.pop("pixel_values"))
        with pytest.raises(ValueError, match=r"placeholders"):
            model.generate(**case, num_beams=2, max_new_tokens=2)


def test_a_map_of_devices_and_quantisation_reach_the_loading(tmp_path, monkeypatch):
    """Fails if `load` has no such argument, or takes a model off the devices it was laid out on."""
    (tmp_path / "words").mkdir()
    made = processor_in(tmp_path / "words")
    model = tiny_model(config=tiny_config(vocab_size=420))
    model.save_pretrained(tmp_path / "model")
    made.save_pretrained(tmp_path / "model")
    loaded, _ = load(tmp_path / "model", device_map={"": "cpu"})
    image = tiny_images(1)
    assert torch.equal(loaded.encode_images(image), model.encode_images(image))
    with pytest.raises(UserError, match="device and device_map"):
        load(tmp_path / "model", device="cpu", device_map="auto")
    given = {}

    def refuse(*_, **options):
        given.update(options)
        raise ImportError("Using `bitsandbytes` needs the library. Install it")

    monkeypatch.setattr(LlavaHrForConditionalGeneration, "from_pretrained", refuse)
    with pytest.raises(UserError, match="bitsandbytes"):
        load(tmp_path / "model", quantization_config="four bits", device_map={"": "cpu"})
    assert (given["quantization_config"], given["device_map"]) == ("four bits", {"": "cpu"})


@pytest.mark.parametrize("how", ["argument", "settings"])
def test_without_a_cache_an_image_goes_through_the_tower_once(how):
    """Fails if every token that is generated runs the tower again."""
    model = tiny_model()
    model.generation_config.eos_token_id = None
    row = tiny_inputs(model)[0]
    plain = model.generate(**row, max_new_tokens=5, do_sample=False)
    options = {"use_cache": False} if how == "argument" else {}
    model.generation_config.use_cache = how == "argument"
    runs, handle = count_runs(model.model.vision_tower)
    with handle:
        assert torch.equal(model.generate(**row, max_new_tokens=5, do_sample=False, **options), plain)
    assert runs == [1]


def test_text_alone_pays_no_pass_of_the_tower_in_one_process():
    """Its weights get a gradient of zero all the same, as with a zero image. Fails if the tower runs."""
    found = []
    for dummy in ("weights", "image"):
        model = tiny_model().train()
        model.dummy_image = dummy
        runs, handle = count_runs(model.model.vision_tower)
        row = tiny_inputs(model, (0,))[0]
        with handle:
            model(**row, labels=row["input_ids"]).loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())
        found.append(gradients)
        assert runs == ([] if dummy == "weights" else [1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_pictures_of_the_next_batch_are_prepared_beside_the_answers(tmp_path):
    """Fails if a picture is opened by the thread that computes, twice, or not at all."""
    made = processor_in(tmp_path)
    made.image_processor = LlavaHrImageProcessor(size=64)
    model = tiny_model(config=tiny_config(vocab_size=420))
    opened = []

    def opener(number):
        def work():
            opened.append((number, threading.current_thread() is threading.main_thread()))
            return processor_image(number)

        return work

    def query(number):
        return Query.about(made, "what?", opener(number), key=number)

    ahead, plain = Answerer(model, made), Answerer(model, made)
    ahead.prepare([query(1), query(2)])
    answers = [ahead.answers([query(0)], 3), ahead.answers([query(1), query(2)], 3)]
    assert sorted(opened) == [(0, True), (1, False), (2, False)]
    assert answers == [plain.answers([query(0)], 3), plain.answers([query(1), query(2)], 3)]
    assert ahead.encoded == 3


def processor_image(number):
    pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_limit_is_spread_over_all_questions():
    """The mini world's fine questions come last. Fails if a limit takes the first ones only."""
    questions = ["coarse"] * 50 + ["fine"] * 50
    assert spread(questions, 10) == ["coarse"] * 5 + ["fine"] * 5
    assert spread(questions, None) == spread(questions, 200) == questions
    assert spread(list(range(7)), 3) == [0, 2, 4]


def test_convert_looks_before_it_loads(tmp_path):
    """Fails if a name that is nothing costs the loading of the libraries, or a target is found at the end."""
    with pytest.raises(UserError, match="no such model: nosuch"):
        look(Path("nosuch"), tmp_path / "x")
    with pytest.raises(UserError, match="already exists"):
        look(tmp_path, tmp_path)
    code = """
import sys
from pathlib import Path
from llava_hr.commands.convert import convert
from tenfold import UserError
try:
    convert(Path("nosuch"), Path("x"), to="ours", tokenizer=None, check=None)
except UserError:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "False", done.stderr


def test_what_the_assistant_said_is_marked(tmp_path):
    """Also behind an image, and in a padded batch. Fails if an image's placeholders shift the mask."""
    made = processor_in(tmp_path, "fast legacy")
    picture = np.zeros((40, 50, 3), np.uint8)

    def said(question, answer, image):
        content = [{"type": "image", "image": picture}] * image + [{"type": "text", "text": question}]
        return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]

    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    batch = [said("what is it?", "a red square", True), said("and is it?", "a cat", False)]
    found = made.apply_chat_template(batch, **options)
    marked = [
        [token for token, mark in zip(ids, marks, strict=True) if mark]
        for ids, marks in zip(found["input_ids"], found["assistant_masks"], strict=True)
    ]
    assert [made.tokenizer.decode(ids).replace(" ", "") for ids in marked] == ["aredsquare</s>", "acat</s>"]
    assert "offset_mapping" not in found and "pixel_values" in found


def test_offsets_and_counts_of_visual_tokens(tmp_path):
    """Fails if an id's stretch is not its text, or the number of visual tokens that vLLM asks for is another."""
    made = processor_in(tmp_path, "fast legacy")
    picture = np.zeros((40, 50, 3), np.uint8)
    text = "USER: <image> a red square"
    call = made(picture, text, return_offsets_mapping=True, return_mm_token_type_ids=True)
    (ids,), (spans,), (kinds,) = call["input_ids"], call["offset_mapping"], call["mm_token_type_ids"]
    assert len(ids) == len(spans) == len(kinds)
    places = [text[start:end] for (start, end), kind in zip(spans, kinds, strict=True) if kind]
    assert places == ["<image>"] * made.num_image_tokens
    words = "".join(text[start:end] for (start, end), kind in zip(spans, kinds, strict=True) if not kind)
    assert words.replace(" ", "") == "USER:aredsquare"
    counted = made._get_num_multimodal_tokens(image_sizes=[(100, 100), (30, 500)])
    assert counted["num_image_tokens"] == [sum(kinds)] * 2


def test_offsets_of_the_text_that_has_all_placeholders(tmp_path):
    """Of several images in a prompt. Fails if an image's growth does not move what comes after it."""
    made = processor_in(tmp_path, "fast legacy")
    picture, many = np.zeros((40, 50, 3), np.uint8), made.num_image_tokens
    text = "USER: <image> a red <image> square"
    options = {"return_offsets_mapping": True, "return_mm_token_type_ids": True}
    told = made([picture, picture], text, return_text_replacement_offsets=True, **options)
    (places,), (spans,), (kinds,) = (
        told[name] for name in ("text_replacement_offsets", "offset_mapping", "mm_token_type_ids")
    )
    whole = text.replace("<image>", "<image>" * many)
    for place in places:
        (start, end), (first, last) = place["span"], place["new_span"]
        assert (
            (text[start:end], whole[first:last])
            == ("<image>", "<image>" * many)
            == (place["text"], place["replacement"])
        )
    of_images = [span for span, kind in zip(spans, kinds, strict=True) if kind]
    assert of_images == [place["new_span"] for place in places for _ in range(many)] and len(places) == 2
    words = "".join(whole[start:end] for (start, end), kind in zip(spans, kinds, strict=True) if not kind)
    assert words.replace(" ", "") == "USER:aredsquare"
