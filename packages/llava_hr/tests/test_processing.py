"""Text and images to model inputs: placeholders, padding, several images and turns, and what is refused."""

import json

import numpy as np
import pytest
import torch
from llava_hr_fixtures import tiny_config, tiny_model
from llava_hr_text_fixtures import processor
from transformers import AutoProcessor

import llava_hr.auto  # noqa: F401
from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold.testing.tokenizers import TOKENIZERS, learnt

VISUAL = 4


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture
def made(tmp_path):
    return processor(tmp_path)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_image_takes_as_many_ids_as_it_has_visual_tokens(kind, tmp_path):
    """Fails if `<image>` stays one id, if there are two BOS, or if the placeholder is a word of the vocabulary."""
    made = processor(tmp_path, kind)
    ids = made(picture(), made.prompt("what is there?"))["input_ids"][0]
    assert ids.count(made.image_token_id) == VISUAL
    assert ids[0] == made.tokenizer.bos_token_id and ids.count(made.tokenizer.bos_token_id) == 1
    assert made.tokenizer.convert_ids_to_tokens(made.image_token_id) == "<image>"


def test_the_placeholder_lies_one_beyond_the_vocabulary(made):
    """Fails if adding it moves other ids: the checkpoint's embeddings have no row for it."""
    assert made.image_token_id == 420 == len(made.tokenizer) - 1


def test_a_batch_is_its_rows_padded_on_the_left(made):
    """Fails if rows are padded on the right (generation would continue padding), or if rows influence each other."""
    prompts = [made.prompt("what?"), made.prompt("is it red or blue?", image=False), made.prompt([("a", "b"), "c"])]
    batch = made([picture(0), picture(1)], prompts, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape and batch["pixel_values"].shape == (2, 3, 32, 32)
    images = [[picture(0)], [], [picture(1)]]
    for ids, mask, image, prompt in zip(batch["input_ids"], batch["attention_mask"], images, prompts, strict=True):
        single = made(image or None, prompt, return_tensors="pt")
        length = single["input_ids"].shape[1]
        assert torch.equal(ids[-length:], single["input_ids"][0])
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * length
        assert set(ids[:-length].tolist()) <= {made.tokenizer.unk_token_id}
        assert ("pixel_values" in single) == bool(image)
    assert torch.equal(batch["pixel_values"][1], made(picture(1), return_tensors="pt")["pixel_values"][0])


def test_padding_as_asked(made):
    """Fails if padding_side, "max_length" or False is passed over."""
    prompts = ["a", "a b c d"]
    right = made(text=prompts, padding_side="right")["attention_mask"]
    assert right[0][0] == 1 and right[0][-1] == 0
    assert {len(row) for row in made(text=prompts, padding="max_length", max_length=20)["input_ids"]} == {20}
    assert len({len(row) for row in made(text=prompts, padding=False)["input_ids"]}) == 2
    made.tokenizer.padding_side = "right"
    assert made(text=prompts)["attention_mask"] == right
    assert made(text=prompts, text_kwargs={"padding_side": "left"})["attention_mask"][0][0] == 0
    with pytest.raises(UserError, match="padding"):
        made(text=prompts, padding_side="middle")


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (None, "<image> a"),
        ([picture()], "a"),
        ([picture(), picture()], "<image> a"),
        ([picture()], ["<image> a", "<image> b"]),
        ([[picture(), picture()], []], ["<image> a", "<image> b"]),
        ([[picture()]], ["<image> a", "b"]),
        ([], "<image> a"),
    ],
)
def test_images_and_marks_must_agree(images, text, made):
    """Fails if images go to other rows than those that show them."""
    with pytest.raises(UserError, match=r"image"):
        made(images, text)


def test_several_images_in_one_prompt(made):
    """Fails if two images share their placeholders, or come out of order."""
    prompt = made.prompt("<image><image> are they the same?")
    assert "USER: <image>\n<image>\nare they the same? ASSISTANT:" in prompt
    for images in ([picture(0), picture(1)], [[picture(0), picture(1)]]):
        inputs = made(images, prompt, return_tensors="pt")
        assert int((inputs["input_ids"] == made.image_token_id).sum()) == 2 * VISUAL
        assert torch.equal(inputs["pixel_values"], made([picture(0), picture(1)], return_tensors="pt").pixel_values)


