"""The registry: every benchmark is read, asked, scored and submitted in the same way."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tenfold import UserError
from tenfold.data import write
from tenfold.data.benchmark_scores import COUNTS
from tenfold.data.benchmarks import BENCHMARKS, Question, benchmark
from tenfold.data.formats import write_textvqa
from tenfold.data.formats.textvqa import LLAVA_OCR_FILE
from tenfold.data.mini_sets import textvqa

MINI = [name for name in BENCHMARKS if name in write.Format.__members__]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The mini world in every benchmark's layout."""
    found = {}
    for name in MINI:
        found[name] = tmp_path_factory.mktemp(name)
        write.WRITERS[write.Format[name]](found[name], 3, 10, 16)
    return found


def right(name: str, question: Question) -> str:
    """The right answer to a question, as a model would write it."""
    sample = question.sample
    if name == "scienceqa":
        return "ABCDE"[sample.answer]
    if name == "pope":
        return sample[1].label.capitalize()
    if name == "mme":
        return sample.label.capitalize()
    if name == "vqav2":
        return sample.annotation.answers[0]
    return sample.answers[0].capitalize() + "." if hasattr(sample, "answers") else sample.answer


def test_the_benchmarks_are_there_and_ten_of_them_as_mini_sets() -> None:
    """Fails if a benchmark gets lost, or a name in the registry is not that of the format."""
    others = ("okvqa", "ocrvqa", "refcoco", "coco_caption", "seed_all", "llava_bench")
    assert sorted(BENCHMARKS) == sorted([*MINI, "mmbench_cn", *others]) and len(MINI) == 10
    for name in [*MINI, "mmbench_cn"]:
        one = BENCHMARKS[name]
        assert one.name == name and one.splits and one.tree
        assert one.max_new_tokens == (1024 if name in ("scienceqa", "mmbench", "mmbench_cn", "mmvet") else 128)
    with pytest.raises(UserError, match=r"unknown benchmark: vqa .*textvqa"):
        benchmark("vqa")


@pytest.mark.parametrize("name", MINI)
def test_questions_have_unique_ids_prompts_and_images(name: str, folders: dict[str, Path]) -> None:
    """Fails if two questions share an id (POPE's subsets number alike), or a prompt lacks LLaVA's ending."""
    questions = benchmark(name).read(folders[name])
    assert len({question.id for question in questions}) == len(questions) > 0
    endings = {
        "scienceqa": "\nAnswer with the option's letter from the given choices directly.",
        "mmbench": "\nAnswer with the option's letter from the given choices directly.",
        "seed": "\nAnswer with the option's letter from the given choices directly.",
        "mmvet": "What is in the image?",
    }
    for question in questions:
        assert question.prompt.endswith(endings.get(name, "\nAnswer the question using a single word or phrase."))
        assert "<image>" not in question.prompt and question.image().size == (16, 16)


@pytest.mark.parametrize("name", [name for name in MINI if name != "mmvet"])
def test_right_answers_score_full_marks_and_wrong_ones_none(name: str, folders: dict[str, Path]) -> None:
    """Fails if predictions are matched to the wrong questions, or `main` is not among the metrics."""
    bench = benchmark(name)
    questions = bench.read(folders[name])
    scores = bench.score(questions, {question.id: right(name, question) for question in questions})
    full = 800.0 if name == "mme" else 1.0
    assert scores[bench.main] == pytest.approx(full) and bench.percent == (name != "mme")
    ratios = {key: value for key, value in scores.items() if key not in COUNTS and not key.endswith("points")}
    assert all(0 <= value <= 1 for key, value in ratios.items() if key != "perception")
    assert scores["count"] == len(questions)
    wrong = bench.score(questions, {question.id: "no" if name == "pope" else "perhaps" for question in questions})
    assert wrong[bench.main] == 0
    # A part of a split has scores too.
    assert bench.main in bench.score(questions[:1], {questions[0].id: right(name, questions[0])})


