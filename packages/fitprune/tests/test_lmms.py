"""FitPrune as a model of lmms-eval: its own evaluator, on a local task, offline."""

import os
from importlib.util import find_spec

import pytest
from PIL import Image

from fitprune.evaluation.run import run_eval
from fitprune.evaluation.settings import EvalSettings
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.data import mini_host, write
from tenfold.data.benchmarks import benchmark
from tenfold.hosts.answers import Protocol, conversation, cut, sampling
from tenfold.runs import read_jsonl

NO_LMMS = "lmms-eval is not installed (make lmms)"
SCENES = 10
TASK = """
task: fitprune_miniworld
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
doc_to_visual: !function looks.images
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""
LOOKS = """
def images(doc):
    return [doc["image"].convert("RGB")]
"""


@pytest.mark.parametrize(
    ("wanted", "options", "until"),
    [
        ({}, {"max_new_tokens": 1024}, ()),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, {}, ()),
        ({"max_new_tokens": 16, "temperature": 0.2, "top_p": None}, {"do_sample": True, "temperature": 0.2}, ()),
        ({"max_new_tokens": 16, "temperature": 0.2, "top_p": 0.9}, {"top_p": 0.9, "temperature": 0.2}, ()),
        ({"max_new_tokens": 16, "num_beams": 5, "until": ["\n\n"]}, {"num_beams": 5}, ("\n\n",)),
        ({"max_new_tokens": 16, "until": "###", "image_aspect_ratio": "pad"}, {}, ("###",)),
    ],
)
def test_a_tasks_generation_settings_become_options_of_generate(wanted, options, until):
    """Fails if a temperature of 0 samples, or a setting that `generate` does not know is passed on."""
    found, stops = sampling(wanted)
    assert stops == until
    assert options.items() <= found.items()
    known = {"max_new_tokens", *options, *(["do_sample"] if wanted.get("temperature") else [])}
    assert found.keys() == known


def test_an_answer_ends_at_the_first_stop_text():
    assert cut("red\nand blue", ("blue", "\n")) == "red"
    assert cut("red", ("\n", "")) == "red"


def test_messages_keep_the_order_of_texts_and_images():
    """Fails if images are collected by message in another order, or text is moved before its image."""
    red, blue = (Image.new("RGBA", (4, 4), colour) for colour in ("red", "blue"))
    messages = [
        {"role": "user", "content": [{"type": "image", "url": red}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "And it?"}, {"type": "image", "url": blue}]},
    ]
    turns, images = conversation(messages)
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)]
    assert [[part["type"] for part in turn["content"]] for turn in turns] == [
        ["image", "text"],
        ["text"],
        ["text", "image"],
    ]
    _, processor = mini_host.load()
    prompt = Protocol.processor.chat(processor, turns, images)
    assert prompt.text == "USER: <image>\nWhat is it? ASSISTANT: red</s>USER: <image>\nAnd it? ASSISTANT:"


@pytest.mark.parametrize(
    ("part", "named"),
    [({"type": "video", "url": "x.mp4"}, "a message with video"), ({"type": "image", "url": "x.png"}, "given as str")],
)
def test_messages_that_no_host_reads_are_refused(part, named):
    with pytest.raises(UserError, match=named):
        conversation([{"role": "user", "content": [part]}])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason=NO_LMMS)
def test_lmms_evals_own_evaluator_gives_what_fitprune_eval_gives(tmp_path, monkeypatch):
    """Same questions, same recipe, batches of another size: every answer, and so the accuracy, is the same.

    Fails if the plug-in leaves the recipe out, asks in another prompt, or mixes up the order of answers.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    bench = benchmark("vqav2")
    write.write_vqav2(tmp_path / "vqav2", 7, SCENES, mini_host.IMAGE_SIZE)
    questions = bench.read(tmp_path / "vqav2")
    settings = EvalSettings(benchmark="vqav2", data=str(tmp_path / "vqav2"), split="val2014", recipe=recipe(tmp_path))
    run_eval(settings, 0, tmp_path / "ours")
    ours = {row["id"]: row["text"] for row in read_jsonl(tmp_path / "ours" / "predictions.jsonl")}
    right = {one.id: one.sample.annotation.multiple_choice_answer for one in questions}
    accuracy = sum(ours[name] == answer for name, answer in right.items()) / len(right)

    results = evaluate(tmp_path, questions, right, bench.max_new_tokens, f"pretrained=mini,recipe={settings.recipe}")
    found = results["results"]["fitprune_miniworld"]["exact_match,none"]
    samples = sorted(results["samples"]["fitprune_miniworld"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0] for sample in samples] == list(ours.values())
    assert found == pytest.approx(accuracy, abs=1e-12)

    whole = evaluate(tmp_path, questions, right, bench.max_new_tokens, "pretrained=mini,recipe=none")
    unpruned = [sample["filtered_resps"][0] for sample in whole["samples"]["fitprune_miniworld"]]
    assert unpruned != list(ours.values()), "a recipe that changes no answer shows nothing"


def recipe(folder):
    """The file of a recipe that leaves four visual tokens after the first layer: it changes answers."""
    layers = mini_host.load()[0].config.text_config.num_hidden_layers
    remove = (mini_host.VISUAL_TOKENS - 4, *(0,) * (layers - 1))
    Recipe("mini_host", layers, mini_host.VISUAL_TOKENS, remove).save(folder / "recipe.json")
    return str(folder / "recipe.json")


def evaluate(folder, questions, right, tokens, model_args):
    """What lmms-eval's evaluator returns for these questions, by its own registry and task files."""
    import datasets
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    tasks = folder / "tasks"
    if not tasks.exists():
        rows = [{"image": one.image(), "question": one.prompt, "answer": right[one.id]} for one in questions]
        datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "dataset")
        tasks.mkdir()
        (tasks / "task.yaml").write_text(TASK.format(data=folder / "dataset", tokens=tokens))
        (tasks / "looks.py").write_text(LOOKS)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    return simple_evaluate(
        model="fitprune",
        model_args=model_args,
        tasks=["fitprune_miniworld"],
        batch_size=5,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