def test_prompts_of_several_turns(made):
    """Fails if the image is put into each turn, or if history may end in an answer."""
    text = made.prompt([("what is <image> it?", "a cat"), "which colour?"])
    assert text.endswith("USER: <image>\nwhat is  it? ASSISTANT: a cat</s>USER: which colour? ASSISTANT:")
    assert made.prompt([("what?", "a cat"), "which?"]).count("<image>") == 1
    assert made.prompt([("what?", "a cat"), ("which <image>?", None)]).endswith("USER: <image>\nwhich ? ASSISTANT:")
    assert "<image>" not in made.prompt("what?", image=False)
    for wrong in ([("what?", "a cat")], [("what?", None), "which?"], []):
        with pytest.raises(UserError, match="answers to all questions but the last"):
            made.prompt(wrong)


def test_a_prompt_beyond_the_model_is_refused(tmp_path):
    """Fails if visual tokens are not counted, or if the prompt is cut off silently."""
    made = processor(tmp_path, max_positions=130, num_image_tokens=100)
    made(text=made.prompt("what?", image=False))
    with pytest.raises(UserError, match=r"prompt 1 has \d+ tokens, visual ones included.*at most 130"):
        made([picture()], ["short", made.prompt("what?")])


def test_a_tokenizers_own_padding_is_the_default(tmp_path):
    """As in transformers' processors. Fails if the tokenizer's is passed over, or an option of the call is."""
    made = processor(tmp_path)
    made.tokenizer.init_kwargs |= {"padding": "max_length", "max_length": 40}
    assert len(made(text="a")["input_ids"][0]) == 40
    assert len(made(text="a", max_length=50)["input_ids"][0]) == 50
    assert len(made(text="a", padding=True)["input_ids"][0]) < 40


def test_options_of_videos_have_no_effect(made):
    """As in transformers' processors of images. Fails if a call that serves models of both kinds is refused."""
    plain = made(text="a")
    assert made(text="a", num_frames=2, fps=1.0, do_sample_frames=True) == plain
    with pytest.raises(UserError, match="unknown option 'resample'"):
        made(text="a", resample=3)


@pytest.mark.parametrize("options", [{"stride": 1}, {"text_kwargs": {"stride": 1}}, {"videos": ["a"]}])
def test_unknown_options_are_refused(options, made):
    """Fails if an option is taken and passed over."""
    with pytest.raises(UserError, match="unknown option"):
        made(text="a", **options)


@pytest.mark.parametrize("kind", ["fast", "fast legacy", "slow legacy", "prepend", "words"])
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    """Fails if the placeholder, template, number of visual tokens or image settings are not stored."""
    (tmp_path / "model").mkdir()
    made = processor(tmp_path / "model", kind, conversation="llava_v0", max_positions=300)
    made.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == made.chat_template
    question = {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "what?"}]}
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    for load in (LlavaHrProcessor, AutoProcessor):
        again = load.from_pretrained(tmp_path / "saved", local_files_only=True)
        assert type(again) is LlavaHrProcessor
        for name in ("conversation", "num_image_tokens", "image_token_id", "max_positions", "chat_template"):
            assert getattr(again, name) == getattr(made, name), name
        for inputs in (made(picture(), made.prompt("what?"), return_tensors="pt"),
                       made.apply_chat_template([question], **options)):  # fmt: skip
            theirs = again(picture(), again.prompt("what?"), return_tensors="pt")
            assert all(torch.equal(inputs[name], theirs[name]) for name in ("input_ids", "pixel_values"))
        text = "a circle"
        assert again.batch_decode([again.tokenizer(text, add_special_tokens=False)["input_ids"]]) == [text]