def test_mmvet_has_no_score_without_a_judge_only_a_submission(folders: dict[str, Path], tmp_path: Path) -> None:
    """Fails if MM-Vet pretends to have a metric."""
    bench = benchmark("mmvet")
    questions = bench.read(folders["mmvet"])
    answers = {question.id: f"text of {question.id}" for question in questions}
    assert bench.main is None and bench.score(questions, answers) == {}
    (path,) = bench.write_submission(questions, answers, tmp_path)
    assert json.loads(path.read_text()) == answers


def test_a_missing_prediction_an_empty_list_and_an_unknown_split_are_refused(folders: dict[str, Path]) -> None:
    """Fails if a question without a prediction is passed over: scores would rise."""
    bench = benchmark("gqa")
    questions = bench.read(folders["gqa"])
    answers = {question.id: "red" for question in questions[1:]}
    for use in (bench.score, lambda *given: bench.write_submission(*given, "nowhere")):
        with pytest.raises(UserError, match=f"1 of {len(questions)} questions have no prediction: GQA, 000000000"):
            use(questions, answers)
        with pytest.raises(UserError, match="no questions: GQA"):
            use([], answers)
    with pytest.raises(UserError, match="unknown split of GQA: train"):
        bench.read(folders["gqa"], "train")


def test_textvqa_is_asked_with_ocr_tokens_in_the_split_val_ocr(tmp_path: Path) -> None:
    """LLaVA-1.5's published figure. Fails if the file is used unasked, or not used when asked."""
    samples = [
        type(one)(**{**vars(one), "asked": f"{one.question}\nReference OCR token: "}) for one in textvqa(0, 2, 16)
    ]
    write_textvqa(tmp_path, samples)
    bench = benchmark("textvqa")
    assert all("OCR" not in question.prompt for question in bench.read(tmp_path))
    assert all("OCR" in question.prompt for question in bench.read(tmp_path, "val_ocr"))
    (tmp_path / LLAVA_OCR_FILE).unlink()
    with pytest.raises(UserError, match=LLAVA_OCR_FILE):
        bench.read(tmp_path, "val_ocr")


def test_scienceqa_asks_about_images_only_and_names_the_context(tmp_path: Path) -> None:
    """Fails if problems without an image are counted in SQA-IMG."""
    write.write_scienceqa(tmp_path, 0, 40, 16)
    bench = benchmark("scienceqa")
    assert all(question.picture is not None for question in bench.read(tmp_path))
    problems = json.loads((tmp_path / "problems.json").read_text())
    for problem in problems.values():
        problem["hint"] = "Read this."
        del problem["lecture"], problem["solution"]  # which an evaluation does not need
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    assert all(question.prompt.startswith("Context: Read this.\nWhat ") for question in bench.read(tmp_path))
    for problem in problems.values():
        problem["image"] = None
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    with pytest.raises(UserError, match="no problem with an image"):
        bench.read(tmp_path)


def test_pope_averages_the_subsets_that_were_asked(folders: dict[str, Path]) -> None:
    """Fails if the mean is that of all questions, or one subset cannot be asked alone."""
    bench = benchmark("pope")
    questions = bench.read(folders["pope"])
    answers = {question.id: right("pope", question) for question in questions}
    answers |= {question.id: "no" for question in questions if question.id.startswith("popular/")}
    scores = bench.score(questions, answers)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert [scores[f"{subset}/f1"] for subset in ("random", "popular", "adversarial")] == [1.0, 0.0, 1.0]
    alone = bench.read(folders["pope"], "popular")
    assert bench.score(alone, answers)["f1"] == 0.0


