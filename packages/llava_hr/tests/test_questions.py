"""What is asked: which rank gets which question, the fingerprint of a data set, files where LLaVA keeps them, the
miniature's own set."""

import shutil
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from llava_hr.data.mini_questions import COARSE, FINE, TEST, held_out
from llava_hr.data.mini_world import render, scene
from llava_hr.evaluation.benchmarks import find_benchmark
from llava_hr.evaluation.questions import (
    benchmark_folders,
    by_image,
    image_key,
    share,
    write_mini_set,
)
from llava_hr.evaluation.settings import EvalSettings
from tenfold.data import write
from tenfold.data.benchmarks import Question
from tenfold.data.formats import OCRVQASample, OKVQASample, Picture, write_ocrvqa, write_okvqa
from tenfold.data.question_sets import questions_fingerprint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three questions about each of four images, in VQAv2's files."""
    place = tmp_path_factory.mktemp("data")
    write.write_vqav2(place / "vqav2", 3, 4, 48)
    return place


@pytest.mark.parametrize("world", [1, 2, 3, 5, 20])
def test_every_question_falls_to_one_rank_and_every_image_too(data, world):
    """Fails if a question is dropped at a border between ranks, or an image is cut."""
    questions = find_benchmark("vqav2").read(data / "vqav2", "val2014")
    shares = [share(questions, rank, world) for rank in range(world)]
    assert sorted(one.id for mine in shares for one in mine) == sorted(one.id for one in questions)
    for mine in shares:
        images = {one.picture.source for one in mine}
        assert sum(one.picture.source in images for one in questions) == len(mine)
    assert max(map(len, shares)) <= len(questions) / world + 3


def test_the_fingerprint_sees_answers_but_no_paths(data, tmp_path):
    """Fails if samples are left out of it, or if it holds the folder's name."""
    shutil.copytree(data / "vqav2", tmp_path / "elsewhere")
    read = find_benchmark("vqav2").read
    questions = read(data / "vqav2", "val2014")
    assert questions_fingerprint(questions) == questions_fingerprint(read(tmp_path / "elsewhere", "val2014"))
    other = replace(questions[0].sample.annotation, answers=("seven",) * 10)
    changed = [replace(questions[0], sample=replace(questions[0].sample, annotation=other)), *questions[1:]]
    assert questions_fingerprint(questions) != questions_fingerprint(changed)


def test_images_are_found_where_llava_hr_keeps_them(tmp_path):
    """OK-VQA's beside the captions', OCR-VQA's with the training data, GQA's files in a folder `data`. Fails if a user
    has to move them."""
    picture = Picture(Image.new("RGB", (8, 8)))
    root = tmp_path / "playground" / "data" / "eval"
    write_okvqa(root / "okvqa", [OKVQASample(1, 1, "?", ("x",) * 10, picture)])
    (root / "coco-cap").mkdir()
    (root / "okvqa" / "val2014").rename(root / "coco-cap" / "val2014")
    write_ocrvqa(root / "ocrvqa", [OCRVQASample("1", 0, "?", "x", "1.png", picture)])
    (root.parent / "ocr_vqa").mkdir()
    (root / "ocrvqa" / "images").rename(root.parent / "ocr_vqa" / "images")
    write.write_gqa(root / "gqa" / "data", 0, 2, 16)
    for name in ("okvqa", "ocrvqa", "gqa"):
        assert find_benchmark(name).read(root / name), name


def test_folders_are_found_by_llavas_names_or_the_benchmarks(tmp_path):
    """SEED-Bench's folder serves videos where LLaVA's list of them lies. Fails if a folder is found twice, or a
    benchmark's folder has to be named itself."""
    for name in ("seed_bench", "MME", "mm-vet", "ocrvqa", "unknown"):
        (tmp_path / name).mkdir()

    def found(benchmark, data=tmp_path):
        with benchmark_folders(EvalSettings(model="x", benchmark=benchmark, data=str(data)), 0) as places:
            return {name: place.name for name, place in places.items()}

    everything = {"mme": "MME", "mmvet": "mm-vet", "ocrvqa": "ocrvqa"}
    assert found("all") == {**everything, "seed": "seed_bench"}
    (tmp_path / "seed_bench" / "llava-seed-bench.jsonl").write_text("")
    assert found("all") == {**everything, "seed_all": "seed_bench"}
    assert found("seed-all") == {"seed_all": "seed_bench"} and found("mme", tmp_path / "MME") == {"mme": "MME"}
    (tmp_path / "mm-vet").rename(tmp_path / "mmvet")
    assert found("mmvet") == {"mmvet": "mmvet"}


def test_images_are_told_apart_by_file_or_by_place_in_one(tmp_path):
    """MMBench keeps all images in one table. Fails if its rows share an image, or questions without one do."""
    write.write_mmbench(tmp_path, 0, 3, 16)
    questions = find_benchmark("mmbench").read(tmp_path)
    assert len(by_image(questions)) == len(questions) > 3
    red = Image.new("RGB", (4, 4), "red")
    loose = [
        Question(str(number), "?", picture, None)
        for number, picture in enumerate((None, None, Picture(red), Picture(red)))
    ]
    assert [len(group) for group in by_image(loose)] == [1, 1, 2]
    assert image_key(loose[2]) == image_key(loose[3]) != image_key(loose[0])


def test_the_miniatures_set_is_its_held_out_questions(tmp_path):
    """In VQAv2's files. Fails if a question gets another scene's picture, or another world is asked about."""
    write_mini_set(tmp_path, 0, per_kind=3)
    questions = find_benchmark("mini").read(tmp_path)
    asked = held_out(TEST, 3)
    assert [one.prompt.partition("\n")[0] for one in questions] == [one.question.text for one in asked]
    assert all(one.prompt.endswith("\nAnswer the question using a single word or phrase.") for one in questions)
    for one, held in zip(questions, asked, strict=True):
        assert one.sample.annotation.answers == (held.question.answer,) * 10
        assert one.image().tobytes() == render(scene(TEST, held.index)).tobytes()
    kinds = Counter(one.sample.annotation.question_type for one in questions)
    assert kinds == {**{f"coarse/{kind}": 3 for kind in COARSE}, **{f"fine/{kind}": 3 for kind in FINE}}
    assert len(by_image(questions)) < len(questions)
    right = {one.id: one.sample.annotation.answers[0].capitalize() for one in questions}
    scores = find_benchmark("mini").score(questions, right)
    assert scores["coarse"] == scores["fine"] == 1.0
