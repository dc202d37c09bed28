"""The miniature's measures and its judge: rules that make masks, gates, verdicts, figures."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch

from inst_diff_edit.data import scenes
from inst_diff_edit.evidence import arms, experiments, figures, findings, rules
from inst_diff_edit.evidence.experiments import THRESHOLDS, collect, gates, iou, score, start_and_words
from inst_diff_edit.evidence.rules import auc, cut_of
from inst_diff_edit.words import split_words
from tenfold.ledger.seeds import interval


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer draws of the bootstrap."""
    monkeypatch.setattr(findings, "interval", partial(interval, draws=100))


EDITS = [scenes.edit(3, index) for index in range(2)]


def test_iou_by_hand():
    truth = np.zeros((1, 4, 4), bool)
    truth[0, :2] = True
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1:3] = True
    assert iou(mask, truth)[0] == pytest.approx(4 / 12) and iou(truth & False, truth)[0] == 0


def test_auc_by_hand():
    """Fails if ties count whole, or inside and outside are exchanged."""
    values, truth = np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])
    assert auc(values, truth) == pytest.approx((2 + 1.5) / 4)
    assert auc(-values, truth) == pytest.approx(1 - (2 + 1.5) / 4)


def test_thresholds_are_chosen_on_scenes_that_are_not_tested():
    """Fails if the tested scenes take part in the choice."""
    soft = torch.zeros(4, 64, 64)
    soft[:2, 16:48, 16:48] = 0.3
    soft[2:, 16:48, 16:48] = 0.9
    soft[2:] += 0.25
    truth = np.zeros((4, 32, 32), bool)
    truth[:, 8:24, 8:24] = True
    chosen = score(cut_of(soft), truth, 2, None)
    assert chosen.threshold < 0.3 and chosen.iou.shape == (2,) and chosen.iou.max() < 0.3
    assert THRESHOLDS[0] < chosen.threshold + 0.3


def test_the_box_in_the_middle_overlaps_little_with_any_object():
    """The control must not win by geometry; and controls are what they are called."""
    edits = [scenes.edit(1, index) for index in range(60)]
    truth = np.stack([edit.mask() for edit in edits])
    found = {name: score(cut, truth, 30, None).iou for name, cut in rules.controls(edits).items()}
    assert found[arms.BOX].mean() < 0.15 and not found[arms.EMPTY].any()
    assert found[arms.FULL] == pytest.approx(truth[30:].mean((1, 2)))
    assert 0.4 < found[arms.BOTH].mean() < 0.7


def attention_of(prompt, shares, pipe):
    """``[2, 1, 16, 16, 16]``: attention of a made-up prompt, in both steps; the start token gets the rest."""
    words, maps = split_words(pipe.tokenizer, prompt), torch.zeros(16, 16, 16)
    for place, (top, value) in shares.items():
        maps[top : top + 4, 4:8, words.groups[place][0]] = value
    maps[..., 0] = 1 - maps.sum(-1)
    return maps.expand(2, 1, -1, -1, -1)


def test_rules_take_the_parts_that_they_are_called_by(pipe):
    """A noun above, the ground's word below. Fails if a rule reads another word, or words are
    stretched before they are summed."""
    prompt = "a striped lemon on grass"
    attention = attention_of(prompt, {3: (0, 0.6), 5: (12, 0.2), 1: (6, 0.01)}, pipe)
    found = rules.of_attention(pipe, [prompt], attention)
    top, bottom, middle = (lambda soft, row=row: soft[0, row, 24].item() for row in (8, 56, 32))
    assert top(found[arms.NOUN]) > 0.9 and bottom(found[arms.NOUN]) < 0.05
    assert bottom(found[arms.LAST]) > 0.9 and top(found[arms.LAST]) < 0.05
    assert top(found[arms.SUM]) > 0.9 and 0.2 < bottom(found[arms.SUM]) < 0.5 and middle(found[arms.SUM]) < 0.1
    assert middle(found[arms.MEAN]) > 0.9 * top(found[arms.MEAN]) > 0.3  # stretched: "a" counts as much
    assert top(found[arms.START]) > 0.9 > 0.5 > bottom(found[arms.START])
    chosen, roles = rules.reference_counts(pipe, [prompt], attention[0])
    assert chosen == {"a": 0, "pattern": 0, "noun": 1, "on": 0, "ground": 0}
    assert roles["noun"] == {"object": 1, "neither": 0, "background": 0} and roles["ground"]["background"] == 1
    assert top(found[arms.REFERENCE]) > 0.9 and rules.rows_of([split_words(pipe.tokenizer, prompt)], "ground") == 5


def test_a_barred_word_is_no_reference(pipe):
    """Fails if "a", whose map is most like the inverted start token's, is chosen all the same."""
    prompt = "a striped lemon on grass"
    attention = attention_of(prompt, {1: (0, 0.6), 3: (12, 0.2)}, pipe)
    found = rules.of_attention(pipe, [prompt], attention)
    assert rules.reference_counts(pipe, [prompt], attention[0])[0]["a"] == 1
    assert found[arms.REFERENCE][0, 8, 24] > 0.9 and found[arms.BARRED][0, 56, 24] > 0.9 > found[arms.BARRED][0, 8, 24]


