"""One paper's method on another paper's model: by the model's structure, without an import between the packages."""

from __future__ import annotations

import pytest
import torch

fitprune = pytest.importorskip("fitprune")
llava_hr = pytest.importorskip("llava_hr")

LAYERS, TEXT = 32, 12


@pytest.fixture(scope="module")
def host():
    """LLaVA-HR as released, 1,024 pixels, 1,024 visual tokens and 32 decoder layers, at a width of 16."""
    from llava_hr.configuration import LlavaHrVisionConfig

    vision = LlavaHrVisionConfig(
        low_res_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "image_size": 336, "patch_size": 14,
        },
        high_res_dims=[4, 4, 8, 8],
        high_res_depths=[1, 1, 1, 1],
    )  # fmt: skip
    text = {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = llava_hr.LlavaHrConfig(text_config=text, vision_config=vision, image_token_id=60)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return llava_hr.LlavaHrForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def inputs(host):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 60, (TEXT,), generator=generator)
    ids = torch.cat([words[:4], torch.full((host.config.num_image_tokens,), 60), words[4:]])[None]
    pixels = torch.randn(1, 3, 1024, 1024, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def kept(cache) -> list[int]:
    """Tokens in each layer's cache."""
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("percent", [40, 60])
def test_a_released_recipe_prunes_llava_hr_layer_by_layer(host, inputs, percent):
    """Fails if LLaVA-HR's placeholders or decoder layers are not found by structure, or no recipe is for its tokens."""
    recipe = fitprune.Recipe.released("llava-hr-7b", percent)
    assert (recipe.num_layers, recipe.visual_tokens) == (LAYERS, host.config.num_image_tokens)
    with torch.no_grad(), fitprune.Pruner(recipe)(host):
        pruned = kept(host(**inputs).past_key_values)
    with torch.no_grad():
        whole = kept(host(**inputs).past_key_values)
    # A layer attends to all that enters it; what it removes is missing from the next layer's cache on.
    removed = torch.tensor(recipe.remove).cumsum(0).tolist()
    assert whole == [host.config.num_image_tokens + TEXT] * LAYERS
    entering = [whole[0] - gone for gone in [0, *removed[:-1]]]
    assert pruned == entering and pruned[-1] < whole[0]


def test_nothing_is_left_of_the_pruner_and_zero_recipes_change_nothing(host, inputs):
    """Fails if the pruner leaves a hook behind, or shifts LLaVA-HR's positions."""
    with torch.no_grad():
        before = host(**inputs).logits
        with fitprune.Pruner(fitprune.Recipe.zero(LAYERS, 1024))(host):
            assert torch.equal(host(**inputs).logits, before)
        with fitprune.Pruner(fitprune.Recipe.released("llava-hr-7b", 60))(host):
            assert host(**inputs).logits.shape[1] < before.shape[1]
        assert torch.equal(host(**inputs).logits, before)


def test_pruned_llava_hr_generates_and_scales_a_recipe_to_kept_visual_tokens(host, inputs):
    """Fails if decoding under the pruner breaks on `visual_tokens`, which are encoded once for several turns."""
    recipe = fitprune.Recipe.released("llava-hr-7b", 60)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.no_grad(), fitprune.Pruner(recipe)(host):
        first = host.generate(**inputs, **options)
        again = host.generate(**text, visual_tokens=host.encode_images(inputs["pixel_values"]), **options)
    assert first.shape[1] == inputs["input_ids"].shape[1] + 4 and torch.equal(first, again)
