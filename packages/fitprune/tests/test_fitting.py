"""Fitting a recipe: the rule, the budget, the folder that survives a kill."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fitprune
from fitprune import fitting
from fitprune.fitting import Calibration
from fitprune.search import candidates
from tenfold import UserError
from tenfold.data import mini_host, miniworld
from tenfold.runs import read_jsonl
from tenfold.testing.hosts import Prompts, build


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def calibration(request):
    prompts = Prompts(request.param)
    samples = [prompts.batch([[("image", 4), words]]) for words in (6, 3, 9, 5)]
    return Calibration(build(request.param), None, samples)


def slow_candidates(scores, kept):
    """The rule as the official loop states it: a growing k, the sum of the k smallest recomputed every
    time."""
    order = sorted(range(len(scores)), key=lambda j: (scores[j], -j))
    for k in range(len(scores)):
        if sum(scores) - sum(scores[j] for j in order[:k]) < kept:
            return set(order[: max(k - 1, 0)])
    return set(order[: max(len(scores) - 1, 0)])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999, 1.0, 1.5])
def test_candidates_equal_the_loop(share):
    """Fails if the cumulative sum is off by one, or if one token that holds all the mass is not kept."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 7, 40):
        score = torch.rand(size, generator=generator).pow(8)
        visual = torch.rand(size, generator=generator) < 0.8
        left = [j for j in range(size) if visual[j]]
        chosen = candidates(score, visual, share * score[visual].double().sum().item())
        expected = {
            left[j]
            for j in slow_candidates([score[j].item() for j in left], share * sum(score[j].item() for j in left))
        }
        assert set(chosen.nonzero()[:, 0].tolist()) == expected


def test_delivered_cost_is_within_one_token_per_layer(calibration):
    """Largest-remainder rounding keeps the mean; the stored cost is what the formula says of the stored
    counts."""
    for ratio in (0.3, 0.5, 0.7):
        recipe = calibration.recipe(ratio)
        _, best = calibration.search(ratio)
        total = sum(map(sum, best.removed)) / 4
        assert abs(sum(recipe.remove) - total) <= 1
        floor = calibration.recipe(ratio, rounding="floor")
        assert all(a - b in (0, 1) for a, b in zip(recipe.remove, floor.remove, strict=True))
        assert recipe.alpha == best.alpha and recipe.ratio == ratio


def test_smallest_feasible_alpha_is_returned(calibration):
    for ratio in (0.3, 0.6):
        steps, best = calibration.search(ratio)
        assert len(steps) == 7
        assert best.alpha == min(step.alpha for step in steps if step.reached)


def test_budgets_share_their_fits(calibration, monkeypatch):
    """Statistics are taken once, and an alpha that was tried for one budget is not run again for another."""
    calibration.recipe(0.6)
    calls = []
    monkeypatch.setattr("fitprune.fitting.fit_alpha", lambda *a: calls.append(a[-1]) or (16, 8, 8, 8, 8))
    monkeypatch.setattr("fitprune.fitting.collect_statistics", lambda *a: pytest.fail("statistics were taken again"))
    calibration.recipe(0.6)
    assert calls == []


def test_a_fitted_recipe_prunes_its_model(calibration):
    recipe = calibration.recipe(0.5)
    with fitprune.Pruner(recipe)(calibration.model) as pruner, torch.no_grad():
        calibration.model(**calibration.samples[0])
        assert pruner.visual_tokens()[-1][0] == 16 - sum(recipe.remove)


