"""The mini experiments: what is measured of a host, what is kept, and what counts as ahead."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from fitprune.commands.app import main
from fitprune.costs import base_macs, layer_macs
from fitprune.evidence import experiments, findings
from fitprune.evidence.experiments import ARMS, Questions, Recording, areas, chance, find_arm
from fitprune.evidence.findings import judge
from fitprune.recipe import Recipe
from fitprune.rules import RULES
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.cli.settings import HostSettings
from tenfold.data import mini_host
from tenfold.data.mini_lessons import STEPS, Settings
from tenfold.data.mini_probes import LEARNT, Probes, prompts
from tenfold.data.train_mini_host import LESSONS
from tenfold.hosts.loading import load_host
from tenfold.ledger import load_ledger

RATIOS = (0.4, 0.6, 0.8)
FITTED = Recipe("mini_host", mini_host.LAYERS, mini_host.VISUAL_TOKENS, (40, 20, 0, 10, *[0] * 8))


@pytest.fixture(scope="module")
def host():
    return load_host(HostSettings())


@pytest.fixture(scope="module")
def asked(host):
    return Questions(host, prompts(host.processor, 100, 4, ("colour", "follow")))


@pytest.fixture(scope="module")
def measured(host):
    """The shipped host, measured on a handful of questions."""
    return experiments.measure(host, 0, ratios=(0.6,), scenes=2, questions=2, draws=2)


def test_every_arm_answers_the_same_questions_at_the_same_visual_flops(measured, asked):
    """Fails if an arm is run at another budget than the rest, or on other questions."""
    visual = mini_host.VISUAL_TOKENS
    token = 1 - asked.shape.layers * layer_macs(visual - 1, visual - 1, asked.shape) / base_macs(visual, asked.shape)
    assert set(measured["right"]) == {"unpruned", *ARMS} and not measured["left_out"]
    assert {len(row) for rows in measured["right"].values() for row in rows.values()} == {len(measured["kinds"])}
    assert len(measured["kinds"]) == 2 * len(LEARNT)
    assert all(0 <= saved["0.6"] - 0.6 <= token for saved in measured["saved"].values())


def test_a_host_is_measured_with_signal_and_recipes(measured):
    """Fails if a gate has nothing to be read from."""
    (recipe,) = measured["recipes"]
    assert recipe["delivered"]["floor"] <= recipe["delivered"]["largest_remainder"]
    assert 0 < recipe["whole_prompt"] < recipe["delivered"]["largest_remainder"]
    signal = measured["signal"]["0.6"]
    assert 0 <= signal["auc"] <= 1 and 0 <= signal["auc among objects"] <= 1
    assert 0 <= signal["layer"] < mini_host.LAYERS and signal["layers"] >= 1


def test_a_budget_out_of_reach_is_left_out_and_said(host):
    """Fails if one budget that cannot be met ends the whole run."""
    found = experiments.measure(host, 0, ratios=(0.6, 0.99), arms=("product",), scenes=1, questions=2, draws=1)
    assert [recipe["ratio"] for recipe in found["recipes"]] == [0.6] and "recipe at 99%" in found["left_out"]


def test_unpruned_answers_are_those_of_the_gates(host, asked):
    """Fails if the comparison asks other questions, or counts other answers as right, than the host's gates do."""
    probes = Probes(host.model, host.processor, asked.groups)
    assert asked.right(lambda group: None) == probes.right(probes.removed()[-1]).tolist()


