"""Conversations: exact strings, labels under every kind of tokenizer, and what the official code loses."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tenfold import UserError
from tenfold.data.conversation import (
    CONVERSATIONS,
    IGNORE,
    IMAGE,
    IMAGE_MARKER,
    Encoded,
    conversation_turns,
    encode,
    get_conversation,
)
from tenfold.data.formats import Turn
from tenfold.testing.tokenizers import TOKENIZERS, learnt, tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def turns(*texts):
    return [Turn(("human", "gpt")[number % 2], text) for number, text in enumerate(texts)]


TWO = turns("<image>\nwhat shape is the object?", "circle", "how many objects are there?", "2")


def test_the_strings_of_vicuna_v1():
    """Fails if a space, separator or word of the template changes, or if answers end before their </s>."""
    prompt = get_conversation("vicuna_v1").render(TWO, images=True)
    assert prompt.text == (
        f"{SYSTEM} USER: <image>\nwhat shape is the object? ASSISTANT: circle</s>"
        "USER: how many objects are there? ASSISTANT: 2</s>"
    )
    assert [prompt.text[start:end] for start, end in prompt.answers] == [" circle</s>", " 2</s>"]
    assert prompt.images == (len(f"{SYSTEM} USER: "),)


def test_a_generation_prompt_ends_in_the_role_without_a_space():
    """Fails if the prompt ends in "ASSISTANT: ": the model has never seen a space before its answer's."""
    prompt = get_conversation("vicuna_v1").prompt(["<image>\nwhat?", "and?"], ["this"])
    assert prompt.text == f"{SYSTEM} USER: <image>\nwhat? ASSISTANT: this</s>USER: and? ASSISTANT:"
    with pytest.raises(UserError, match="the last one unanswered"):
        get_conversation("vicuna_v1").prompt(["what?"], ["this"])


def test_the_strings_of_llava_v0_and_plain():
    """Fails if v0 is given Vicuna's separators, or if the plain template keeps what was asked."""
    v0 = get_conversation("llava_v0").prompt(["what?", "and?"], ["this"]).text
    assert v0.endswith("to the human's questions.###Human: what?###Assistant: this###Human: and?###Assistant:")
    said = turns("<image>\nDescribe the image.", "a red square")
    plain = get_conversation("plain").render(said, images=True)
    assert plain.text == "<image>a red square\n" and plain.answers == ((7, 20),) and plain.images == (0,)
    assert get_conversation("plain").render(said[:1], images=True, generate=True).text == "<image>"


@pytest.mark.parametrize(
    ("said", "images"), [(TWO, True), (turns("what?", "this"), False)], ids=["two answers", "text only"]
)
def test_plain_has_room_for_one_caption_only(said, images):
    """Fails if a conversation is cut down to a caption without a word."""
    with pytest.raises(UserError, match=r"one image and its caption"):
        get_conversation("plain").render(said, images=images)


def test_an_unknown_template_is_refused_with_the_names_of_all():
    """Fails if a name falls back to some template: poor answers would be the only sign."""
    with pytest.raises(UserError, match=r"'a-model-7b-sft'.*vicuna_v1, llava_v0, plain, v1"):
        get_conversation("a-model-7b-sft")
    assert CONVERSATIONS["v1"] is CONVERSATIONS["vicuna_v1"]


