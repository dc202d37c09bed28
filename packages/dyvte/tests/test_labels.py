"""The label rule, by hand."""

import torch

from dyvte.branches import LabelRule, gate_loss, shifted


def logits_for(tokens, certainty):
    """Logits [1, positions, 4] that name ``tokens`` with ``certainty``."""
    found = torch.zeros(1, len(tokens), 4)
    found[0, range(len(tokens)), tokens] = certainty
    return found


def judge(rule, dense, exited, targets):
    return rule.judge(dense, exited, torch.tensor([targets]))


def test_an_equal_answer_that_is_no_less_certain_may_leave():
    judged = judge(LabelRule(), logits_for([1, 2], 5.0), logits_for([1, 2], 5.0), [1, 2])
    assert judged.labels.tolist() == [1] and judged.agreement.tolist() == [1.0]


def test_another_answer_and_a_less_certain_one_may_not():
    """Fails if one of the two parts is left out."""
    dense = logits_for([1, 2], 5.0)
    assert judge(LabelRule(), dense, logits_for([1, 3], 5.0), [1, 2]).labels.tolist() == [0]
    assert judge(LabelRule(), dense, logits_for([1, 2], 3.0), [1, 2]).labels.tolist() == [0]


def test_another_answer_may_not_leave_however_certain_the_right_one_became():
    """Fails if the agreement is left out: the answer of the data set is likelier without the image, and another."""
    judged = judge(LabelRule(), logits_for([3], 5.0), logits_for([0], 4.0), [2])
    assert judged.ce_exited < judged.ce_dense and judged.labels.tolist() == [0]


def test_slack_lets_a_hair_of_certainty_go():
    """Near a cross entropy of 0 the published ratio is decided by noise; 0.01 nats repair that."""
    dense, exited = logits_for([1], 12.0), logits_for([1], 11.0)
    assert judge(LabelRule(), dense, exited, [1]).labels.tolist() == [0]
    assert judge(LabelRule(slack=0.01), dense, exited, [1]).labels.tolist() == [1]


def test_token_zero_counts_unless_asked_otherwise():
    """Qwen's "!" is id 0: by default it is an answer like any other; as released it is not."""
    dense, exited = logits_for([0, 1], 5.0), logits_for([2, 1], 5.0)
    assert judge(LabelRule(), dense, exited, [0, 1]).agreement.tolist() == [0.5]
    assert judge(LabelRule(drop_token_zero=True), dense, exited, [0, 1]).agreement.tolist() == [1.0]


def test_positions_outside_the_answer_do_not_count():
    dense, exited = logits_for([1, 2, 3], 5.0), logits_for([0, 2, 0], 5.0)
    judged = judge(LabelRule(), dense, exited, [-100, 2, -100])
    assert judged.labels.tolist() == [1]


def test_a_target_is_the_next_token():
    assert shifted(torch.tensor([[-100, 5, 6]])).tolist() == [[5, 6, -100]]


def test_the_loss_is_ordinary_cross_entropy():
    logits, labels = torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, 1])
    expected = -logits.log_softmax(-1)[range(2), labels].mean()
    torch.testing.assert_close(gate_loss(logits, labels), expected)
