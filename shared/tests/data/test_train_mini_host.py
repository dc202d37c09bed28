"""The trainer of the mini host: killed and resumed, it ends with the bits of a run that was left alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tenfold import UserError
from tenfold.data import mini_host, mini_lessons, miniworld
from tenfold.data import train_mini_host as module
from tenfold.data.mini_lessons import (
    CHAIN,
    EARLY,
    HINTED,
    LATE,
    ONE_WORD,
    PICTURE,
    TRAINED_NOISE,
    TWO_WORDS,
    UNSAID,
    WARMUP,
    Batches,
    Settings,
    looking,
    scene_size,
    schedule,
)
from tenfold.data.mini_probes import embed, walk, words
from tenfold.data.miniworld import flags
from tenfold.data.miniworld.flag_questions import KINDS
from tenfold.data.train_mini_host import app
from tenfold.runs import sample_rng

TOWER_STEPS, STEPS = 5, 9  # 14 in all: checkpoints after 4 of the tower's, and 3 and 7 of the decoder's
TOTAL = TOWER_STEPS + STEPS
TINY = ["--steps", str(STEPS), "--tower-steps", str(TOWER_STEPS), "--batch", "2", "--questions", "3"]
TINY += ["--checkpoint-every", "4"]


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tenfold.data.train_mini_host", "--output", str(folder), *TINY, *more]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def steps_done(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_when(process: subprocess.Popen[str], reached) -> None:
    """SIGKILL as soon as `reached()`; fails if the process ends before."""
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of STEPS steps."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, ["--output", str(folder), *TINY])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, (result.output, result.exception)
    return folder


def test_a_finished_run_holds_a_loadable_model_its_record_and_its_metrics(uninterrupted: Path) -> None:
    """Fails if a part of the result is missing, or a step is logged twice."""
    model, processor = mini_host.load(uninterrupted / "model")
    image = flags.render(flags.scene(0, 0))
    assert len(mini_host.answer(model, processor, [image], [mini_host.prompt("What color is the ring?")])) == 1
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1))
    assert ["tower_loss" in row for row in rows] == [True] * TOWER_STEPS + [False] * STEPS
    made = json.loads((uninterrupted / "model" / "training.json").read_text())
    run = json.loads((uninterrupted / "run.json").read_text())
    assert str(uninterrupted) not in json.dumps(made)
    assert {"model/model.safetensors", "model/training.json"} <= run["outputs"].keys()
    stored = load_file(uninterrupted / "model" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}


def test_killed_on_progress_and_inside_a_write_the_resumed_run_ends_with_the_same_bits(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGKILL after step 6; beside the good checkpoint lie leftovers of a kill inside the writing of another.

    Fails if a batch depends on the batches before it, if the optimiser's state is not restored, or if a checkpoint
    without its mark is trusted.
    """
    folder = tmp_path / "run"
    process = subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kill_when(process, lambda: steps_done(folder) >= 6)
    assert not (folder / "run.json").exists() and not (folder / "model").exists()
    whole = folder / "checkpoint-4"
    torn, half = folder / "checkpoint-13", folder / ".tmp-13"
    for leftover in (torn, half):
        leftover.mkdir()
        (leftover / "state.pt").write_bytes((whole / "state.pt").read_bytes()[:5000])
    refused = CliRunner().invoke(app, ["--output", str(folder), *TINY])
    assert isinstance(refused.exception, UserError) and "--resume" in str(refused.exception)
    resumed = subprocess.run(command(folder, "--resume"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stdout and "resuming after step 0" not in resumed.stdout
    assert "skipping torn checkpoint" in resumed.stderr
    assert weights(folder) == weights(uninterrupted)
    assert (folder / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_dozen_kills_one_after_the_other_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    """Soon after a start, after another checkpoint, and inside the writing of one, in turn.

    Fails if any of the places where a run can die leaves something that the next one trips over.
    """
    folder = tmp_path / "run"
    metrics, last = folder / "metrics.jsonl", 0
    for kill in range(12):
        process = subprocess.Popen(
            command(folder, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        target = min(last + (5 if kill % 2 else 2), TOTAL - 1)

        def stepped(before=before, target=target) -> bool:
            return metrics.exists() and metrics.stat().st_mtime_ns != before and steps_done(folder) >= target

        kill_when(process, (lambda: any(folder.glob(".tmp-[0-9]*"))) if kill % 3 == 2 else stepped)
        last = max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-[0-9]*")), default=0)
        if last >= 12:
            break
    assert last >= 12 and kill >= 3
    finished = subprocess.run(command(folder, "--resume"), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert weights(folder) == weights(uninterrupted)


def test_a_checkpoint_of_other_settings_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    """Fails if a run goes on with another seed or batch and calls the result its own."""
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted / "checkpoint-12", folder / "checkpoint-12")
    result = CliRunner().invoke(app, ["--output", str(folder), *TINY, "--seed", "1", "--resume"])
    assert isinstance(result.exception, UserError)
    assert "another seed" in str(result.exception) and not (folder / "model").exists()


SETTINGS = Settings(steps=mini_lessons.STEPS, batch=4, questions=4, threads=1)
LATE_STEP = mini_lessons.STEPS - 1


@pytest.fixture(scope="module")
def processor():
    return mini_host.processor()


def test_a_batch_depends_on_seed_and_step_alone(processor) -> None:
    """Fails if batches share a stream."""
    first = Batches(processor, SETTINGS, 0)
    first.at(0)
    again = Batches(processor, SETTINGS, 0).at(7)
    assert torch.equal(first.at(7).input_ids, again.input_ids)
    assert torch.equal(first.at(7).pixel_values, again.pixel_values)
    assert not torch.equal(Batches(processor, SETTINGS, 1).at(7).pixel_values, again.pixel_values)
    pixels, says = first.pictures(3)
    assert torch.equal(pixels, Batches(processor, SETTINGS, 0).pictures(3)[0]) and says.shape == (len(pixels), 100, 5)
    assert not torch.equal(pixels[0], again.pixel_values[0])


def test_an_answer_is_asked_for_at_the_token_before_it(processor) -> None:
    """Fails if columns point at the answers themselves, or a kind is given to another question's answer."""
    batch = Batches(processor, SETTINGS, 0).at(LATE_STEP)
    at = [processor.tokenizer.convert_ids_to_tokens(batch.input_ids[batch.rows, batch.columns + k]) for k in range(3)]
    for assistant, answer, end, kind in zip(*at, batch.kinds, strict=True):
        assert (assistant, end) == ("ASSISTANT:", "</s>")
        of_kind = {"colour": miniworld.COLOURS, "shape": miniworld.SHAPES, "count": "0123", "yes_no": ("yes", "no")}
        assert answer in of_kind.get(kind, (*miniworld.COLOURS, *miniworld.SHAPES))
    assert len(batch.kinds) == SETTINGS.batch * SETTINGS.questions and set(batch.kinds) <= set(KINDS)


def test_questions_in_a_row_are_answered_as_if_each_stood_alone(processor) -> None:
    """Against transformers' own forward pass on single prompts.

    Fails if a question sees another one, its positions do not restart, or the prompt is not what a user writes.
    """
    model, batches = mini_host.build(0), Batches(processor, SETTINGS, 0)
    batch = batches.at(LATE_STEP)
    with torch.no_grad():
        hidden = embed(model, batch.input_ids, batch.pixel_values)
        logits = words(model, walk(model, hidden, batch.positions, batch.sees())[-1])
    prefix = batches.first + mini_host.VISUAL_TOKENS + 1
    for row, column in list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))[:6]:
        block = batch.blocks[row]
        own = ((block == block[column]) & (torch.arange(len(block)) <= column)).nonzero()[:, 0]
        ids = torch.cat([batch.input_ids[row, :prefix], batch.input_ids[row, own]])
        text = processor.tokenizer.decode(ids[prefix:])
        written = mini_host.prompt(text.replace(" ASSISTANT:", "")).replace("<image>", "<image>" * 100)
        assert processor.tokenizer(written)["input_ids"] == ids.tolist()
        with torch.no_grad():
            alone = model(input_ids=ids[None], pixel_values=batch.pixel_values[row : row + 1]).logits[0, -1]
        torch.testing.assert_close(logits[row, column], alone, rtol=1e-3, atol=1e-3)


def test_in_looks_the_picture_is_seen_by_words_that_name_early_and_by_the_last_one_late(processor) -> None:
    """Fails if a word can copy the picture where no look belongs, or a question is cut off from itself."""
    batches = Batches(processor, SETTINGS, 0)
    batch = batches.at(LATE_STEP)
    picture = slice(batches.first, batches.first + mini_host.VISUAL_TOKENS)
    whole, layers = batch.sees(), batch.sees_in_looks(batches.first, mini_host.LAYERS)
    named = set(zip(batch.rows.tolist(), batch.named.tolist(), strict=True))
    last = set(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
    for number, sees in enumerate(layers):
        words_seen = sees.clone()
        words_seen[:, :, picture] = whole[:, :, picture]
        assert torch.equal(words_seen, whole)
        looks = sees[:, :, picture].any(-1)
        looks[:, picture] = False
        lookers = set(map(tuple, looks.nonzero().tolist()))
        assert lookers == (named if number < EARLY else last if number >= LATE else set())
        of_patches = sees[0, picture, picture]
        assert of_patches.sum(1).tolist() == [1 + min(2, number % 10) for number in range(100)]
    assert looking(0, SETTINGS) and looking(LATE_STEP - 1, SETTINGS) and not looking(LATE_STEP, SETTINGS)
    assert not looking(0, Settings(2, 1, 1, 1, free=0))


def test_pictures_reach_the_trainer_as_the_processor_gives_them_to_a_user(processor) -> None:
    """Fails if the trainer normalises its pictures otherwise than `answer` does."""
    batch = Batches(processor, SETTINGS, 0).at(5000)
    draws = miniworld.Draws(sample_rng(0, 5000, 1).bit_generator)
    image = flags.render(flags.draw_scene(draws, *scene_size(5000)), noise=draws.between(0, TRAINED_NOISE))
    theirs = processor(images=image, text=mini_host.prompt("What color is the ring?"), return_tensors="pt")
    assert torch.equal(batch.pixel_values[1], theirs["pixel_values"][0])
    assert batch.pixel_values.abs().max() < 3


def test_the_rates_rise_over_the_warm_up_and_fall_to_zero() -> None:
    """Fails if the warm-up starts at zero or passes the peak, or the training ends at a rate above zero."""
    shares = [schedule(step) for step in range(mini_lessons.STEPS)]
    assert shares[0] == pytest.approx(1 / WARMUP) and shares[WARMUP] == 1.0
    assert all(later > earlier for earlier, later in itertools.pairwise(shares[:WARMUP]))
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[WARMUP:]))
    assert 0 < shares[-1] < 2e-3


def test_a_hint_says_what_is_there_at_the_token_that_asks_for_it(processor) -> None:
    """Read back from the tokens: a hint at a word tells of what the word names, the last ones of places on the way.

    Fails if a hint lies one token off, describes another object, or gives the answer away where it is to be found.
    """
    word = processor.tokenizer.convert_ids_to_tokens
    batch = Batches(processor, SETTINGS, 0).at(LATE_STEP)
    parts = (batch.hints.rows, batch.hints.columns, batch.hints.depths, batch.hints.says)
    kinds = {
        place: kind
        for column in (batch.columns, batch.named)
        for place, kind in zip(zip(batch.rows.tolist(), column.tolist(), strict=True), batch.kinds, strict=True)
    }
    seen = set()
    for row, column, depth, says in zip(*(part.tolist() for part in parts), strict=True):
        draws = miniworld.Draws(sample_rng(0, LATE_STEP, row).bit_generator)
        scene = flags.draw_scene(draws, *scene_size(LATE_STEP), repeated=row % 4 == 3)
        names = {
            field: None if number == UNSAID else HINTED[field][number]
            for field, number in zip(HINTED, says, strict=True)
        }
        place = tuple(says[:2])
        there = {thing.ninth: thing for thing in scene.things}
        here = word(batch.input_ids[row, column].item())
        if depth == PICTURE:
            number = column - word(batch.input_ids[row].tolist()).index("<image>")
            shown = [thing for thing in scene.things if thing.patches[0] == number]
            look = [(thing.colour, thing.shape) for thing in shown] or [("nothing", "nothing")]
            assert here == "<image>" and (names["colour"], names["shape"]) == look[0]
            assert place == (3 * (number // 10) // 10, 3 * (number % 10) // 10)
            continue
        kind = kinds[row, column]
        seen.add((kind, depth))
        assert (here == "ASSISTANT:") == (depth in CHAIN)
        if place != (UNSAID, UNSAID):  # one object is meant
            assert names["colour"] in (None, there[place].colour) and names["shape"] in (None, there[place].shape)
            following = there[place].next
            flag = "nothing" if following is None else f"to{scene.things[following].colour}"
            assert names["flag"] == flag
            if kind in ("shape", "two_hop", "three_hop", "follow") and depth in (ONE_WORD, TWO_WORDS):
                assert here in (names["colour"], names["shape"])
        if depth in CHAIN[1:] and names["shape"] is None:  # the last object of a chain: its look is the answer
            answer = word(batch.input_ids[row, column + 1].item())
            assert answer in (there[place].colour, there[place].shape)
    depths = {kind: {depth for other, depth in seen if other == kind} for kind in KINDS}
    assert depths["shape"] == {ONE_WORD, CHAIN[0]} and depths["count"] == set()
    assert depths["three_hop"] == {TWO_WORDS, *CHAIN[:3]}


def test_scenes_grow_to_six_objects_along_the_ramp() -> None:
    """Fails if the first scenes are crowded, or the last ones never are."""
    assert [scene_size(step) for step in (0, 100, 200, 300, mini_lessons.STEPS)] == [
        (3, 3),
        (3, 4),
        (3, 5),
        (4, 6),
        (4, 6),
    ]


def test_the_loss_is_the_mean_over_answers(processor) -> None:
    """Against a plain walk, which finds the answers in the text. Fails if the loss is a sum, or counts other words."""
    settings = Settings(steps=1, batch=2, questions=3, threads=1, free=0)
    model, batches = mini_host.build(0), Batches(processor, settings, 0)
    batch = batches.at(0)
    with torch.no_grad():
        hidden = embed(model, batch.input_ids, batch.pixel_values)
        scores = words(model, walk(model, hidden, batch.positions, batch.sees())[-1]).log_softmax(-1)
    assistant = processor.tokenizer.convert_tokens_to_ids("ASSISTANT:")
    rows, columns = (batch.input_ids == assistant).nonzero(as_tuple=True)
    losses, ends = (-scores[rows, columns + k, batch.input_ids[rows, columns + k + 1]] for k in (0, 1))
    values = module.take_step(model, module.Optimiser(model, settings), batches, settings, 0)
    assert len(losses) == settings.batch * settings.questions
    assert values["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert values["end_loss"] == pytest.approx(ends.mean().item(), rel=1e-4)


def test_the_tower_learns_before_the_decoder_and_stays_as_it_is(processor) -> None:
    """Fails if the decoder's steps move the tower, or the tower's steps move the decoder's layers."""
    settings = Settings(steps=2, batch=2, questions=3, threads=1, tower_steps=2)
    model, batches = mini_host.build(0).train(), Batches(processor, settings, 0)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    module.take_tower_step(model, module.Optimiser(model, settings), batches, settings, 1)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, start[name])}
    assert any("vision_tower" in name for name in changed) and not any("language_model.layers" in n for n in changed)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    module.take_step(model, module.second_optimiser(model, settings), batches, settings, 0)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, start[name])}
    assert any("language_model.layers" in name for name in changed) and not any("vision_tower" in n for n in changed)