def test_a_training_sample(made):
    """Fails if labels are learnt on the image, or shifted by its tokens."""
    said = [{"from": "human", "value": "what is it?\n<image>"}, {"from": "gpt", "value": "a cat"}]
    sample = made.encode_conversation(said, picture())
    ids, labels = sample["input_ids"], sample["labels"]
    assert ids.dtype == labels.dtype == torch.int64 and ids.shape == labels.shape
    assert sample["pixel_values"].shape == (1, 3, 32, 32)
    assert learnt(made.tokenizer, labels) == ["acat</s>"]
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    assert (labels[ids == made.image_token_id] == -100).all() and int((ids == made.image_token_id).sum()) == VISUAL
    assert said[0]["value"] == "what is it?\n<image>"
    plain = made.encode_conversation(said, picture(), conversation="plain")
    assert learnt(made.tokenizer, plain["labels"]) == ["acat"] and plain["labels"].tolist()[: 1 + VISUAL] == [-100] * (
        1 + VISUAL
    )


def test_training_text_is_cut_before_the_image_is_spliced_in(made):
    """Fails if max_length counts visual tokens: 2496 - 1 + 1024 positions are what stage 2 trains on."""
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a " * 200}]
    sample = made.encode_conversation(said, picture(), max_length=110)
    assert len(sample["input_ids"]) == len(sample["labels"]) == 110 - 1 + VISUAL
    late = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "a " * 200},
        {"from": "human", "value": "<image>"},
    ]
    cut = made.encode_conversation(late, picture(), max_length=110)
    assert len(cut["input_ids"]) == 110 and "pixel_values" not in cut


@pytest.mark.parametrize(
    ("said", "images", "message"),
    [
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], 1, "0 <image> for 1 images"),
        ([{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "b"}], 1, "2 <image> for 1 images"),
        ([{"from": "human"}, {"from": "gpt", "value": "b"}], 0, "field 'value' is missing"),
        (["a", "b"], 0, "str instead of an object"),
    ],
)
def test_broken_conversations_are_refused(said, images, message, made):
    """Fails if a sample is trained on with an image too many, or dies with a KeyError."""
    with pytest.raises(UserError, match=message):
        made.encode_conversation(said, [picture()] * images or None)


def test_an_unknown_template_or_image_token_is_refused(tmp_path):
    """Fails if the choice is put off until the first prompt."""
    with pytest.raises(UserError, match="unknown conversation template"):
        processor(tmp_path, conversation="v2")
    with pytest.raises(UserError, match="image token"):
        processor(tmp_path, image_token="<img>")


def test_images_without_text_and_text_without_images(made):
    """Fails if one needs the other."""
    assert set(made([picture()], return_tensors="pt")) == {"pixel_values"}
    assert set(made(text="a", return_tensors="pt")) == {"input_ids", "attention_mask"}


def test_generation_of_a_mixed_batch_equals_single_runs(tmp_path):
    """Fails if padding, masks or the order of images differ from what the model reads."""
    made = processor(tmp_path)
    made.image_processor = LlavaHrImageProcessor(size=64)
    config = tiny_config(vocab_size=420)
    assert config.image_token_id == made.image_token_id and config.num_image_tokens == VISUAL
    model = tiny_model(config=config)
    prompts = [made.prompt("what?"), made.prompt("is it red?", image=False), made.prompt([("a", "b"), "c"])]
    images = [[picture(0)], [], [picture(1)]]
    options = {"max_new_tokens": 5, "do_sample": False}
    batch = model.generate(**made([one for row in images for one in row], prompts, return_tensors="pt"), **options)
    for row, image, prompt in zip(batch, images, prompts, strict=True):
        single = model.generate(**made(image or None, prompt, return_tensors="pt"), **options)[0]
        assert row[-5:].tolist() == single[-5:].tolist()


def test_the_stored_settings_are_json_of_names(made, tmp_path):
    """Fails if machine paths or Python objects are stored."""
    made.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert stored["processor_class"] == "LlavaHrProcessor" and stored["num_image_tokens"] == VISUAL
    assert stored["image_processor"]["image_processor_type"] == "LlavaHrImageProcessor"
    assert str(tmp_path) not in json.dumps(stored)
