"""The demonstration: two answers, what was saved, and the picture of the patches that are left."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fitprune.commands.tables import demo_tables
from fitprune.costs import LLAVA_7B, DecoderShape, reduction
from fitprune.evaluation import picture
from fitprune.evaluation.demo import PICTURE, SCENE, ask, run_demo
from fitprune.evaluation.settings import DemoSettings
from fitprune.pruner import Pruner
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.cli.app import console
from tenfold.data import mini_host, miniworld
from tenfold.data.miniworld import flags
from tenfold.hosts.loading import load_host
from tenfold.runs import RunRecord

MINI_SHAPE = DecoderShape(layers=12, hidden=96, intermediate=192, heads=4)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The default demonstration, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    return run_demo(DemoSettings(), 0, folder), folder


def printed(demonstration):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        console().print(demo_tables(demonstration))
    return text.getvalue()


def test_the_default_asks_a_scene_whose_answer_is_known(shown):
    demonstration, _ = shown
    scene = flags.scene(0, SCENE)
    assert demonstration.question.gold in {thing.shape for thing in scene.things} | {t.colour for t in scene.things}
    assert "right answer" in printed(demonstration)


def test_both_answers_are_those_of_the_model_and_of_the_pruned_model(shown):
    """Fails if run_demo generates outside the pruner's context, or reports one answer twice."""
    demonstration, folder = shown
    model, processor = mini_host.load()
    text = mini_host.prompt(demonstration.question.prompt)
    inputs = processor(images=demonstration.question.image, text=text, return_tensors="pt")

    def answer():
        tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    assert demonstration.metrics["answer"] == answer()
    pruner = Pruner(Recipe.load(folder / "recipe.json"))
    with pruner(model):
        assert demonstration.metrics["answer_pruned"] == answer()
    assert demonstration.metrics["left_after_layer"] == [count for (count,) in pruner.visual_tokens()[1:]]


def test_what_is_shown_follows_from_the_recipe(shown):
    """Fails if the table shows tokens at a layer's input, or the saving that was asked for."""
    demonstration, folder = shown
    recipe = Recipe.load(folder / "recipe.json")
    metrics = demonstration.metrics
    assert metrics["left_after_layer"] == recipe.alive()[1:]
    assert metrics["visual_reduction"] == reduction(recipe.remove, 100, MINI_SHAPE)
    assert 0 < metrics["prompt_reduction"] < metrics["visual_reduction"]
    lines = [line.strip("│").split("│") for line in printed(demonstration).splitlines() if line.startswith("│")]
    assert [int(cells[2]) for cells in lines] == recipe.alive()[1:]
    assert f"{metrics['visual_reduction']:.1%}" in printed(demonstration)


def test_a_run_record_and_a_picture_are_written(shown):
    demonstration, folder = shown
    record = RunRecord.load(folder)
    assert record.metrics == demonstration.metrics
    assert record.outputs.keys() == {PICTURE, "recipe.json"}
    with Image.open(folder / PICTURE) as image:
        assert image.width > 600


def test_the_same_seed_gives_the_same_bytes(shown, tmp_path):
    _, folder = shown
    run_demo(DemoSettings(), 0, tmp_path / "again")
    assert (tmp_path / "again" / PICTURE).read_bytes() == (folder / PICTURE).read_bytes()


def test_any_image_and_question_can_be_asked(tmp_path):
    """Fails if the image is replaced by the scene, the recipe that was named by another one, or "$" is typeset."""
    Image.new("RGB", (50, 30), (200, 30, 30)).save(tmp_path / "red.jpg")
    recipe = Recipe("mini_host", 12, 100, (94, *[0] * 11))
    recipe.save(tmp_path / "recipe.json")
    question = "Is it worth $_{ or $5?"  # what a drawing library may take for mathematics
    settings = DemoSettings(image=str(tmp_path / "red.jpg"), question=question, recipe=str(tmp_path / "recipe.json"))
    demonstration = run_demo(settings, 0, tmp_path / "run")
    assert demonstration.metrics["left_after_layer"] == [6] * 12
    assert demonstration.question.gold is None
    assert "right answer" not in printed(demonstration)
    assert RunRecord.load(tmp_path / "run").data.keys() == {"model", "image"}
    colours = np.asarray(Image.open(tmp_path / "run" / PICTURE).convert("RGB")).reshape(-1, 3)
    assert ((colours - np.array([200, 30, 30])) ** 2).sum(1).min() < 30


def test_texts_in_brackets_are_printed_as_they_are(shown):
    """Fails if texts of the user, the model or a recipe file are read as markup."""
    demonstration, _ = shown
    question = replace(demonstration.question, text="What is [bold]this[/red]?")
    recipe = replace(demonstration.recipe, model="host[/x]")
    text = printed(replace(demonstration, question=question, recipe=recipe))
    assert "What is [bold]this[/red]?" in text
    assert "host[/x]" in text


def test_a_recipe_for_other_prompts_is_scaled(tmp_path):
    Recipe("mini_host", 12, 200, (120, *[0] * 11)).save(tmp_path / "recipe.json")
    demonstration = run_demo(DemoSettings(recipe=str(tmp_path / "recipe.json")), 0, tmp_path / "run")
    assert demonstration.metrics["left_after_layer"] == [40] * 12
    assert demonstration.recipe.visual_tokens == 100