def test_the_start_token_leaves_over_what_words_do_not_take(pipe):
    """-1 where nothing else is attended to. Fails if end and padding are counted as words."""
    prompt = "a striped lemon on grass"
    whole = attention_of(prompt, {3: (0, 0.6), 5: (12, 0.2)}, pipe)[0]
    assert start_and_words(pipe, [prompt], whole) == pytest.approx(-1)
    shared = whole.clone()
    shared[..., 12] = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.4
    shared[..., 0] -= shared[..., 12]
    assert -0.95 < start_and_words(pipe, [prompt], shared) < -0.3


def test_forwards_are_what_the_unet_sees(pipe, monkeypatch):
    """Rows of all calls, for one picture's mask. Fails if a rule's cost is counted otherwise than it is paid."""
    seen = []
    plain = pipe.unet.forward
    monkeypatch.setattr(
        pipe.unet, "forward", lambda rows, *args, **more: (seen.append(len(rows)), plain(rows, *args, **more))[1]
    )
    told = arms.forwards()
    for rule, options in {
        arms.METHOD: {},
        arms.ONE_NOISE: {"num_masks": 1},
        arms.EVERY_STEP: {"roles": "every"},
    }.items():
        seen.clear()
        collect(pipe, EDITS[:1], **options)
        assert sum(seen) == told[rule]
    seen.clear()
    maps = rules.diffedits(pipe, EDITS[:1])
    # Of three phrases, each in all steps for the one and in the first for the other; a mask takes two of them.
    assert sum(seen) == 3 * (told[arms.REPOSITORY] + told[arms.DIFFUSERS]) // 2
    assert all(soft.shape == (1, 32, 32) and soft.min() >= 0 and soft.max() <= 1 for soft in maps.values())
    assert not torch.equal(maps[arms.REPOSITORY], maps[arms.REPOSITORY_BARE])


def test_the_batched_diffedit_is_the_repositorys(pipe):
    """Fails if noises or phrases are mixed up among pictures."""
    from inst_diff_edit.evaluation import baselines
    from inst_diff_edit.inputs import to_tensor
    from inst_diff_edit.masks import blur, stretch
    from inst_diff_edit.pipeline import SEED
    from inst_diff_edit.sampling import noise_seeds, noises

    edit = EDITS[1]
    latents = to_tensor([edit.picture()], 32, 32) * pipe.vae.config.scaling_factor
    noise = noises(noise_seeds(torch.Generator().manual_seed(SEED), arms.NOISES), latents)
    nothing, source, target = pipe._encode_prompts(["", edit.source_prompt, edit.prompt], None, guided=False).split(1)
    with torch.no_grad():
        distances, _, _ = baselines.diffedit_distances(
            pipe.unet, pipe.scheduler, latents, noise, source, target, nothing, arms.STEPS, 10, arms.GUIDANCE
        )
    alone = blur(stretch(distances.mean(0))[None], baselines.GAUSSIAN)[0]
    assert torch.allclose(rules.diffedits(pipe, EDITS)[arms.REPOSITORY][1], alone, atol=2e-2)


def test_everything_is_measured_of_an_untrained_model_and_nothing_can_be_said(pipe, tmp_path, monkeypatch):
    """From pictures to the report's pages. Fails if a claim is missing, or comparisons are judged
    though gates are missed."""
    monkeypatch.setattr(findings, "SEEDS", (0,))
    one = experiments.measure(pipe, 3, 2, 2, 4, 2)
    one["curve"] = {name: [0.3, 0.2] for name in ("loss", "attention_to_words", "attention_to_end")}
    found = {finding.claim: finding for finding in findings.judge({0: json.loads(json.dumps(one))})}
    assert all(len(values) == 2 for values in one["iou"].values()) and set(one["edits"]) == set(arms.VARIANTS)
    assert found["mini-gate"].passed is False and found["mini-gate"].value < 5
    for claim in ("mini-iou", "mini-parts", "mini-diffedit", "mini-word", "mini-background"):
        assert found[claim].passed is None and found[claim].detail.startswith("no verdict (gate missed: noun against")
    table = found["mini-iou"].more["table"]
    told = {row["name"]: row["forwards"] for row in table}
    assert told == arms.forwards() and told[arms.METHOD] == told[arms.PAPER] == 60
    for name, draw in {
        "gates": lambda path: figures.draw_gates(found["mini-gate"].more["gates"], path),
        "curves": lambda path: figures.draw_curves(found["mini-gate"].more["curves"], path),
        "masks": lambda path: figures.draw_masks(table, path),
    }.items():
        assert draw(tmp_path / f"{name}.png").stat().st_size > 5000


