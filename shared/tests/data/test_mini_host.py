"""The mini host: a real transformers LLaVA, small enough to ship, that answers what it was trained for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from tenfold.data import mini_host, miniworld
from tenfold.data.mini_gate import GATES, evaluate, within
from tenfold.data.mini_probes import Probes, prompts
from tenfold.data.mini_sets import SHORT_ANSWER
from tenfold.data.miniworld import flag_questions, flags
from tenfold.data.miniworld.flag_questions import DEEP, KINDS


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums over several threads differ in their last bits, and two workers share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def host():
    return mini_host.load()


@pytest.fixture(scope="module")
def asked():
    """(scene, question) pairs of every kind, two each."""
    pairs = []
    for kind in KINDS:
        pairs += flag_questions.asked(kind, 77, 2)
    return pairs


def test_the_shipped_host_is_small(host) -> None:
    """Fails if the architecture grows past what may ship, or its weights ship in more than 16 bits."""
    model, _ = host
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_400_000
    assert sum(file.stat().st_size for file in mini_host.path().iterdir()) < 2_800_000
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


# What the shipped host must reach, in per cent, on scenes that no record used.
LEAST = {"shape": 90, "colour": 90, "place": 65, "two_hop": 75, "three_hop": 50, "follow": 60}


def test_the_shipped_host_answers_on_held_out_scenes(host) -> None:
    """Fails if the weights are untrained, or do not belong to the shipped tokenizer, picture size or prompt."""
    model, processor = host
    shares = evaluate(model, processor, seed=4242, count=60, kinds=tuple(LEAST))
    for kind, least in LEAST.items():
        assert 100 * shares[kind] >= least, (kind, shares)


def test_removing_the_picture_late_still_costs_answers(host) -> None:
    """Fails if deep questions are answered from what the first layers have read."""
    model, processor = host
    probes = Probes(model, processor, prompts(processor, 4242, 60, DEEP))
    curve = probes.right(probes.removed()).mean(1)
    assert curve[-1] - curve[5] > 0.2


def test_the_record_of_the_training_says_how_it_was_made_and_what_it_can_do(host) -> None:
    """Fails if the asset is replaced without its record, another model was measured, or a machine's path is named."""
    model, processor = host
    made, gates = (json.loads((mini_host.path() / name).read_text()) for name in ("training.json", "gates.json"))
    assert made["command"].startswith("python -m tenfold.data.train_mini_host --output FOLDER")
    assert {"seed", "settings", "libraries", "date", "parameters"} <= made.keys()
    for seed, measured in gates["seeds"].items():
        assert measured["world"]["questions of a kind"] >= 100, seed
        assert measured["gates"].keys() == GATES.keys()
        assert all(gate["passed"] == within(name, gate["value"]) for name, gate in measured["gates"].items())
    for text in (json.dumps(made), json.dumps(gates)):
        assert not any(part in text for part in ("/home", "/tmp", "/work"))
    shipped = gates["seeds"][str(made["seed"])]
    probes = Probes(model, processor, prompts(processor, shipped["world"]["seed"], 100, ("two_hop",)))
    again = probes.by_kind(probes.right(probes.removed()[-1]))["two_hop"]
    assert again == pytest.approx(shipped["accuracy"]["two_hop"], abs=1)


def test_a_batch_padded_on_the_left_answers_like_single_questions(host, asked) -> None:
    """Fails if padding is on the right, or padded positions are attended to."""
    model, processor = host
    images = [flags.render(scene, 80 + 30 * number) for number, (scene, _) in enumerate(asked)]
    prompts = [
        mini_host.prompt(question.text + (f"\n{SHORT_ANSWER}" if number % 3 == 0 else ""))
        for number, (_, question) in enumerate(asked)
    ]
    together = mini_host.answer(model, processor, images, prompts)
    alone = [
        mini_host.answer(model, processor, [image], [text])[0] for image, text in zip(images, prompts, strict=True)
    ]
    assert together == alone
    assert all(len(answer.split()) == 1 for answer in together)


