"""The comparison at equal FLOPs: the same questions, the same budget, and figures that follow from the answers."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from fitprune.commands.app import main
from fitprune.costs import LLAVA_7B, DecoderShape, base_macs, layer_macs
from fitprune.data.calibration import Prompts, mini_calibration
from fitprune.evaluation import compare_run
from fitprune.evaluation.baselines import METHODS
from fitprune.evaluation.compare import ALL_KINDS, UNPRUNED, Arm, Comparison, Item, compare
from fitprune.evaluation.compare_run import find_items, find_recipes, mini_items, run_compare
from fitprune.evaluation.settings import COMPARED, CompareSettings
from fitprune.fitting import Calibration
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.data import mini_host, mini_sets
from tenfold.data.formats import write_calibration
from tenfold.data.write import WRITERS, Format
from tenfold.hosts.loading import load_host
from tenfold.metrics import bootstrap
from tenfold.runs import RunRecord, read_jsonl

CHOSEN = ("fitprune", "fastv", "random-before")


@pytest.fixture(scope="module")
def host():
    return load_host(CompareSettings())


@pytest.fixture(scope="module")
def recipe(host):
    return Calibration(host.model, host.processor, Prompts(host, mini_calibration(0, 2))).recipe(0.6)


@pytest.fixture(scope="module")
def found(host, recipe):
    options = {"methods": CHOSEN, "seeds": (0, 1), "batch": 4, "max_new_tokens": 4}
    return compare(host.model, host.processor, mini_items(0, 8), recipes={0.6: recipe}, **options)


@pytest.fixture
def unfitted(monkeypatch, recipe):
    """The mini host's recipe, without fitting it again."""
    monkeypatch.setattr(compare_run, "find_recipes", lambda *_: {0.6: recipe})


def test_all_methods_are_compared_unless_others_are_named():
    assert tuple(METHODS) == COMPARED == CompareSettings().methods


def test_every_method_seed_and_kind_has_a_row(found):
    kinds = {ALL_KINDS, *(item.kind for item in found.items)}
    expected = [(UNPRUNED, None), ("fitprune", None), ("fastv", None), ("random-before", 0), ("random-before", 1)]
    rows = found.rows()
    assert [(row.method, row.seed) for row in rows if row.kind == ALL_KINDS] == expected
    assert {row.kind for row in rows} == kinds and len(rows) == len(expected) * len(kinds)
    assert [row.method for row in found.summary() if row.kind == ALL_KINDS] == [UNPRUNED, *CHOSEN]


def test_every_method_saves_what_was_asked_within_a_token_per_layer(found):
    """Fails if a method is run at another knob than the one that was solved, or counted by another's formula."""
    shape, visual = found.shape, mini_host.VISUAL_TOKENS
    token = 1 - shape.layers * layer_macs(visual - 1, visual - 1, shape) / base_macs(visual, shape)
    for row in found.rows():
        if row.method != UNPRUNED:
            assert 0 <= row.visual_reduction - 0.6 <= token
            assert 0 < row.prompt_reduction < row.visual_reduction


