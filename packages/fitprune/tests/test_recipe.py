"""Recipes: rounding, scaling, files, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune import Recipe
from fitprune.costs import DecoderShape, recipe_macs
from tenfold import UserError

SHAPE = DecoderShape(layers=4, hidden=8, intermediate=16, heads=2)
RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3), ratio=0.5)


def rounded(means, rounding="largest_remainder", visual=40):
    shape = DecoderShape(layers=len(means), hidden=8, intermediate=16, heads=2)
    return Recipe.from_counts(means, model="m", visual_tokens=visual, shape=shape, ratio=0.5, rounding=rounding)


def test_largest_remainder_keeps_the_sum_and_floor_does_not():
    means = [1.5, 2.75, 0.25, 3.5]  # eight tokens
    assert rounded(means).remove == (2, 3, 0, 3)  # the tie of 1.5 and 3.5 goes to the earlier layer
    assert rounded(means, "floor").remove == (1, 2, 0, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=8), st.integers(1, 9))
def test_rounding_moves_no_layer_by_a_whole_token(totals, samples):
    means = [total / samples for total in totals]
    recipe = rounded(means, visual=300)
    assert sum(recipe.remove) == round(sum(means))
    assert all(abs(count - mean) < 1 for count, mean in zip(recipe.remove, means, strict=True))
    assert recipe.macs["delivered"] == recipe_macs(recipe.remove, 300, DecoderShape(len(means), 8, 16, 2))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000))
def test_scaling_truncates_and_never_removes_more_than_there_is(visual):
    recipe = Recipe.released("llava-next-7b", 60)
    counts = recipe.counts_for(visual)
    assert counts == [int(count * visual / 2880) for count in recipe.remove]
    assert sum(counts) <= visual
    if visual:
        assert list(recipe.scale(visual).remove) == counts


def test_seventeen_recipes_are_released():
    assert len(Recipe.released_names()) == 17
    assert Recipe.released("llava-hf/llava-1.5-7b-hf", 60) == Recipe.released("llava-1.5-7b", 60)
    with pytest.raises(
        UserError, match=r"no released recipe for 'llava-13b'.*llava-1.5-7b, llava-next-7b, llava-hr-7b"
    ):
        Recipe.released("llava-13b", 60)
    with pytest.raises(UserError, match=r"at 65 %.*0, 10, 20, 30, 40, 50, 55, 60, 70, 80, 90"):
        Recipe.released("llava-1.5-7b", 65)
    assert Recipe.released("llava-1.5-7b", "60") == Recipe.released("llava-1.5-7b", 60)


def test_a_saved_recipe_is_the_recipe(tmp_path):
    recipe = rounded([1.5, 2.75, 0.25, 3.5])
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "not a recipe"),
        ({"version": 2}, "recipe version 2"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"remove": "4053"}, "'remove' is no list"),
        ({"remove": [4, 0, 5]}, "3 removals.*one for each of 4 layers"),
        ({"remove": [4, 0, -5, 3]}, "layer 2 removes -5"),
        ({"remove": [4, 0, 2.5, 3]}, "layer 2 removes 2.5"),
        ({"remove": [4, 0, True, 3]}, "layer 2 removes True"),
        ({"remove": [9, 0, 5, 3]}, "removes 17 tokens.*at most the 16"),
        ({"visual_tokens": 0}, "'visual_tokens' is 0"),
        ({"num_layers": "4"}, "'num_layers' is '4'"),
        ({"ratio": 60}, "'ratio' is 60"),
        ({"rounding": "up"}, "'rounding' is 'up'"),
        ({"macs": {"base": 1}}, "'macs' is broken"),
        ({"macs": {"base": 0, "asked": 0, "delivered": 0}}, "'macs' is broken"),
        ({"macs": {"base": 10, "asked": 5, "delivered": 11}}, "'macs' is broken"),
        ({"macs": []}, "'macs' is broken"),
        ({"model": 5}, "'model' is 5"),
        ({"calibration": "LLaVA"}, "'calibration' is 'LLaVA'"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path, change, message):
    path = tmp_path / "recipe.json"
    RECIPE.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as error:
        Recipe.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_fields_and_torn_json(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Recipe.load(tmp_path / "absent.json")
    path = tmp_path / "recipe.json"
    RECIPE.save(path)
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(UserError, match="broken JSON"):
        Recipe.load(path)
    path.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != "remove"}))
    with pytest.raises(UserError, match="no field 'remove'"):
        Recipe.load(path)


def test_a_recipe_for_another_depth_is_refused():
    from transformers import LlamaConfig

    RECIPE.validate(LlamaConfig(num_hidden_layers=4))
    with pytest.raises(UserError, match=r"for 4 decoder layers: tiny .expected a recipe for 6 layers"):
        RECIPE.validate(LlamaConfig(num_hidden_layers=6))


def test_summary_diff_and_plot(tmp_path):
    released = Recipe.released("llava-1.5-7b", 60)
    assert released.summary() == (
        "llava-1.5-7b: 576 -> 127 visual tokens over 32 layers, visual FLOPs -59.7% (asked -60%)"
    )
    assert RECIPE.diff(RECIPE) == "the same removals in every layer"
    other = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 1, 5, 3))
    assert RECIPE.diff(other).splitlines()[1].split() == ["1", "0", "1", "12", "11"]
    released.plot(tmp_path / "recipe.png")
    assert (tmp_path / "recipe.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="cannot write"):
        released.plot(tmp_path / "recipe.png" / "below")


def test_uniform_and_zero():
    assert Recipe.uniform(4, 16, 10).remove == (3, 3, 2, 2)
    assert Recipe.zero(4, 16).alive() == [16] * 5
