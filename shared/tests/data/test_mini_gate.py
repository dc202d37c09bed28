"""The gate: what the mini host still answers when all visual tokens but one are dropped after a layer."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from tenfold.data import mini_host, miniworld
from tenfold.data.mini_gate import asked, evaluate, gate_curve, pruned_logits


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def host():
    return mini_host.load()


@pytest.fixture(scope="module")
def inputs(host):
    """Four prompts of different length, padded on the left."""
    _, processor = host
    pairs = asked("two_hop", 3, 3) + asked("colour", 3, 1)
    images = [miniworld.render(scene, mini_host.IMAGE_SIZE) for scene, _ in pairs]
    texts = [mini_host.prompt(question.text) for _, question in pairs]
    return processor(images=images, text=texts, return_tensors="pt", padding=True)


def masked_logits(model, inputs, dropped_after: int) -> torch.Tensor:
    """The same by other means: nothing is dropped, but later layers are kept from looking at the visual tokens."""
    visual = inputs["input_ids"] == model.config.image_token_id
    hidden = visual & (visual.cumsum(-1) > 1)
    tokens = visual.shape[1]
    seen = inputs["attention_mask"].bool() & ~hidden
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril() & seen[:, None, :]
    mask = (mask | torch.eye(tokens, dtype=torch.bool))[:, None]

    def blind(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    hooks = [
        layer.register_forward_pre_hook(blind, with_kwargs=True)
        for layer in model.model.language_model.layers[dropped_after + 1 :]
    ]
    try:
        with torch.inference_mode():
            return model(**inputs).logits[:, -1]
    finally:
        for hook in hooks:
            hook.remove()


def test_dropping_tokens_after_a_layer_is_being_blind_to_them_from_the_next_one_on(host, inputs) -> None:
    """Fails if tokens are dropped before their layer's attention, positions close up, or padding is seen."""
    model, _ = host
    found = pruned_logits(model, **inputs)
    layers = model.config.text_config.num_hidden_layers
    assert len(found) == layers
    for layer in range(layers):
        torch.testing.assert_close(found[layer], masked_logits(model, inputs, layer), rtol=1e-3, atol=1e-3)
    assert (found[0] - found[-1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["colour", "two_hop"])
def test_the_curve_ends_at_the_whole_models_accuracy(host, kind: str) -> None:
    """Fails if the gate asks other questions than `evaluate`, or counts other answers as right."""
    model, processor = host
    whole = evaluate(model, processor, seed=11, count=50, kinds=(kind,))[kind]["accuracy"]
    assert gate_curve(model, processor, seed=11, count=50, kind=kind)[-1] == pytest.approx(whole)
