"""The mini experiments: what is trained and measured, what is kept, and what counts as reproduced."""

import copy
import json

import numpy as np
import pytest
import torch

from llava_hr.data.mini_questions import COARSE, DEV, FINE, KINDS, Asked, Question, held_out
from llava_hr.evidence import experiments, findings, variants
from llava_hr.evidence.experiments import Data, Plan, accuracy, answers, collate, loss_of, rows
from llava_hr.evidence.findings import ALIGN, ARMS, CONVNEXT, LOW_TO_HIGH, MRA, MRA_HALF, VIT, VIT_DOUBLE, judge
from tenfold.cli import find_package_file
from tenfold.ledger.seeds import counts

PLAN = Plan(scenes=32, captions=1, conversations=2, batch=4)


@pytest.fixture(scope="module")
def data():
    return Data(PLAN)


def run(fine, coarse, seed, **more):
    found = {"accuracy": dict.fromkeys(FINE, fine) | dict.fromkeys(COARSE, coarse), "seed": seed, "tokens": 36}
    swapped = dict.fromkeys(KINDS, 0.25)
    return {**found, "swapped": swapped, "half": swapped, "macs": 40, "milliseconds": 9.0, "gate": [0.1] * 3,
            "parameters": 1, "cpu_seconds": 1, "plan": {}, **more}  # fmt: skip


@pytest.fixture
def measured():
    """Made-up measurements under which everything comes out."""
    levels = {MRA: (0.9, 0.9), ALIGN: (0.85, 0.9), VIT: (0.3, 0.9), CONVNEXT: (0.8, 0.85), LOW_TO_HIGH: (0.8, 0.85),
              VIT_DOUBLE: (0.92, 0.9), MRA_HALF: (0.4, 0.9)}  # fmt: skip
    found = {
        arm: [run(fine + 0.01 * seed, coarse, seed) for seed in range(3)] for arm, (fine, coarse) in levels.items()
    }
    for one in found[VIT_DOUBLE]:
        one |= {"macs": 70, "tokens": 144}
    for one in found[VIT]:
        one["half"] = dict.fromkeys(KINDS, 0.3)
    return found


def verdicts(measured, zero=0.0):
    return {finding.claim: finding.passed for finding in judge(measured, zero)}


def lowered(measured, arm, kinds, to):
    changed = copy.deepcopy(measured)
    for one in changed[arm]:
        one["accuracy"] |= dict.fromkeys(kinds, to)
    return changed


def test_everything_comes_out_where_it_does(measured):
    found = verdicts(measured)
    assert found.pop("mini-adapters") is None  # an open question has no verdict
    assert all(found.values()) and len(found) == 8


@pytest.mark.parametrize(
    ("claim", "arm", "kinds", "to"),
    [
        ("mini-fine", VIT, FINE, 0.75),  # 16 points are not wide
        ("mini-coarse", CONVNEXT, COARSE, 0.92),
        ("mini-cost", VIT_DOUBLE, FINE, 0.97),
        ("mini-direction", LOW_TO_HIGH, KINDS, 0.9),
        ("mini-both", CONVNEXT, KINDS, 0.95),
        ("mini-resolution", MRA_HALF, FINE, 0.85),
    ],
)
def test_what_does_not_come_out_is_reported_as_such(measured, claim, arm, kinds, to):
    """Fails if a rule is loosened: a margin, or the spread that a difference must exceed."""
    assert verdicts(measured)[claim] is True
    assert verdicts(lowered(measured, arm, kinds, to))[claim] is False


def test_a_miniature_that_sees_nothing_has_no_verdicts(measured):
    """Fails if chance against chance counts as "not lower"."""
    blind = {arm: lowered(measured, arm, KINDS, 0.25)[arm] for arm in measured}
    found = verdicts(blind)
    assert found["mini-seen"] is False and found["mini-coarse"] is None and found["mini-cost"] is None
    assert found["mini-fine"] is False


def test_any_difference_at_step_zero_counts(measured):
    assert verdicts(measured, 1e-9)["mini-step-zero"] is False


def test_a_difference_counts_above_its_spread_and_margin():
    assert counts(np.array([1.0, 1.1, 0.9])) and not counts(np.array([2.0, -1.0, 0.5]))
    assert not counts(np.array([1.0, 1.1, 0.9]), margin=2.0) and not counts(np.zeros(3))


