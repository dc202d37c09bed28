"""The demonstration: answers, gates, the picture of both resolutions. A tiny model stands for the one that ships."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from llava_hr_eval_fixtures import make_processor, write_model
from PIL import Image
from rich.console import Console

from llava_hr.commands.app import main
from llava_hr.data.mini_world import SIZE, scene
from llava_hr.evaluation import demo
from llava_hr.evaluation import model as hosts
from llava_hr.evaluation.answers import Answerer
from llava_hr.evaluation.demo import DEMO_WORLD, PICTURE, Asked, ask, look, run_demo
from llava_hr.evaluation.gates import gate_report
from llava_hr.evaluation.model import Host, open_host
from llava_hr.evaluation.picture import View, draw
from llava_hr.evaluation.settings import DemoSettings
from tenfold import UserError
from tenfold.runs import RunRecord


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def shipped(model):
    """The tiny model in the place of the mini model, and answers of 12 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "mini_folder", lambda: model)
        patch.setattr(demo, "MAX_NEW_TOKENS", 12)
        yield


@pytest.fixture(scope="module")
def shown(tmp_path_factory, shipped):
    """The default demonstration, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    return run_demo(DemoSettings(device="cpu"), 0, folder), folder


def printed(demonstration):
    text = io.StringIO()
    Console(file=text, width=140).print(demonstration)
    return text.getvalue()


def test_the_default_asks_a_fine_and_a_coarse_question_whose_answers_are_known(shown):
    """Fails if the questions are about another scene than the picture's."""
    demonstration, _ = shown
    fine, coarse = demonstration.shown.questions
    index = 0
    while not any(one.mark == "letter" for one in scene(DEMO_WORLD, index).objects):
        index += 1
    letters = {
        f"Which letter is on the {one.colour} {one.shape}?": one.value for one in scene(DEMO_WORLD, index).objects
    }
    assert letters[fine.text] == fine.gold
    assert coarse.text.startswith("What shape is the ") and coarse.gold in {
        one.shape for one in scene(DEMO_WORLD, index).objects
    }
    assert fine.prompt == f"{fine.text}\nAnswer the question using a single word or phrase."
    assert f"(right: {fine.gold})" in printed(demonstration)


def test_answers_and_gates_are_those_of_the_model(shown):
    """Asked by the public interface. Fails if the second question is answered from another image's visual tokens, or
    gates are those of the untrained adapters."""
    demonstration, folder = shown
    host = open_host(DemoSettings(device="cpu"))
    image = demonstration.shown.image
    for question, answer in zip(demonstration.shown.questions, demonstration.metrics["answers"], strict=True):
        inputs = host.processor(images=image, text=host.processor.prompt(question.prompt), return_tensors="pt")
        row = host.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer == host.processor.decode(row, skip_special_tokens=True).strip()
    report = gate_report(host.model, inputs["pixel_values"])
    assert demonstration.metrics["gates"] == {
        str(layer): gate for layer, gate in zip(report.layers, report.gates[0].tolist(), strict=True)
    }
    assert list(demonstration.metrics["gates"]) == ["1", "2", "3"] and len(set(report.gates[0].tolist())) == 3
    assert all(
        f"{gate:+.3f} after layer {layer}" in printed(demonstration)
        for layer, gate in demonstration.metrics["gates"].items()
    )
    assert RunRecord.load(folder).metrics == demonstration.metrics


def test_the_image_is_encoded_once_for_both_questions(tmp_path, monkeypatch):
    encoded = []
    original = Answerer._encode
    monkeypatch.setattr(Answerer, "_encode", lambda self, opener: encoded.append(1) or original(self, opener))
    run_demo(DemoSettings(device="cpu"), 1, tmp_path / "run")
    assert encoded == [1]


def test_a_run_record_and_a_picture_are_written_the_same_for_the_same_seed(shown, tmp_path):
    _, folder = shown
    record = RunRecord.load(folder)
    assert record.outputs.keys() == {PICTURE} and record.data.keys() == {"model"}
    run_demo(DemoSettings(device="cpu"), 0, tmp_path / "again")
    assert (tmp_path / "again" / PICTURE).read_bytes() == (folder / PICTURE).read_bytes()
    with Image.open(folder / PICTURE) as image:
        assert image.width > 1200


def test_any_image_and_question_can_be_asked_of_any_model(model, tmp_path):
    """A wide JPEG, under a folder's name. Fails if the scene's question is asked instead, or "$" is typeset."""
    Image.new("RGB", (90, 30), (200, 30, 30)).save(tmp_path / "red.jpg", quality=95)
    question = "Is it worth $_{ or [bold]$5[/red]?"  # what a drawing library or a terminal may take for markup
    settings = DemoSettings(model=str(model), image=str(tmp_path / "red.jpg"), question=question, device="cpu")
    demonstration = run_demo(settings, 0, tmp_path / "run")
    assert demonstration.shown.questions == (Asked(question, question),)
    assert question in printed(demonstration) and "(right:" not in printed(demonstration)
    assert demonstration.metrics["right"] == [None] and demonstration.model == "tiny"
    assert RunRecord.load(tmp_path / "run").data.keys() == {"model", "image"}
    colours = np.asarray(Image.open(tmp_path / "run" / PICTURE).convert("RGB")).reshape(-1, 3)
    for colour in ((200, 30, 30), (122, 116, 104)):  # the picture, and what it is padded with
        assert ((colours.astype(int) - colour) ** 2).sum(1).min() < 30


