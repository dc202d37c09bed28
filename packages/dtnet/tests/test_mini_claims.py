"""`claims --train`: the variants differ in what they should, runs are kept, and findings go either way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from dtnet_fixtures import weights

from dtnet.data.mini import write_mini_coco
from dtnet.evidence import experiments
from dtnet.evidence.experiments import BLIND, JOINT, PLAIN, VARIANTS, judge, measure_run, nearest, settings
from dtnet.model import DTNet
from dtnet.training.run import STATE, run_train
from dtnet.training.settings import TrainSettings
from tenfold.cli import load_config, package_file
from tenfold.ledger import load_ledger
from tenfold.runs import read_json, write_checkpoint

# A training of a second: by the shipped config, but for sizes.
TINY = (
    *("xe.epochs=2", "xe.steps=4", "xe.batch=8", "scst.steps=2", "scst.images=4", "model.d_model=16", "model.heads=2"),
    *("model.d_ff=16", "model.encoder_layers=1", "model.decoder_layers=1"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("claims")
    write_mini_coco(path / "data", 0, 40, 6, 6, images=False)
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> dict[str, Any]:
    return measure_run(JOINT, 0, folder, TINY)


def test_the_joint_run_is_that_of_the_plain_command(folder: Path, run: dict[str, Any], tmp_path: Path) -> None:
    """The model that ships comes from either. Fails if the experiments change a setting that moves a bit."""
    plain = load_config(TrainSettings, "mini", (f"data.folder={folder / 'data'}", *TINY))
    run_train(plain, 0, tmp_path / "plain")
    assert weights(tmp_path / "plain") == weights(folder / "joint-0")


def test_a_run_is_measured_before_and_after_self_critical_training(folder: Path, run: dict[str, Any]) -> None:
    """Fails if the weights before it are not those that the second stage started from."""
    assert set(run) == {"config", "training", "xe", "scst"}
    after = DTNet.from_pretrained(folder / "joint-0" / "model").state_dict()
    before = experiments.before_scst(folder / "joint-0")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before) or run["training"]["best_step"] == 8
    assert run["xe"]["routing"]["swap"].keys() >= {"own", "another", "mean"}
    assert run["xe"]["routing"]["images"] == 6 and 0 <= run["xe"]["routing"]["kinds"]["share"] <= 1


def test_self_critical_training_started_from_the_best_weights(tmp_path: Path) -> None:
    """Fails if the last weights of cross entropy are taken, or those of a checkpoint after it."""

    def save(step: int, best: float, stages: tuple[str, ...]) -> None:
        state = {"model": {"w": torch.tensor(-1.0)}, "best": {"w": torch.tensor(best)}}
        progress = {"by_stage": {stage: {"best": best, "last": 0.0} for stage in stages}}
        write_checkpoint(tmp_path, step, lambda folder: torch.save({**state, "progress": progress}, folder / STATE))

    save(800, 1.0, ("xe",))
    save(1600, 2.0, ("xe",))
    save(1720, 3.0, ("xe", "scst"))
    assert experiments.before_scst(tmp_path)["w"] == 2
    save(1840, 4.0, ("xe", "scst"))
    with pytest.raises(RuntimeError, match="not the end of cross entropy"):
        experiments.before_scst(tmp_path)


def test_what_is_finished_is_kept(folder: Path, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a finished run is trained or measured again."""
    monkeypatch.setattr("dtnet.training.run.run_train", None)
    monkeypatch.setattr(experiments, "measure", None)
    assert measure_run(JOINT, 0, folder, TINY) == run


def test_variants_differ_in_nothing_but_their_point() -> None:
    """Fails if a variant trains longer, with another rate, or on other data."""
    joint = settings(JOINT, Path("runs"))
    plain = settings(PLAIN, Path("runs"))
    assert plain.model.cells == ("gmc", "cpc") and plain.stages == ("xe",)
    for variant in VARIANTS:
        chosen = settings(variant, Path("runs"))
        assert chosen.xe == joint.xe and chosen.data == joint.data and chosen.validation == joint.validation
        assert chosen.blind == (variant == BLIND)
        other = {"cells", "routing"}
        assert chosen.model.model_dump(exclude=other) == joint.model.model_dump(exclude=other)
    assert {settings(name, Path("runs")).model.routing for name in ("uniform", "spatial", "channel", JOINT)} == {
        *("uniform", "spatial", "channel", "joint")
    }
    # What is left of the checkpoints then holds the end of cross entropy.
    assert joint.scst.epochs == 1