def test_runs_are_kept_and_a_killed_one_goes_on(tmp_path, monkeypatch):
    """Fails if a finished run is trained again, or what is kept is not what is judged."""
    monkeypatch.setattr(findings, "SEEDS", (0,))
    monkeypatch.setattr(findings, "ARMS", (MRA, ALIGN))
    made_up = {arm: run(0.5, 0.5, 0) for arm in ARMS}
    (tmp_path / "align-0.json").write_text(json.dumps(made_up[ALIGN]))
    seen = {}
    monkeypatch.setattr(findings, "judge", lambda measured, zero: seen.update(measured) or [])
    findings.conduct(tmp_path, PLAN, per_kind=1, workers=1)
    assert seen[ALIGN] == [made_up[ALIGN]]
    (found,) = seen[MRA]
    assert found == json.loads((tmp_path / "mra-0.json").read_text())
    assert set(found["accuracy"]) == set(found["swapped"]) == set(found["half"]) == set(KINDS)
    assert found["tokens"] == 36 and len(found["gate"]) == 3 and found["macs"] > 40e6 and found["plan"]["batch"] == 4


def test_the_lean_loss_is_the_models_own(data):
    """Fails if a label is shifted or lost, or padding is learnt."""
    model = variants.build(MRA, 0)
    samples = data.conversations[:3]
    batch = collate(samples, data.images[:3], 36)
    lengths = torch.tensor([len(sample.input_ids) + 35 for sample in samples])
    mask = (torch.arange(batch.input_ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        expected = model(batch.input_ids, mask, pixel_values=batch.pixel_values, labels=batch.labels).loss
        torch.testing.assert_close(loss_of(model, batch), expected)


def test_stage_one_trains_projector_and_align_only(data):
    """Fails if another weight moves in stage 1, or an adapter takes part in it."""
    from dataclasses import replace

    before = variants.build(MRA, 1).state_dict()
    model = experiments.train(MRA, 1, data, replace(PLAN, conversations=0))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(".align." in name or ".multi_modal_projector." in name for name in moved)
    assert len(model.model.vision_tower.adapters) == 3


def test_a_training_depends_on_its_seed_alone(data):
    """Fails if something is drawn from a global state."""
    one, two, other = (experiments.train(ALIGN, seed, data, PLAN).state_dict()["lm_head.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_every_epoch_has_another_order():
    first = [index for step in range(8) for index in rows(32, 4, 0, 1, step)]
    second = [index for step in range(8, 16) for index in rows(32, 4, 0, 1, step)]
    assert sorted(first) == sorted(second) == list(range(32)) and first != second


def test_answers_are_those_of_generate():
    """Fails if the quick way of asking differs from the processor's prompt and `generate`."""
    from llava_hr.data.mini_world import render, scene
    from llava_hr.miniature import model as mini
    from tenfold.data.formats.prompts import short_answer

    asked = held_out(DEV, 1)
    model, processor = variants.build(MRA, 0).eval(), mini.mini_processor()
    texts = [processor.prompt(short_answer(one.question.text), image=True) for one in asked]
    images = [render(scene(one.world, one.index)) for one in asked]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    assert processor.tokenizer.convert_ids_to_tokens(ids.tolist()) == answers(model, asked)


def test_accuracy_is_counted_by_kind():
    asked = [
        Asked(0, 0, Question(kind, "", answer)) for kind, answer in (("row", "top"), ("row", "top"), ("dots", "1"))
    ]
    assert accuracy(asked, ["top", "bottom", "1"]) == {"row": 0.5, "dots": 1.0}


def test_recorded_results_follow_from_the_recorded_table():
    """Fails if a committed number was changed by hand, or the rules after the runs."""
    folder = find_package_file("llava_hr", "results")
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("mini-*.json")}
    rows_by_arm = {row["arm"]: row for row in found["mini-fine"]["table"]}
    lead = np.array(rows_by_arm[MRA]["fine"]["seeds"]) - np.array(rows_by_arm[VIT]["fine"]["seeds"])
    assert len(lead) >= 3 and found["mini-fine"]["value"] == pytest.approx(lead.mean())
    assert found["mini-fine"]["passed"] == counts(lead, findings.WIDE)
    assert set(rows_by_arm) == set(ARMS)


def test_the_shipped_model_reads_what_half_the_pixels_hide():
    """Fails if another model ships, or its answers to fine questions do not come from fine detail."""
    outcome = findings.shipped_outcome(per_kind=8)
    assert outcome.passed and outcome.value > 80
    made = json.loads((findings.mini_model_path() / "training.json").read_text())
    assert made["seed"] == 0 and made["command"].startswith("llava-hr train --config mini")
