"""`llava-hr demo`: a question about an image, answered, with the image as both pathways see it and the gates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Group
from rich.table import Table
from rich.text import Text

from llava_hr.evaluation.answers import Answerer, Query
from llava_hr.evaluation.gates import gate_report
from llava_hr.evaluation.model import Host, open_host
from llava_hr.evaluation.picture import View, draw
from llava_hr.evaluation.settings import DemoSettings
from llava_hr.vision import LlavaHrVisionTower
from tenfold import UserError
from tenfold.data.formats.prompts import short_answer
from tenfold.data.pictures import open_picture
from tenfold.runs import fingerprint, run

PICTURE = "two-resolutions.png"
MAX_NEW_TOKENS = 128
# A world that nothing was trained on and no result is about.
DEMO_WORLD = 104_729
# What a detail shows around the mark that a fine question is about, in pixels of the scene.
_AROUND = 16


@dataclass(frozen=True)
class Asked:
    """A question.

    Attributes:
        text: as it is shown.
        prompt: as the model reads it.
        gold: the right answer, where it is known.
    """

    text: str
    prompt: str
    gold: str | None = None


@dataclass(frozen=True)
class Shown:
    """What is asked about.

    Attributes:
        image: RGB.
        questions: at least one.
        detail: what the first question is about: left, top, right, bottom of the image, each from 0 to 1.
    """

    image: Image.Image
    questions: tuple[Asked, ...]
    detail: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Demonstration:
    """What a demonstration showed.

    Attributes:
        model: its name.
        shown: image and questions.
        picture: where the picture was written.
        metrics: as in the run's record.
    """

    model: str
    shown: Shown
    picture: Path
    metrics: dict[str, Any]

    def __rich__(self) -> Group:
        facts = Table.grid(padding=(0, 2))
        for question, answer in zip(self.shown.questions, self.metrics["answers"], strict=True):
            facts.add_row("question", Text(question.text, overflow="fold"))
            right = "" if question.gold is None else f"   (right: {question.gold})"
            facts.add_row("answer", Text(answer, style="bold", overflow="fold") + Text(right, style="dim"))
        metrics = self.metrics
        facts.add_row("visual tokens", Text(f"{metrics['visual_tokens']} for {metrics['pixels']} pixels"))
        gates = ", ".join(f"{gate:+.3f} after layer {layer}" for layer, gate in metrics["gates"].items())
        facts.add_row("gates", Text(gates or "none: this model has no adapters"))
        facts.add_row("picture", Text(str(self.picture), overflow="fold"))
        return Group(Text(self.model, style="bold"), facts)


def run_demo(settings: DemoSettings, seed: int, output: Path) -> Demonstration:
    """Answer the questions about one image; write the picture and `run.json` into `output`.

    Raises:
        UserError: model or image cannot be used, or an image without a question.
    """
    shown = ask(settings, seed)
    host = open_host(settings)
    data = {"model": host.fingerprint}
    data |= {"image": fingerprint(Path(settings.image))} if settings.image else {}
    with run("llava_hr", "demo", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        answerer = Answerer(host.model, host.processor)
        queries = [Query.about(host.processor, one.prompt, lambda: shown.image, key="image") for one in shown.questions]
        # One by one: a conversation's questions come one by one, and the second costs no pass of the tower.
        answers = [answerer.answers([query], MAX_NEW_TOKENS)[0] for query in queries]
        gates, views = look(host, shown)
        current.metrics |= {
            "answers": [answer.text for answer in answers],
            "right": [_is_right(one, answer.text) for one, answer in zip(shown.questions, answers, strict=True)],
            "gates": {str(layer): gate for layer, gate in gates.items()},
            "visual_tokens": answers[0].visual_tokens,
            "pixels": host.model.config.vision_config.image_size,
            "new_tokens": [answer.new_tokens for answer in answers],
        }
        lines = [line_of(one, answer.text) for one, answer in zip(shown.questions, answers, strict=True)]
        drawn = draw(views, gates, heading=f"{host.name}, {answers[0].visual_tokens} visual tokens", lines=lines)
        current.file(PICTURE).write_bytes(drawn)
    return Demonstration(host.name, shown, output / PICTURE, current.metrics)


def ask(settings: DemoSettings, seed: int) -> Shown:
    """The image and the question that were named; by default a scene of the miniature, a fine and a coarse question.

    Raises:
        UserError: an image without a question, or a broken image.
    """
    if settings.image is not None:
        if not settings.question:
            raise UserError("no question about the image", "--image", '--question "What is in the image?"')
        return Shown(open_picture(settings.image), (Asked(settings.question, settings.question),))
    return _scene(seed, settings.question)


def _scene(seed: int, question: str | None) -> Shown:
    from llava_hr.data.mini_questions import all_questions
    from llava_hr.data.mini_world import SIZE, render, scene

    index = 0
    while not all_questions(drawn := scene(DEMO_WORLD + seed, index), "letter"):
        index += 1
    if question:
        return Shown(render(drawn), (Asked(question, question),))
    asked = [all_questions(drawn, kind)[0] for kind in ("letter", "shape")]
    marked = next(one for one in drawn.objects if one.mark == "letter")
    box = (marked.mark_x - _AROUND, marked.mark_y - _AROUND, marked.mark_x + _AROUND, marked.mark_y + _AROUND)
    left, top, right, bottom = (min(max(edge / SIZE, 0.0), 1.0) for edge in box)
    questions = tuple(Asked(one.text, short_answer(one.text), one.answer) for one in asked)
    return Shown(render(drawn), questions, (left, top, right, bottom))


def look(host: Host, shown: Shown) -> tuple[dict[int, float], list[View]]:
    """The gates of an image by layer, and the image as the two pathways see it; the details last, where there are some.

    A tower that is not the paper's has one view and no gates.
    """
    pixels = host.processor.image_processor(shown.image, return_tensors="pt")["pixel_values"]
    tower = host.model.model.vision_tower
    side = pixels.shape[-1]
    if not isinstance(tower, LlavaHrVisionTower):
        return {}, [View.of(f"{side} × {side} pixels", pixels[0])]
    low = tower.low_res_image(pixels)
    small = low.shape[-1]
    views = [
        View.of(f"high resolution, for the ConvNeXt: {side} × {side} pixels", pixels[0]),
        View.of(f"low resolution, for the ViT: {small} × {small} pixels", low[0]),
    ]
    if shown.detail is not None:
        views += [
            view.detail(f"a detail in {kind} resolution", shown.detail)
            for kind, view in zip(("high", "low"), views, strict=True)
        ]
    if not len(tower.adapters):
        return {}, views
    report = gate_report(host.model, pixels)
    return dict(zip(report.layers, report.gates[0].tolist(), strict=True)), views


def _is_right(question: Asked, answer: str) -> bool | None:
    return None if question.gold is None else answer.strip().rstrip(".").lower() == question.gold.lower()


def line_of(question: Asked, answer: str) -> str:
    right = "" if question.gold is None else f"   (right: {question.gold})"
    return f"{question.text}   →   {answer}{right}"
