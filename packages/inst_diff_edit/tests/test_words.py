"""Words of prompts: every word keeps its map, whatever stands around it."""

import pytest

from inst_diff_edit import mini
from inst_diff_edit.words import split_words, stack_weights
from tenfold import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return mini.tokenizer()


def groups(tokenizer, prompt):
    return [len(group) for group in split_words(tokenizer, prompt).groups[1:-1]]


def test_a_word_of_several_pieces_is_one_group(tokenizer):
    words = split_words(tokenizer, "a red Husky")
    assert words.text == ("a", "red", "Husky")
    assert words.groups[:3] == ((0,), (1,), (2,)) and len(words.groups[3]) > 1
    assert words.groups[-1] == (len(words.ids) - 1,)


@pytest.mark.parametrize("prompt", ["a  red  husky", " a red husky ", "a\nred\nhusky", "a\tred husky"])
def test_white_space_of_any_kind_separates_words_and_loses_none(tokenizer, prompt):
    """Fails if the prompt is split at single spaces: the authors' code then loses all words after an empty one."""
    assert groups(tokenizer, prompt) == groups(tokenizer, "a red husky")


@pytest.mark.parametrize("prompt", ["a 🦝 husky", "a red-ball.", "(husky)", "it's a husky!", "ein Bär", "\u72d0\u72f8"])
def test_every_inner_token_belongs_to_exactly_one_word(tokenizer, prompt):
    """Fails if emoji, punctuation or other alphabets drop out of the groups."""
    words = split_words(tokenizer, prompt)
    assert [place for group in words.groups for place in group] == list(range(len(words.ids)))
    assert len(words.text) == len(prompt.split())


def test_punctuation_glued_to_a_word_belongs_to_it(tokenizer):
    assert groups(tokenizer, "a red.") == [1, 2]


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(UserError, match="an empty prompt"):
        split_words(tokenizer, prompt)


def test_a_prompt_longer_than_the_text_tower_is_refused_and_not_cut(tokenizer):
    """Fails if the tokenizer truncates: the words behind would have no attention."""
    with pytest.raises(UserError, match=r"a prompt of 20 tokens: .* \(expected at most 14 tokens\)"):
        split_words(tokenizer, "red " * 20)


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