def test_without_a_known_grid_only_the_table_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "patch_grid", lambda inputs, visual: None)
    demonstration = run_demo(DemoSettings(), 0, tmp_path / "run")
    assert "is not known" in printed(demonstration)
    assert not (tmp_path / "run" / PICTURE).exists()


def test_an_image_needs_a_question():
    with pytest.raises(UserError, match="no question about the image"):
        ask(DemoSettings(image="cat.jpg"), 0)


def test_the_mini_host_computes_in_float32_and_others_as_they_are_stored(tmp_path):
    model, processor = mini_host.load()
    model.bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_host(DemoSettings()).model.dtype == torch.float32
    assert load_host(DemoSettings(model=str(tmp_path))).model.dtype == torch.bfloat16
    assert load_host(DemoSettings(model=str(tmp_path), dtype="float16")).model.dtype == torch.float16


def inputs(shape=(1, 3, 336, 336), **more):
    return {"pixel_values": torch.zeros(shape), **more}


@pytest.mark.parametrize(
    ("given", "visual", "grid"),
    [
        (inputs(), 576, (24, 24)),
        (inputs((64, 1176), image_grid_thw=torch.tensor([[1, 8, 8]])), 16, (4, 4)),
        (inputs((96, 1176), image_grid_thw=torch.tensor([[1, 6, 16]])), 24, (3, 8)),
        (inputs(), 580, None),  # not square
        (inputs((5, 3, 336, 336)), 576, None),  # tiles
        (inputs((1, 5, 3, 336, 336)), 2304, None),  # tiles of one image
        (inputs((64, 1176), image_grid_thw=torch.tensor([[2, 8, 8]])), 32, None),  # a video
        (inputs((64, 1176), image_grid_thw=torch.tensor([[1, 8, 8], [1, 8, 8]])), 32, None),  # two images
    ],
)
def test_the_grid_of_patches_is_known_for_one_whole_image(given, visual, grid):
    assert picture.patch_grid(given, visual) == grid


def test_stages_are_the_depths_at_which_tokens_leave():
    remove = Recipe.released("llava-1.5-7b", 60).remove
    left = [576 - sum(remove[:layer]) for layer in range(33)]
    surviving = torch.arange(576) < torch.tensor(left)[:, None]
    found = picture.stages(surviving)
    assert found[0].title == "whole image"
    assert found[-1].left.sum() == 127
    assert [stage.left.sum() for stage in found] == sorted({stage.left.sum() for stage in found}, reverse=True)
    for stage in found[1:]:
        assert remove[stage.first] and remove[stage.last]
        assert stage.left.sum() == left[stage.last + 1]
    covered = {layer for stage in found[1:] for layer in range(stage.first, stage.last + 1)}
    assert {layer for layer, count in enumerate(remove) if count} <= covered
    assert LLAVA_7B.layers == len(remove)


def test_removed_patches_are_grey_and_others_untouched():
    """Fails if the mask is transposed or inverted."""
    colour = np.zeros((8, 12, 3), dtype=np.float32)
    colour[..., 0] = 0.9
    left = np.array([[True, False, False], [False, True, True]]).reshape(-1)
    faded = picture._faded(colour, (2, 3), left)
    saturation = faded.max(axis=2) - faded.min(axis=2)
    present = left.reshape(2, 3).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(faded[present], colour[present])
    assert saturation[~present].max() < 0.1


@pytest.mark.parametrize("way", ["squashed", "centre", "padded"])
def test_the_picture_shows_what_the_model_saw(way):
    """Fails if as_seen always takes the whole image: the crop's patches would be drawn over the wrong pixels."""
    scene = miniworld.render(miniworld.scene(0, 3), 300)
    wide = Image.new("RGB", (420, 300), (30, 90, 30))
    wide.paste(scene, (20, 0))
    square = {"height": 48, "width": 48}
    crop = {"size": {"shortest_edge": 48}, "crop_size": square}
    whole = {"size": square, "crop_size": square, "do_center_crop": False}
    processor = CLIPImageProcessorPil(**(crop if way == "centre" else whole))
    centre = wide.crop((60, 0, 360, 300))
    padded = Image.new("RGB", (420, 420), tuple(int(255 * value) for value in processor.image_mean))
    padded.paste(wide, (0, 60))
    seen = {"squashed": wide, "centre": centre, "padded": padded}[way]
    given = processor(images=padded if way == "padded" else wide, return_tensors="pt")
    found = picture.as_seen(wide, given, type("Processor", (), {"image_processor": processor}))
    assert found.size == seen.size
    assert np.array_equal(np.asarray(found), np.asarray(seen))


def test_pixels_that_resemble_no_crop_are_drawn_themselves():
    generator = torch.Generator().manual_seed(0)
    given = {"pixel_values": torch.randn(1, 3, 48, 48, generator=generator)}
    processor = type("Processor", (), {"image_processor": CLIPImageProcessorPil()})
    found = picture.as_seen(miniworld.render(miniworld.scene(0, 3), 300), given, processor)
    assert found.size == (48, 48)
