"""The two branches of training: removal is the mask, all layers at once are one at a time, padding is nothing."""

import pytest
import torch
from dyvte_fixtures import answered, host, rows, single
from dyvte_reference import decoder, layer_zero_input

from dyvte.branches import run_branches
from dyvte.gates import GateConfig
from tenfold import UserError
from tenfold.testing.hosts import IMAGE, Prompts

CONFIG = GateConfig(4, 32, 8)


def masked_branch(model, inputs, layer):
    """The released way: the whole width, visual keys blocked behind ``layer``."""
    hidden, rotary = layer_zero_input(model, **inputs)
    real, width = inputs["attention_mask"].bool(), hidden.shape[1]
    seen = torch.ones(width, width, dtype=torch.bool).tril() & real[:, None]
    for number, block in enumerate(decoder(model).layers):
        mask = seen if number <= layer else seen & (inputs["input_ids"] != IMAGE)[:, None]
        mask = (mask | torch.eye(width, dtype=torch.bool))[:, None]
        hidden = block(hidden, attention_mask=mask, position_embeddings=rotary)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return model.lm_head(decoder(model).norm(hidden))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_removal_equals_the_blocked_keys_of_the_released_code(name):
    """Fails if positions are renumbered after removal, or a branch starts from another layer."""
    model, _ = host(name)
    inputs, labels = answered(model, Prompts(name).batch([[("image", 4), 6], [("image", 4), 9]], "right"))
    branches = run_branches(model, inputs, labels, range(4), CONFIG)
    for layer in range(4):
        logits = masked_branch(model, inputs, layer)
        for row in range(2):
            at = (labels[row] != -100).nonzero()[:, 0] - 1
            torch.testing.assert_close(branches.exited[layer, row, : len(at)], logits[row, at], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_all_layers_at_once_equal_one_at_a_time(name):
    """Fails if branches of one batch mix. M-RoPE hosts with an image of 2:1."""
    model, _ = host(name)
    inputs, labels = answered(model, Prompts(name).batch([[("image", 4), 6], [("image", 4), 4]]))
    together = run_branches(model, inputs, labels, range(4), CONFIG)
    for layer in range(4):
        alone = run_branches(model, inputs, labels, [layer], CONFIG)
        torch.testing.assert_close(together.exited[layer], alone.exited[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(together.x[layer], alone.x[0])


def test_the_side_of_the_padding_and_the_batch_do_not_matter():
    model, _ = host()
    found = {}
    for padding in ("left", "right"):
        inputs, labels = answered(model, rows(lengths=(6, 5, 9), padding=padding))
        found[padding] = run_branches(model, inputs, labels, range(4), CONFIG)
    for part in ("x", "dense", "exited"):
        torch.testing.assert_close(getattr(found["left"], part), getattr(found["right"], part), atol=1e-4, rtol=1e-4)
    one, labels = answered(model, single(rows(lengths=(6, 5, 9)), 2))
    alone = run_branches(model, one, labels, range(4), CONFIG)
    torch.testing.assert_close(alone.x[:, 0], found["left"].x[:, 2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.exited[:, 0], found["left"].exited[:, 2], atol=1e-4, rtol=1e-4)


def test_an_exit_after_the_last_layer_changes_nothing():
    """So that its label is always 1."""
    model, _ = host()
    inputs, labels = answered(model, rows())
    branches = run_branches(model, inputs, labels, [3], CONFIG)
    torch.testing.assert_close(branches.exited[0], branches.dense, atol=1e-5, rtol=1e-5)


def test_the_head_runs_on_answer_positions_only():
    """Fails if the head sees more than one position of the prompt, and those of the answer."""
    model, _ = host()
    inputs, labels = answered(model, rows())
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[-2]))
    run_branches(model, inputs, labels, [1], CONFIG)
    handle.remove()
    assert sorted(seen) == [1, 2, 2]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda inputs, labels: labels.fill_(-100), "a sample without an answer"),
        (lambda inputs, labels: labels[:, 4].fill_(5), "an answer before the image"),
        (lambda inputs, labels: labels[0, -6].fill_(5), "several rounds"),
        (lambda inputs, labels: inputs["input_ids"].fill_(11), "a sample without an image"),
    ],
)
def test_a_sample_that_is_no_single_round_is_refused(spoil, words):
    """Fails if "answer = the last tokens" is believed of a sample with several answers."""
    model, _ = host()
    inputs, labels = answered(model, rows(lengths=(9, 9)))
    spoil(inputs, labels)
    with pytest.raises(UserError, match=words):
        run_branches(model, inputs, labels, [1], CONFIG)