def measured(**cider: tuple[float, float, float]) -> dict[str, list[dict[str, Any]]]:
    """Made-up measurements, CIDEr-D by variant; `joint` and `blind` are after self-critical training."""
    values = {"start": (99.0, 100.0, 101.0), PLAIN: (80.0, 81.0, 82.0), "uniform": (80.0, 81.0, 82.0)}
    values |= {"spatial": (80.0, 81.0, 82.0), "channel": (80.0, 81.0, 82.0)}
    values |= {JOINT: (109.0, 110.0, 111.0), BLIND: (10.0, 11.0, 12.0), **cider}

    def stage(score: float) -> dict[str, Any]:
        swap = {"own": 0.5, "another": 0.6, "mean": 0.55}
        return {
            "beam": {"cider": score, "exact": 0.5, "log_prob": -1.0},
            "greedy": {"cider": score - 1, "exact": 0.5, "log_prob": -1.2},
            "routing": {"swap": swap, "cells": [{"spread": 0.1}], "kinds": {"share": 0.5}},
        }

    config = DTNetConfigJson
    runs = {name: [{"config": config, "xe": stage(score)} for score in values[name]]
            for name in (PLAIN, "uniform", "spatial", "channel")}  # fmt: skip
    runs[JOINT] = [
        {"config": config, "xe": stage(start), "scst": stage(end)}
        for start, end in zip(values["start"], values[JOINT], strict=True)
    ]
    runs[BLIND] = [{"config": config, "xe": stage(score), "scst": stage(score)} for score in values[BLIND]]
    return runs


DTNetConfigJson = {"d_in": 24, "d_model": 32, "heads": 2, "d_k": 16, "d_v": 16, "d_ff": 32, "vocabulary_size": 40}
NEAREST = {"cider": 50.0, "exact": 0.3}


def verdicts(runs: dict[str, list[dict[str, Any]]], baseline: dict[str, float] = NEAREST) -> dict[str, bool | None]:
    return {finding.claim: finding.passed for finding in judge(runs, baseline)}


def test_every_mini_claim_without_a_check_gets_a_finding() -> None:
    """Fails if an experiment's claim is missing from the ledger, or the other way round."""
    ledger = load_ledger(package_file("dtnet", "claims.yaml"))
    waiting = {claim.id for claim in ledger.claims if claim.kind == "mini" and claim.check is None}
    found = verdicts(measured())
    assert set(found) == waiting
    assert all(found.values())


@pytest.mark.parametrize(
    ("claim", "runs", "baseline"),
    [
        ("mini-caption", measured(), {"cider": 109.5, "exact": 0.3}),
        ("mini-caption", measured(blind=(109.0, 110.0, 112.0)), NEAREST),
        ("mini-scst", measured(joint=(98.0, 100.0, 104.0)), NEAREST),
        ("mini-cells", measured(plain=(99.0, 100.0, 100.5)), NEAREST),
        ("mini-router", measured(uniform=(98.0, 99.5, 101.0)), NEAREST),
        ("mini-router", measured(spatial=(120.0, 121.0, 122.0)), NEAREST),
        ("mini-router", measured(channel=(60.0, 99.0, 130.0)), NEAREST),
    ],
)
def test_a_claim_can_fail(claim: str, runs: dict[str, Any], baseline: dict[str, float]) -> None:
    """A difference within the larger spread is none. Fails if a rival is left out, or the smaller spread is taken."""
    assert verdicts(runs, baseline)[claim] is False


def test_paths_and_beams_can_fail() -> None:
    """Fails if another image's weights are compared with themselves, or one of the beams' two conditions is dropped."""
    for change in ("log_prob", "cider"):
        runs = copy.deepcopy(measured())
        for one in runs[JOINT]:
            one["scst"]["beam"][change] = one["scst"]["greedy"][change] - 0.1
        assert verdicts(runs)["mini-beam"] is False
    runs = copy.deepcopy(measured())
    for number, one in enumerate(runs[JOINT]):
        one["xe"]["routing"]["swap"] = {"own": 0.5 + 0.01 * number, "another": 0.501 + 0.01 * number, "mean": 0.5}
    assert verdicts(runs)["mini-paths"] is False


def test_the_tables_of_the_figures_have_a_row_for_each_rival(folder: Path, run: dict[str, Any]) -> None:
    findings = {finding.claim: finding for finding in judge(measured(), nearest(folder))}
    assert [row["name"] for row in findings["mini-cells"].more["table"]] == [
        *("plain transformer", "five cells, uniform", "router: spatial branch", "router: channel branch"),
        "joint router",
    ]
    assert len(findings["mini-caption"].more["table"]) == 4
    assert findings["mini-cells"].more["table"][0]["seeds"] == [80.0, 81.0, 82.0]


@pytest.mark.slow
def test_all_runs_in_two_processes_and_again_from_what_is_kept(tmp_path: Path) -> None:
    """Fails if a worker cannot be spawned, or results get attributed to another variant."""
    write_mini_coco(tmp_path / "data", 0, 40, 6, 6, images=False)
    findings = experiments.conduct(tmp_path, TINY)
    assert len(list(tmp_path.glob("*-*.json"))) == len(VARIANTS) * len(experiments.SEEDS)
    (tmp_path / "blind-2.json").unlink()
    again = experiments.conduct(tmp_path, TINY)
    assert [finding.value for finding in again] == [finding.value for finding in findings]
    measured_plain = [read_json(tmp_path / f"plain-{seed}.json")["xe"]["beam"]["cider"] for seed in experiments.SEEDS]
    table = next(finding for finding in findings if finding.claim == "mini-cells").more["table"]
    assert table[0]["seeds"] == measured_plain
