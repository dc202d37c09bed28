"""Answers: each image through the tower once, batches of mixed rows, prompts that do not fit."""

import pytest
import torch
from llava_hr_eval_fixtures import make_processor, write_model
from PIL import Image

from llava_hr.checkpoints.load import load
from llava_hr.evaluation.answers import Answerer, Query
from llava_hr.evaluation.benchmarks import find_benchmark
from tenfold import UserError
from tenfold.data import miniworld, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def host(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Three about each of four images."""
    folder = tmp_path_factory.mktemp("data") / "vqav2"
    write.write_vqav2(folder, 3, 4, 48)
    return find_benchmark("vqav2").read(folder, "val2014")


def passes(monkeypatch, model):
    """Images that go through the vision tower from now on."""
    seen = []
    inner = model.model.vision_tower.forward

    def forward(pixel_values, *arguments, **options):
        seen.append(len(pixel_values))
        return inner(pixel_values, *arguments, **options)

    monkeypatch.setattr(model.model.vision_tower, "forward", forward)
    return seen


def test_an_image_goes_through_the_tower_once(host, questions, monkeypatch):
    """Whatever the batches cut through. Fails if visual tokens are made anew for each question, or each batch."""
    model, processor = host
    seen = passes(monkeypatch, model)
    answerer = Answerer(model, processor)
    opened = []

    def query(question):
        def opener():
            opened.append(question.id)
            return question.image()

        return Query.about(processor, question.prompt, opener, key=question.picture.source)

    for start in range(0, len(questions), 2):
        answerer.answers([query(one) for one in questions[start : start + 2]], 4)
    images = len({one.picture.source for one in questions})
    assert (sum(seen), answerer.encoded, len(opened)) == (images, images, images)
    assert len(questions) > 2 * images


def test_a_second_image_under_no_name_is_not_taken_for_the_first(host):
    """Fails if images are known by their place in memory, which a later image may have."""
    model, processor = host
    answerer, found = Answerer(model, processor), []
    for index in range(4):
        image = miniworld.render(miniworld.scene(5, index), 64)
        found.append(answerer.answers([Query.about(processor, "What is it?", image)], 8)[0].text)
        assert (
            found[-1] == Answerer(model, processor).answers([Query.about(processor, "What is it?", image)], 8)[0].text
        )
        del image
    assert answerer.encoded == 4 and len(set(found)) > 1


def test_prompts_with_and_without_an_image_share_a_batch(host):
    """And a question that speaks of <image>. Fails if images are matched to rows by place in the batch, or words of a
    question become an image."""
    model, processor = host
    images = [miniworld.render(miniworld.scene(7, index), 64) for index in range(2)]
    queries = [
        Query.about(processor, "What color is the circle?", images[0], key="z"),
        Query.about(processor, "How many objects are there?", None),
        Query.about(processor, "What is <image> about?", images[1], key="a"),
    ]
    text = queries[2].prompt.text
    assert text.count("<image>") == 2 and queries[2].prompt.images == (text.index("<image>"),)
    together = Answerer(model, processor).answers(queries, 12)
    alone = [Answerer(model, processor).answers([query], 12)[0] for query in queries]
    assert together == alone and [one.visual_tokens for one in together] == [4, 0, 4]
    other = Query.about(processor, "What is <image> about?", images[0])
    assert Answerer(model, processor).answers([other], 12)[0].text != together[2].text


def test_a_prompt_beyond_the_model_names_its_question(folder):
    """Fails if rows are cut off in silence."""
    model, _ = load(folder, device="cpu")
    short = make_processor(max_positions=20)
    query = Query.about(short, "What " * 20, Image.new("RGB", (8, 8)), name="TextVQA, 34602")
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens, visual ones included: TextVQA, 34602 .*at most 20"):
        Answerer(model, short).answers([query], 4)


def test_inference_leaves_no_graph(host):
    """Fails if visual tokens are kept with their gradients: memory would grow with every image."""
    model, processor = host
    answerer = Answerer(model, processor)
    answerer.answers([Query.about(processor, "What?", Image.new("RGB", (8, 8)))], 2)
    (kept,) = answerer._kept.values()
    assert not kept.requires_grad and kept.shape == (1, 4, 24) and kept.dtype == torch.float32
