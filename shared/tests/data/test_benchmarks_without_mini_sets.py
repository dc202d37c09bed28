"""OK-VQA, OCR-VQA, RefCOCO's boxes, captions, SEED-Bench with videos, LLaVA-Bench: read, scored, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tenfold import UserError
from tenfold.data import formats
from tenfold.data.benchmarks import BENCHMARKS
from tenfold.data.formats import (
    BoxSample,
    CalibrationSample,
    CaptionSample,
    OCRVQASample,
    OKVQASample,
    Picture,
    SeedFrameSample,
)

SHORT = "Answer the question using a single word or phrase."


def picture(number: int) -> Picture:
    return Picture(Image.new("RGB", (6, 4), (10 * number, 20, 30)))


OKVQA = [
    OKVQASample(10, 1, "What is eaten with it?", ("mustard",) * 6 + ("ketchup",) * 4, picture(1)),
    OKVQASample(11, 1, "Which breed is it?", ("pug",) * 10, picture(1)),
    OKVQASample(20, 2, "Who makes it?", ("bmw",) * 3 + ("audi",) * 7, picture(2)),
]
OCRVQA = [
    OCRVQASample("0307", 0, f"Who wrote this book?\n{SHORT}", "John Doe", "0307.png", picture(1)),
    OCRVQASample("0408", 0, f"Who wrote this book?\n{SHORT}", "Jane Roe", "0408.png", picture(2)),
    OCRVQASample("0307", 1, f"Is this a cookbook?\n{SHORT}", "No", "0307.png", picture(1)),
]
BOXES = [
    BoxSample(0, "Where is the man? Answer with a box.", (0.1, 0.2, 0.5, 0.6), "COCO_train2014_1.png", picture(1)),
    BoxSample(1, "Where is the dog? Answer with a box.", (0.0, 0.0, 0.5, 1.0), "COCO_train2014_1.png", picture(1)),
]
CAPTIONS = [
    CaptionSample(7, "Describe it.", ("a red kite", "a kite"), "COCO_val2014_000000000007.png", picture(1)),
    CaptionSample(3, "Describe it.", ("two dogs",), "COCO_val2014_000000000003.png", picture(2)),
]
_OPTIONS = ("One", "Two", "Three", "Four")
_TEXT = "How many?\nA. One\nB. Two\nC. Three\nD. Four\nLetter."
SEED = [
    SeedFrameSample("1", _TEXT, _OPTIONS, "B", "Instances Counting", "image", "SEED-Bench-image/5_1", picture(1)),
    SeedFrameSample(
        "v2", _TEXT, _OPTIONS, "A", "Action Recognition", "video", "SEED-Bench-video-image/v2.png", picture(2)
    ),
    SeedFrameSample("3", _TEXT, _OPTIONS, "D", "Instances Counting", "image", "SEED-Bench-image/5_1", picture(1)),
]
BENCH = [
    CalibrationSample(0, "What is it?", "001.png", picture(1), "conv"),
    CalibrationSample(1, "Why?", "001.png", picture(1)),
]

SAMPLES: dict[str, list[Any]] = {
    "okvqa": OKVQA, "ocrvqa": OCRVQA, "refcoco": BOXES, "coco_caption": CAPTIONS, "seed_all": SEED,
    "llava_bench": BENCH,
}  # fmt: skip
WRITE: dict[str, Callable[[Path, list[Any]], None]] = {
    "okvqa": formats.write_okvqa,
    "ocrvqa": formats.write_ocrvqa,
    "refcoco": formats.write_refcoco_boxes,
    "coco_caption": formats.write_caption_questions,
    "seed_all": formats.write_seed_frames,
    "llava_bench": lambda folder, samples: formats.write_calibration(
        folder / "questions.jsonl", folder / "images", samples
    ),
}
# The right answers, as a model would write them.
RIGHT: dict[str, list[str]] = {
    "okvqa": ["Mustard.", "pug", "Audi"],
    "ocrvqa": ["john doe ", "Jane Roe", "no"],
    "refcoco": ["[0.1, 0.2, 0.5, 0.6]", "It is at [0, 0, .5, 1]."],
    "seed_all": ["B", "A. One", "D"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every benchmark's samples in its layout."""
    found = {}
    for name, write in WRITE.items():
        found[name] = tmp_path_factory.mktemp(name)
        write(found[name], SAMPLES[name])
    return found


