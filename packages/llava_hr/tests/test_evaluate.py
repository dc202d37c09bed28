"""Evaluation: answers of batches, images encoded once, scores, several ranks, and runs that were killed.

Forks of this process stand for processes that die or share the work: torch is imported once.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
from dataclasses import replace

import pytest
from llava_hr_eval_fixtures import write_model
from PIL import Image

from llava_hr.checkpoints.load import load
from llava_hr.evaluation.answers import Answerer
from llava_hr.evaluation.benchmarks import PAPER, find_benchmark
from llava_hr.evaluation.questions import by_image
from llava_hr.evaluation.run import run_eval
from llava_hr.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.data import mini_sets, write
from tenfold.data.formats import write_textvqa
from tenfold.runs import RunRecord, atomic_write_text, read_jsonl

FORKS = multiprocessing.get_context("fork")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def host(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as LLaVA's playground/data/eval: three questions about each of four images, in VQAv2's files."""
    place = tmp_path_factory.mktemp("data")
    write.write_vqav2(place / "vqav2", 3, 4, 48)
    write.write_scienceqa(place / "scienceqa", 3, 15, 48)
    write.write_mmvet(place / "mm-vet", 3, 2, 48)
    return place


@pytest.fixture(scope="module")
def settings(folder, data):
    return EvalSettings(model=str(folder), benchmark="vqav2", data=str(data), split="val2014", batch=4, device="cpu")


@pytest.fixture(scope="module")
def short():
    """Answers of at most 16 tokens: what is tested here does not depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("vqav2", "scienceqa", "mmvet", "textvqa"):
            patch.setitem(PAPER, name, replace(PAPER[name], max_new_tokens=16))
        yield


@pytest.fixture(scope="module")
def whole(settings, short, tmp_path_factory):
    """The folder of an evaluation that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run_eval(settings, 0, output)
    return output


def texts(output):
    return {row["id"]: row["text"] for row in read_jsonl(output / "predictions.jsonl")}


def asked_alone(host, question, tokens=16):
    """The answer by the public interface, as the README asks: the prompt of the template, pixels, no reuse."""
    model, processor = host
    prompt = f"{SYSTEM} USER: <image>\n{question.prompt} ASSISTANT:"
    inputs = processor(images=question.image(), text=prompt, return_tensors="pt")
    row = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(row, skip_special_tokens=True).strip()


