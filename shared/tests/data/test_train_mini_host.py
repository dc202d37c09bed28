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
from typer.testing import CliRunner

from tenfold import UserError
from tenfold.data import mini_host, mini_lessons, miniworld
from tenfold.data import train_mini_host as module
from tenfold.data.mini_lessons import (
    HINTED,
    KINDS,
    LAST,
    NAMED,
    PICTURE,
    UNSAID,
    WARMUP,
    Batches,
    Settings,
    scene_config,
    schedule,
)
from tenfold.data.train_mini_host import app
from tenfold.runs import sample_rng

STEPS = 14
TINY = ["--steps", str(STEPS), "--batch", "2", "--questions", "3", "--checkpoint-every", "4", "--evaluate-count", "1"]


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
    image = miniworld.render(miniworld.scene(0, 0), 48)
    assert len(mini_host.answer(model, processor, [image], [mini_host.prompt("What color is the ring?")])) == 1
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    made = json.loads((uninterrupted / "model" / "training.json").read_text())
    run = json.loads((uninterrupted / "run.json").read_text())
    assert run["metrics"] == {**made["held_out"], "gate": made["gate"]}
    assert {len(curve) for curve in made["gate"].values()} == {mini_host.config().text_config.num_hidden_layers}
    assert str(uninterrupted) not in json.dumps(made)
    assert {"model/model.safetensors", "model/training.json"} <= run["outputs"].keys()


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
        target = min(last + (5 if kill % 2 else 2), STEPS - 1)

        def stepped(before=before, target=target) -> bool:
            return metrics.exists() and metrics.stat().st_mtime_ns != before and steps_done(folder) >= target

        kill_when(process, (lambda: any(folder.glob(".tmp-[0-9]*"))) if kill % 3 == 2 else stepped)
        last = max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)
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


SETTINGS = Settings(steps=mini_lessons.STEPS, batch=3, questions=4, threads=1)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    """Fails if batches share a stream."""
    processor = mini_host.processor()
    first = Batches(processor, SETTINGS, 0)
    first.at(0)
    again = Batches(processor, SETTINGS, 0).at(7)
    assert torch.equal(first.at(7).input_ids, again.input_ids)
    assert torch.equal(first.at(7).pixel_values, again.pixel_values)
    assert not torch.equal(Batches(processor, SETTINGS, 1).at(7).pixel_values, again.pixel_values)


def test_an_answer_is_asked_for_at_the_token_before_it() -> None:
    """Fails if columns point at the answers themselves, or a kind is given to another question's answer."""
    processor = mini_host.processor()
    batch = Batches(processor, SETTINGS, 0).at(mini_lessons.STEPS - 1)
    assistant, end = processor.tokenizer.convert_tokens_to_ids(["ASSISTANT:", "</s>"])
    here, following = (batch.input_ids[batch.rows, batch.columns + step].tolist() for step in (0, 1))
    asked = [kind != "end" for kind in batch.kinds]
    assert asked == [True, False] * (len(asked) // 2) and len(asked) == 2 * SETTINGS.batch * SETTINGS.questions
    for is_answer, token, target, kind in zip(asked, here, following, batch.kinds, strict=True):
        assert (token == assistant) == is_answer and (target == end) == (not is_answer)
        word = processor.tokenizer.convert_ids_to_tokens(target)
        assert kind != "colour" or word in miniworld.COLOURS
        assert kind != "shape" or word in miniworld.SHAPES
    assert "two_hop" in batch.kinds and set(batch.kinds) <= {*KINDS, "end"}


def test_pictures_reach_the_trainer_as_the_processor_gives_them_to_a_user() -> None:
    """Fails if the trainer normalises its pictures otherwise than `answer` does."""
    processor = mini_host.processor()
    batch = Batches(processor, SETTINGS, 0).at(5000)
    draws = miniworld.Draws(sample_rng(0, 5000, 1).bit_generator)
    image = miniworld.render(miniworld.draw_scene(draws, scene_config(5000)), mini_host.IMAGE_SIZE)
    theirs = processor(images=image, text=mini_host.prompt("What color is the ring?"), return_tensors="pt")
    assert torch.equal(batch.pixel_values[1], theirs["pixel_values"][0])
    assert batch.pixel_values.abs().max() < 3


def test_the_rates_rise_over_the_warm_up_and_fall_to_zero() -> None:
    """Fails if the warm-up starts at zero or passes the peak, or the training ends at a rate above zero."""
    shares = [schedule(step) for step in range(mini_lessons.STEPS)]
    assert shares[0] == pytest.approx(1 / WARMUP) and shares[WARMUP] == 1.0
    assert all(later > earlier for earlier, later in itertools.pairwise(shares[:WARMUP]))
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[WARMUP:]))
    assert shares[-1] < 1e-5