def test_submissions_are_what_the_servers_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """Keys by hand. Fails if a key is renamed, or texts for the VQA servers are not normalised."""

    def submit(name: str, text: str) -> tuple[list[Question], list[Path]]:
        questions = benchmark(name).read(folders[name])
        answers = {question.id: text for question in questions}
        return questions, benchmark(name).write_submission(questions, answers, tmp_path)

    questions, (path,) = submit("vqav2", "The Two!")
    assert json.loads(path.read_text())[0] == {"question_id": questions[0].sample.question_id, "answer": "2"}
    questions, (path,) = submit("textvqa", " The Two! ")
    assert json.loads(path.read_text())[0] == {"question_id": questions[0].sample.question_id, "answer": "The Two!"}
    _, (path,) = submit("vizwiz", "The Two!")
    assert json.loads(path.read_text())[0] == {"image": "VizWiz_val_00000000.png", "answer": "2"}
    _, (path,) = submit("gqa", "Red.")
    assert json.loads(path.read_text())[0] == {"questionId": "000000000", "prediction": "red"}
    questions, (path,) = submit("seed", "B. what")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"question_id": "1", "prediction": "B"} and len(lines) == len(questions)
    for name in ("pope", "scienceqa"):
        assert submit(name, "yes")[1] == []


def test_mme_results_are_pairs_of_lines_with_three_tabs(folders: dict[str, Path], tmp_path: Path) -> None:
    """The official script reads two lines an image. Fails if a line break of the model's text ends a line."""
    bench = benchmark("mme")
    questions = bench.read(folders["mme"])
    answers = {question.id: "Yes,\n\tit is." for question in questions}
    paths = bench.write_submission(questions[::-1], answers, tmp_path)
    assert sorted(path.name for path in paths) == ["color.txt", "count.txt", "existence.txt", "position.txt"]
    for path in paths:
        cells = [line.split("\t") for line in path.read_text().splitlines()]
        assert all(len(line) == 4 and line[3] == "Yes, it is." for line in cells)
        assert [line[2] for line in cells] == ["Yes", "No"] * (len(cells) // 2)
        assert [line[0] for line in cells[::2]] == [line[0] for line in cells[1::2]]
        assert all(line[1].endswith("Please answer yes or no.") for line in cells)


def test_the_mmbench_upload_is_a_table_and_an_xlsx_where_openpyxl_is(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails if a column of the upload is missing, a text becomes a formula, or a missing openpyxl goes unsaid."""
    bench = benchmark("mmbench")
    questions = bench.read(folders["mmbench"])
    answers = {question.id: "=B" for question in questions}
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with caplog.at_level(logging.WARNING):
        (path,) = bench.write_submission(questions, answers, tmp_path)
    assert "install openpyxl" in caplog.text
    rows = list(csv.reader(io.StringIO(path.read_text()), delimiter="\t"))
    assert rows[0] == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert len(rows) == len(questions) + 1 and rows[1][6] == "=B"
    assert [row[7] for row in rows[1:]] == [question.sample.answer for question in questions]

    appended: list[list[object]] = []

    def save(buffer: io.BytesIO) -> None:
        buffer.write(b"book")

    stub = ModuleType("openpyxl")
    stub.Workbook = lambda: SimpleNamespace(active=SimpleNamespace(append=appended.append), save=save)
    monkeypatch.setitem(sys.modules, "openpyxl", stub)
    _, xlsx = bench.write_submission(questions, answers, tmp_path)
    assert xlsx.name == "mmbench_submission.xlsx" and xlsx.read_bytes() == b"book"
    assert appended[0] == rows[0] and appended[1][0] == questions[0].sample.index and appended[1][6] == "'=B"


def test_splits_without_answers_have_submissions_only(folders: dict[str, Path], tmp_path: Path) -> None:
    """Fails if a test split is scored against nothing."""
    annotations = json.loads((folders["vizwiz"] / "Annotations" / "val.json").read_text())
    bare = [{"image": record["image"], "question": record["question"]} for record in annotations]
    (tmp_path / "test").symlink_to(folders["vizwiz"] / "val")
    (tmp_path / "test.json").write_text(json.dumps(bare))
    bench = benchmark("vizwiz")
    questions = bench.read(tmp_path, "test")
    answers = {question.id: "yes" for question in questions}
    assert bench.score(questions, answers) == {}
    assert len(bench.write_submission(questions, answers, tmp_path)) == 1