def test_a_question_about_the_scene_can_be_asked(tmp_path):
    found = run_demo(DemoSettings(question="What is it?", device="cpu"), 0, tmp_path / "run")
    assert found.shown.questions == (Asked("What is it?", "What is it?"),) and found.shown.image.size == (SIZE, SIZE)


def test_the_views_are_what_the_pathways_see(shown):
    """Fails if the low-resolution view is resized by another rule, or pixels are drawn normalised."""
    demonstration, _ = shown
    host = open_host(DemoSettings(device="cpu"))
    gates, views = look(host, demonstration.shown)
    assert len(gates) == 3 and [view.pixels.shape[:2] for view in views[:2]] == [(64, 64), (28, 28)]
    resized = np.asarray(demonstration.shown.image.resize((64, 64), Image.Resampling.BICUBIC)) / 255
    assert np.abs(views[0].pixels - resized).max() < 1e-5
    low = torch.nn.functional.interpolate(
        torch.from_numpy(views[0].pixels).permute(2, 0, 1)[None], size=(28, 28), mode="bilinear", align_corners=True
    )
    assert np.abs(views[1].pixels - low[0].permute(1, 2, 0).numpy()).max() < 1e-5
    left, top, right, bottom = (int(64 * edge) for edge in demonstration.shown.detail)
    part = views[0].pixels[top:bottom, left:right]
    rows, columns = part.shape[:2]
    assert np.array_equal(views[2].pixels[:rows, :columns], part) and views[2].pixels.shape[0] <= rows + 1


def test_a_model_without_adapters_has_no_gates(tmp_path):
    """A stage-1 model. Fails if the gates of a missing adapter are asked for."""
    folder = write_model(tmp_path / "stage-1", adapters=False)
    found = run_demo(DemoSettings(model=str(folder), device="cpu"), 0, tmp_path / "run")
    assert found.metrics["gates"] == {} and "this model has no adapters" in printed(found)


def test_another_tower_is_drawn_as_it_sees(shown):
    """Of an experiment. Fails if the paper's tower is taken for granted."""
    host = open_host(DemoSettings(device="cpu"))
    host.model.model.vision_tower = torch.nn.Identity()
    other = Host(host.model, make_processor(), "variant", host.fingerprint)
    gates, views = look(other, replace(shown[0].shown, detail=None))
    assert gates == {} and len(views) == 1


def test_the_picture_grows_with_its_texts_and_bars():
    view = View("a view", np.zeros((4, 4, 3)))

    def size(*arguments, **options):
        return Image.open(io.BytesIO(draw(*arguments, **options))).size

    plain = size([view], {}, heading="x", lines=["a"])
    assert size([view], {}, heading="x", lines=["a", "b", "word " * 80])[1] > plain[1]
    assert size([view], {6: 0.5, 12: -0.5}, heading="x", lines=["a"])[1] > plain[1]
    assert size([view, view], {}, heading="x", lines=["a"])[0] > plain[0]


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["llava-hr", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    output = capsys.readouterr()
    return exit.value.code or 0, output.out, output.err


def test_the_command_prints_answers_and_verify_repeats_them(monkeypatch, capsys, tmp_path):
    code, out, _ = command(monkeypatch, capsys, "demo", "--device", "cpu", "--output", tmp_path / "run")
    metrics = RunRecord.load(tmp_path / "run").metrics
    assert code == 0 and "gates" in out and metrics["answers"][0].split("\n")[0][:20] in out
    code, out, _ = command(monkeypatch, capsys, "verify", tmp_path / "run")
    assert code == 0 and "compared bit for bit" in out


FAULTS = {
    "no question": (["--image", "red.png"], "no question about the image"),
    "no such image": (["--image", "nowhere.png", "--question", "What?"], "no such image"),
    "no image": (["--image", "text.png", "--question", "What?"], "broken image"),
    "a truncated image": (["--image", "cut.png", "--question", "What?"], "broken image"),
    "no such model": (["--model", "nowhere"], "no such model"),
    "no model in it": (["--model", "."], "config.json"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_shown_is_one_line(monkeypatch, capsys, tmp_path, case):
    """D10: exit code 2, one line, nothing written."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 40), 90).save("red.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:300])
    arguments, named = FAULTS[case]
    code, _, err = command(monkeypatch, capsys, "demo", *arguments, "--output", "run")
    assert code == 2 and len(err.splitlines()) == 1 and named in err, err
    assert not (tmp_path / "run").exists()


def test_an_image_needs_a_question():
    with pytest.raises(UserError, match="no question about the image"):
        ask(DemoSettings(image="cat.jpg"), 0)
