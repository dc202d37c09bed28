"""Evaluation: official files in, answers read from the generated text alone, scores that others compute too."""

import json
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from eas.commands.app import app
from eas.data.records import Record, check_format, check_leak, prompt_format, read_records, write_records
from eas.data.scienceqa import read_problems
from eas.evaluation import scores
from eas.evaluation.run import run_eval
from eas.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.runs.predictions import PredictionLog

READ = [
    ("B", 1), ("B.", 1), ("(B)", 1), ("B. red", 1), ("The answer is B.", 1), ("The answer is B. BECAUSE: A is not.", 1),
    ("the answer is (C)", 2), ("", None), ("nothing", None), ("E", None), ("Because of B", None),
    ("The answer is A. The answer is B.", None), ("BAD", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place"), READ)
def test_the_letter_is_read_from_the_answer(text, place):
    """Fails if a form is misread, a letter beyond the choices counts, or something unreadable becomes a guess."""
    assert scores.option(text, 4) == place


def problem(number, **changes):
    one = {"question": "Which?", "choices": ["cube", "ball", "cone"], "answer": 1, "hint": "", "image": None,
           "task": "closed choice", "grade": "grade3", "subject": "natural science", "topic": "physics", "category": "",
           "skill": "", "lecture": "", "solution": "", "split": "test"}  # fmt: skip
    return one | changes


@pytest.fixture
def science(tmp_path):
    problems = {
        "1": problem(1),
        "2": problem(2, subject="social science", grade="grade9", hint="Look."),
        "3": problem(3, subject="language science", image="image.png"),
        "4": problem(4, answer=0),
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
    (tmp_path / "images" / "test" / "3").mkdir(parents=True)
    Image.new("RGB", (20, 10), (200, 10, 10)).save(tmp_path / "images" / "test" / "3" / "image.png")
    return tmp_path


def test_scienceqa_by_category_and_unread_apart(science):
    """Fails if a category is lost, or an answer that cannot be read is guessed: by hand, 2 of 4 right, 1 unread."""
    problems = read_problems(science)
    found = scores.scienceqa(problems, {"1": "B", "2": "The answer is B.", "3": "hm", "4": "B."})
    assert found["average"] == 50 and found["unread"] == 1
    assert (found["NAT"], found["SOC"], found["LAN"]) == (50, 100, 0)
    assert (found["TXT"], found["IMG"], found["NO"]) == (100, 0, 50)
    assert (found["G1-6"], found["G7-12"]) == (pytest.approx(100 / 3), 100)
    assert "Context: N/A\nOptions: (A) cube (B) ball (C) cone" in problems[0].record.question


def test_aid_and_slake_by_hand():
    """Fails if case, articles or the open answers' rule (the right one within what was said) are lost."""
    records = [Record("1", "?", "Airport", None, "CLOSED"), Record("2", "?", "left lung", None, "OPEN")]
    texts = {"1": "the airport.", "2": "It is the left lung"}
    assert scores.aid(records[:1], texts)["accuracy"] == 100
    found = scores.slake(records, texts)
    assert (found["open"], found["closed"], found["all"]) == (100, 100, 100)
    assert found["recall"] == 100 and found["precision"] == pytest.approx(50)
    assert found["f1"] == pytest.approx(200 / 3)


def write(folder, records):
    write_records(folder / "records.json", records, folder)
    return folder / "records.json"


def test_formats_of_scienceqa_are_told_apart(tmp_path):
    """Fails if records in another format than the weights' pass: the score would drop by 30 points and say nothing."""
    ale = [Record("1", "?", "The answer is B. BECAUSE: so.")]
    lea = [Record("1", "?", "So. The answer is B.")]
    lepa = [Record("1", "?", "LECTURE: So.\nSOLUTION: so.\n###\nANSWER: B.")]
    assert [prompt_format(one) for one in (ale, lea, lepa, [Record("1", "?", "airport")])] == [
        "QCM-ALE", "QCM-LEA", "QCM-LEPA", None,
    ]  # fmt: skip
    with pytest.raises(UserError, match="answers in format QCM-LEPA"):
        check_format("QCM-ALE", lepa, "train.json")
    with pytest.raises(UserError, match="several formats"):
        prompt_format(ale + lea)
    check_format("QCM-ALE", ale, "train.json")
    assert read_records(write(tmp_path, ale), tmp_path) == ale


def test_questions_that_were_trained_on_are_refused():
    """Fails if a training's file can be evaluated on without a word."""
    one, two = Record("1", "what?", "a"), Record("9", "what?", "a")
    with pytest.raises(UserError, match="1 questions were trained on, first id 9"):
        check_leak([one], [two], "test.json")
    check_leak([one], [Record("9", "who?", "a")], "test.json")


BROKEN = {
    "{": "json",
    "{}": "instead of a list",
    "[]": "no records",
    "[1]": "instead of a record",
    '[{"id": 1}]': "conversations of another form",
    '[{"id": 1, "conversations": [{"from": "gpt", "value": "a"}]}]': "one human turn",
    '[{"id": true, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]': "id 'True'",
    '[{"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": " "}]}]': "empty answer",
    '[{"id": 1, "image": "x.png", "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", '
    '"value": "a"}]}]': "no such image",
    '[{"id": 1, "image": "../x.png", "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", '
    '"value": "a"}]}]': "leaves its folder",
    '[{"id": 1, "answer_type": "X", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": '
    '"a"}]}]': "answer_type 'X'",
    '[{"id": 1, "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]}]': "both or",
}


@pytest.mark.parametrize("content", BROKEN)
def test_broken_records_are_one_line(content, tmp_path):
    """Fails if a file that is no list of records is a traceback, or is taken for good."""
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=BROKEN[content]) as error:
        read_records(tmp_path / "r.json", tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_picture_is_one_line(tmp_path):
    """Fails if a text file named .png is a traceback."""
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(UserError, match=r"x\.png"):
        Record("1", "?", "a", tmp_path / "x.png").picture()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "run"
    return folder, run_eval(EvalSettings(limit=12, batch=4), 0, folder)


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_an_evaluation_that_was_killed_ends_with_the_same_files(evaluated, tmp_path, monkeypatch):
    """Fails if answers that are there are asked for again, or the files differ."""
    folder, _ = evaluated
    written = []
    extend = PredictionLog.extend

    def die(self, predictions):
        extend(self, predictions)
        written.append(len(self.done))
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PredictionLog, "extend", die)
    settings = EvalSettings(limit=12, batch=4)
    with pytest.raises(KeyboardInterrupt):
        run_eval(settings, 0, tmp_path / "run")
    run_eval(settings, 0, tmp_path / "run")
    assert len(written) == 3
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


def test_batches_folding_and_single_prompts_answer_alike(evaluated, tmp_path):
    """Fails if the batch size, or folding, moves an answer."""
    folder, _ = evaluated
    for name, settings in (("one", EvalSettings(limit=12, batch=1)), ("folded", EvalSettings(limit=12, folded=True))):
        run_eval(settings, 0, tmp_path / name)
        assert [one["text"] for one in lines(tmp_path / name)] == [one["text"] for one in lines(folder)]


def test_a_record_names_its_search_and_its_data(evaluated):
    """Fails if a score cannot be traced to the search, the adapters and the questions behind it."""
    folder, evaluation = evaluated
    record = json.loads((folder / "run.json").read_text())
    assert set(record["data"]) == {"model", "questions", "adapters"}
    metrics = evaluation.metrics
    assert metrics["search"] and metrics["cache_share"] < 1 and metrics["questions"] == 12


WRONG = [
    (["eval", "--benchmark", "aid"], "no data"),
    (["eval", "--benchmark", "aid", "--data", "/nowhere"], "no such folder"),
    (["eval", "--benchmark", "what"], "benchmark"),
    (["eval", "--adapters", "/nowhere"], "no such adapters"),
    (["eval", "some/model", "--benchmark", "mini"], "the shipped adapters are the mini host's"),
    (["eval", "--config", "nothing"], "no such config"),
    (["eval", "--limit", "0"], "limit"),
    (["eval", "--device", "gpu"], "auto, cpu, cuda"),
    (["demo", "--adapters", "none"], "nothing to show"),
    (["sensitivity", "--removed", "99"], "removed 99"),
    (["sensitivity", "--data", "x.json"], "--data FILE --images FOLDER"),
    (["convert"], "nothing to convert"),
    (["convert", "/nowhere", "x"], "nowhere"),
    (["convert", "a", "b", "--to", "gguf"], "unknown format"),
    (["convert", "--check", "llama"], "no such host"),
]


@pytest.mark.parametrize(("command", "told"), WRONG)
def test_what_is_wrong_is_one_line(command, told, tmp_path):
    """Fails if a wrong option is a traceback, or leaves something half-written."""
    output = [] if command[0] == "convert" else ["--output", str(tmp_path / "run")]
    outcome = CliRunner().invoke(app, [*command, *output])
    error = outcome.exception
    assert isinstance(error, UserError) and told in str(error) and "\n" not in str(error)
    assert not (tmp_path / "run" / "run.json").exists() and not shutil.os.path.exists("x")


def test_verify_runs_it_again(evaluated, tmp_path):
    """Fails if the record does not hold all that its run depends on, or a changed score is not noticed."""
    folder, _ = evaluated
    good = CliRunner().invoke(app, ["verify", str(folder)])
    assert good.exit_code == 0, good.output
    shutil.copytree(folder, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["metrics"]["scores"]["accuracy"] += 30
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "run")]).exit_code == 1


def test_demo_sensitivity_and_cite(evaluated, tmp_path):
    """Fails if the first commands that a reader types do not work."""
    shown = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "demo")])
    assert shown.exit_code == 0 and "right of all" in shown.output
    command = ["sensitivity", "--samples", "8", "--removed", "2", "--output", str(tmp_path / "list")]
    assert CliRunner().invoke(app, command).exit_code == 0
    content = json.loads((tmp_path / "list" / "search.json").read_text())
    assert content["rule"] == "sensitivity" and len(content["skip"]) == 2 and 0 not in content["skip"]
    cited = CliRunner().invoke(app, ["cite", str(evaluated[0])])
    assert cited.exit_code == 0 and "2403.15226" in cited.output and cited.output.count("@") >= 3
