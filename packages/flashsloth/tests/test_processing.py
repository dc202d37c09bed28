"""Prompts, ids, labels and pixels (sheet sections 3.8 and 6)."""

import numpy as np
import pytest
import torch
from PIL import Image

from flashsloth.image_processing import FlashSlothImageProcessor, hd_views
from flashsloth.miniature.model import mini_config, mini_processor
from flashsloth.prompts import SYSTEM, question_prompt, template
from flashsloth.questions import rounds
from tenfold import UserError
from tenfold.data.formats import Turn


@pytest.fixture(scope="module")
def processor():
    return mini_processor()


def picture(width=54, height=54, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_the_prompt_of_an_answer():
    """No space before the marker. Fails if it is that of the training."""
    assert question_prompt(["What?"]) == f"{SYSTEM} USER: <image>\nWhat?<learnable> ASSISTANT:"
    two = question_prompt(["What?", "Why?"], ["Red."])
    assert two.endswith("ASSISTANT: Red.</s>USER: Why?<learnable> ASSISTANT:")
    assert "<image>" not in question_prompt(["Hello"], images=(0,))
    with pytest.raises(UserError, match="2 questions and 2 answers"):
        question_prompt(["a", "b"], ["c", "d"])


def test_the_chat_template_writes_the_same(processor):
    """Fails if Jinja and Python drift apart."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    made = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert made == processor.prompt("What?")
    asked += [{"role": "assistant", "content": "Red."}, {"role": "user", "content": "Why?"}]
    made = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert made == processor.prompt([("What?", "Red."), ("Why?", None)])


def test_placeholders_and_padding(processor):
    """9 visual tokens and 4 queries; shorter rows are padded on the left. Fails if a marker is counted once."""
    inputs = processor(images=[picture()], text=[processor.prompt("What shape is red?"), "USER: red<learnable>"],
                       return_tensors="pt")  # fmt: skip
    ids = inputs["input_ids"]
    assert (ids == processor.image_token_id).sum(dim=1).tolist() == [9, 0]
    assert (ids == processor.query_token_id).sum(dim=1).tolist() == [4, 4]
    assert inputs["attention_mask"][1, 0] == 0 and inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert inputs["pixel_values"].shape == (1, 3, 54, 54)


def test_a_training_sample(processor):
    """Answers with `</s>` are learnt, questions, images and queries not. Fails if a label slips by one."""
    turns = [Turn("human", "<image>\nWhat shape is red?"), Turn("gpt", "ring"), Turn("human", "Which row is red?"),
             Turn("gpt", "top")]  # fmt: skip
    sample = processor.encode_conversation(turns, picture())
    learnt = sample["labels"] != -100
    assert torch.equal(sample["labels"][learnt], sample["input_ids"][learnt])
    assert processor.tokenizer.convert_ids_to_tokens(sample["labels"][learnt].tolist()) == [
        "ring",
        "</s>",
        "top",
        "</s>",
    ]
    ids, config = sample["input_ids"].tolist(), mini_config()
    texts = [processor.tokenizer.decode(ids[slice(*one.question)]) for one in rounds(ids, config)]
    assert [text.replace(" ", "") for text in texts] == ["Whatshapeisred?", "Whichrowisred?"]


def test_captions_leave_out_what_was_asked(processor):
    sample = processor.encode_conversation([Turn("human", "<image>\nDescribe."), Turn("gpt", "red ring")], picture(),
                                           conversation="plain")  # fmt: skip
    words = processor.tokenizer.convert_ids_to_tokens(sample["labels"][sample["labels"] != -100].tolist())
    assert words == ["red", "ring", "\n"]
    with pytest.raises(UserError, match="text-only"):
        template("plain").check([Turn("gpt", "a")], images=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(images=[picture()], text="no image"), "0 <image> and 1 images"),
        (lambda p: p(text=p.prompt("What?")), "1 <image> and 0 images"),
        (lambda p: p(text="a", padding_side="up"), "padding"),
        (lambda p: p(text="a", nonsense=1), "unknown option"),
        (lambda p: p(images=["missing.png"], text=p.prompt("What?")), "missing.png"),
        (lambda p: p(images=[np.zeros((3, 3))], text=p.prompt("What?")), "float64"),
        (lambda p: p.encode_conversation([Turn("human", "a")], None), "without an answer"),
        (lambda p: p.encode_conversation([Turn("human", "a"), Turn("human", "b")], None), "from 'human'"),
        (lambda p: FlashSlothImageProcessor(24, 5, "pad"), "HD has no other"),
        (lambda p: FlashSlothImageProcessor(24, 2), "views 2"),
        (lambda p: FlashSlothImageProcessor(24, do_resize=False), "do_resize"),
    ],
)
def test_what_is_wrong_is_named(processor, call, message):
    with pytest.raises(UserError, match=message):
        call(processor)


def test_hd_views_are_the_whole_and_four_tiles():
    """Row by row. Fails if tiles go column by column or the whole comes last."""
    image = Image.new("RGB", (40, 40))
    image.paste((255, 0, 0), (20, 0, 40, 20))  # top right
    views = [np.asarray(view).reshape(-1, 3).mean(axis=0)[0] for view in hd_views(image, 20)]
    assert views[2] > 200 and max(views[1], views[3], views[4]) < 30 and 40 < views[0] < 90


def test_saved_and_loaded(processor, tmp_path):
    from transformers import AutoProcessor

    import flashsloth.auto  # noqa: F401

    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    text = processor.prompt("What shape is red?")
    first, second = (one(images=[picture(80, 40)], text=text, return_tensors="pt") for one in (processor, loaded))
    assert all(torch.equal(first[name], second[name]) for name in first)
