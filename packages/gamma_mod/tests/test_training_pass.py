"""Training passes: budgets, protected tokens, losses, gradients, gradient checkpointing."""

import copy

import pytest
import torch
from gamma_mod_fixtures import LAYERS, converted, labels_of, prompts

from gamma_mod import convert, measure_skips, train_only
from gamma_mod.routing import budget, routable_tokens
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.testing.hosts import build


def step(model, inputs, **kwargs):
    model.train().zero_grad()
    with measure_skips(keep_tensors=True) as skips:
        output = model(**inputs, labels=labels_of(inputs), **kwargs)
    output.loss.backward()
    return output, skips, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("protect", ["none", "question", "question+answer"])
def test_every_row_keeps_its_own_budget_and_what_is_protected(protect, padding):
    """Fails if k is one number for the batch, padding is kept, or a protected token is skipped."""
    model, inputs = converted(protect=protect, routing_ratio=0.5), prompts(padding=padding)
    real = inputs["attention_mask"].bool()
    visual = structure.visual_mask(model, inputs)
    routable = routable_tokens(visual, real, labels_of(inputs), protect)
    _, skips, _ = step(model, inputs)
    for layer in LAYERS:
        kept = skips.kept["training", layer][0]
        expected = [budget(int(r.sum()), int(c.sum()), 0.5) for r, c in zip(real, routable, strict=True)]
        assert kept.sum(1).tolist() == expected
        assert not (kept & ~real).any() and not (real & ~routable & ~kept).any()


def test_segments_of_a_row():
    """Prefix and image compete; so do answers under "question"; everything does under "none"."""
    visual = torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]]).bool()
    labels = torch.tensor([[-100] * 5 + [7, 7], [-100] * 5 + [7, 7]])
    found = {
        protect: routable_tokens(visual, None, labels, protect).int().tolist()
        for protect in ("none", "question", "question+answer")
    }
    assert found["none"] == [[1] * 7] * 2
    assert found["question"] == [[1, 1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1]]
    assert found["question+answer"] == [[1, 1, 1, 1, 0, 0, 0], [0] * 7]


def test_the_loss_is_the_language_models_plus_the_sum_over_layers():
    """Fails if the auxiliary losses are averaged, or counted twice, or lost."""
    model, inputs = converted(aux_coefficient=0.0), prompts()
    plain, _, _ = step(model, inputs)
    model.gamma_mod.configure(aux_coefficient=0.25)
    loss, skips, _ = step(model, inputs)
    real, expected = inputs["attention_mask"].bool(), 0.0
    for layer in LAYERS:
        p, kept = skips.probabilities["training", layer][0], skips.kept["training", layer][0]
        expected -= torch.where(kept, p, 1 - p).log()[real].mean()
    assert torch.allclose(loss.auxiliary_loss, expected, atol=1e-5)
    assert torch.allclose(loss.loss, plain.loss + 0.25 * expected, atol=1e-5)


def test_under_accumulation_auxiliary_losses_add_up_to_a_mean():
    """Two passes over halves weigh like one over both. Fails if each pass adds the whole auxiliary loss."""
    model, inputs = converted(), prompts(rows=[[("image", 4), 6]] * 2)
    labels = labels_of(inputs)
    count = int((labels[:, 1:] != -100).sum())
    model.train()
    whole = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(count)).loss
    halves = [
        model(
            **{name: value[row : row + 1] for name, value in inputs.items()},
            labels=labels[row : row + 1],
            num_items_in_batch=torch.tensor(count),
        ).loss
        for row in range(2)
    ]
    assert torch.allclose(sum(halves), whole, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_bit_of_the_choice(reentrant):
    """Fails if the indices are found again in the backward pass, or if a gradient is lost on the way."""
    inputs = prompts()
    plain = converted()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    loss, first, gradients = step(plain, inputs)
    again, second, found = step(saving, inputs)
    assert torch.allclose(loss.loss, again.loss, atol=1e-6)
    for layer in LAYERS:
        assert len(second.kept["training", layer]) == 1
        assert torch.equal(first.kept["training", layer][0], second.kept["training", layer][0])
    assert gradients.keys() == found.keys() and gradients["model.language_model.router.weight"].abs().sum() > 0
    assert all(torch.allclose(gradients[name], found[name], atol=1e-5) for name in gradients)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_fifty_steps_in_bfloat16_stay_finite(clip):
    """The paper's learning rate, with and without clipping; p stays within (0, 1), so no MLP is amplified."""
    model, inputs = convert(build("llava"), (1, 2)).bfloat16(), prompts()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    for _ in range(50):
        output, skips, _ = step(model, inputs)
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        p = torch.cat([found[0] for found in skips.probabilities.values()])
        assert torch.isfinite(output.loss) and p.min() > 0 and p.max() < 1
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_router_alone_can_train():
    """Fails if anything else moves, or if the router does not."""
    model, inputs = converted(), prompts()
    train_only(model, "router")
    _, _, gradients = step(model, inputs)
    assert list(gradients) == ["model.language_model.router.weight"]
    train_only(model, "all")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_routers_of_their_own_are_the_ablation():
    """One router a layer, each with its own gradient."""
    model, inputs = converted(shared_router=False), prompts()
    _, _, gradients = step(model, inputs)
    gradient = gradients["model.language_model.router.weight"]
    assert gradient.shape == (2, 2, 32) and gradient.abs().sum((1, 2)).min() > 0


def test_prompts_without_ids_say_what_may_be_skipped():
    """`routable` is an argument of the forward; without it, and without ids, training cannot know. Fails if it is
    ignored, or if it has another effect than the placeholders it stands for."""
    model, inputs = converted(), prompts(rows=[[("image", 4), 6]])
    expected, _, _ = step(model, inputs)
    routable = routable_tokens(structure.visual_mask(model, inputs), None, labels_of(inputs))
    found, _, _ = step(model, inputs, routable=routable)
    assert torch.equal(found.loss, expected.loss)
    everything, _, _ = step(model, inputs, routable=torch.zeros_like(routable))
    assert not torch.equal(everything.loss, expected.loss)
    embeds = {"inputs_embeds": torch.randn(1, 5, 32), "attention_mask": torch.ones(1, 5)}
    with pytest.raises(UserError, match="cannot be told from inputs_embeds"):
        model.train()(**embeds)
    with pytest.raises(UserError, match=r"routable \[1, 4\]"):
        model.train()(**embeds, routable=torch.ones(1, 4))


def test_packed_rows_are_refused():
    model, inputs = converted(), prompts(rows=[[("image", 4), 6]])
    length = inputs["input_ids"].shape[1]
    positions = torch.cat((torch.arange(length - 3), torch.arange(3)))[None]
    with pytest.raises(UserError, match="packed into one row"):
        model.train()(**inputs, position_ids=positions)
