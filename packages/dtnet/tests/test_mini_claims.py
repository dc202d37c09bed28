"""`claims --train`: arms differ in what they should, share what they should, and findings go every way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dtnet_fixtures import weights

from dtnet.config import DTNetConfig
from dtnet.data.caption_data import CaptionData, open_data
from dtnet.data.mini import scene_tags, write_mini_coco
from dtnet.evaluation.analysis import caption_loss
from dtnet.evidence import experiments, findings
from dtnet.evidence.experiments import ARMS, JOINT, LEAKY, ORACLE, PLAIN, UNIFORM, oracle_paths, run_arm, settings
from dtnet.evidence.figures import draw_record
from dtnet.evidence.findings import LABELS, SEEDS, judge
from dtnet.model import DTNet
from dtnet.training.run import run_train
from tenfold.cli import package_file
from tenfold.ledger import load_ledger
from tenfold.metrics.captions import split_words
from tenfold.runs import atomic_write_json, read_json
from tenfold.runs.context import plain

# A training of a second: by the shipped config, but for sizes.
TINY = (
    *("xe.steps=6", "xe.batch=8", "scst.steps=2", "scst.images=4", "model.d_model=16", "model.heads=2"),
    *("model.d_ff=16",),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("claims")
    write_mini_coco(path / "data", 0, 40, 12, 6, images=False, tagged=True)
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> dict[str, Any]:
    return run_arm(JOINT, 0, folder, TINY)


@pytest.fixture(scope="module")
def data(folder: Path) -> CaptionData:
    return open_data(settings(JOINT, folder, TINY).data, folder / "data", 7)


def test_an_arm_is_trained_as_by_the_plain_command(folder: Path, run: dict[str, Any], tmp_path: Path) -> None:
    """To the bit. Fails if the experiments' loop orders, weighs or steps otherwise than `dtnet train` does."""
    run_train(settings(JOINT, folder, (*TINY, "stages=[xe]")), 0, tmp_path / "plain")
    ours = DTNet.from_pretrained(folder / "joint-0").state_dict()
    theirs = DTNet.from_pretrained(tmp_path / "plain" / "model").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_self_critical_training_starts_from_the_arms_own_end(folder: Path, run: dict[str, Any]) -> None:
    """Fails if it starts from nothing, or its start is what is measured after it."""
    record = read_json(folder / "scst-0" / "run.json")
    assert record["config"]["start"] == str(folder / "joint-0") and record["config"]["stages"] == ["scst"]
    assert run["captions"].keys() == run["scst"].keys() == {"beam", "greedy"}
    before = DTNet.from_pretrained(folder / "joint-0").state_dict()
    after = DTNet.from_pretrained(folder / "scst-0" / "model").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_arms_differ_in_nothing_but_their_point() -> None:
    """Fails if an arm trains longer, with another rate, or on other data."""
    joint = settings(JOINT, Path("runs"))
    assert set(ARMS) == set(LABELS)
    for arm in ARMS:
        chosen = settings(arm, Path("runs"))
        assert (chosen.xe, chosen.data, chosen.blind) == (joint.xe, joint.data, arm == experiments.BLIND)
        other = {"cells", "routing"}
        assert chosen.model.model_dump(exclude=other) == joint.model.model_dump(exclude=other)
    assert settings(PLAIN, Path("runs")).model.cells == ("gmc", "cpc")
    # The last weights are then the only ones: nothing is chosen on val.
    assert joint.xe.epochs == 1 and joint.data.mini is not None and joint.data.mini.tagged


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != JOINT])
def test_what_arms_have_in_common_starts_alike(arm: str, folder: Path, data: CaptionData) -> None:
    """Fails if an arm without a router draws its cells anew."""
    whole = experiments.start(settings(JOINT, folder, TINY), data, 3).state_dict()
    own = experiments.start(settings(arm, folder, TINY), data, 3).state_dict()
    assert own.keys() <= whole.keys() and all(torch.equal(whole[name], tensor) for name, tensor in own.items())