@pytest.mark.parametrize("name", ["random", "grid", "oracle"])
def test_chance_is_drawn_for_every_question(asked, name):
    """Fails if two questions share their draw, or a second draw is the first one."""
    group = asked.groups[0]
    first, again, second = (chance(name, group, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second) and not torch.equal(first[0], first[1])


def test_an_oracle_keeps_objects_and_a_grid_one_of_every_four_patches(asked):
    """Fails if the oracle prefers ground, or the grid leaves a hole."""
    group = asked.groups[0]
    oracle, grid = (chance(name, group, torch.Generator().manual_seed(0)) for name in ("oracle", "grid"))
    for row in range(len(oracle)):
        kept = oracle[row].topk(int(group.objects[row].sum())).indices
        assert torch.equal(kept.sort().values, group.objects[row].nonzero()[:, 0])
        kept = grid[row].topk(25).indices
        cells = {(int(patch) // 10 // 2, int(patch) % 10 // 2) for patch in kept}
        assert len(cells) == 25


def test_tokens_of_lowest_given_score_leave(host, asked):
    """Fails if scores are given to other tokens than they are meant for."""
    group = asked.groups[0]
    arm = find_arm("oracle", FITTED, 0.5, asked.shape)
    pruner = arm.pruner(asked.shape.layers, group, asked.first, torch.Generator().manual_seed(0))
    asked.right_of(0, pruner)
    scores = pruner.rule.scores
    for row in range(len(scores)):
        left = pruner.surviving(row)[-1]
        assert scores[row][left].min() > scores[row][~left].max()


def test_a_recording_holds_what_the_rule_said_where_tokens_still_are(asked):
    """Fails if scores are kept under another token's number, or of tokens that are gone."""
    recording = Recording(RULES["product"], 1, asked.first, mini_host.VISUAL_TOKENS)
    pruner = find_arm("product", FITTED, 0.5, asked.shape).pruner(asked.shape.layers, asked.groups[0], 0, None)
    pruner.rule = recording
    asked.right_of(0, pruner)
    for row in range(len(recording.scores)):
        before, after = pruner.surviving(row)[1], pruner.surviving(row)[2]
        assert torch.equal(~recording.scores[row].isnan(), before)
        assert recording.scores[row][after].min() >= recording.scores[row][before & ~after].max()


def test_areas_count_pairs():
    """Fails if ties count as won, or tokens that are gone take part."""
    scores = torch.tensor([[1.0, 2.0, 3.0, float("nan")], [1.0, 1.0, 0.0, 5.0]])
    ours = torch.tensor([[False, False, True, False], [True, False, False, False]])
    assert areas(scores, ours, ~ours) == [1.0, 0.5]
    assert areas(scores, torch.zeros_like(ours), ~ours) == []


def made(folder, seed, **changes):
    (folder / "model").mkdir(parents=True)
    settings = {**asdict(Settings(STEPS, **experiments.TRAINING)), **LESSONS, **changes}
    (folder / "model" / "training.json").write_text(json.dumps({"seed": seed, "settings": settings}))
    return folder


def test_the_shipped_host_was_trained_as_the_experiments_train():
    """Fails if seed 0 of the record would be another host than the one that ships."""
    record = json.loads((mini_host.path() / "training.json").read_text())
    wanted = json.loads(json.dumps({**asdict(Settings(STEPS, **experiments.TRAINING)), **LESSONS}))
    assert record["settings"] == wanted and record["seed"] == 0


def test_a_host_that_is_there_is_taken_if_it_was_trained_alike(tmp_path):
    """Fails if a host of another seed or other settings is measured under the wrong name."""
    folder = made(tmp_path / "seed-1", 1)
    assert experiments.trained(1, folder) == folder / "model"
    with pytest.raises(UserError, match="trained with another seed"):
        experiments.trained(2, folder)
    with pytest.raises(UserError, match="trained with another settings"):
        experiments.trained(1, made(tmp_path / "other", 1, steps=7))


def test_a_host_that_is_not_there_is_trained_by_the_committed_command(tmp_path, monkeypatch):
    """Fails if a killed training starts again from nothing, or the settings differ from what is checked."""
    calls = []

    def train(output, **options):
        calls.append(options)
        made(output, options["seed"], steps=options["steps"])

    monkeypatch.setattr("tenfold.data.train_mini_host.train_mini_host", train)
    experiments.trained(0, tmp_path / "new")
    (tmp_path / "killed" / "checkpoint-100").mkdir(parents=True)
    monkeypatch.setattr(experiments, "last_complete_checkpoint", lambda folder: folder / "checkpoint-100")
    experiments.trained(2, tmp_path / "killed")
    assert [(call["seed"], call["resume"]) for call in calls] == [(0, False), (2, True)]


def test_what_a_seed_has_finished_is_kept_for_its_host_alone(tmp_path, monkeypatch):
    """Fails if a finished seed is measured twice, or an old measurement is taken for a new host."""
    calls = []
    monkeypatch.setattr("tenfold.hosts.loading.load_host", lambda settings: settings.model)
    monkeypatch.setattr(experiments, "measure", lambda host, seed: calls.append(seed) or {"right": {}})
    folder = made(tmp_path / "seed-0", 0)
    first = experiments.measure_seed(0, tmp_path)
    assert experiments.measure_seed(0, tmp_path) == first and calls == [0]
    (folder / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="measured on another host"):
        experiments.measure_seed(0, tmp_path)


def results(product=80, *, seeds=3, jitter=0.5, auc=0.9, layers=4, questions=200, **others):
    """Measurements in which arms reach an accuracy in per cent, give or take."""
    scores = {"unpruned": 81, "product": product, "self": 70, "cross": 70, "last-token": 60, "inverse": 40}
    scores |= {"random": 55, "grid": 55, "oracle": 81, "uniform": 70, "fastv": 60, "pyramiddrop": 60}
    scores |= {"random-before": 50} | others
    recipe = {"visual_tokens": 100, "remove": [1], "whole_prompt": 0.3, "alpha": 0.1, "text_tokens": 20.0}
    found = {}
    for seed in range(seeds):
        shift = jitter * (seed - 1)

        def row(score, shift=shift):
            share = (score + shift) / 100
            return [share] * questions

        found[seed] = {
            "kinds": ["two_hop"] * (questions // 2) + ["place"] * (questions // 2),
            "right": {
                arm: {"0" if arm == "unpruned" else f"{ratio:g}": row(score) for ratio in RATIOS}
                for arm, score in scores.items()
            },
            "saved": {arm: {f"{ratio:g}": ratio for ratio in RATIOS} for arm in ARMS},
            "signal": {"0.6": {"layer": 3, "auc": auc, "auc among objects": 0.7, "layers": layers}},
            "recipes": [
                recipe | {"ratio": ratio, "delivered": {"floor": ratio - 0.03, "largest_remainder": ratio + 0.005}}
                for ratio in RATIOS
            ],
            "left_out": {},
        }
    return found


def passed(measured):
    return {finding.claim: finding.passed for finding in judge(measured)}


def test_findings_are_claims_of_the_ledger_that_nothing_here_recomputes():
    """Fails if an experiment has no claim, or a claim of the miniature neither a check nor an experiment."""
    mini = [claim for claim in load_ledger(package_file("fitprune", "claims.yaml")).claims if claim.kind == "mini"]
    found = judge(results())
    assert {finding.claim for finding in found} == {claim.id for claim in mini if claim.check is None}
    assert all("3 seeds" in finding.detail for finding in found)


def test_what_comes_out_and_what_does_not():
    """Fails if a verdict does not follow from the measurements."""
    assert all(passed(results()).values())
    bad = passed(results(60, random=50, grid=50, inverse=40, self=65, uniform=70, fastv=75))
    assert bad["mini-gate"] and not any(
        bad[claim] for claim in ("mini-accuracy", "mini-statistics", "mini-schedule", "mini-peers")
    )
    assert bad["mini-which"] is True and bad["mini-when"] is True


def test_equivalent_is_neither_a_success_nor_a_failure():
    """Fails if a comparison in which nothing can be told apart is shown as reproduced, or as not reproduced."""
    assert passed(results(80, self=80.5, cross=79.5, **{"last-token": 80}))["mini-statistics"] is None


@pytest.mark.parametrize(
    "missed", [{"auc": 0.7}, {"oracle": 70}, {"random": 75, "grid": 75}, {"inverse": 75}, {"unpruned": 97}]
)
def test_without_a_gate_rules_are_not_compared(missed):
    """Fails if selection rules are ranked on a host to which they make no difference."""
    found = passed(results(**missed))
    assert found["mini-gate"] is False
    assert [found[claim] for claim in ("mini-which", "mini-when", "mini-statistics", "mini-peers")] == [None] * 4


def test_a_recipe_of_two_layers_judges_tokens_but_no_schedules():
    """Fails if a single cut is taken for a schedule."""
    found = passed(results(layers=2))
    assert found["mini-which"] is True and found["mini-schedule"] is None and found["mini-peers"] is None


def test_fewer_than_three_seeds_are_shown_and_not_judged():
    """Fails if one host is taken for a population."""
    found = judge(results(seeds=1))
    (which,) = [finding for finding in found if finding.claim == "mini-which"]
    assert which.passed is None and which.value == pytest.approx(25) and "too few for a verdict" in which.detail


def test_a_lead_within_its_spread_does_not_hold():
    """Fails if the spread over seeds is not looked at."""
    found = results(62)
    for seed, shift in enumerate((-12, 0, 12)):
        for ratio in RATIOS:
            found[seed]["right"]["random"][f"{ratio:g}"] = [(55 + shift) / 100] * 200
    assert passed(found)["mini-which"] is not True


def test_rounding_is_judged_on_what_every_host_delivers():
    """Fails if one host's shortfall or excess is averaged away."""
    found = results()
    found[1]["recipes"][0]["delivered"]["floor"] = 0.41
    assert passed(found)["mini-rounding"] is False
    found = results()
    found[2]["recipes"][1]["delivered"]["largest_remainder"] = 0.64
    assert passed(found)["mini-rounding"] is False


def test_the_gate_says_that_training_led_the_hosts():
    gate = next(finding for finding in judge(results()) if finding.claim == "mini-gate")
    assert "hints" in gate.detail and "no evidence of where larger models look" in gate.detail


def test_the_command_repeats_the_experiments(monkeypatch, capsys):
    """Fails if `claims --train` is not given them."""
    monkeypatch.setattr(sys, "argv", ["fitprune", "claims", "--train"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "no folder for checkpoints and results" in capsys.readouterr().err


def test_the_shipped_host_is_asked_live():
    """Fails if an arm that the claim compares is missing."""
    found = experiments.shipped(questions=2, scenes=1)
    assert set(found) == {"unpruned", "product", "random", "fastv"}
    assert all(0 <= share <= 1 for share in found.values())


def test_tables_for_the_figures_hold_every_seed():
    table = findings.Scores(results()).table()
    (row,) = (row for row in table if (row["method"], row["ratio"], row["kind"]) == ("product", 0.6, "two_hop"))
    assert row["mean"] == pytest.approx(0.8) and row["spread"] == pytest.approx(0.005) and len(row["seeds"]) == 3
    assert np.isclose(row["visual_reduction"], 0.6)