def test_a_hint_says_what_is_there_at_the_token_that_asks_for_it() -> None:
    """Read back from the tokens: the reference names what its hint describes; the last hint has the answer's place.

    Fails if a hint lies one token off, describes another object, or gives the answer away where it is to be found.
    """
    processor = mini_host.processor()
    word = processor.tokenizer.convert_ids_to_tokens
    step = mini_lessons.STEPS - 1
    batch = Batches(processor, SETTINGS, 0).at(step)
    parts = (batch.hints.rows, batch.hints.columns, batch.hints.depths, batch.hints.says)
    hints = list(zip(*(part.tolist() for part in parts), strict=True))
    depths = {depth for _, depth in NAMED.values()}
    seen = set()
    for number in range(SETTINGS.batch):
        draws = miniworld.Draws(sample_rng(0, step, number).bit_generator)
        scene = miniworld.draw_scene(draws, scene_config(step))
        look = {miniworld.place(thing): (thing.colour, thing.shape) for thing in scene.things}
        ids = batch.input_ids[number].tolist()
        for row, column, depth, (y, x, colour, shape) in hints:
            if row != number:
                continue
            seen.add(depth)
            if depth == LAST:
                assert word(ids[column]) == "ASSISTANT:" and (colour, shape) == (UNSAID, UNSAID)
                assert word(ids[column + 1]) in look[y, x]
                continue
            told = (HINTED["colour"][colour], HINTED["shape"][shape])
            if (y, x) == (UNSAID, UNSAID):  # asked for and not there, or several of them
                named = tuple(word(ids[column - 1 : column + 1]))
                assert list(look.values()).count(named) != 1
                assert told == (named if named in look.values() else ("nothing", "nothing"))
                continue
            assert look.get((y, x), ("nothing", "nothing")) == told
            if depth == PICTURE:
                assert word(ids[column]) == "<image>"
                patch = column - ids.index(processor.tokenizer.convert_tokens_to_ids("<image>"))
                assert (patch // 6 // 2, patch % 6 // 2) == (y, x)
            else:
                assert word(ids[column]) in told and depth in depths
    assert seen == {PICTURE, LAST, *depths}
    assert len(hints) > SETTINGS.batch * (mini_host.VISUAL_TOKENS + SETTINGS.questions)


def test_scenes_grow_to_nine_objects_along_the_ramp() -> None:
    """Fails if the first scenes are crowded, or the last ones never are."""
    sizes = [
        (scene_config(step).min_objects, scene_config(step).max_objects)
        for step in (0, 300, 599, 600, mini_lessons.STEPS)
    ]
    assert sizes == [(2, 2), (2, 5), (4, 8), (4, 9), (4, 9)]


def test_the_loss_is_the_mean_over_answers_and_their_ends() -> None:
    """Against a plain forward pass, which finds the answers in the text.

    Fails if the loss is a sum, counts the questions' words too, or takes a token for its own target.
    """
    processor = mini_host.processor()
    model, batch = mini_host.build(0), Batches(processor, SETTINGS, 0).at(0)
    assistant = processor.tokenizer.convert_tokens_to_ids("ASSISTANT:")
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, pixel_values=batch.pixel_values).logits
    losses = []
    for ids, scores in zip(batch.input_ids, logits.log_softmax(-1), strict=True):
        for place in torch.nonzero(ids == assistant).flatten().tolist():
            losses += [-scores[at, ids[at + 1]].item() for at in (place, place + 1)]
    values = module.take_step(model, module.Optimiser(model, SETTINGS), batch, SETTINGS, 0)
    assert len(losses) == 2 * SETTINGS.batch * SETTINGS.questions
    assert values["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
