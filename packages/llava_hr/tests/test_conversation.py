"""Conversations under the processor: what `<image>` stands for, and the chat template."""

import pytest
from llava_hr_text_fixtures import processor

from tenfold.data.conversation import IMAGE_MARKER, get_conversation
from tenfold.data.formats import Turn
from tenfold.testing.tokenizers import TOKENIZERS, learnt


def turns(*texts):
    return [Turn(("human", "gpt")[number % 2], text) for number, text in enumerate(texts)]


TWO = turns("<image>\nwhat shape is the object?", "circle", "how many objects are there?", "2")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_words_image_in_a_text_only_record_stand_for_no_image(kind, tmp_path):
    """Fails if "<image>" becomes a placeholder where there is no image, as where it is a special token."""
    made = processor(tmp_path, kind)
    ids = made.encode_turns(turns("what is <image> in html", "a red object"), 0).input_ids
    assert IMAGE_MARKER not in ids and made.image_token_id not in ids
    assert learnt(made.tokenizer, made.encode_turns(turns("what is <image>", "object"), 0).labels) == ["object</s>"]


def test_an_answer_that_says_image_stands_for_no_image(tmp_path):
    """Fails if marks in answers count."""
    made = processor(tmp_path)
    encoded = made.encode_turns(turns("<image>\nwhat stands for it?", "the word <image> does"), 1)
    assert encoded.input_ids.count(IMAGE_MARKER) == 1
    assert learnt(made.tokenizer, encoded.labels) == ["theword<image>does</s>"]


def _messages(said, system=None):
    roles = {"human": "user", "gpt": "assistant"}
    messages = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    for number, turn in enumerate(said):
        parts = [{"type": "text", "text": turn.text.replace("<image>\n", "")}]
        images = [{"type": "image"}] * turn.text.count("<image>\n")
        # Before the words in one turn, after them in the next: the template moves both to the front.
        parts = images + parts if number % 4 else parts + images
        messages.append({"role": roles[turn.speaker], "content": parts if number % 3 else _flat(parts)})
    return messages


def _flat(parts):
    return parts[0]["text"] if len(parts) == 1 else parts


CHATS = [
    turns("what shape is it?"), turns("a b", "it's \"c\" & <d>"), turns("a", "b", "\u00e9\n\nc ", " d", "e"), TWO,
    TWO[:3], turns("<image>\n<image>\nsame?"), turns("x", "y", "<image>\nz"), turns("a", ""),
]  # fmt: skip


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_v0"])
@pytest.mark.parametrize("said", CHATS, ids=range(len(CHATS)))
def test_the_chat_template_says_what_the_template_says(name, said, tmp_path):
    """Fails if a space, newline, separator or image of the Jinja template is elsewhere."""
    made = processor(tmp_path, conversation=name)
    ours = get_conversation(name).render(said, images=True, generate=said[-1].speaker == "human").text
    theirs = made.apply_chat_template(_messages(said), add_generation_prompt=said[-1].speaker == "human")
    assert theirs == ours


def test_the_chat_template_takes_a_system_message_and_refuses_what_it_cannot_say(tmp_path):
    """Fails if a system message is left out, two user messages pass as a dialogue, or a sound is passed over."""
    made = processor(tmp_path)
    text = made.apply_chat_template(_messages(turns("a?"), system="Be brief."), add_generation_prompt=True)
    assert text == "Be brief. USER: a? ASSISTANT:"
    with pytest.raises(Exception, match="user and assistant in turn"):
        made.apply_chat_template([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(Exception, match="text and images"):
        made.apply_chat_template([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}])


def test_the_chat_template_of_plain_is_the_caption(tmp_path):
    """Fails if the plain template has roles."""
    made = processor(tmp_path, conversation="plain")
    caption = _messages(turns("<image>\nDescribe it.", "a red square"))
    assert made.apply_chat_template(caption) == "<image>a red square\n"
    assert made.apply_chat_template(caption[:1]) == "<image>"