def test_the_oracle_is_told_the_tags(folder: Path, data: CaptionData) -> None:
    """Fails if the oracle's training ignores the paths, or tells every scene the same."""
    tags = scene_tags(folder / "data")
    chosen = settings(ORACLE, folder, TINY)
    told, curve = experiments.train(chosen, ORACLE, data, tags, 0)
    uniform, _ = experiments.train(chosen, UNIFORM, data, tags, 0)
    _, other = experiments.train(chosen, ORACLE, data, {image: not tag for image, tag in tags.items()}, 0)
    assert not torch.equal(told.encoder.fc.weight, uniform.encoder.fc.weight)
    assert curve != other and len(curve) == 1
    paths = oracle_paths([True, False], DTNetConfig(encoder_layers=2))
    assert paths.spatial[0].tolist() == [[0, 0, 1]] * 2 and paths.channel[0].tolist() == [[0, 1]] * 2
    assert paths.spatial[1].tolist() == [[0.5, 0.5, 0]] * 2 and paths.channel[1].tolist() == [[1, 0]] * 2


def test_a_leaking_joint_unit_cannot_die(folder: Path, data: CaptionData) -> None:
    """With every unit below 0 a ReLU passes no gradient on; the leaky arm does. Fails if it is not changed."""
    for arm, learns in ((JOINT, False), (LEAKY, True)):
        model = experiments.start(settings(arm, folder, TINY), data, 0)
        if arm == LEAKY:
            experiments.leak(model)
        router: Any = model.encoder.layers[0].spatial_router
        router.joint[0].bias.data.fill_(-10)
        model.encode(data.features.batch(data.captions.images("val"))).paths.spatial[:, 0, 0].sum().backward()
        assert bool(router.joint[0].weight.grad.abs().sum() > 0) == learns


def test_what_is_measured_of_a_routed_arm(folder: Path, run: dict[str, Any], data: CaptionData) -> None:
    """Fails if losses are not those of val's words, or other numbers of permutations are averaged."""
    routing = run["routing"]
    assert len(routing["another"]) == 20 and len(set(routing["another"])) > 1
    assert [row["cells"] for row in routing["routers"]] == ["spatial", "channel"] and 0 <= routing["share"] <= 1
    ids = data.captions.images("val")
    assert run["tagged"] == [scene_tags(folder / "data")[one] for one in ids] and len(run["losses"]) == 12
    said = [[data.vocabulary.encode(split_words(text)) for text in data.captions.captions[one]] for one in ids]
    model = DTNet.from_pretrained(folder / "joint-0")
    assert routing["own"] == pytest.approx(caption_loss(model, data.features.batch(ids), said), rel=1e-6)
    one = caption_loss(model, data.features.batch(ids[:1]), said[:1])
    assert run["losses"][0] == pytest.approx(one, rel=1e-5) and 0 <= run["right"] <= 100


