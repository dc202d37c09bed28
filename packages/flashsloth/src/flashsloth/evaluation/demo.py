"""`flashsloth demo`: a question about an image, answered, and where SAP and EmbQ looked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from flashsloth.data import mini_world as world
from flashsloth.evaluation.baselines import control
from flashsloth.evaluation.model import Host, open_host
from flashsloth.evaluation.picture import draw
from flashsloth.evaluation.settings import DemoSettings
from tenfold import UserError
from tenfold.data.pictures import open_picture
from tenfold.hosts.answers import Prompt, encode_batch, generate
from tenfold.runs import fingerprint, run

PICTURE = "where-it-looked.png"
MAX_NEW_TOKENS = 128
DEMO_WORLD = 3_000_000  # nothing was trained on it and no result is about it


@dataclass(frozen=True)
class Demonstration:
    """What a demonstration showed.

    Attributes:
        model: its name. question: what was asked.
        picture: where the picture was written.
        metrics: as in the run's record.
    """

    model: str
    question: str
    picture: Path
    metrics: dict[str, Any]

    def __rich__(self) -> Group:
        metrics, facts = self.metrics, Table.grid(padding=(0, 2))
        right = "" if metrics["right"] is None else f"   (right: {metrics['right']})"
        facts.add_row("question", Text(self.question, overflow="fold"))
        facts.add_row("answer", Text(metrics["answer"], style="bold", overflow="fold") + Text(right, style="dim"))
        facts.add_row("without EmbQ's look", Text(metrics["blind"], overflow="fold"))
        facts.add_row("tokens", Text(f"{metrics['visual_tokens']} visual, for {metrics['patches']} patches"))
        facts.add_row("picture", Text(str(self.picture), overflow="fold"))
        return Group(Text(self.model, style="bold"), facts)


def run_demo(settings: DemoSettings, seed: int, output: Path) -> Demonstration:
    """Answer a question about one image; write the picture and `run.json` into `output`.

    Raises:
        UserError: model or image cannot be used, or an image without a question.
    """
    image, question, right = _asked(settings, seed)
    host = open_host(settings)
    data = {"model": host.fingerprint}
    data |= {"image": fingerprint(Path(settings.image))} if settings.image else {}
    with run("flashsloth", "demo", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        model, processor = host.model, host.processor
        prompt = Prompt(processor.prompt(question), (image,))
        answer = generate(model, processor, [prompt], max_new_tokens=MAX_NEW_TOKENS)[0]
        with control(model, "blind"):
            blind = generate(model, processor, [prompt], max_new_tokens=MAX_NEW_TOKENS)[0]
        current.metrics |= {
            "answer": answer.text,
            "right": right,
            "blind": blind.text,
            "visual_tokens": answer.visual_tokens,
            "patches": model.config.patches_per_image,
        }
        sap, embq = looks(host, prompt)
        title = f"{host.name}: {question} → {answer.text}"
        current.file(PICTURE).write_bytes(draw(image, sap, embq, title))
    return Demonstration(host.name, question, output / PICTURE, current.metrics)


def _asked(settings: DemoSettings, seed: int) -> tuple[Image.Image, str, str | None]:
    """Image, question and, where it is known, the right answer."""
    if settings.image is not None:
        if not settings.question:
            raise UserError("no question about the image", "--image", '--question "What is in the image?"')
        return open_picture(Path(settings.image)), settings.question, None
    scene = world.draw(DEMO_WORLD + seed, 1)
    one = world.question(scene, "shape", 0)
    return world.render(scene), settings.question or one.text, None if settings.question else one.answer


@torch.inference_mode()
def looks(host: Host, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Of the whole image's view: SAP's weight of each patch in its block, and EmbQ's mean over heads and queries,
    both ``[side, side]``."""
    model, side = host.model, host.model.config.grid
    seen: list[tuple[Any, ...]] = []
    handle = model.model.embq.register_forward_pre_hook(lambda _, given: seen.append(given))
    inputs = encode_batch(host.processor, model, [prompt])
    model(**inputs)
    handle.remove()
    queries, text, mask, patches, _ = seen[0]
    read = model.model.embq.text_step(queries[0], text[0], mask[0])
    weights = model.model.embq.image_weights(read, patches[:1]).mean(dim=(1, 2))[0, : side * side]
    pool = model.config.pool
    blocks = -(-side // pool)
    alpha = model.model.pooling.weights(patches[:1, : side * side])  # [1, blocks^2, p*p]
    grid = alpha.view(blocks, blocks, pool, pool).transpose(1, 2).reshape(blocks * pool, blocks * pool)
    return grid[:side, :side].float().cpu(), weights.view(side, side).float().cpu()