def count_labels(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Labels of a `vicuna_v1` conversation by counting the tokens of each turn, as the official code does."""

    def ids(words: str) -> list[int]:
        found: list[int] = []
        for number, piece in enumerate(words.split(IMAGE)):
            found += [IMAGE_MARKER] * (number > 0) + tokenizer(piece, add_special_tokens=False)["input_ids"]
        return [tokenizer.bos_token_id, *found]

    whole = ids(text)
    labels, at = [IGNORE] * len(whole), 1
    for turn in text.split("</s>")[:-1]:
        asked, *said = turn.split(" ASSISTANT: ")
        if len(said) != 1:
            break
        # BOS stands for the </s> that splitting took away; the question ends before the space.
        first, last = at + len(ids(f"{asked} ASSISTANT: ")) - 2, at + len(ids(turn))
        labels[first:last] = whole[first:last]
        at = last
    return labels if at == len(whole) else [IGNORE] * len(whole)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_are_the_answers_and_their_separators(kind, tmp_path):
    """Fails if a mask is off by a token, begins with the question's last one, or misses </s>, in any turn."""
    tokens = tokenizer(kind, tmp_path)
    encoded = encode(tokens, get_conversation("vicuna_v1").render(TWO, images=True))
    assert learnt(tokens, encoded.labels) == ["circle</s>", "2</s>"]
    assert all(label in (IGNORE, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert encoded.input_ids.count(tokens.bos_token_id) == 1 == encoded.input_ids.count(IMAGE_MARKER)
    assert encoded.input_ids[0] == tokens.bos_token_id


def test_a_token_that_reaches_into_the_answer_is_learnt():
    """Fails if the first word of an answer goes unlearnt with a tokenizer that joins it to the colon before it."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"ASSISTANT: \w+"), "isolated")
    tokens = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")
    encoded = encode(tokens, get_conversation("vicuna_v1").render(turns("what?", "circle"), images=False))
    assert encoded.input_ids == [0, 0, 1] and encoded.labels == [IGNORE, 0, 1]


# What people write: a digit (a piece of its own after the space), bytes, newlines, markup, "ASSISTANT: " itself.
HARD = turns(
    "<image>\nWhat is «this»?\n\n- a\n- b", "2 cats, \u00e9t\u00e9 \U0001f600",
    "USER: or ASSISTANT: who?", "  two\n\nlines: ASSISTANT: no </s> yes", "so?", "\n1", "and then", ".",
)  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind != "words"])
def test_labels_survive_hard_texts(kind, tmp_path):
    """Fails if offsets are counted in bytes, if byte pieces are lost, or if a mask looks for words in the text."""
    tokens = tokenizer(kind, tmp_path)
    prompt = get_conversation("vicuna_v1").render(HARD, images=True)
    encoded = encode(tokens, prompt)
    answers = ["".join(turn.text.split()) for turn in HARD if turn.speaker == "gpt"]
    assert learnt(tokens, encoded.labels) == [f"{answer}</s>" for answer in answers]


@pytest.mark.parametrize("kind", ["fast legacy", "slow legacy", "prepend"])
@pytest.mark.parametrize(
    "said", [TWO, turns("a", "b"), turns("is it red?", "no", "is it blue?", "yes", "why?", "it is")]
)
def test_counting_agrees_where_the_official_code_loses_nothing(kind, said, tmp_path):
    """Fails if our masks differ from the official ones where those are right (legacy splitting)."""
    tokens = tokenizer(kind, tmp_path)
    prompt = get_conversation("vicuna_v1").render(said, images=True)
    assert encode(tokens, prompt).labels == count_labels(tokens, prompt.text)


@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_no_sample_is_lost_where_official_counting_loses_all_of_it(kind, tmp_path):
    """Fails if labels are counted turn by turn: without legacy splitting each later turn is one token longer."""
    tokens = tokenizer(kind, tmp_path)
    prompt = get_conversation("vicuna_v1").render(TWO, images=True)
    if kind == "fast":
        assert set(count_labels(tokens, prompt.text)) == {IGNORE}
    assert learnt(tokens, encode(tokens, prompt).labels) == ["circle</s>", "2</s>"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_last_question_without_an_answer_costs_the_others_nothing(kind, tmp_path):
    """Fails if the whole sample is dropped with it (as official counting does)."""
    tokens = tokenizer(kind, tmp_path)
    prompt = get_conversation("vicuna_v1").render(TWO[:3], images=True)
    assert len(learnt(tokens, encode(tokens, prompt).labels)) == 1
    assert set(count_labels(tokens, prompt.text)) == {IGNORE}


def test_the_image_comes_to_the_front_of_its_turn():
    """Fails if `<image>` stays where it was, or if other turns are stripped, too."""
    said = turns("is it <image> red?", " yes ", "sure? ", "yes")
    assert [turn.text for turn in conversation_turns(said, images=True)] == [
        "<image>\nis it  red?", " yes ", "sure? ", "yes",
    ]  # fmt: skip
    assert conversation_turns(said, images=False) == said


def test_an_answer_before_the_first_question_is_left_out():
    """Fails if ShareGPT's conversations that begin with an answer are refused, or shift the roles."""
    said = turns("what?", "this")
    assert conversation_turns([Turn("gpt", "hello"), *said], images=False) == said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([Turn("human", "a"), Turn("human", "b"), Turn("gpt", "c")], "turn 1 of a conversation is from 'human'"),
        ([Turn("human", "a"), Turn("gpt", "b"), Turn("gpt", "c")], "turn 2 of a conversation is from 'gpt'"),
        ([Turn("human", "a")], "without an answer"),
        ([Turn("gpt", "a")], "without an answer"),
        ([], "without an answer"),
        ([Turn("user", "a"), Turn("gpt", "b")], "turn 0 of a conversation is from 'user'"),
    ],
)
def test_speakers_out_of_turn_are_refused(said, message):
    """Fails if questions are trained as answers because the roles were counted off."""
    with pytest.raises(UserError, match=rf"{message}.*record 7"):
        conversation_turns(said, images=False, where="data.json, record 7")


def test_a_python_tokenizer_that_changes_the_text_is_refused(tmp_path):
    """Fails if a mask is laid over the wrong tokens: here `é` is turned into `e`."""
    tokens = tokenizer("slow", tmp_path)
    clean = tokens._tokenize
    tokens._tokenize = lambda text, **kwargs: clean(text.replace("é", "e"), **kwargs)
    with pytest.raises(UserError, match=r"token 'e' is not what the text has at 'é .*reports offsets"):
        encode(tokens, get_conversation("vicuna_v1").render(turns("a é", "b"), images=False))


def test_markers_expand_to_visual_tokens_and_collapse_again():
    """Fails if an image does not take exactly N ids, if its labels are learnt, or if two images run together."""
    marked = Encoded([1, IMAGE_MARKER, IMAGE_MARKER, 7, IMAGE_MARKER, 8], [IGNORE] * 5 + [8])
    whole = marked.expanded(99, 3)
    assert whole.input_ids == [1, *[99] * 6, 7, *[99] * 3, 8] and whole.labels == [IGNORE] * 11 + [8]
    assert whole.collapsed(99, 3) == marked
    assert marked.truncated(3).expanded(99, 3).input_ids == [1, *[99] * 6]


def test_pieces_around_an_image_are_tokenised_apart(tmp_path):
    """Fails if the text is tokenised as one: the piece after the image begins with a space of its own."""
    tokens = tokenizer("fast legacy", tmp_path)
    encoded = encode(tokens, get_conversation("vicuna_v1").prompt(["<image>\nwhat?"]))
    at = encoded.input_ids.index(IMAGE_MARKER)
    assert tokens.convert_ids_to_tokens(encoded.input_ids[at - 3 : at]) == ["▁USER", ":", "▁"]
    assert tokens.convert_ids_to_tokens(encoded.input_ids[at + 1 : at + 3]) == ["▁", "<0x0A>"]
