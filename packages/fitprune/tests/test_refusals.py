"""What pruning refuses, each with its reason: inputs, a second attachment, hosts of another structure."""

import pytest
import torch
from transformers import StaticCache

from fitprune import Pruner, Recipe
from fitprune.attachment import Layer
from tenfold import UserError
from tenfold.testing.hosts import IMAGE, MROPE, SIGLIP, TEXT, Prompts, build

RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))


@pytest.fixture(scope="module")
def model():
    return build("llava")


@pytest.fixture()
def inputs():
    return Prompts("llava").batch([[("image", 4), 6]])


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, m: i.update(labels=i["input_ids"]), "labels under pruning"),
        (
            lambda i, m: i.update(past_key_values=StaticCache(config=m.config, max_cache_len=64)),
            "static cache",
        ),
        (lambda i, m: i.update(attention_mask=torch.ones(1, 1, 25, 25)), r"not \[batch, tokens\]"),
        (
            lambda i, m: (
                i.pop("input_ids"),
                i.update(inputs_embeds=torch.zeros(1, 25, 32), pixel_values=None),
            ),
            "inputs_embeds",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(model, inputs, change, message):
    """Labels, static cache, four-dimensional mask, embeddings without a mask."""
    change(inputs, model)
    with Pruner(RECIPE)(model), pytest.raises(UserError, match=message):
        model(**inputs)


def test_one_attachment_at_a_time(model):
    pruner = Pruner(RECIPE)
    with pruner(model):
        with pytest.raises(UserError, match="already attached"):
            pruner.attach(model)
        with pytest.raises(UserError, match="already being pruned"):
            Pruner(RECIPE).attach(model)
    assert not any(
        isinstance(getattr(layer.forward, "__self__", None), Layer) for layer in model.model.language_model.layers
    )


def test_hosts_of_other_structure_are_refused(model):
    """Each with its reason: compiled, no transformers model, wrong depth, sliding windows, deepstack,
    bidirectional."""
    with pytest.raises(UserError, match="compiled model"):
        Pruner(RECIPE).attach(torch.compile(build("llava")))
    with pytest.raises(UserError, match="no host model"):
        Pruner(RECIPE).attach(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="layers"):
        Pruner(Recipe(model="tiny", num_layers=5, visual_tokens=16, remove=(1,) * 5)).attach(model)
    sliding = build("qwen2_vl")
    sliding.config.text_config.layer_types = ["sliding_attention"] * 4
    with pytest.raises(UserError, match="sliding-window"):
        Pruner(RECIPE).attach(sliding)
    bidirectional = build("llava")
    bidirectional.config.text_config.use_bidirectional_attention = True
    with pytest.raises(UserError, match="bidirectional"):
        Pruner(RECIPE).attach(bidirectional)


def refused_hosts():
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    text, vision = {**TEXT, "head_dim": 8}, {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32}
    yield "sliding-window", Gemma3ForConditionalGeneration, Gemma3Config(text_config=text, vision_config=SIGLIP)
    paligemma = PaliGemmaConfig(text_config={"model_type": "gemma", **text}, vision_config=SIGLIP)
    yield "bidirectional", PaliGemmaForConditionalGeneration, paligemma
    qwen3 = Qwen3VLConfig(
        text_config={**text, "rope_parameters": MROPE},
        vision_config={**vision, "deepstack_visual_indexes": [0]},
        image_token_id=IMAGE,
    )
    yield "deepstack", Qwen3VLForConditionalGeneration, qwen3


@torch.no_grad()
def test_a_window_that_nothing_reads_is_no_reason(model, inputs):
    """A Llama's configuration may name one, as SmolVLM's tests do. Fails if the name alone refuses the host."""
    sliding = build("llava")
    sliding.config.text_config.sliding_window = 32
    with Pruner(RECIPE)(sliding):
        found = sliding(**inputs).logits
    with Pruner(RECIPE)(model):
        assert torch.equal(found, model(**inputs).logits)


@pytest.mark.parametrize("reason, model_class, config", list(refused_hosts()))
@torch.no_grad()
def test_a_recipe_of_zeros_attaches_to_any_host(reason, model_class, config):
    """It touches no layer, so no structure is in its way. Fails if it is refused for what the method cannot serve."""
    model, ids = model_class(config).eval(), torch.arange(4, 10)[None]
    plain = model(input_ids=ids).logits
    with Pruner(Recipe.zero(config.get_text_config().num_hidden_layers, 16))(model):
        assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize("reason, model_class, config", list(refused_hosts()))
def test_hosts_that_the_method_cannot_serve_are_refused(reason, model_class, config):
    """Gemma 3, PaliGemma and Qwen3-VL, by structure, each with its reason."""
    with torch.device("meta"):
        model = model_class(config)
    with pytest.raises(UserError, match=reason):
        Pruner(RECIPE).attach(model)