def measured(leads=(0.1, 0.1, 0.1), outside=0.02):
    """Three seeds that pass every gate; the method's masks lead all others by so much."""
    rng = np.random.default_rng(0)
    found = {}
    for seed, lead in enumerate(leads):
        base = rng.uniform(0.2, 0.5, 50)
        values = {rule: base.tolist() for rule in arms.forwards()}
        values |= {
            arms.METHOD: (base + lead).tolist(),
            arms.NOUN: (base + 0.2).tolist(),
            arms.PAPER: base.tolist(),
        }
        change = {"done": [1.0] * 50, "kept": [1.0] * 50}
        found[seed] = {
            "gates": {
                "noun against other": 0.9, "noun against rest": 0.95, "noun against other, both named": 0.8,
                "noun against rest, both named": 0.9, "ground": 0.8,
                "start and words, first step": -0.8, "start and words, last step": -0.7,
            },
            "iou": values,
            "threshold": dict.fromkeys(values, 0.5),
            "reference": {name: {"noun": 30, "a": 20} for name in ("whole", "short")},
            "roles": {"whole": {"ground": {"object": 5, "neither": 20, "background": 25}}},
            "edits": {
                variant: {**change, "outside": [0.01 + (outside if variant == arms.SDEDIT else 0)] * 50}
                for variant in arms.VARIANTS
            },
        }  # fmt: skip
    return found


def judged(found):
    return {finding.claim: finding for finding in findings.judge(found)}


def test_a_claim_holds_only_beyond_least_effect_and_spread():
    """Fails if a small lead, or one of a single seed, is enough, or the least of several leads is not what counts."""
    clear = judged(measured())
    assert all(clear[name].passed for name in ("mini-gate", "mini-iou", "mini-parts", "mini-diffedit", "mini-word"))
    assert clear["mini-background"].passed and clear["mini-reference"].value == pytest.approx(0.6)
    assert judged(measured(leads=(0.01, 0.02, 0.01)))["mini-iou"].more["verdict"] == "equivalent"
    assert judged(measured(leads=(-0.1, 0.3, 0.0)))["mini-iou"].passed is False
    assert judged(measured(outside=-0.02))["mini-background"].passed is False
    one_better = measured()
    for seed in one_better.values():
        seed["iou"][arms.SUM] = (np.array(seed["iou"][arms.METHOD]) + 0.1).tolist()
    assert judged(one_better)["mini-parts"].passed is False and judged(one_better)["mini-iou"].passed


GATED = {
    "noun against other": ("gates", 0.84),
    "start and words, last step": ("gates", -0.91),
    "ground": ("gates", 0.69),
}


@pytest.mark.parametrize("name", [*GATED, "roles", "room"])
def test_a_gate_that_one_seed_misses_leaves_no_verdict(name):
    """Fails if a mean over seeds is enough for a gate, or a gate is not asked."""
    found = measured()
    one = found[1]
    if name in GATED:
        one["gates"][name] = GATED[name][1]
    elif name == "roles":
        one["roles"]["whole"]["ground"] = {"object": 20, "neither": 20, "background": 10}
    else:
        one["iou"][arms.BOTH] = copy.copy(one["iou"][arms.NOUN])
    claims = judged(found)
    assert claims["mini-gate"].passed is False and claims["mini-gate"].value == 4
    for claim in ("mini-iou", "mini-parts", "mini-diffedit", "mini-word", "mini-background"):
        assert claims[claim].passed is None and claims[claim].more["verdict"] == "no verdict"


def test_fewer_seeds_than_declared_leave_no_verdict():
    found = measured()
    del found[2]
    assert "2 of 3 seeds" in judged(found)["mini-iou"].detail and judged(found)["mini-iou"].passed is None


def test_a_finished_seed_is_taken_as_it_is(tmp_path):
    """Fails if a killed `claims --train` measures anew what lies in its folder."""
    for seed, one in measured().items():
        (tmp_path / f"seed-{seed}.json").write_text(json.dumps(one))
    found = {finding.claim: finding for finding in findings.conduct(tmp_path, workers=1)}
    assert found["mini-iou"].passed and not list(tmp_path.glob("seed-?/"))


@pytest.mark.parametrize("both", [False, True])
def test_the_gate_asks_for_true_captions(pipe, monkeypatch, both):
    """Fails if a prompt names what is not there, or ends in the other thing."""
    asked = []
    plain = type(pipe).__call__

    def listen(self, pictures, prompts, *args, **options):
        asked.extend(prompts)
        return plain(self, pictures, prompts, *args, **options)

    monkeypatch.setattr(type(pipe), "__call__", listen)
    found = gates(pipe, EDITS)
    assert 0 < found["noun against other"] < 1 and found["noun against other"] != found["noun against rest"]
    for edit, prompt in zip(EDITS, asked[2:] if both else asked[:2], strict=True):
        assert prompt == (edit.caption() if both else edit.source_prompt)