def test_the_six_are_in_the_registry() -> None:
    """Fails if a benchmark gets lost, or its limit changes."""
    assert all(BENCHMARKS[name].name == name and BENCHMARKS[name].tree and BENCHMARKS[name].splits for name in WRITE)
    assert {name: BENCHMARKS[name].max_new_tokens for name in WRITE} == {
        "okvqa": 128, "ocrvqa": 128, "refcoco": 30, "coco_caption": 128, "seed_all": 128, "llava_bench": 1024,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(WRITE))
def test_what_is_written_is_read_back(name: str, folders: dict[str, Path]) -> None:
    """Fails if a writer drops a field, a reader reorders, or a question gets another image."""
    questions = BENCHMARKS[name].read(folders[name])
    assert [replace(one.sample, picture=None) for one in questions] == [
        replace(one, picture=None) for one in SAMPLES[name]
    ]
    assert len({one.id for one in questions}) == len(questions)
    for question, sample in zip(questions, SAMPLES[name], strict=True):
        assert question.picture is not None
        assert (np.asarray(question.image()) == np.asarray(sample.picture.open())).all()


def test_prompts_are_the_files_own_or_ask_for_a_short_answer(folders: dict[str, Path]) -> None:
    """Fails if an ending is added to a text that has its own."""
    prompts = {name: [one.prompt for one in BENCHMARKS[name].read(folders[name])] for name in WRITE}
    assert prompts["okvqa"] == [f"{one.question}\n{SHORT}" for one in OKVQA]
    assert all(prompts[name] == [one.text for one in SAMPLES[name]] for name in WRITE if name != "okvqa")


@pytest.mark.parametrize("name", list(RIGHT))
def test_right_answers_score_full_marks_and_wrong_ones_none(name: str, folders: dict[str, Path]) -> None:
    """Fails if answers are matched to other questions, or `main` is not among the metrics."""
    bench = BENCHMARKS[name]
    questions = bench.read(folders[name])
    ids = [one.id for one in questions]
    scores = bench.score(questions, dict(zip(ids, RIGHT[name], strict=True)))
    assert bench.main is not None and scores[bench.main] == pytest.approx(1) and scores["count"] == len(ids)
    assert bench.score(questions, dict.fromkeys(ids, "perhaps"))[bench.main] == 0


def test_okvqa_is_the_soft_accuracy_of_ten(folders: dict[str, Path]) -> None:
    """Three of ten agree with "bmw": seven times all three are among the other nine, three times two are.

    Fails if the rule is min(1, matches / 3) without leaving one out.
    """
    questions = BENCHMARKS["okvqa"].read(folders["okvqa"])
    answers = {"10": "salt", "11": "pug", "20": "BMW"}
    assert BENCHMARKS["okvqa"].score(questions, answers)["accuracy"] == pytest.approx(
        (0 + 1 + (7 + 3 * 2 / 3) / 10) / 3
    )


def test_seed_counts_images_and_videos_apart(folders: dict[str, Path]) -> None:
    """Fails if the total is the mean of both kinds."""
    questions = BENCHMARKS["seed_all"].read(folders["seed_all"])
    scores = BENCHMARKS["seed_all"].score(questions, {"1": "B", "v2": "B", "3": "A"})
    assert (scores["accuracy"], scores["image"], scores["video"]) == (pytest.approx(1 / 3), 0.5, 0.0)
    assert scores["Instances Counting"] == 0.5 and scores["Action Recognition"] == 0.0
    only = [one for one in questions if one.sample.kind == "image"]
    assert "video" not in BENCHMARKS["seed_all"].score(only, {"1": "B", "3": "A"})


def test_submissions(folders: dict[str, Path], tmp_path: Path) -> None:
    """Keys by hand. Fails if a key is renamed, or OK-VQA's answers become letters of text ids."""

    def submit(name: str) -> list[Path]:
        questions = BENCHMARKS[name].read(folders[name])
        return BENCHMARKS[name].write_submission(questions, {one.id: "B. one" for one in questions}, tmp_path)

    (path,) = submit("okvqa")
    assert json.loads(path.read_text())[2] == {"question_id": 20, "answer": "B. one"}
    (path,) = submit("coco_caption")
    assert json.loads(path.read_text()) == [
        {"image_id": 3, "caption": "B. one"},
        {"image_id": 7, "caption": "B. one"},
    ]
    (path,) = submit("seed_all")
    assert json.loads(path.read_text().splitlines()[1]) == {"question_id": "v2", "prediction": "B"}
    (path,) = submit("llava_bench")
    first = json.loads(path.read_text().splitlines()[0])
    assert {"question_id": 0, "prompt": "What is it?", "text": "B. one"}.items() <= first.items()
    assert submit("ocrvqa") == submit("refcoco") == []


