"""The mini experiments: what is measured of a host, what is kept, and what counts as ahead."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest

from fitprune.commands.app import main
from fitprune.costs import DecoderShape, base_macs, layer_macs
from fitprune.evidence import experiments, findings
from fitprune.evidence.findings import judge, verdict
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.cli.settings import HostSettings
from tenfold.data import mini_host
from tenfold.data.mini_lessons import STEPS, Settings
from tenfold.data.train_mini_host import LESSONS
from tenfold.hosts.loading import load_host
from tenfold.ledger import load_ledger

RATIOS = (0.4, 0.6, 0.8)
KINDS = ("all", "one-hop", "place", "two-hop")


@pytest.fixture(scope="module")
def measured():
    """The shipped host, measured on a handful of questions."""
    methods = ("fitprune", "self", "cross", "uniform", "single-cut", "random-before")
    return experiments.measure(
        load_host(HostSettings()), 0, ratios=(0.6,), methods=methods, scenes=2, questions=4, draws=2
    )


def test_every_method_answers_the_same_questions_at_the_same_visual_flops(measured):
    """Fails if a method, or a statistic under another schedule, is run at another budget than the rest."""
    shape, visual = DecoderShape.of(mini_host.config()), mini_host.VISUAL_TOKENS
    token = 1 - shape.layers * layer_macs(visual - 1, visual - 1, shape) / base_macs(visual, shape)
    pruned = [row for row in measured["rows"] if row["method"] != "unpruned"]
    assert {row["kind"] for row in pruned} == set(KINDS)
    for kind, count in zip(KINDS, (12, 4, 4, 4), strict=True):
        assert {row["questions"] for row in pruned if row["kind"] == kind} == {count}
    assert all(0 <= row["visual_reduction"] - 0.6 <= token for row in pruned)


def test_the_statistics_are_compared_under_all_three_schedules(measured):
    """Fails if a schedule or a statistic of the ablation is forgotten."""
    methods = {row["method"] for row in measured["rows"]}
    for schedule in ("in uniform steps", "in a single cut"):
        assert {f"self {schedule}", f"cross {schedule}"} <= methods
    assert {"fitprune", "self", "cross", "uniform", "single-cut"} <= methods


def test_a_host_is_measured_with_gate_and_recipes(measured):
    layers = mini_host.config().text_config.num_hidden_layers
    assert set(measured["gate"]) == {"shape", "colour", "place", "two_hop"}
    assert all(len(curve) == layers for curve in measured["gate"].values())
    (recipe,) = measured["recipes"]
    assert recipe["delivered"]["floor"] <= recipe["delivered"]["largest_remainder"] and len(recipe["remove"]) == layers
    assert 0 < recipe["whole_prompt"] < recipe["delivered"]["largest_remainder"]


def test_a_budget_out_of_reach_is_left_out_and_said():
    """Fails if one budget that cannot be met ends the whole run."""
    found = experiments.measure(
        load_host(HostSettings()), 0, ratios=(0.6, 0.99), methods=("fitprune",), scenes=1, questions=2, draws=1
    )
    assert [recipe["ratio"] for recipe in found["recipes"]] == [0.6] and "recipe at 99%" in found["left_out"]


def made(folder, seed, **changes):
    (folder / "model").mkdir(parents=True)
    settings = {**asdict(Settings(STEPS, **experiments.TRAINING)), **LESSONS, **changes}
    (folder / "model" / "training.json").write_text(json.dumps({"seed": seed, "settings": settings}))
    return folder


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
    monkeypatch.setattr(experiments, "measure", lambda host, seed: calls.append(seed) or {"rows": []})
    folder = made(tmp_path / "seed-0", 0)
    first = experiments.measure_seed(0, tmp_path)
    assert experiments.measure_seed(0, tmp_path) == first and calls == [0]
    (folder / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="measured on another host"):
        experiments.measure_seed(0, tmp_path)


def results(ours=0.9, *, gate=(0.2, 0.2, 0.3, 0.6, 1.0, 1.0), jitter=0.01, **others):
    """Three seeds' measurements in which methods reach an accuracy, give or take."""
    scores = {"unpruned": 0.98, "fitprune": ours, "random": 0.5, "inverse": 0.4, "random-before": 0.3}
    scores |= {"fastv": 0.3, "pyramiddrop": 0.3} | others
    recipe = {"visual_tokens": 36, "remove": [1], "whole_prompt": 0.3, "alpha": 0.1, "text_tokens": 20.0}
    found = {}
    for seed, shift in enumerate((-jitter, 0.0, jitter)):
        rows = [
            {"method": method, "ratio": ratio, "kind": kind, "knobs": "", "questions": 10, "accuracy": score + shift}
            | {"visual_reduction": ratio, "prompt_reduction": ratio / 2}
            for method, score in scores.items()
            for ratio in ((0.0,) if method == "unpruned" else RATIOS)
            for kind in KINDS
        ]
        recipes = [
            recipe | {"ratio": ratio, "delivered": {"floor": ratio - 0.03, "largest_remainder": ratio + 0.01}}
            for ratio in RATIOS
        ]
        found[seed] = {"gate": {"two_hop": list(gate)}, "rows": rows, "recipes": recipes, "left_out": {}}
    return found


