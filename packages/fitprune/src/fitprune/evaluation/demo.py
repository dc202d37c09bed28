"""`fitprune demo`: one image and one question, answered with and without pruning, and a picture of what was pruned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from PIL import Image

from fitprune.costs import DecoderShape, reduction
from fitprune.data.calibration import Prompts, mini_calibration, prompt_reduction
from fitprune.evaluation import picture
from fitprune.evaluation.settings import DemoSettings
from fitprune.fitting import Calibration, model_name
from fitprune.pruner import Pruner
from fitprune.recipe import ALIASES, Recipe, open_recipe
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data import mini_sets
from tenfold.data.miniworld import ONE_HOP, flag_questions, flags
from tenfold.data.pictures import open_picture
from tenfold.hosts.answers import generate_tokens
from tenfold.hosts.loading import Host, load_host
from tenfold.hosts.prompts import encode
from tenfold.hosts.structure import unwrap
from tenfold.runs import fingerprint, run, track
from tenfold.runs.progress import Progress

RATIO = 0.6
PICTURE = "surviving-patches.png"
MAX_NEW_TOKENS = 64
# A live fit looks at scenes 0, 1, ... of the mini world; the scene that is asked about lies elsewhere.
FITTING_SCENES = 8
SCENE = 1000
SCENE_PIXELS = 320


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        image: RGB.
        text: as it is shown.
        prompt: as the model reads it.
        gold: the right answer, where it is known.
    """

    image: Image.Image
    text: str
    prompt: str
    gold: str | None


@dataclass(frozen=True)
class Demonstration:
    """What a demonstration showed.

    Attributes:
        question: what was asked.
        recipe: restated for this prompt's number of visual tokens.
        picture: where the picture was written; None where the patches' places are not known.
        metrics: as in the run's record.
    """

    question: Question
    recipe: Recipe
    picture: Path | None
    metrics: dict[str, Any]


def run_demo(settings: DemoSettings, seed: int, output: Path, progress: Progress = track) -> Demonstration:
    """Answer one question with and without pruning; write picture, recipe and ``run.json`` into ``output``.

    Raises:
        UserError: model, image or recipe cannot be used, or an image without a question.
    """
    question = ask(settings, seed)
    host = load_host(settings)
    data = {"model": host.fingerprint}
    data |= {"image": fingerprint(Path(settings.image))} if settings.image else {}
    with run("fitprune", "demo", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        recipe = find_recipe(settings, host, seed, progress)
        inputs = encode(host.processor, host.model, question.image, question.prompt)
        answer = generate(host, inputs)
        pruner = Pruner(recipe)
        with pruner(host.model):
            answer_pruned = generate(host, inputs)
        surviving = pruner.surviving()
        visual, tokens = surviving.shape[1], inputs["input_ids"].shape[1]
        recipe = recipe if visual == recipe.visual_tokens else recipe.scale(visual)
        shape = DecoderShape.of(unwrap(host.model).config)
        current.metrics |= {
            "answer": answer,
            "answer_pruned": answer_pruned,
            "visual_tokens": visual,
            "left_after_layer": surviving.sum(1).tolist()[1:],
            "visual_reduction": reduction(recipe.remove, visual, shape),
            "prompt_reduction": prompt_reduction(recipe, tokens - visual, shape),
        }
        recipe.save(current.file("recipe.json"))
        grid = picture.patch_grid(inputs, visual)
        if grid is not None:
            image = picture.as_seen(question.image, inputs, host.processor)
            drawn = picture.draw(
                image, grid, picture.stages(surviving), heading=question.text, caption=_caption(current.metrics)
            )
            current.file(PICTURE).write_bytes(drawn)
    return Demonstration(question, recipe, None if grid is None else output / PICTURE, current.metrics)


def ask(settings: DemoSettings, seed: int) -> Question:
    """The image and the question that were named; by default a scene of the mini world and its own question.

    Raises:
        UserError: an image without a question, or a broken image.
    """
    if settings.image is not None:
        if not settings.question:
            raise UserError("no question about the image", "--image", '--question "What is in the image?"')
        return Question(open_picture(settings.image), settings.question, settings.question, None)
    scene = flags.scene(seed, SCENE)
    found = flag_questions.questions(scene, seed, SCENE, 1, ONE_HOP)
    image = flags.render(scene, SCENE_PIXELS)
    if settings.question:
        return Question(image, settings.question, settings.question, None)
    return Question(image, found[0].text, f"{found[0].text}\n{mini_sets.SHORT_ANSWER}", found[0].answer)


def find_recipe(settings: DemoSettings, host: Host, seed: int, progress: Progress) -> Recipe:
    """The recipe that was named: a file, a released one, or one fitted now to a few scenes of the mini world.

    Raises:
        UserError: none was named and none was released for this model; or the one that was named cannot be used.
    """
    ratio = _ratio(settings.recipe)
    if settings.recipe is None and settings.model == MINI:
        ratio = RATIO
    if ratio is not None:
        prompts = Prompts(host, mini_calibration(seed, FITTING_SCENES))
        return Calibration(host.model, host.processor, prompts, progress=progress).recipe(ratio)
    if settings.recipe is not None:
        return open_recipe(settings.recipe)
    name = model_name(host.model)
    for released, others in ALIASES.items():
        if any(other == name or other.endswith(f"/{name}") for other in others):
            return Recipe.released(released, round(100 * RATIO))
    raise UserError("no recipe was released for this model", name, "--recipe FILE, or --recipe 0.6 to fit one now")


@torch.inference_mode()
def generate(host: Host, inputs: dict[str, Any]) -> str:
    """The greedy answer to a prompt, at most 64 tokens."""
    tokens = generate_tokens(host.model, inputs, max_new_tokens=MAX_NEW_TOKENS)
    return host.processor.decode(tokens[0], skip_special_tokens=True).strip()


def _ratio(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _caption(metrics: dict[str, Any]) -> str:
    whole, pruned = (shorten(metrics[name], 80, placeholder=" …") for name in ("answer", "answer_pruned"))
    left = metrics["left_after_layer"][-1]
    return (
        f"“{whole}” with all {metrics['visual_tokens']} visual tokens, “{pruned}” with {left} left. "
        f"FLOPs saved: {saved(metrics)}."
    )


def saved(metrics: dict[str, Any]) -> str:
    """The shares of FLOPs that a demonstration saved, in words."""
    visual, prompt = metrics["visual_reduction"], metrics["prompt_reduction"]
    return f"{visual:.1%} for the visual tokens, {prompt:.1%} for the whole prompt"