def test_an_answer_is_one_word_and_the_end_token(host, asked) -> None:
    """Fails if the host was not taught to stop."""
    model, processor = host
    scene, question = asked[0]
    inputs = processor(images=flags.render(scene), text=mini_host.prompt(question.text), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, mini_host.IMAGE_SIZE, mini_host.IMAGE_SIZE)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == mini_host.VISUAL_TOKENS
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(new) == 2 and new[1] == processor.tokenizer.eos_token_id


def test_the_chat_template_writes_the_prompt(host) -> None:
    """Fails if a conversation in transformers' form is written otherwise than the host was trained on."""
    _, processor = host
    image, text = {"type": "image"}, {"type": "text", "text": "What color is the circle?"}
    first = [{"role": "user", "content": [image, text]}]
    assert processor.apply_chat_template(first, add_generation_prompt=True) == mini_host.prompt(text["text"])
    second = [
        *first,
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "How many crosses are there?"}]},
    ]
    written = processor.apply_chat_template(second, add_generation_prompt=True)
    assert written == mini_host.prompt(text["text"]) + " red</s>USER: How many crosses are there? ASSISTANT:"


def test_the_tokenizer_knows_every_word_of_the_mini_world(host) -> None:
    """Fails if a question, caption, edit or ending has a word that becomes <unk>."""
    _, processor = host
    texts = [SHORT_ANSWER, mini_host.OPTION_LETTER, "A. red\nB. blue"]
    for index in range(60):
        scene = miniworld.scene(1, index)
        flagged = flags.scene(1, index)
        asked = (*miniworld.questions(scene, 1, index, 6), *flag_questions.questions(flagged, 1, index, 8))
        texts += [word for q in asked for word in (q.text, q.answer)]
        texts += [*miniworld.captions(scene, 1, index, 3), *(r.text for r in miniworld.referring(scene, 1, index, 3))]
    for text in texts:
        assert processor.tokenizer.unk_token_id not in processor.tokenizer(text)["input_ids"], text
    assert processor.tokenizer.unk_token_id in processor.tokenizer("zebra")["input_ids"]
    upper, lower = ("What colour is the ring?", "what color is the ring?")
    assert processor.tokenizer(upper)["input_ids"] == processor.tokenizer(lower)["input_ids"]


def test_the_shipped_folder_is_what_the_code_builds(host) -> None:
    """Fails if tokenizer, processor or configuration in the code have moved on from the shipped asset."""
    model, processor = host
    fresh = mini_host.processor()
    assert processor.tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
    assert processor.tokenizer.backend_tokenizer.to_str() == fresh.tokenizer.backend_tokenizer.to_str()
    assert processor.image_processor.to_dict() == fresh.image_processor.to_dict()
    assert processor.chat_template == fresh.chat_template
    assert processor.tokenizer.padding_side == fresh.tokenizer.padding_side == "left"
    theirs = mini_host.build(0).state_dict()
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        name: weight.shape for name, weight in theirs.items()
    }


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    """Fails if weights come from torch's global state, or building moves it."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (mini_host.build(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])


WITHOUT_TORCHVISION = """
import socket, sys
sys.modules["torchvision"] = None  # an import raises ImportError
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = refuse
from transformers import AutoModelForImageTextToText, AutoProcessor
from tenfold.data import mini_host
from tenfold.data.miniworld import flags
from tenfold.data.miniworld.flag_questions import asked
model = AutoModelForImageTextToText.from_pretrained(mini_host.path())
processor = AutoProcessor.from_pretrained(mini_host.path())
(scene, question), = asked("shape", 0, 1)
picture = flags.render(scene)
answer = mini_host.answer(model, processor, [picture], [mini_host.prompt(question.text)])
print(type(processor.image_processor).__name__, *answer, question.answer)
"""


def test_the_host_loads_through_the_auto_classes_without_torchvision_or_network() -> None:
    """Fails if the folder needs another image backend, a download, or code that is not in transformers."""
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    backend, answer, right = result.stdout.split()
    assert backend == "CLIPImageProcessorPil" and answer == right
