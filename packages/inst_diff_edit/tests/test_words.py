"""Words of prompts: every word keeps its map, whatever stands around it."""

import pytest

from inst_diff_edit.miniature import model as mini
from inst_diff_edit.words import split_words, stack_weights
from tenfold import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return mini.tokenizer()


def groups(tokenizer, prompt):
    return [len(group) for group in split_words(tokenizer, prompt).groups[1:-1]]


def test_a_word_of_several_pieces_is_one_group(tokenizer):
    words = split_words(tokenizer, "a and Husky")
    assert words.text == ("a", "and", "Husky")
    assert words.groups[:3] == ((0,), (1,), (2,)) and len(words.groups[3]) > 1
    assert words.groups[-1] == (len(words.ids) - 1,)


@pytest.mark.parametrize("prompt", ["a  and  husky", " a and husky ", "a\nand\nhusky", "a\tand husky"])
def test_white_space_of_any_kind_separates_words_and_loses_none(tokenizer, prompt):
    """Fails if the prompt is split at single spaces: the authors' code then loses all words after an empty one."""
    assert groups(tokenizer, prompt) == groups(tokenizer, "a and husky")


@pytest.mark.parametrize("prompt", ["a 🦝 husky", "a red-ball.", "(husky)", "it's a husky!", "ein Bär", "\u72d0\u72f8"])
def test_every_inner_token_belongs_to_exactly_one_word(tokenizer, prompt):
    """Fails if emoji, punctuation or other alphabets drop out of the groups."""
    words = split_words(tokenizer, prompt)
    assert [place for group in words.groups for place in group] == list(range(len(words.ids)))
    assert len(words.text) == len(prompt.split())


def test_punctuation_glued_to_a_word_belongs_to_it(tokenizer):
    assert groups(tokenizer, "a and.") == [1, 2]


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(UserError, match="an empty prompt"):
        split_words(tokenizer, prompt)


def test_a_prompt_longer_than_the_text_tower_is_refused_and_not_cut(tokenizer):
    """Fails if the tokenizer truncates: the words behind would have no attention."""
    with pytest.raises(UserError, match=r"a prompt of 20 tokens: .* \(expected at most 14 tokens\)"):
        split_words(tokenizer, "a " * 20)


def test_a_prompt_that_fills_the_text_tower_is_taken(tokenizer):
    """Fails if the room is counted without the start or the end token, or one too few."""
    assert len(split_words(tokenizer, "a " * 14).text) == 14
    with pytest.raises(UserError, match="a prompt of 15 tokens"):
        split_words(tokenizer, "a " * 15)


class Deaf:
    """A tokenizer that knows nothing but "cat"; of other words nothing is left."""

    model_max_length = 16

    def __call__(self, text, add_special_tokens=True):
        pieces = [5] * text.split().count("cat")
        return {"input_ids": [0, *pieces, 9] if add_special_tokens else pieces}


def test_a_word_of_which_the_tokenizer_leaves_nothing_has_no_map():
    """As of control characters. Fails if it gets a group of no positions: its map would be 0/0."""
    words = split_words(Deaf(), "\x00 cat")
    assert words.text == ("cat",) and words.groups == ((0,), (1,), (2,))


def test_a_prompt_of_which_nothing_is_left_is_refused():
    """Fails if start and end token alone are taken for a prompt."""
    with pytest.raises(UserError, match="a prompt without a word that the tokenizer knows"):
        split_words(Deaf(), "\x00 \x01")


def test_a_message_stays_on_its_line(tokenizer):
    """Fails if the prompt's own line breaks are printed."""
    with pytest.raises(UserError) as refusal:
        split_words(tokenizer, "a\n" * 20)
    assert len(str(refusal.value).splitlines()) == 1


def test_something_else_than_text_is_refused(tokenizer):
    with pytest.raises(UserError, match="a prompt of type int"):
        split_words(tokenizer, 3)


def test_a_tokenizer_that_joins_words_gets_one_map_per_token(caplog):
    """Fails if groups are made from words that the ids do not follow."""

    class Joining:
        model_max_length = 16

        def __call__(self, text, add_special_tokens=True):
            pieces = [5] if text == "a cat" else [1]
            return {"input_ids": [0, *pieces, 9] if add_special_tokens else pieces}

        def decode(self, ids):
            return "a cat"

    words = split_words(Joining(), "a cat")
    assert words.groups == ((0,), (1,), (2,)) and "joins words" in caplog.text


def test_weights_average_over_pieces_and_know_words_from_padding(tokenizer):
    prompts = [split_words(tokenizer, "a red husky"), split_words(tokenizer, "cat")]
    weights, is_word = stack_weights(prompts, 16)
    assert weights.shape == (2, 5, 16) and is_word.tolist() == [
        [False, True, True, True, False],
        [False, True] + [False] * 3,
    ]
    assert weights[0].sum(1).tolist() == pytest.approx([1] * 5)
    assert weights[1].sum(1).tolist() == pytest.approx([1, 1, 1, 0, 0])