def test_answers_and_accuracy_are_those_of_single_prompts(host, settings, whole, data):
    """Fails if prompts lose the template or LLaVA's ending, a padded row is decoded from the wrong place, or a question
    is answered from another one's visual tokens."""
    questions = find_benchmark("vqav2").read(data / "vqav2", "val2014")
    alone = {one.id: asked_alone(host, one) for one in questions}
    assert texts(whole) == alone and len(set(alone.values())) > len(alone) / 2
    metrics = json.loads((whole / "metrics.json").read_text())
    right = [alone[one.id] == one.sample.annotation.answers[0] for one in questions]
    assert metrics["scores"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert metrics["questions"] == len(questions) and metrics["images"] == 4 and metrics["visual_tokens"] == 4


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_batches_of_any_size_write_the_same_files(settings, whole, tmp_path, batch):
    """Fails if an answer depends on its neighbours, or the order of answers on the batches."""
    run_eval(settings.model_copy(update={"batch": batch}), 0, tmp_path / "run")
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_questions_about_one_image_are_asked_together(settings, data, short, tmp_path, monkeypatch):
    """POPE asks about the same images in three files. Fails if questions are asked in the file's order: images would
    be encoded again for every file; or if predictions are written in the order of asking."""
    write.write_pope(tmp_path / "pope", 3, 3, 48)
    asked = settings.model_copy(update={"benchmark": "pope", "data": str(tmp_path), "split": None, "batch": 5})
    counted = []
    original = Answerer._encode
    monkeypatch.setattr(Answerer, "_encode", lambda self, opener: counted.append(1) or original(self, opener))
    monkeypatch.setitem(PAPER, "pope", replace(PAPER["pope"], max_new_tokens=2))
    run_eval(asked, 0, tmp_path / "run")
    questions = find_benchmark("pope").read(tmp_path / "pope")
    assert len(counted) == 3 < len(by_image(questions)) + 1
    assert list(texts(tmp_path / "run")) == [one.id for one in questions]


def test_textvqa_is_asked_with_its_ocr_tokens(settings, short, tmp_path):
    """The split that the paper reports. Fails if the reference line is left out, or the default split is Tenfold's."""
    samples = [
        replace(one, asked=f"{one.question}\nReference OCR token: A, b\nAnswer the question using ...")
        for one in mini_sets.textvqa(0, 2, 48)
    ]
    write_textvqa(tmp_path / "textvqa", samples)
    asked = settings.model_copy(update={"benchmark": "textvqa", "data": str(tmp_path), "split": None})
    (evaluation,) = run_eval(asked, 0, tmp_path / "run")
    prompts = [row["prompt"] for row in read_jsonl(tmp_path / "run" / "predictions.jsonl")]
    assert prompts == [one.asked for one in samples] and evaluation.metrics["split"] == "val_ocr"


def test_scienceqa_and_mmvet_are_padded_as_in_training(settings, data, short, tmp_path, monkeypatch):
    """The fix of April 2024. Fails if an image that is not square is cropped or squeezed: the top row would not be the
    padding's mean colour."""
    shutil.copytree(data, tmp_path / "data")
    for path in (*(tmp_path / "data").glob("scienceqa/images/*/*/*.png"), *(tmp_path / "data").glob("mm-vet/images/*")):
        Image.new("RGB", (60, 30), "red").save(path)
    seen = []
    original = Answerer._encode

    def encode(self, opener):
        seen.append(self.processor.image_processor(opener(), return_tensors="pt")["pixel_values"])
        return original(self, opener)

    monkeypatch.setattr(Answerer, "_encode", encode)
    for name in ("scienceqa", "mmvet"):
        own = {"benchmark": name, "data": str(tmp_path / "data"), "split": None, "limit": 2}
        run_eval(settings.model_copy(update=own), 0, tmp_path / name)
    assert len(seen) == 4
    for pixels in seen:
        assert pixels[0, :, 0].abs().max() < 0.02 and pixels[0, 0, 32].min() > 1


def test_the_answers_dtype_is_the_one_that_was_asked_for(settings, short, tmp_path):
    """Fails if half precision is asked for and not used; predictions then still are texts."""
    for dtype in ("bfloat16", "float16"):
        asked = settings.model_copy(update={"dtype": dtype, "limit": 4})
        (evaluation,) = run_eval(asked, 0, tmp_path / dtype)
        assert evaluation.metrics["questions"] == 4 and evaluation.limited
        assert RunRecord.load(tmp_path / dtype).config["dtype"] == dtype


# Runs that were killed, and several ranks.


def killed_after(batches, settings, output):
    """Evaluate in a fork that kills itself once so many batches of answers are on the disk."""

    def progress(items, label):
        for number, item in enumerate(items):
            if number == batches:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    process = FORKS.Process(target=run_eval, args=(settings, 0, output, progress))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (output / "run.json").exists() and not (output / "predictions.jsonl").exists()


@pytest.mark.parametrize("batches", [1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 53))])
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_files(settings, whole, tmp_path, batches):
    """Fails if the resume starts anew, writes an answer twice, or forgets the tokens of earlier answers."""
    if batches > 2:  # `make test-all`: fifty deaths, at every batch size and place
        settings = settings.model_copy(update={"batch": 1 + batches % 3})
        batches = 1 + batches // 3 % 3  # nine of twelve answers at most: there is something left to do
    killed_after(batches, settings, tmp_path / "run")
    said, asked = [], []

    def progress(items, label):
        asked.extend(items)
        return items

    run_eval(settings, 0, tmp_path / "run", progress, said.append)
    done = int(said[0].partition("going on after ")[2].split()[0])
    assert done == batches * settings.batch > 0
    assert len(asked) == -(-(len(texts(whole)) - done) // settings.batch)
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in whole.iterdir())