def test_the_official_ocrvqa_file_is_read_where_there_is_no_question_file(tmp_path: Path) -> None:
    """Keys as published (texts made up). Fails if another split's books are asked, or a linked suffix is not tried."""
    (tmp_path / "images").mkdir()
    for name in ("0307.jpg", "0408.gif"):
        Image.new("RGB", (6, 4), "red").save(tmp_path / "images" / name)
    record = {
        "imageURL": "a/b/51kT.jpg", "questions": ["Who wrote this book?", "Is this a cookbook?"], "genre": "Crime",
        "answers": ["John Doe", "No"], "title": "A Tale", "authorName": "John Doe", "split": 3,
    }  # fmt: skip
    books = {"0307": record, "0408": {**record, "imageURL": "a/b/x.gif"}, "0509": {**record, "split": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(books))
    found = formats.read_ocrvqa(tmp_path)
    assert [(one.id, one.answer, one.image_name) for one in found] == [
        ("0307/0", "John Doe", "0307.jpg"), ("0307/1", "No", "0307.jpg"), ("0408/0", "John Doe", "0408.gif"),
        ("0408/1", "No", "0408.gif"),
    ]  # fmt: skip
    assert found[1].prompt == f"Is this a cookbook?\n{SHORT}"
    books["0307"] = {**record, "answers": ["John Doe"]}
    (tmp_path / "dataset.json").write_text(json.dumps(books))
    with pytest.raises(UserError, match=r"'answers' has 1 items: .*dataset\.json, 0307 .*2, one for each question"):
        formats.read_ocrvqa(tmp_path)
    with pytest.raises(UserError, match=r"no records: .*split 2"):
        formats.read_ocrvqa(tmp_path, "val")


def test_karpathys_file_serves_captions_where_there_is_no_question_file(tmp_path: Path) -> None:
    """Fails if another split's images are described, or the captions are not the image's."""
    (tmp_path / "val2014").mkdir()
    images = []
    for number, split in enumerate(("train", "test", "test")):
        name = f"COCO_val2014_{number:012d}.jpg"
        Image.new("RGB", (6, 4), "red").save(tmp_path / "val2014" / name)
        captions = tuple(f"caption {number} {k}" for k in range(5))
        images.append(
            formats.KarpathyImage(number, name, split, captions, tuple(range(5 * number, 5 * number + 5)), "val2014")
        )
    formats.write_karpathy(tmp_path / "dataset_coco.json", images)
    found = formats.read_caption_questions(tmp_path)
    assert [one.image_id for one in found] == [1, 2]
    assert found[1].references == images[2].captions and found[0].prompt.startswith("Provide a one-sentence caption")


def test_images_may_lie_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    """LLaVA-HR keeps COCO's images beside another benchmark's. Fails if `image_folder` is not looked into."""
    for name, read, inside in (("okvqa", formats.read_okvqa, "val2014"), ("ocrvqa", formats.read_ocrvqa, "images")):
        copy = tmp_path / name
        shutil.copytree(folders[name], copy)
        (copy / inside).rename(tmp_path / f"{name}-images")
        with pytest.raises(UserError, match="no such image"):
            read(copy)
        assert len(read(copy, image_folder=tmp_path / f"{name}-images")) == 3


def drop(path: Path, field: str) -> None:
    """Take a field from the last record of a json or jsonl file."""
    if path.suffix == ".jsonl":
        *lines, last = path.read_text().splitlines()
        record = json.loads(last)
        del record[field]
        path.write_text("\n".join([*lines, json.dumps(record)]))
        return
    content = json.loads(path.read_text())
    (key,) = (key for key in ("questions", "annotations") if isinstance(content.get(key), list))
    del content[key][-1][field]
    path.write_text(json.dumps(content))


def again(path: Path) -> None:
    """Write a file's first line twice."""
    first = path.read_text().splitlines()[0]
    path.write_text(f"{first}\n{first}\n")


def box(path: Path, values: Any) -> None:
    record = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps({**record, "ans": values}))


