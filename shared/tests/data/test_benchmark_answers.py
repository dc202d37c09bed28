"""What is asked of benchmarks' folders, and what becomes of the answers."""

import json
from types import SimpleNamespace

from pydantic import BaseModel

from tenfold.data.benchmark_answers import answer_metrics, asked_questions, write_answers
from tenfold.data.benchmarks import Question
from tenfold.runs import run


class Settings(BaseModel):
    benchmark: str = "all"
    data: str | None = "data"
    split: str | None = None
    limit: int | None = 2


class Benchmark:
    name = "toy"

    def read(self, place, split):
        return [Question(f"{place.name}/{split}/{number}", "Is it red?", None, None) for number in range(5)]

    def score(self, questions, texts):
        return {"accuracy": sum(texts[question.id] == "yes" for question in questions) / len(questions)}


def answer(text, **values):
    return {"text": text, "visual_tokens": 4, "text_tokens": 6, "new_tokens": 1} | values


def test_each_benchmark_has_its_own_settings_and_no_more_questions_than_asked_for(tmp_path):
    places = {"a": tmp_path / "a", "b": tmp_path / "b"}
    asked = asked_questions(places, dict.fromkeys(places, Benchmark()), Settings(), lambda name: f"test-{name}")
    assert [(own.benchmark, own.data, own.split) for _, own, _ in asked] == [
        (name, str(tmp_path / name), f"test-{name}") for name in places
    ]
    assert [one.id for one in asked[1][2]] == ["b/test-b/0", "b/test-b/2"]  # spread over five


def test_the_miniatures_benchmarks_stay_without_a_folder(tmp_path):
    asked = asked_questions({"a": tmp_path}, {"a": Benchmark()}, Settings(data=None, limit=None), lambda name: "test")
    assert asked[0][1].data is None and len(asked[0][2]) == 5


def test_scores_stand_beside_mean_numbers_of_tokens(tmp_path):
    questions = Benchmark().read(tmp_path, "test")[:2]
    answers = dict(zip((one.id for one in questions), (answer("yes"), answer("no", new_tokens=4)), strict=True))
    found = answer_metrics(Benchmark(), "test", questions, answers)
    assert found["scores"] == {"accuracy": 0.5} and (found["questions"], found["new_tokens"]) == (2, 2.5)


def test_predictions_metrics_and_submission_lie_in_the_runs_folder(tmp_path):
    questions = Benchmark().read(tmp_path, "test")[:1]
    answers = {questions[0].id: answer("ja, ☃")}
    sent = SimpleNamespace()

    def submission(questions, texts, path):
        sent.texts = dict(texts)
        path.write_text("sent")

    with run("toy", "eval", config={}, seed=0, output=tmp_path / "out", data={}) as current:
        current.metrics["score"] = 1.0
        write_answers(current, questions, answers, submission)
    row = json.loads((tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8"))
    assert row == {"id": questions[0].id, "prompt": "Is it red?", **answers[questions[0].id]}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"score": 1.0}
    assert sent.texts == {questions[0].id: "ja, ☃"} and (tmp_path / "out" / "submission").read_text() == "sent"