def in_ranks(world, settings, output):
    """Evaluate in `world` forks over gloo; their exit codes, and how many images each encoded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    counted = [FORKS.Value("i", 0) for _ in range(world)]

    def work(rank):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        original = Answerer._encode

        def encode(self, opener):
            counted[rank].value += 1
            return original(self, opener)

        Answerer._encode = encode
        assert len(run_eval(settings, 0, output)) == (rank == 0)

    processes = [FORKS.Process(target=work, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes], [number.value for number in counted]


def test_two_ranks_write_what_one_writes(settings, whole, tmp_path):
    """Fails if a rank answers another's questions, the merge keeps the order of the ranks, or two ranks encode the same
    image."""
    codes, images = in_ranks(2, settings, tmp_path / "run")
    assert codes == [0, 0] and sum(images) == 4 and min(images) >= 1
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert RunRecord.load(tmp_path / "run").data == RunRecord.load(whole).data


def test_two_ranks_go_on_where_one_was_killed(settings, whole, tmp_path):
    """Fails if ranks share all questions again instead of those that are left."""
    killed_after(1, settings, tmp_path / "run")
    codes, images = in_ranks(2, settings, tmp_path / "run")
    assert codes == [0, 0] and sum(images) <= 4 and min(images) >= 1
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_an_error_on_the_first_rank_ends_the_others(settings, whole, tmp_path):
    """Fails if the others wait at the next meeting: the test then runs into its limit."""
    shutil.copytree(whole, tmp_path / "run")
    assert in_ranks(2, settings, tmp_path / "run")[0] == [1, 2], "UserError (a traceback in a fork), and a quiet exit"


OTHERS = {
    "fewer questions": ({"limit": 6}, "questions"),
    "another batch": ({"batch": 2}, "batch"),
    "another attention": ({"attention": "eager"}, "attention"),
    "another dtype": ({"dtype": "bfloat16"}, "dtype"),
}


@pytest.fixture(scope="module")
def begun(settings, short, tmp_path_factory):
    output = tmp_path_factory.mktemp("begun") / "run"
    killed_after(1, settings, output)
    return output


@pytest.mark.parametrize("case", OTHERS)
def test_answers_of_another_run_are_not_mixed_in(settings, begun, tmp_path, case):
    """Fails if the header leaves this setting out."""
    change, named = OTHERS[case]
    shutil.copytree(begun, tmp_path / "run")
    with pytest.raises(UserError, match=f"another {named}"):
        run_eval(settings.model_copy(update=change), 0, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_answers_of_another_model_are_not_mixed_in(settings, begun, tmp_path):
    """Fails if the fingerprint is of the model's name."""
    shutil.copytree(begun, tmp_path / "run")
    other = write_model(tmp_path / "other" / "tiny", seed=3)
    with pytest.raises(UserError, match="another model"):
        run_eval(settings.model_copy(update={"model": str(other)}), 0, tmp_path / "run")


def test_an_image_that_changed_is_another_data_set(settings, begun, data, tmp_path):
    """Fails if the fingerprint is of the questions alone."""
    shutil.copytree(begun, tmp_path / "run")
    shutil.copytree(data / "vqav2", tmp_path / "vqav2")
    Image.new("RGB", (48, 48)).save(sorted((tmp_path / "vqav2" / "val2014").iterdir())[-1])
    with pytest.raises(UserError, match="another questions"):
        run_eval(settings.model_copy(update={"data": str(tmp_path / "vqav2")}), 0, tmp_path / "run")


# Where the files lie.