def test_answers_are_those_of_the_pruned_model_alone(host, found):
    """Batched with others or asked on its own. Fails if a method stays attached while another one answers."""
    images = [item.picture() for item in found.items[:3]]
    prompts = [mini_host.prompt(item.text) for item in found.items[:3]]
    plain = [mini_host.answer(host.model, host.processor, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert [found.answers[number]["answers"][UNPRUNED] for number in range(3)] == plain
    for arm in found.arms[1:4:2]:  # the method, and random removal before layer 0
        with arm.method(host.model):
            pruned = [
                mini_host.answer(host.model, host.processor, [i], [p])[0] for i, p in zip(images, prompts, strict=True)
            ]
        assert [found.answers[number]["answers"][arm.key] for number in range(3)] == pruned
    # Of eight answers without most of the image, one at least is another one.
    assert any(given["answers"][UNPRUNED] != given["answers"][found.arms[3].key] for given in found.answers)


def test_images_are_encoded_once_for_all_methods(host, recipe, found):
    """Fails if every method runs the vision tower again, or if the model is left changed."""
    calls = []
    handle = host.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    again = compare(
        host.model,
        host.processor,
        found.items[:4],
        recipes={0.6: recipe},
        methods=("fitprune", "fastv"),
        batch=2,
        max_new_tokens=4,
    )
    handle.remove()
    assert len(calls) == 2
    assert "get_image_features" not in vars(host.model.model)
    for number, given in enumerate(again.answers):
        for key, text in given["answers"].items():
            assert found.answers[number]["answers"][key] == text


def made_up(given, gold=("a cat", "two", "red", None), kinds=("x", "x", "y", "y")):
    """A comparison with these answers of one method at two seeds, beside those of the unpruned model."""
    arms = [Arm(UNPRUNED, 0.0, None, None)]
    arms += [Arm("random-before", 0.5, seed, METHODS["random-before"](8, 16, seed)) for seed in (0, 1)]
    items = [Item(str(n), None, "?", answer, kind) for n, (answer, kind) in enumerate(zip(gold, kinds, strict=True))]
    answers = [
        {"visual": 16, "text": 4, "answers": dict(zip((arm.key for arm in arms), each, strict=True))} for each in given
    ]
    return Comparison(DecoderShape(2, 32, 48, 4), items, arms, {}, answers)


def test_accuracy_agreement_and_intervals_follow_from_the_answers():
    """By hand. Fails if seeds are pooled instead of averaged per question, or an unlabelled question counts as
    wrong."""
    made = made_up([("cat", "cat", "dog"), ("2", "3", "3"), ("blue", "blue", "red."), ("on", "on", "off")])
    unpruned, mean = (row for row in made.summary() if row.kind == ALL_KINDS)
    assert unpruned.accuracy == pytest.approx(2 / 3) and unpruned.agreement.value == 1
    assert mean.accuracy == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert mean.change == bootstrap(np.array([-0.5, -1.0, 0.5]))
    assert mean.agreement == bootstrap(np.array([0.5, 0.0, 0.5, 0.5]))
    second = next(row for row in made.rows() if row.seed == 1 and row.kind == "x")
    assert (second.accuracy, second.questions, second.agreement.value) == (0.0, 2, 0.0)
    shape, method = made.shape, made.arms[1].method
    assert mean.visual_reduction == method.reduction(shape, 16)
    whole = 2 * layer_macs(20, 20, shape)
    assert mean.prompt_reduction == pytest.approx(1 - 2 * layer_macs(12, 12, shape) / whole)


def test_without_labels_there_is_agreement_alone():
    made = made_up([("a", "a", "b")] * 4, gold=(None,) * 4)
    assert all(row.accuracy is None and row.change is None for row in made.summary())
    assert made.summary()[3].agreement.value == 0.5


def test_what_is_out_of_reach_is_left_out_with_the_reason(host, recipe):
    items = mini_items(0, 1)
    found = compare(host.model, host.processor, items, recipes={0.97: recipe}, methods=("fastv", "fitprune"))
    assert "fastv at 97%" in found.left_out and "saves at most" in found.left_out["fastv at 97%"]


def test_a_killed_comparison_goes_on_and_ends_alike(tmp_path, unfitted):
    """The same answers and rows, and only what was missing is asked again. Fails if an answer is kept under the wrong
    question, or answers to other questions are taken over."""
    settings = CompareSettings(methods=("fitprune",), limit=6, batch=2, max_new_tokens=4)
    asked = []

    def killed(things, label):
        for number, thing in enumerate(things):
            if number == 2:
                raise KeyboardInterrupt
            asked.append(thing)
            yield thing

    def counted(things, label):
        for thing in things:
            asked.append(thing)
            yield thing

    run_compare(settings, 0, tmp_path / "whole", counted)
    assert len(asked) == 3
    with pytest.raises(KeyboardInterrupt):
        run_compare(settings, 0, tmp_path / "killed", killed)
    assert not (tmp_path / "killed" / "run.json").exists()
    with pytest.raises(UserError, match="another"):
        run_compare(settings.model_copy(update={"max_new_tokens": 5}), 0, tmp_path / "killed", counted)
    asked.clear()
    run_compare(settings, 0, tmp_path / "killed", counted)
    assert len(asked) == 1
    for name in ("predictions.jsonl", "comparison.json", "recipe-0.6.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert not list((tmp_path / "killed").glob("checkpoint*"))


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fitprune", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code or 0


def test_the_command_works_out_of_the_box(tmp_path, monkeypatch, capsys, unfitted):
    options = ("--limit", 4, "--methods", "fitprune", "--methods", "random", "--seeds", 2)
    assert command(monkeypatch, "compare", *options, "--output", tmp_path / "run") == 0
    table = capsys.readouterr().out
    assert "60% of the visual FLOPs saved, 4 questions" in table and "random" in table
    record = RunRecord.load(tmp_path / "run")
    assert record.verb == "compare" and record.metrics["questions"] == 4
    assert record.metrics["0.6"].keys() == {"fitprune", "random"}
    lines = read_jsonl(tmp_path / "run" / "predictions.jsonl")
    assert lines[0]["answers"].keys() == {UNPRUNED, "fitprune@0.6", "random@0.6#0", "random@0.6#1"}
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {UNPRUNED, "fitprune", "random"}


def test_questions_come_from_a_file_or_a_benchmark(tmp_path):
    """With answers where the file has them, and a benchmark's own scoring. Fails if a label is read as the question."""
    samples = list(mini_sets.calibration(5, 3, 48))
    write_calibration(tmp_path / "q.jsonl", tmp_path / "images", samples)
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    rows[0]["answer"], rows[1]["label"] = "Red", "no"
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = CompareSettings(samples=str(tmp_path / "q.jsonl"), image_folder=str(tmp_path / "images"))
    items = find_items(named, 0)
    assert [item.answer for item in items] == ["Red", "no", None]
    assert [item.score("red.") for item in items] == [1.0, 0.0, None]
    assert items[0].text == samples[0].text and items[0].picture().size == (48, 48)
    assert len(find_items(replace_settings(named, limit=2), 0)) == 2

    WRITERS[Format["pope"]](tmp_path / "pope", 7, 2, 48)
    items = find_items(CompareSettings(benchmark="pope", data=str(tmp_path / "pope")), 0)
    assert {(item.score("Yes, there is."), item.score("No.")) for item in items} == {(1.0, 0.0), (0.0, 1.0)}


def replace_settings(settings, **changes):
    return settings.model_copy(update=changes)


def test_recipes_are_matched_to_the_ratios(host):
    def found(**given):
        return find_recipes(CompareSettings(model="other", **given), host, 0, lambda things, label: things)

    sixty, forty = (Recipe.released("llava-1.5-7b", percent) for percent in (60, 40))
    assert found(recipes=("llava-1.5-7b:60",)) == {sixty.reduction: sixty}
    assert found(recipes=("llava-1.5-7b:60",), ratios=(0.5, 0.6)) == {0.5: sixty, 0.6: sixty}
    assert found(recipes=("llava-1.5-7b:60", "llava-1.5-7b:40"), ratios=(0.6, 0.4)) == {0.6: sixty, 0.4: forty}
    for given in ({"recipes": ("llava-1.5-7b:60",) * 2, "ratios": (0.1,)}, {}):
        with pytest.raises(UserError):
            found(**given)


def test_the_released_recipe_nearest_to_the_ratio_is_taken(host, monkeypatch):
    monkeypatch.setattr(compare_run, "model_name", lambda model: "llava-hf/llava-1.5-7b-hf")
    settings = CompareSettings(model="llava-hf/llava-1.5-7b-hf", ratios=(0.58, 0.93))
    recipes = find_recipes(settings, host, 0, lambda things, label: things)
    assert {ratio: recipe.ratio for ratio, recipe in recipes.items()} == {0.58: 0.6, 0.93: 0.9}


def test_errors_are_one_line(tmp_path, monkeypatch, capsys, host, recipe):
    """Each of them exits with 2 and leaves no folder."""
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "a.png", "text": "?", "answer": 3}\n')
    mini_items(0, 1)[0].picture().save(tmp_path / "a.png")
    for arguments, message in (
        (("--methods", "fastest", "--limit", 1), "no such method: fastest"),
        (("--samples", tmp_path / "q.jsonl"), "answer 3"),
        (("--samples", tmp_path / "none.jsonl"), "none.jsonl"),
        (("llava-hf/llava-1.5-7b-hf",), "no questions"),
        (("--benchmark", "pope"), "no data"),
        (("--ratio", 1.5, "--limit", 1), "ratio 1.5"),
        (("--recipe", "llava-1.5-7b:60", "--limit", 1), "this recipe is for 32"),
    ):
        assert command(monkeypatch, "compare", *arguments, "--output", tmp_path / "run") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    items = mini_items(0, 2)
    for wrong in ([], [items[0], replace(items[1], id=items[0].id)]):
        with pytest.raises(UserError):
            compare(host.model, host.processor, wrong, recipes={0.6: recipe})


def test_methods_at_full_size_meet_every_budget():
    """LLaVA-1.5-7B's dimensions; only the counting, without a model."""
    from fitprune.evaluation.compare import solve_all

    recipes = {percent / 100: Recipe.released("llava-1.5-7b", percent) for percent in (40, 60, 80)}
    arms, left_out = solve_all(LLAVA_7B, recipes, COMPARED, (0,))
    assert left_out == {} and len(arms) == 1 + 3 * len(COMPARED)
    for arm in arms[1:]:
        assert arm.ratio <= arm.method.reduction(LLAVA_7B, 576) <= arm.ratio + 0.002
