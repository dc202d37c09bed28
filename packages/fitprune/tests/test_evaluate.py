"""Evaluation: answers, scores, delivered FLOPs; forks stand for processes that die or share the work."""

import copy
import json
import multiprocessing
import os
import shutil
import signal
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import torch
from PIL import Image

from fitprune import costs
from fitprune.costs import DecoderShape
from fitprune.evaluation.published import published
from fitprune.evaluation.questions import PAPER, find_benchmark, paper_split
from fitprune.evaluation.run import choose_recipe, run_eval
from fitprune.evaluation.settings import EvalSettings
from fitprune.pruner import Pruner
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.data import mini_host, write
from tenfold.data.benchmarks import benchmark
from tenfold.data.question_sets import questions_fingerprint
from tenfold.hosts.answers import VICUNA, Protocol, encode_batch, generate, pad_to_square
from tenfold.runs import RunRecord, read_jsonl

FORKS = multiprocessing.get_context("fork")
SCENES = 5


@pytest.fixture(scope="module")
def host():
    return mini_host.load()


@pytest.fixture(scope="module")
def recipe(host, tmp_path_factory):
    """The file of a recipe that leaves little of the image, and all of it in the first layers' attention."""
    layers = host[0].config.text_config.num_hidden_layers
    remove = (88, 4, *(0,) * (layers - 3), 2)
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    Recipe("mini_host", layers, mini_host.VISUAL_TOKENS, remove).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three benchmarks' folders, in the official formats."""
    folder = tmp_path_factory.mktemp("data")
    write.write_vqav2(folder / "vqav2", 3, SCENES, mini_host.IMAGE_SIZE)
    write.write_scienceqa(folder / "scienceqa", 3, 15, mini_host.IMAGE_SIZE)
    write.write_mmvet(folder / "mm-vet", 3, 2, mini_host.IMAGE_SIZE)
    return folder


@pytest.fixture(scope="module")
def settings(data, recipe):
    return EvalSettings(
        benchmark="vqav2", data=str(data / "vqav2"), split="val2014", recipe=str(recipe), batch=4, device="cpu"
    )


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The folder of an evaluation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_eval(settings, 0, folder)
    return folder


def texts(folder):
    return {row["id"]: row["text"] for row in read_jsonl(folder / "predictions.jsonl")}


def test_unpruned_answers_and_accuracy_are_those_of_single_prompts(host, settings, data, tmp_path):
    """Against the mini host asked directly, prompt by prompt. Fails if prompts lose LLaVA's ending, or if a padded row
    is decoded from the wrong place."""
    unpruned = settings.model_copy(update={"recipe": "none", "batch": 7})
    (evaluation,) = run_eval(unpruned, 0, tmp_path / "run")
    questions = benchmark("vqav2").read(data / "vqav2", "val2014")
    asked = [
        mini_host.answer(*host, [one.image()], [f"USER: <image>\n{one.prompt} ASSISTANT:"])[0] for one in questions
    ]
    assert texts(tmp_path / "run") == dict(zip((one.id for one in questions), asked, strict=True))
    right = [text == one.sample.annotation.answers[0] for text, one in zip(asked, questions, strict=True)]
    assert evaluation.metrics["scores"]["accuracy"] == pytest.approx(fmean(right))
    assert evaluation.metrics["visual_reduction"] == 0
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_batches_of_any_size_write_the_same_files(settings, whole, tmp_path):
    """Fails if a row's selection depends on its neighbours, or the order of answers on the batches."""
    run_eval(settings.model_copy(update={"batch": 1}), 0, tmp_path / "run")
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_the_recipe_is_at_work(settings, whole, tmp_path):
    """Fails if answers are generated outside the pruner, or by another rule than the one named."""
    found = {}
    for name, change in {"none": {"recipe": "none"}, "inverse": {"rule": "inverse"}}.items():
        run_eval(settings.model_copy(update=change), 0, tmp_path / name)
        found[name] = texts(tmp_path / name)
    assert found["none"] != texts(whole) != found["inverse"] != found["none"]