def passed(measured):
    return {finding.claim: finding.passed for finding in judge(measured)}


def test_a_difference_counts_when_it_exceeds_the_larger_spread():
    """Fails if ties are told as victories."""
    steady, noisy = np.array([0.8, 0.8, 0.8]), np.array([0.6, 0.75, 0.9])
    assert verdict(steady, noisy) == verdict(noisy, steady) == verdict(steady, steady) == "tie"
    assert verdict(steady, steady - 0.1) == "ahead" and verdict(steady - 0.1, steady) == "behind"


def test_findings_are_claims_of_the_ledger_that_nothing_here_recomputes():
    """Fails if an experiment has no claim, or a claim of the miniature neither a check nor an experiment."""
    mini = [claim for claim in load_ledger(package_file("fitprune", "claims.yaml")).claims if claim.kind == "mini"]
    findings = judge(results())
    assert {finding.claim for finding in findings} == {claim.id for claim in mini if claim.check is None}
    assert all(isinstance(finding.value, float) and "3 seeds" in finding.detail for finding in findings)


def test_what_comes_out_and_what_does_not():
    """Fails if a verdict does not follow from the measurements."""
    good = passed(results(0.97, fastv=0.5, pyramiddrop=0.5))
    assert {claim for claim, holds in good.items() if not holds} == {"mini-statistics"}
    assert good["mini-statistics"] is None
    bad = passed(results(0.5, random=0.7, **{"random-before": 0.45}, fastv=0.8))
    assert not any(bad[claim] for claim in ("mini-accuracy", "mini-when", "mini-which", "mini-peers"))


def test_ties_are_neither_a_success_nor_a_failure():
    """Fails if a comparison in which nothing can be told apart is shown as reproduced."""
    tied = passed(results(0.5, random=0.505, inverse=0.5, fastv=0.5, pyramiddrop=0.5))
    assert tied["mini-which"] is None and tied["mini-peers"] is None
    details = {finding.claim: finding.detail for finding in judge(results(0.5, random=0.505, inverse=0.5))}
    assert details["mini-which"].count("(tie)") == 6


def test_without_the_gate_rules_are_not_compared():
    """Fails if selection rules are ranked on a host that does not read the picture where tokens are dropped."""
    for gate in ((0.2, 0.9, 1.0, 1.0, 1.0, 1.0), (0.2, 0.2, 0.2, 0.3, 0.5, 0.5)):
        found = passed(results(gate=gate))
        assert found["mini-gate"] is False and found["mini-which"] is None


def test_the_gate_says_that_hints_led_the_hosts():
    gate = next(finding for finding in judge(results()) if finding.claim == "mini-gate")
    assert "hints" in gate.detail and "no evidence of where larger models look" in gate.detail


def test_a_lead_that_is_small_is_not_far():
    """Fails if the margin of "far ahead" is dropped."""
    assert passed(results(0.35, jitter=0.001))["mini-when"] is False
    assert passed(results(0.45, jitter=0.001))["mini-when"] is True


def test_rounding_is_judged_on_what_every_host_delivers():
    """Fails if one host's shortfall or excess is averaged away."""
    found = results()
    found[1]["recipes"][0]["delivered"]["floor"] = 0.41
    assert passed(found)["mini-rounding"] is False
    found = results()
    found[2]["recipes"][1]["delivered"]["largest_remainder"] = 0.64
    assert passed(found)["mini-rounding"] is False


def test_the_command_repeats_the_experiments(monkeypatch, capsys):
    """Fails if `claims --train` is not given them."""
    monkeypatch.setattr(sys, "argv", ["fitprune", "claims", "--train"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "no folder for checkpoints and results" in capsys.readouterr().err


def test_the_shipped_host_is_asked_live():
    """Every method on both kinds of questions."""
    found = experiments.shipped(questions=2, scenes=1, draws=1)
    assert {
        (method, kind) for method in ("unpruned", "fitprune", "fastv", "random-before") for kind in KINDS[1::2]
    } <= {*found}
    assert all(0 <= share <= 1 for share in found.values())


def test_tables_for_the_figures_hold_every_seed():
    table = findings.Scores(results()).table()
    (row,) = (row for row in table if (row["method"], row["ratio"], row["kind"]) == ("fitprune", 0.6, "two-hop"))
    assert row["mean"] == pytest.approx(0.9) and row["spread"] == pytest.approx(0.01) and len(row["seeds"]) == 3