def test_what_is_finished_is_kept(folder: Path, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a finished arm is trained or measured again."""
    monkeypatch.setattr(experiments, "train", None)
    assert run_arm(JOINT, 0, folder, TINY) == run


def test_the_tag_is_seen_in_means_and_less_in_a_position(tmp_path: Path) -> None:
    """The design's own signal. Fails if the offset is lost, or stands out of the noise at one position."""
    write_mini_coco(tmp_path / "data", 5, 400, 200, 1, images=False, tagged=True)
    seen = experiments.signal(tmp_path)
    assert seen["pooled"] > findings.POOLED and 0.6 < seen["single"] < findings.SINGLE
    rng = np.random.default_rng(0)
    noise, tags = torch.tensor(rng.standard_normal((400, 3))), torch.tensor(rng.random(400) < 0.5)
    assert abs(experiments.area(noise[:200], tags[:200], noise[200:], tags[200:]) - 0.5) < 0.1
    apart = noise + 9 * tags[:, None]
    assert experiments.area(apart[:200], tags[:200], apart[200:], tags[200:]) == 1


CIDER = {"joint": 400.0, "blind": 20.0}
NEAREST = 200.0
SIGNAL = {"pooled": 0.99, "single": 0.7}


def measured(gain: float = 20.0, **loss: float) -> dict[str, list[dict[str, Any]]]:
    """Made-up measurements: an arm's loss, with scenes and seeds that differ a little; `gain` of SCST and beams."""
    losses = {
        PLAIN: 0.5,
        UNIFORM: 0.5,
        "spatial": 0.5,
        "channel": 0.5,
        JOINT: 0.4,
        LEAKY: 0.4,
        ORACLE: 0.3,
        "blind": 2.0,
    }
    losses |= loss
    rng = np.random.default_rng(0)
    noise = 0.002 * rng.standard_normal((len(losses), len(SEEDS), 10))

    def scored(cider: float, log_prob: float) -> dict[str, float]:
        return {"cider": cider, "exact": 50.0, "log_prob": log_prob}

    def one(place: int, arm: str, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "losses": (losses[arm] + noise[place, seed]).tolist(), "tagged": [True, False] * 5, "curve": [2.0, 1.0],
            "right": 40.0 if arm == "blind" else 70.0,
        }  # fmt: skip
        if arm in experiments.ROUTED:
            routers = [{"layer": 0, "cells": "spatial", "units": 3, "firing": 2}]
            found["routing"] = {
                "cells": [{"spread": 0.1}], "routers": routers, "share": 0.5, "own": 0.4,
                "another": [0.45 + 0.001 * seed] * 20, "mean": 0.42,
            }  # fmt: skip
        if arm in CIDER:
            beam, low = scored(CIDER[arm] + seed, -1.0), scored(CIDER[arm] + seed - gain, -1.0 - gain / 100)
            found["captions"] = {"beam": beam, "greedy": low}
        if arm == JOINT:
            found["scst"] = {"beam": scored(CIDER[arm] + seed + gain, -1.0), "greedy": scored(CIDER[arm], -1.2)}
        return found

    return {arm: [one(place, arm, seed) for seed in SEEDS] for place, arm in enumerate(losses)}


def outcomes(runs: dict[str, list[dict[str, Any]]], signal: dict[str, float] = SIGNAL) -> dict[str, Any]:
    return {finding.claim: finding.more.get("verdict", finding.passed) for finding in judge(runs, signal, NEAREST)}


def test_every_mini_claim_without_a_check_gets_a_finding() -> None:
    """Fails if an experiment's claim is missing from the ledger, or the other way round."""
    ledger = load_ledger(package_file("dtnet", "claims.yaml"))
    waiting = {claim.id for claim in ledger.claims if claim.kind == "mini" and claim.check is None}
    found = outcomes(measured())
    assert set(found) == waiting
    assert found.pop("mini-gates") is True and set(found.values()) == {"holds"}


@pytest.mark.parametrize(
    ("claim", "runs", "word"),
    [
        ("mini-cells", measured(plain=0.3), "not reproduced"),
        ("mini-cells", measured(plain=0.402), "equivalent"),
        ("mini-router", measured(uniform=0.4), "equivalent"),
        ("mini-router", measured(uniform=0.38), "not reproduced"),
        ("mini-router-spatial", measured(spatial=0.38), "not reproduced"),
        ("mini-router-channel", measured(channel=0.405), "equivalent"),
        ("mini-router-leaky", measured(leaky=0.5), "equivalent"),
        ("mini-scst", measured(gain=0.0), "equivalent"),
        ("mini-scst", measured(gain=-20.0), "not reproduced"),
        ("mini-beam", measured(gain=0.0), "equivalent"),
        ("mini-beam", measured(gain=-20.0), "not reproduced"),
    ],
)
def test_a_claim_can_fail(claim: str, runs: dict[str, Any], word: str) -> None:
    """Fails if a rival is left out, a difference is turned round, or a least effect is dropped."""
    assert outcomes(runs)[claim] == word


def test_captions_must_beat_both_of_their_baselines() -> None:
    assert {judge(measured(), SIGNAL, baseline)[1].passed for baseline in (399.0, 600.0)} == {None, False}
    runs = measured()
    for one in runs["blind"]:
        one["captions"]["beam"]["cider"] = 600.0
    assert outcomes(runs)["mini-caption"] == "not reproduced"


def test_beams_that_are_likelier_but_worse_do_not_hold() -> None:
    runs = measured()
    for one in runs[JOINT]:
        one["captions"]["beam"]["cider"] = one["captions"]["greedy"]["cider"] - 30
    assert outcomes(runs)["mini-beam"] == "not reproduced"


def test_paths_that_do_not_matter_are_equivalent() -> None:
    """Fails if another image's weights are compared with themselves."""
    runs = measured()
    for one in runs[JOINT]:
        one["routing"]["another"] = [one["routing"]["own"] + 1e-4] * 20
    assert outcomes(runs)["mini-paths"] == "equivalent" and outcomes(runs)["mini-paths-leaky"] == "holds"


ROUTES = {"mini-cells", "mini-router", "mini-router-spatial", "mini-router-channel", "mini-paths"}
DEVIATIONS = {"mini-router-leaky", "mini-paths-leaky"}


@pytest.mark.parametrize(
    ("gate", "without"),
    [
        ("signal", ROUTES | DEVIATIONS),
        ("headroom", ROUTES | DEVIATIONS),
        ("reference", ROUTES | DEVIATIONS | {"mini-caption", "mini-scst", "mini-beam"}),
        ("live", ROUTES),
    ],
)
def test_a_gate_that_fails_is_no_verdict(gate: str, without: set[str]) -> None:
    """Of the comparisons that it speaks of. Fails if a gate is not asked, or says something of other claims."""
    runs, signal = copy.deepcopy(measured(**({ORACLE: 0.49} if gate == "headroom" else {}))), SIGNAL
    if gate == "signal":
        signal = {"pooled": 0.8, "single": 0.6}
    if gate == "reference":
        for one in runs[UNIFORM]:
            one["right"] = 44.0
    if gate == "live":
        for one in runs[JOINT][:5]:
            one["routing"]["routers"][0]["firing"] = 0
    found = outcomes(runs, signal)
    assert found.pop("mini-gates") is False
    assert {claim for claim, word in found.items() if word == "no verdict"} == without
    assert gate in judge(runs, signal, NEAREST)[0].more["failed"]


def test_tables_and_curves_of_the_figures_have_every_arm(tmp_path: Path) -> None:
    found = {finding.claim: finding for finding in judge(measured(), SIGNAL, NEAREST)}
    more = found["mini-gates"].more
    atomic_write_json(tmp_path / "mini-gates.json", plain(more))
    assert len(draw_record(tmp_path, tmp_path)) == 3 and draw_record(tmp_path / "none", tmp_path) == []
    assert [one["name"] for one in more["table"]] == list(LABELS.values())
    assert set(more["curves"]) == set(more["by_tag"]) == set(LABELS)
    assert len(found["mini-caption"].more["table"]) == 4


@pytest.mark.slow
def test_all_arms_in_two_processes_and_again_from_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a worker cannot be spawned, or results get attributed to another arm."""
    monkeypatch.setattr(findings, "SEEDS", (0, 1))
    write_mini_coco(tmp_path / "data", 0, 40, 12, 6, images=False, tagged=True)
    found = findings.conduct(tmp_path, TINY)
    assert len(list(tmp_path.glob("*-?.json"))) == 2 * len(ARMS)
    (tmp_path / "blind-1.json").unlink()
    again = findings.conduct(tmp_path, TINY)
    assert [one.value for one in again] == [one.value for one in found]
    kept = [float(np.mean(read_json(tmp_path / f"plain-{seed}.json")["losses"])) for seed in (0, 1)]
    assert found[0].more["table"][0]["seeds"] == kept
    assert weights(tmp_path / "scst-0") != weights(tmp_path / "scst-1")