@pytest.mark.parametrize(
    ("samples", "ratio", "message"),
    [
        ([], 0.5, "no calibration samples"),
        (["text"], 0.5, "without an image"),
        (["image"], 1.5, "ratio 1.5"),
        (["image"], 0.999, "no recipe saves 100%"),
        (["two"], 0.5, "several rows"),
    ],
)
def test_bad_calibration_is_one_clear_line(samples, ratio, message):
    prompts = Prompts("llava")
    rows = {"text": [[9]], "image": [[("image", 4), 5]], "two": [[("image", 4), 5], [("image", 4), 5]]}
    with pytest.raises(UserError, match=message):
        fitprune.fit(build("llava"), None, [prompts.batch(rows[s]) for s in samples], ratio)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ("questions.jsonl", "samples as str"),
        ({"image": None, "text": "what?"}, "samples as dict"),
        ([{"image": 3, "text": "what?"}], "sample 0 has image int, text str"),
        ([{"image": "missing.png", "text": "what?"}], "missing.png"),
        ([object()], "sample 0 has image NoneType"),
    ],
)
def test_samples_of_another_kind_are_named(samples, message):
    """Fails if a path, a mapping or an object without an image ends in a TypeError."""
    with pytest.raises(UserError, match=message):
        fitprune.fit(build("llava"), None, samples)


def test_samples_may_be_mappings_with_paths(tmp_path):
    """Fails if a mapping of image and text is taken for model inputs, or a path for an image."""
    model, processor = mini_host.load()
    picture = miniworld.render(miniworld.scene(0, 0), 48)
    picture.save(tmp_path / "scene.png")
    given = [{"image": str(tmp_path / "scene.png"), "text": "what?"}, SimpleNamespace(image=picture, text="what?")]
    recipes = [fitprune.fit(model, processor, [one], 0.5) for one in given]
    assert recipes[0] == recipes[1]


def run_fit(folder):
    """One fit with its progress in a folder, as a user's script would run it."""
    prompts = Prompts("llava")
    samples = [prompts.batch([[("image", 4), words]]) for words in (6, 3, 9, 5, 8, 4)]
    calibration = Calibration(build("llava"), None, samples, folder=folder / "progress")
    calibration.recipe(0.6).save(folder / "recipe.json")


SLOW_FIT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import fitprune.fitting as fitting
from test_fitting import run_fit

def slowed(original):
    return lambda *args: (time.sleep(0.2), original(*args))[1]

fitting.collect_statistics, fitting.fit_alpha = slowed(fitting.collect_statistics), slowed(fitting.fit_alpha)
run_fit(Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def whole_fit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_fit(folder)
    return folder


SLOW_KILLS = [pytest.param(at, marks=pytest.mark.slow) for at in (1, 3, 6, 7, 24, 40)]


@pytest.mark.parametrize("kill_at", [15, *SLOW_KILLS])
def test_a_killed_fit_resumes_to_the_same_bits(tmp_path, whole_fit, kill_at, monkeypatch):
    """SIGKILL on progress, in the statistics and in a fit. Fails if finished samples are measured again or
    lost."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_FIT, str(Path(__file__).parent), str(tmp_path)])

    def finished():
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("progress/*.jsonl"))

    while finished() < kill_at and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = finished()
    assert done >= kill_at and not (tmp_path / "recipe.json").exists()

    measured = []
    for name in ("collect_statistics", "fit_alpha"):
        original = getattr(fitting, name)
        monkeypatch.setattr(fitting, name, lambda *args, run=original: measured.append(1) or run(*args))
    run_fit(tmp_path)
    whole = sum(path.read_bytes().count(b"\n") for path in whole_fit.glob("progress/*.jsonl"))
    assert len(measured) == whole - done
    assert (tmp_path / "recipe.json").read_bytes() == (whole_fit / "recipe.json").read_bytes()
    for path in whole_fit.glob("progress/*"):
        assert (tmp_path / "progress" / path.name).read_bytes() == path.read_bytes()


def test_progress_of_other_samples_is_refused(tmp_path):
    prompts, model = Prompts("llava"), build("llava")
    samples = [prompts.batch([[("image", 4), words]]) for words in (6, 3)]
    Calibration(model, None, samples, folder=tmp_path)
    with pytest.raises(UserError, match="sample 0 differs"):
        Calibration(model, None, samples[::-1], folder=tmp_path)
    with pytest.raises(UserError, match="another model or calibration set"):
        Calibration(model, None, samples[:1], folder=tmp_path)
    assert len(read_jsonl(tmp_path / "statistics.jsonl")) == 2
    assert json.loads((tmp_path / "calibration.json").read_text())["samples"] == 2