OK_Q, OK_A = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
REF = "llava_refcoco_mscoco_val.jsonl"
CAP = "llava_caption_mscoco_test.jsonl"
FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "okvqa, no questions": ("okvqa", lambda f: (f / OK_Q).unlink(), OK_Q),
    "okvqa, no annotations": ("okvqa", lambda f: (f / OK_A).unlink(), OK_A),
    "okvqa, broken json": ("okvqa", lambda f: (f / OK_A).write_text('{"annotations": ['), "broken JSON"),
    "okvqa, empty": ("okvqa", lambda f: (f / OK_Q).write_text('{"questions": []}'), "'questions' is empty"),
    "okvqa, no answers": ("okvqa", lambda f: drop(f / OK_A, "answers"), "'answers' is missing"),
    "okvqa, no image id": ("okvqa", lambda f: drop(f / OK_Q, "image_id"), "'image_id' is missing"),
    "okvqa, no images": ("okvqa", lambda f: shutil.rmtree(f / "val2014"), "no such image"),
    "ocrvqa, neither file": ("ocrvqa", lambda f: (f / "ocrvqa_test.jsonl").unlink(), "this file or dataset.json"),
    "ocrvqa, no answer": ("ocrvqa", lambda f: drop(f / "ocrvqa_test.jsonl", "answer"), "line 3"),
    "ocrvqa, empty": ("ocrvqa", lambda f: (f / "ocrvqa_test.jsonl").write_text("\n"), "no records"),
    "refcoco, no file": ("refcoco", lambda f: (f / REF).unlink(), REF),
    "refcoco, no box": ("refcoco", lambda f: drop(f / REF, "ans"), "'ans' is missing"),
    "refcoco, three numbers": ("refcoco", lambda f: box(f / REF, [0, 0, 1]), "each from 0 to 1"),
    "refcoco, pixels": ("refcoco", lambda f: box(f / REF, [12, 20, 50, 63]), "each from 0 to 1"),
    "refcoco, the wrong way round": ("refcoco", lambda f: box(f / REF, [0.5, 0, 0.2, 1]), "each from 0 to 1"),
    "refcoco, an id twice": ("refcoco", lambda f: again(f / REF), "id 0 twice"),
    "captions, no file": ("coco_caption", lambda f: (f / CAP).unlink(), "dataset_coco.json"),
    "captions, none": ("coco_caption", lambda f: (f / "captions_test5k.json").unlink(), "captions_test5k.json"),
    "captions, an id twice": ("coco_caption", lambda f: again(f / CAP), "id 7 twice"),
    "seed, no question file": ("seed_all", lambda f: (f / "llava-seed-bench.jsonl").unlink(), "llava-seed-bench.jsonl"),
    "seed, no frames": ("seed_all", lambda f: shutil.rmtree(f / "SEED-Bench-video-image"), "no such image"),
    "seed, an unknown question": (
        "seed_all",
        lambda f: (f / "llava-seed-bench.jsonl").write_text('{"question_id": 9, "image": "x", "text": "?"}'),
        "question_id '9' is unknown",
    ),
    "seed, no kind": ("seed_all", lambda f: drop(f / "SEED-Bench.json", "data_type"), "'data_type' is missing"),
    "llava-bench, no images": ("llava_bench", lambda f: shutil.rmtree(f / "images"), "no such image"),
}


@pytest.mark.parametrize("case", list(FAULTS))
def test_a_broken_data_set_is_named(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Fails if a fault passes, or the message names no file."""
    name, harm, message = FAULTS[case]
    copy = tmp_path / "data"
    shutil.copytree(folders[name], copy)
    harm(copy)
    with pytest.raises(UserError) as error:
        BENCHMARKS[name].read(copy)
    assert message in str(error.value) and str(copy) in str(error.value)


def test_unknown_subsets_are_refused(tmp_path: Path) -> None:
    for read, known in ((formats.read_okvqa, "val2014"), (formats.read_ocrvqa, "test")):
        with pytest.raises(UserError, match=known):
            read(tmp_path, "dev")
