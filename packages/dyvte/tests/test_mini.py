"""The miniature's arms and rules, on tables made by hand."""

import pytest
import torch

from dyvte.evidence import findings
from dyvte.gates import GateConfig
from dyvte.miniature import arms
from dyvte.miniature.gates import table_margins, train_gates
from dyvte.miniature.tables import Table


def table(right, kinds=None, layers=None):
    """A table of answers: ``right[question]`` over exits -1, 0, ..."""
    right = torch.tensor(right).bool()
    layers = right.shape[1] - 1
    x = torch.zeros(len(right), layers, 4)
    labels = {0.0: torch.zeros(len(right), layers, dtype=torch.int64)}
    return Table(tuple(kinds or ["a"] * len(right)), x, right, right == right[:, -1:], labels)


TWO_KINDS = table([[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]], ["easy", "easy", "deep", "deep"])


def test_arms_and_their_controls_by_hand():
    """Easy questions are right from layer 0 on, deep ones after layer 2: dynamic 100, shuffled 75, mixture 75."""
    exits = torch.tensor([0, 0, 2, 2])
    found = arms.row(TWO_KINDS, exits)
    assert found == {"mean_exit": 1.0, "dynamic": 100.0, "shuffled": 75.0, "within_kind": 100.0, "fixed_mixture": 75.0}
    assert arms.curve(TWO_KINDS) == [0.0, 50.0, 50.0, 100.0]


def test_the_oracle_is_the_first_layer_from_which_on_the_answer_is_dense():
    """Not the first that happens to agree."""
    flickers = table([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    assert arms.oracle(flickers).tolist() == [1, 2, -1]


def test_depth_inside_a_kind_shows_in_the_within_kind_control():
    mixed = table([[0, 1, 1, 1], [0, 0, 0, 1]], ["follow", "follow"])
    found = arms.row(mixed, torch.tensor([0, 2]))
    assert found["dynamic"] == 100.0 and found["within_kind"] == 75.0
    assert arms.spread_within_kinds(mixed, torch.tensor([0, 2])) == 1.0
    assert arms.spread_within_kinds(TWO_KINDS, torch.tensor([0, 0, 2, 2])) == 0.0


def test_the_nearest_threshold_is_taken_however_far():
    margins = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    assert -1 < arms.nearest_threshold(margins, 1.4) < 1


def test_gates_learn_a_table_whose_labels_can_be_read_off():
    """One random layer a step is enough; a gate that is never drawn stays as it began."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, 4, generator=generator)
    labels = {0.0: (x[..., 0] > 0).long()}
    made = Table(("a",) * 200, x, torch.ones(200, 4).bool(), torch.ones(200, 4).bool(), labels)
    gates = train_gates(made, GateConfig(3, 2, 32), 0, 400, 0.0)
    assert ((table_margins(gates, made) > 0).long() == labels[0.0]).float().mean() > 0.9
    again = train_gates(made, GateConfig(3, 2, 32), 0, 400, 0.0)
    assert torch.equal(gates[1].w1.weight, again[1].w1.weight)


def host(dynamic=(80.0, 82.0, 85.0), control=(70.0, 75.0, 80.0), dense=86.0, oracle=12.0, within=1.0, jitter=0.5):
    """A measurement with chosen numbers."""

    def budgets(seed):
        return [
            {
                "threshold": 0.0,
                "mean_exit": 2.0 + i,
                "dynamic": d + jitter * seed,
                "shuffled": c,
                "within_kind": d,
                "fixed_mixture": c,
            }
            for i, (d, c) in enumerate(zip(dynamic, control, strict=True))
        ]

    def arm(seed, exit_layer):
        rule = {"mean_exit": exit_layer, "dynamic": 85.0, "shuffled": 80.0, "within_kind": 85.0, "fixed_mixture": 80.0}
        return {"budgets": budgets(seed), "published_rule": rule}

    seeds = [
        {"seed": seed, "slack": arm(seed, 2.0), "published labels": arm(seed, 3.0), "published steps": arm(seed, 4.0)}
        for seed in range(3)
    ]
    return {
        "host": "sha256:x", "layers": 4, "questions": 10, "curve": [20.0, 50.0, 85.5, dense, dense],
        "curve_by_kind": {"a": [20.0, 50.0, 85.5, dense, dense]}, "exit_labels": {"0.0": [0.1] * 4},
        "oracle": {"mean_exit": 1.5, "dynamic": dense, "fixed_mixture": dense - oracle, "spread_within_kinds": within},
        "seeds": seeds,
    }  # fmt: skip


def verdicts(*hosts):
    return {finding.claim: finding for finding in findings.judge(hosts)}


def test_a_clear_lead_at_two_budgets_holds():
    found = verdicts(host())
    assert found["mini-dynamic"].passed and found["mini-fixed"].passed and found["mini-dynamic"].value > 5
    assert found["mini-curve"].passed and found["mini-curve"].value == 1
    assert found["mini-slack"].passed


def test_a_lead_at_one_budget_does_not():
    assert not verdicts(host(dynamic=(80.0, 75.5, 80.5)))["mini-dynamic"].passed


def test_no_difference_is_equivalent_and_not_held():
    found = verdicts(host())["mini-within-kind"]
    assert found.passed is False and found.detail.startswith("equivalent")


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"dense": 97.0}, "mini-dynamic"),
        ({"dense": 20.0}, "mini-fixed"),
        ({"oracle": 3.0}, "mini-dynamic"),
        ({"oracle": 3.0}, "mini-published-steps"),
        ({"within": 0.1}, "mini-within-kind"),
    ],
)
def test_a_gate_that_fails_makes_it_no_verdict(changes, claim):
    """Says nothing for or against the paper, and which gate it was."""
    found = verdicts(host(**changes))[claim]
    assert found.passed is None and found.detail.startswith("no verdict")


def test_hosts_are_averaged_over_their_gate_seeds_first():
    differences = findings.differences_of([host(), host(dynamic=(84.0, 86.0, 89.0))], "slack", "shuffled")
    assert differences.shape == (3, 2)


def test_the_tables_of_the_mini_host_agree_with_the_model():
    """An exit read off the table is the attached model's answer to the same pixels."""
    from dyvte.exits import VisualExit
    from dyvte.miniature import tables, world
    from tenfold.data import mini_host

    model, processor = mini_host.load()
    questions = world.asked(101, 2)
    made = tables.make_table(model, processor, questions)
    inputs = processor(
        images=[q.image for q in questions], text=[q.prompt for q in questions], return_tensors="pt", padding=True,
        padding_side="left",
    )  # fmt: skip
    words = processor.tokenizer([f" {q.answer}" for q in questions], add_special_tokens=False)["input_ids"]
    for layer in (-1, 1, made.layers - 1):
        with VisualExit(exit_at=layer)(model), torch.no_grad():
            said = model(**inputs).logits[:, -1].argmax(-1).tolist()
        assert [one == word[-1] for one, word in zip(said, words, strict=True)] == made.right[:, layer + 1].tolist()