def test_delivered_flops_are_those_of_the_tokens_that_were_there(host, settings, whole, data):
    """Counted from the pruner's own record of which tokens entered each layer. Fails if text tokens are left out, if
    padding is counted, or if the unpruned cost is reported as delivered."""
    model, processor = host
    shape = DecoderShape.of(model.config)
    visual_flops, prompt_flops, unpruned = [], [], []
    for question in benchmark("vqav2").read(data / "vqav2", "val2014"):
        prompt = Protocol.processor.prompt(processor, question.image(), question.prompt)
        inputs = encode_batch(processor, model, [prompt])
        with torch.inference_mode(), Pruner(Recipe.load(settings.recipe))(model) as pruner:
            model(**inputs)
            alive = pruner.surviving().sum(1).tolist()
        text = inputs["input_ids"].shape[1] - alive[0]
        pairs = list(pairwise(alive))
        visual_flops.append(sum(2 * costs.layer_macs(before, after, shape) for before, after in pairs))
        prompt_flops.append(sum(2 * costs.layer_macs(before + text, after + text, shape) for before, after in pairs))
        unpruned.append(shape.layers * 2 * costs.layer_macs(alive[0] + text, alive[0] + text, shape))
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["visual_gflops"] == pytest.approx(fmean(visual_flops) / 1e9, rel=1e-12)
    assert metrics["prompt_gflops"] == pytest.approx(fmean(prompt_flops) / 1e9, rel=1e-12)
    assert metrics["prompt_reduction"] == pytest.approx(1 - sum(prompt_flops) / sum(unpruned), rel=1e-9)


def killed_after(answers, settings, output):
    """Evaluate in a fork that kills itself once so many batches of answers are on the disk."""

    def progress(items, label):
        for number, item in enumerate(items):
            if number == answers:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    process = FORKS.Process(target=run_eval, args=(settings, 0, output, progress))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (output / "run.json").exists() and not (output / "predictions.jsonl").exists()


