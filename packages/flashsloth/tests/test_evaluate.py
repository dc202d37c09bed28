"""Evaluation from official files (sheet section 7, D5)."""

import json

import pytest
from flashsloth_runs import eval_settings

from flashsloth.data import mini_world as world
from flashsloth.evaluation import seen
from flashsloth.evaluation.benchmarks import PAPER, find_benchmark
from flashsloth.evaluation.published import BENCHMARKS, TABLE, paper_model, published
from flashsloth.evaluation.run import run_eval
from flashsloth.modeling import FlashSlothConfig, FlashSlothForConditionalGeneration
from tenfold import UserError
from tenfold.runs import evaluation as frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def whole(folder):
    (found,) = run_eval(eval_settings(folder), 0, folder / "whole")
    return found


def test_scores_agree_with_a_count_by_hand(folder, whole):
    """Accuracy of one-word answers, counted from the predictions. Fails if questions and answers are mixed up."""
    rows = [json.loads(line) for line in (folder / "whole/predictions.jsonl").open()]
    assert len(rows) == 6 == whole.metrics["questions"]
    right = []
    for number, row in enumerate(rows):
        # Six of the set's twelve, spread: two scenes of even numbers with three questions each, then two of odd ones.
        odd, (index, kind) = 2 * number // 6, divmod(2 * number % 6, 3)
        scene = world.draw(2_000_000, 2 * index + odd)
        one = world.question(scene, world.KINDS[kind], (index + kind) % world.SIGNS)
        assert one.text in row["prompt"]
        right.append(row["text"].lower() == one.answer)
    assert whole.metrics["scores"]["accuracy"] == pytest.approx(sum(right) / 6)
    assert whole.metrics["visual_tokens"] == 9


def test_batches_of_another_size_give_the_same_answers(folder, whole):
    """Fails if padding reaches an answer."""
    run_eval(eval_settings(folder, batch=5), 0, folder / "five")
    assert (folder / "five/predictions.jsonl").read_bytes() == (folder / "whole/predictions.jsonl").read_bytes()


def test_an_image_goes_through_the_tower_once(folder, whole, monkeypatch):
    """Six questions about four pictures, in batches of two. Fails if the tower runs again for another question."""
    runs = []
    original = FlashSlothForConditionalGeneration.encode_images
    monkeypatch.setattr(
        FlashSlothForConditionalGeneration,
        "encode_images",
        lambda model, pixels: runs.append(len(pixels)) or original(model, pixels),
    )
    monkeypatch.setattr(seen, "LATEST", 1)  # pictures follow each other: one that is kept is enough
    run_eval(eval_settings(folder), 0, folder / "once")
    assert runs == [1, 1, 1, 1]
    assert (folder / "once/predictions.jsonl").read_bytes() == (folder / "whole/predictions.jsonl").read_bytes()


def test_a_killed_evaluation_goes_on_to_the_same_files(folder, whole, monkeypatch):
    """Killed after the first batch. Fails if answers are lost, or asked again."""
    original, calls = frame.PredictionLog.extend, []

    def die(self, rows):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(original(self, rows))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(frame.PredictionLog, "extend", die)
        run_eval(eval_settings(folder), 0, folder / "killed")
    said = []
    run_eval(eval_settings(folder), 0, folder / "killed", say=said.append)
    assert "after 2 of 6" in said[0]
    for name in ("predictions.jsonl", "metrics.json"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "nonsense"}, "unknown benchmark"),
        ({"data": "missing"}, "no such folder"),
        ({"data": None}, "no data"),
        ({"split": "nonsense"}, "unknown split"),
        ({"model": "missing"}, "no such model"),
        ({"benchmark": "all", "split": "val2014"}, "a split for all"),
        ({"device": "cuda:7"}, "no such CUDA device"),
    ],
)
def test_what_cannot_be_evaluated_is_named(folder, tmp_path, changes, message):
    """One line, nothing written. Fails if a question is answered first."""
    with pytest.raises(UserError, match=message):
        run_eval(eval_settings(folder, **changes), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_folder_is_not_written_to(folder, whole):
    with pytest.raises(UserError, match="finished run"):
        run_eval(eval_settings(folder), 0, folder / "whole")


def test_the_paper_s_table():
    """14 benchmarks of two models, as published. Fails if a column slips."""
    assert len(BENCHMARKS) == 14 and published("FlashSloth", "textvqa") == 64.6
    assert (TABLE["FlashSloth-HD"]["docvqa"], TABLE["FlashSloth"]["mme"]) == (74.8, 1702.0)
    assert paper_model(FlashSlothConfig(views=5)) == "FlashSloth-HD" and published(None, "gqa") is None
    assert set(PAPER) - {"mini"} <= set(BENCHMARKS) and find_benchmark("MM-Vet").max_new_tokens == 1024