def as_test_dev(folder):
    """Turn val2014 files into LLaVA's list of questions of test-dev."""
    questions = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    lines = []
    for one in questions:
        name = f"COCO_test2015_{one['image_id']:012d}.png"
        text = f"{one['question']}\nAnswer the question using a single word or phrase."
        lines.append(
            json.dumps({"question_id": one["question_id"], "image": name, "text": text, "category": "default"})
        )
    atomic_write_text(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", "\n".join(lines))
    for path in folder.glob("v2_*.json"):
        path.unlink()
    (folder / "val2014").rename(folder / "test2015")
    for image in (folder / "test2015").iterdir():
        image.rename(image.with_name(image.name.replace("val2014", "test2015")))


def test_all_benchmarks_of_llavas_folder_each_in_a_run_of_its_own(settings, data, short, tmp_path):
    """VQAv2 by LLaVA's own list, which `eval.zip` brings. Fails if a finished benchmark is evaluated again, a folder's
    spelling matters, or a test set gets a score."""
    shutil.copytree(data, tmp_path / "eval")
    as_test_dev(tmp_path / "eval" / "vqav2")
    everything = settings.model_copy(update={"benchmark": "all", "data": str(tmp_path / "eval"), "split": None})
    said = []
    found = run_eval(everything, 0, tmp_path / "run", say=said.append)
    assert [one.benchmark.name for one in found] == ["vqav2", "scienceqa", "mmvet"] and not said
    assert [one.metrics["split"] for one in found] == ["test-dev2015", "test", "test"]
    assert found[0].metrics["scores"] == found[2].metrics["scores"] == {}
    upload = json.loads((tmp_path / "run" / "vqav2" / "submission" / "vqav2_submission.json").read_text())
    assert [row["question_id"] for row in upload] == [int(name) for name in texts(tmp_path / "run" / "vqav2")]
    assert (tmp_path / "run" / "mmvet" / "submission" / "mmvet_submission.json").is_file()
    shutil.rmtree(tmp_path / "run" / "scienceqa")
    again = run_eval(everything, 0, tmp_path / "run", say=said.append)
    assert [line.partition(":")[0] for line in said] == ["VQAv2", "MM-Vet"]
    assert all("done before" in line for line in said)
    assert [one.metrics for one in again] == [one.metrics for one in found]


def test_submission_files_are_written_for_the_servers(settings, short, tmp_path):
    """VizWiz and MMBench, beside those above. Fails if a server benchmark leaves nothing to upload."""
    write.write_mmbench(tmp_path / "mmbench", 0, 1, 32)
    write.write_vizwiz(tmp_path / "vizwiz", 0, 2, 32)
    for name, split in (("mmbench", None), ("vizwiz", "val")):
        asked = settings.model_copy(update={"benchmark": name, "data": str(tmp_path), "split": split, "limit": 2})
        run_eval(asked, 0, tmp_path / "run" / name)
        assert list((tmp_path / "run" / name / "submission").glob(f"{name}_submission.*")), name


def test_images_are_opened_when_they_are_asked_about(settings, data, short, tmp_path):
    """Fails if all images are decoded before the first answer: the broken one is never asked about."""
    shutil.copytree(data / "vqav2", tmp_path / "vqav2")
    last = sorted((tmp_path / "vqav2" / "val2014").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:40])
    limited = settings.model_copy(update={"data": str(tmp_path / "vqav2"), "limit": 2})
    (evaluation,) = run_eval(limited, 0, tmp_path / "run")
    assert evaluation.metrics["questions"] == 2
    with pytest.raises(UserError, match=f"broken image .*{last.name}"):
        run_eval(limited.model_copy(update={"limit": None}), 0, tmp_path / "other")
    assert not (tmp_path / "other" / "run.json").exists()


def test_no_machine_path_reaches_the_files_of_an_evaluation(whole, data):
    for path in whole.rglob("*"):
        if path.name != "run.json" and path.is_file():
            assert str(data.parent).encode() not in path.read_bytes(), path.name