@pytest.mark.parametrize("batches", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 54))])
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_files(settings, whole, tmp_path, batches):
    """Fails if the resume starts anew, writes an answer twice, or forgets the tokens of earlier answers."""
    if batches > 3:  # `make test-all`: fifty deaths, at every batch size and place
        settings = settings.model_copy(update={"batch": 1 + batches % 3})
        batches = 1 + batches % 4
    killed_after(batches, settings, tmp_path / "run")
    said, asked = [], []

    def progress(items, label):
        asked.extend(items)
        return items

    run_eval(settings, 0, tmp_path / "run", progress, said.append)
    done = int(said[0].partition("going on after ")[2].split()[0])
    assert done == batches * settings.batch > 0
    assert len(asked) == -(-(len(texts(whole)) - done) // settings.batch)
    for name in ("predictions.jsonl", "metrics.json", "recipe.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in whole.iterdir())


def in_ranks(world, settings, output, fresh=True):
    """Evaluate in `world` forks over gloo; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank):
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        counted = []
        found = run_eval(settings, 0, output, lambda items, _: counted.extend(items) or items)
        assert len(found) == (rank == 0)
        if rank == 0 and fresh:
            share = -(-found[0].metrics["questions"] // world)
            assert len(counted) == -(-share // settings.batch), "batches of this rank's share"

    processes = [FORKS.Process(target=work, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_two_ranks_write_what_one_writes(settings, whole, tmp_path):
    """Fails if a rank answers another's questions, or the merge keeps the order of the ranks."""
    assert in_ranks(2, settings, tmp_path / "run") == [0, 0]
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert RunRecord.load(tmp_path / "run").data == RunRecord.load(whole).data


def test_two_ranks_go_on_where_one_was_killed(settings, whole, tmp_path):
    killed_after(1, settings, tmp_path / "run")
    assert in_ranks(2, settings, tmp_path / "run", fresh=False) == [0, 0]
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_an_error_on_the_first_rank_ends_the_others(settings, whole, tmp_path):
    """Fails if the others wait at the next meeting: the test then runs into its limit."""
    shutil.copytree(whole, tmp_path / "run")
    first, second = in_ranks(2, settings, tmp_path / "run")
    assert first == 1 and second == 2, "UserError (a traceback in a fork), and a quiet exit"


OTHERS = {
    "another rule": ({"rule": "random"}, "rule"),
    "another recipe": ({"recipe": "none"}, "recipe"),
    "fewer questions": ({"limit": 6}, "questions"),
    "another batch": ({"batch": 2}, "batch"),
    "another protocol": ({"protocol": "llava"}, "protocol"),
    "another attention": ({"attention": "eager"}, "attention"),
    "another model dtype": ({"dtype": "bfloat16"}, "dtype"),
}


@pytest.fixture(scope="module")
def begun(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    killed_after(1, settings, folder)
    return folder


@pytest.mark.parametrize("case", OTHERS)
def test_answers_of_another_run_are_not_mixed_in(settings, begun, tmp_path, case):
    """Fails if the header leaves this setting out."""
    change, named = OTHERS[case]
    shutil.copytree(begun, tmp_path / "run")
    with pytest.raises(UserError, match=f"another {named}"):
        run_eval(settings.model_copy(update=change), 0, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_image_that_changed_is_another_data_set(settings, begun, data, tmp_path):
    """Fails if the fingerprint is of the questions alone."""
    shutil.copytree(begun, tmp_path / "run")
    shutil.copytree(data / "vqav2", tmp_path / "vqav2")
    image = sorted((tmp_path / "vqav2" / "val2014").iterdir())[-1]
    Image.new("RGB", (48, 48)).save(image)
    with pytest.raises(UserError, match="another questions"):
        run_eval(settings.model_copy(update={"data": str(tmp_path / "vqav2")}), 0, tmp_path / "run")


def test_the_fingerprint_sees_answers_but_no_paths(data, tmp_path):
    """Fails if samples are left out of it, or if it holds the folder's name."""
    shutil.copytree(data / "vqav2", tmp_path / "elsewhere")
    questions = benchmark("vqav2").read(data / "vqav2")
    assert questions_fingerprint(questions) == questions_fingerprint(benchmark("vqav2").read(tmp_path / "elsewhere"))
    other = replace(questions[0].sample.annotation, answers=("seven",) * 10)
    changed = [replace(questions[0], sample=replace(questions[0].sample, annotation=other)), *questions[1:]]
    assert questions_fingerprint(questions) != questions_fingerprint(changed)


def test_all_benchmarks_of_a_folder_each_in_a_run_of_its_own(settings, data, tmp_path):
    """Fails if a finished benchmark is evaluated again, or a folder's spelling matters."""
    shutil.copytree(data, tmp_path / "data")
    for name, split in {"vqav2": "val2014"}.items():  # written with answers; papers report test-dev
        folder = tmp_path / "data" / name
        for file in folder.glob("*.json"):
            file.rename(folder / file.name.replace(split, "test-dev2015"))
        (folder / split).rename(folder / "test2015")
        for image in (folder / "test2015").iterdir():
            image.rename(image.with_name(image.name.replace(split, "test2015")))
    everything = settings.model_copy(update={"benchmark": "all", "data": str(tmp_path / "data"), "split": None})
    said = []
    found = run_eval(everything, 0, tmp_path / "run", say=said.append)
    assert [one.benchmark.name for one in found] == ["vqav2", "scienceqa", "mmvet"]
    assert not said
    assert [one.metrics["split"] for one in found] == ["test-dev2015", "test", "test"]
    assert found[2].metrics["scores"] == {}
    assert (tmp_path / "run" / "mmvet" / "submission" / "mmvet_submission.json").is_file()
    shutil.rmtree(tmp_path / "run" / "scienceqa")
    again = run_eval(everything, 0, tmp_path / "run", say=said.append)
    assert [line.partition(":")[0] for line in said] == ["VQAv2", "MM-Vet"]
    assert all("done before" in line for line in said)
    assert [one.metrics for one in again] == [one.metrics for one in found]


def test_images_are_opened_when_they_are_asked_about(settings, data, tmp_path):
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


def test_prompts_with_and_without_an_image_share_a_batch(host, recipe):
    """Fails if images are matched to rows by place in the batch instead of by placeholder."""
    model, processor = host
    images = [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue")]
    texts = ["What color is the circle?", "What is a shape?", "How many squares are there?"]
    prompts = [
        Protocol.processor.prompt(processor, image, text)
        for image, text in zip((images[0], None, images[1]), texts, strict=True)
    ]
    with Pruner(Recipe.load(recipe))(model):
        together = generate(model, processor, prompts, max_new_tokens=6)
        alone = [generate(model, processor, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone
    assert [answer.visual_tokens for answer in together] == [100, 0, 100]


def test_llavas_own_prompt_is_vicunas_with_its_system_sentence(host):
    """The text of `vicuna_v1`. Fails if the system sentence, a space or the newline behind the image changes."""
    _, processor = host
    prompt = Protocol.llava.prompt(processor, Image.new("RGB", (4, 4)), "What is it?")
    assert prompt.text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT:"
    )
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    later = Protocol.llava.chat(processor, turns, prompt.images).text
    assert later == f"{VICUNA.system} USER: <image>\na ASSISTANT: b</s>USER: c ASSISTANT:"
    # A system turn gives way to Vicuna's sentence; pictures come first in their turn; the end is the tokenizer's own.
    turns[2]["content"] += [{"type": "image"}, {"type": "image"}]
    with_system = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *turns]
    other = copy.deepcopy(processor)
    other.tokenizer.eos_token = "<end>"
    assert Protocol.llava.chat(other, with_system, ()).text == (
        f"{VICUNA.system} USER: <image>\na ASSISTANT: b<end>USER: <image>\n<image>\nc ASSISTANT:"
    )


def test_llavas_images_are_padded_to_squares_of_the_mean_colour():
    """Fails if the image is cropped, not in the middle, or the colour is rounded up (CLIP's: 122, 116, 104)."""
    clip = (0.48145466, 0.4578275, 0.40821073)
    padded = pad_to_square(Image.new("RGB", (10, 4), "white"), clip)
    assert padded.size == (10, 10)
    column = [padded.getpixel((5, row)) for row in range(10)]
    assert column == [(122, 116, 104)] * 3 + [(255, 255, 255)] * 4 + [(122, 116, 104)] * 3


def test_the_host_decides_whose_prompts_are_used(host):
    """Fails if every LLaVA gets Vicuna's sentence, also one that has no words for it."""
    model, processor = host
    assert Protocol.of(model, processor) is Protocol.processor
    reads_all = copy.deepcopy(processor)
    reads_all.tokenizer.unk_token = None
    assert Protocol.of(model, reads_all) is Protocol.llava
    reads_all.chat_template = f"{VICUNA.system} {processor.chat_template}"
    assert Protocol.of(model, reads_all) is Protocol.processor


def test_papers_numbers_are_found_by_model_recipe_and_benchmark():
    """Fails if one of the three is not compared, or a claim's spelling of a benchmark is not understood."""
    pruned, deeper = Recipe.released("llava-1.5-7b", 60), Recipe.released("llava-1.5-7b", 90)
    (number,) = published("llava-hf/llava-1.5-7b-hf", pruned, "pope")
    assert (number.value, number.unit) == (86.5, "F1")
    assert published("llava-1.5-7b-hf", pruned, "mmvet")[0].value == 32.8
    assert published("llava-1.5-7b-hf", pruned, "mmbench_cn")[0].value == 58.4
    assert [number.value for number in published("llava-v1.5-7b", deeper, "pope")] == [53.81, 60.5]
    fitted = replace(pruned, ratio=0.75, rounding="largest_remainder")
    assert published("llava-hf/llava-1.5-7b-hf", fitted, "gqa")[0].value == 59.38
    assert not published("mini_host", pruned, "pope")
    assert not published("llava-hf/llava-1.5-7b-hf", None, "pope")


def test_papers_splits_are_known_to_the_benchmarks():
    assert all(paper_split(one) in one.splits for one in PAPER.values())
    assert paper_split(find_benchmark("VQAv2")) == "test-dev2015"


def test_a_recipe_is_not_fitted_to_a_real_model_in_passing():
    with pytest.raises(UserError, match="fitprune fit"):
        choose_recipe(EvalSettings(model="llava-hf/llava-1.5-7b-hf", recipe="0.6"), None, 0, lambda items, _: items)


def test_no_machine_path_reaches_the_files_of_an_evaluation(whole, data):
    for path in whole.rglob("*"):
        if path.name not in ("run.json",) and path.is_file():
            assert str(Path(data).parent).encode() not in path.read_bytes(), path.name
