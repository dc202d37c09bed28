"""LLaVA-HR as a model of lmms-eval: messages and settings, and its own evaluator on a local task, offline."""

import os
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest
from llava_hr_eval_fixtures import make_processor, write_model
from PIL import Image

from llava_hr.evaluation.answers import Query
from llava_hr.evaluation.messages import read_messages
from llava_hr.evaluation.run import run_eval
from llava_hr.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.data import write
from tenfold.data.benchmarks import benchmark
from tenfold.data.formats import Turn
from tenfold.hosts.answers import cut, sampling
from tenfold.runs import read_jsonl

NO_LMMS = "lmms-eval is not installed (make lmms)"
SCENES = 6
TASK = """
task: llava_hr_miniworld
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
    assert stops == until and options.items() <= found.items()
    known = {"max_new_tokens", *options, *(["do_sample"] if wanted.get("temperature") else [])}
    assert found.keys() == known


def test_an_answer_ends_at_the_first_stop_text():
    assert cut("red\nand blue", ("blue", "\n")) == "red"
    assert cut("red", ("\n", "")) == "red"


def message(role, *parts):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part} for part in parts
    ]
    return {"role": role, "content": content}


def test_messages_become_turns_with_their_images_in_front():
    """Fails if images are collected in another order, words named <image> become one, or equal images are encoded
    twice."""
    red, blue = (Image.new("RGBA", (4, 4), colour) for colour in ("red", "blue"))
    turns, images = read_messages(
        [
            message("system", "Be brief."),
            message("user", "What is ", red, "this <image>?"),
            message("assistant", "red"),
            message("user", "And these?", blue, red.copy()),
        ]
    )
    assert turns == [
        Turn("human", "<image>\nWhat is this ?"), Turn("gpt", "red"), Turn("human", "<image>\n<image>\nAnd these?"),
    ]  # fmt: skip
    assert [opener().getpixel((0, 0)) for _, opener in images] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert images[0][0] == images[2][0] != images[1][0]
    query = Query.chat(make_processor(), turns, images)
    assert query.prompt.text.endswith(
        " USER: <image>\nWhat is this ? ASSISTANT: red</s>USER: <image>\n<image>\nAnd these? ASSISTANT:"
    )
    assert len(query.prompt.images) == 3


RED = Image.new("RGB", (4, 4), "red")


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}], "a message with video"),
        ([{"role": "user", "content": [{"type": "image", "url": "x.png"}]}], "given as str"),
        ([message("assistant", "Hello")], "a message from assistant"),
        ([message("user", "a"), message("user", "b")], "a message from user"),
        ([message("user", "a"), message("assistant", "b")], "no question at the end"),
        ([message("user", "a"), message("assistant", RED)], "a message with image"),
        ([], "no question at the end"),
    ],
)
def test_messages_that_the_model_does_not_read_are_refused(messages, named):
    with pytest.raises(UserError, match=named):
        read_messages(messages)


def test_fewer_placeholders_than_images_are_refused():
    with pytest.raises(UserError, match="0 <image> for 1 images: a task"):
        Query.chat(make_processor(), [Turn("human", "What?")], [("red", lambda: RED)], name="a task")


def test_lmms_eval_finds_the_model_by_its_entry_point():
    """Fails if the entry point names another module or function."""
    (found,) = [one for one in entry_points(group="lmms_eval.models") if one.name == "llava_hr"]
    assert found.value == "llava_hr.evaluation.lmms:manifest"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason=NO_LMMS)
def test_lmms_evals_own_evaluator_gives_what_llava_hr_eval_gives(tmp_path, monkeypatch):
    """Same questions, batches of another size: every answer is the same.

    Fails if the plug-in asks in another prompt, mixes up the order of answers, or encodes an image for each question.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    model = write_model(tmp_path / "tiny")
    write.write_vqav2(tmp_path / "vqav2", 7, SCENES, 48)
    questions = benchmark("vqav2").read(tmp_path / "vqav2")
    settings = EvalSettings(
        model=str(model), benchmark="vqav2", data=str(tmp_path / "vqav2"), split="val2014", device="cpu"
    )
    run_eval(settings, 0, tmp_path / "ours")
    ours = {row["id"]: row["text"] for row in read_jsonl(tmp_path / "ours" / "predictions.jsonl")}
    right = {one.id: one.sample.annotation.multiple_choice_answer for one in questions}

    from llava_hr.evaluation.answers import Answerer

    encoded = []
    original = Answerer._encode
    monkeypatch.setattr(Answerer, "_encode", lambda self, opener: encoded.append(1) or original(self, opener))
    results = evaluate(tmp_path, questions, right, 128, f"pretrained={model}")
    samples = sorted(results["samples"]["llava_hr_miniworld"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"][0] for sample in samples] == list(ours.values())
    assert len(set(ours.values())) > SCENES and SCENES <= len(encoded) <= 2 * SCENES < len(ours)


def evaluate(folder, questions, right, tokens, model_args):
    """What lmms-eval's evaluator returns for these questions, by its own registry and task files."""
    import datasets
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    tasks = folder / "tasks"
    rows = [{"image": one.image(), "question": one.prompt, "answer": right[one.id]} for one in questions]
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "dataset")
    tasks.mkdir()
    (tasks / "task.yaml").write_text(TASK.format(data=folder / "dataset", tokens=tokens))
    (tasks / "looks.py").write_text(LOOKS)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    return simple_evaluate(
        model="llava_hr",
        model_args=model_args,
        tasks=["llava_hr_miniworld"],
        batch_size=5,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
