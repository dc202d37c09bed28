"""One paper's method on another paper's model, and two methods on one host: by structure, without an import between the
packages. What does not go together is refused with its reason."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import pytest
import torch

from tenfold import UserError
from tenfold.hosts.attached import attached
from tenfold.testing.hosts import IMAGE, Prompts, build

dyvte = pytest.importorskip("dyvte")
eas = pytest.importorskip("eas")
fitprune = pytest.importorskip("fitprune")
flashsloth = pytest.importorskip("flashsloth")
gamma_mod = pytest.importorskip("gamma_mod")
llava_hr = pytest.importorskip("llava_hr")

LAYERS, TEXT = 32, 12
TINY, VISUAL = 4, 16  # layers and visual tokens of the tiny LLaVA
RECIPE = (4, 3, 2, 1)


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


def test_gamma_mod_converts_llava_hr_layer_by_layer_and_leaves_it(host, inputs):
    """Converted layers cache what they compute. Fails if LLaVA-HR's layers are not found by structure, nothing is
    skipped, or the conversion leaves something behind."""
    with torch.no_grad():
        before = host(**inputs).logits
        gamma_mod.convert(host, (5, 6, 20))
        try:
            found = gamma_mod.calibrate(host, [inputs], skip=0.5)
            lengths = [rows[0] for rows in gamma_mod.kv_lengths(host(**inputs).past_key_values)]
        finally:
            host.gamma_mod.remove()
        assert torch.equal(host(**inputs).logits, before)
    whole = host.config.num_image_tokens + TEXT
    skipped = [layer for layer, length in enumerate(lengths) if length < whole]
    assert 0.2 < found.skip < 0.8 and skipped == [5, 6, 20]


@pytest.fixture(scope="module")
def tiny():
    return build("llava")


@pytest.fixture(scope="module")
def batch():
    """Two rows of one image each, questions of different length, padded on the left."""
    return Prompts("llava").batch([[("image", 4), 6], [("image", 4), 3]])


def row_of(inputs, row):
    mask = inputs["attention_mask"][row].bool()
    return {
        "input_ids": inputs["input_ids"][row, mask][None],
        "attention_mask": torch.ones(1, int(mask.sum()), dtype=torch.int64),
        "pixel_values": inputs["pixel_values"][row : row + 1],
    }


def recipe(remove=RECIPE):
    return fitprune.Recipe("tiny", TINY, VISUAL, tuple(remove))


def gates(scale=40.0):
    """Gates that say different things of different rows and layers."""
    made = dyvte.Gates(dyvte.GateConfig(TINY, 32, 16)).initialise(3).eval()
    with torch.no_grad():
        for gate in made:
            gate.w2.weight.mul_(scale)
    return made


def plan(skip=(2,), **knobs):
    return eas.Plan(layers=TINY, skip=skip, adapter_rank=4, pia_rank=4, dropout=0.0, **knobs)


@torch.no_grad()
def answers(model, inputs, tokens=4):
    """Logits of the last row of the prompt, and greedy tokens behind it."""
    new = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return model(**inputs).logits[:, -1], new[:, inputs["input_ids"].shape[1] :]


def close(one, other):  # logits nearly, tokens exactly
    return torch.allclose(one[0], other[0], atol=1e-4) and torch.equal(one[1], other[1])


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("leave", range(TINY))
def test_fitprune_then_an_exit_is_fitprune_that_removes_all_the_rest_there(tiny, batch, leave):
    """Fails if either does not see what the other let leave: positions, masks or caches then count other tokens."""
    rest = (*RECIPE[:leave], VISUAL - sum(RECIPE[:leave]), *[0] * (TINY - leave - 1))
    with fitprune.Pruner(recipe(rest))(tiny):
        expected = answers(tiny, batch)
    with fitprune.Pruner(recipe())(tiny) as pruner, dyvte.VisualExit(exit_at=leave)(tiny) as exit:
        assert close(answers(tiny, batch), expected)
        with torch.no_grad():
            cache = tiny(**batch).past_key_values
        lengths = [rows[1] for rows in exit.kv_lengths(cache)]
        assert exit.exit_layers() == [leave, leave]
        assert [tokens.num_visual[0] for tokens in pruner.entering][: leave + 1] == [
            VISUAL - sum(RECIPE[:layer]) for layer in range(leave + 1)
        ]
    alone = batch["attention_mask"][1].sum().item()
    left = [VISUAL - sum(RECIPE[:layer]) if layer <= leave else 0 for layer in range(TINY)]
    assert lengths == [alone - VISUAL + visual for visual in left]


def test_fitprune_then_gated_exits_answer_a_batch_as_single_prompts(tiny, batch):
    """Fails if rows that exit at different layers mix their tokens."""
    with fitprune.Pruner(recipe())(tiny), dyvte.VisualExit(gates(), threshold=0.0)(tiny) as exit:
        together = answers(tiny, batch)
        with torch.no_grad():
            tiny(**batch)
        layers = exit.exit_layers()
        for row in range(2):
            alone = answers(tiny, row_of(batch, row))
            assert torch.allclose(alone[0][0], together[0][row], atol=1e-4)
            assert torch.equal(alone[1][0], together[1][row])
    assert len(set(layers)) == 2, layers


def test_eas_without_adapters_under_fitprune_is_fitprune(tiny, batch):
    """Fails if FitPrune counts caches or tokens of EAS's blocks otherwise than of the host's."""
    with fitprune.Pruner(recipe())(tiny):
        expected = answers(tiny, batch)
    with eas.Skipper(dataclasses.replace(plan(()), adapter_rank=0))(tiny), fitprune.Pruner(recipe())(tiny):
        assert close(answers(tiny, batch), expected)


def test_eas_with_fitprune_answers_a_batch_as_single_prompts(tiny, batch):
    """Fails if a layer behind a skipped attention is pruned by another layer's cache."""
    with eas.Skipper(plan(), seed=1)(tiny), fitprune.Pruner(recipe((4, 3, 0, 1)))(tiny):
        together = answers(tiny, batch)
        with torch.no_grad():
            cache = tiny(**batch).past_key_values
        for row in range(2):
            alone = answers(tiny, row_of(batch, row))
            assert torch.allclose(alone[0][0], together[0][row], atol=1e-4)
            assert torch.equal(alone[1][0], together[1][row])
    whole = batch["input_ids"].shape[1]
    assert [layer.keys.shape[2] for layer in cache.layers] == [whole, whole - 4, whole - 7]


def test_eas_means_run_over_the_tokens_that_are_left(tiny, batch):
    """What never enters layer 0 counts as if it had not been in the prompt. Fails if routers average over all of it."""
    one = row_of(batch, 0)
    with torch.no_grad(), eas.Skipper(plan(()), seed=1)(tiny):
        from fitprune.rules import Random

        pruner = fitprune.Pruner(fitprune.Recipe.zero(TINY, VISUAL), Random(0), before=10)
        with pruner(tiny):
            found = tiny(**one).logits[:, -1]
            index = pruner.entering[1].index
        features = tiny.model.get_image_features(one["pixel_values"]).pooler_output
        embeds = tiny.get_input_embeddings()(one["input_ids"].where(one["input_ids"] != IMAGE, 0))
        embeds[one["input_ids"] == IMAGE] = torch.cat(list(features)).reshape(-1, embeds.shape[-1])
        left = embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[-1]))
        expected = tiny(inputs_embeds=left, position_ids=index).logits[:, -1]
    assert index.shape[1] == one["input_ids"].shape[1] - 10
    assert torch.allclose(found, expected, atol=1e-5)


PAIRS = {
    "FitPrune, DyVTE": (lambda: fitprune.Pruner(recipe()), lambda: dyvte.VisualExit(exit_at=1)),
    "EAS, FitPrune": (lambda: eas.Skipper(plan(), seed=1), lambda: fitprune.Pruner(recipe((4, 3, 0, 1)))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_leaving_one_leaves_the_other_as_it_was(tiny, batch, pair):
    """Bit for bit, and the host after both. Fails if one takes the other's forward away, or leaves its own behind."""
    first, second = (make() for make in PAIRS[pair])
    bare = answers(tiny, batch)
    with first(tiny):
        alone = answers(tiny, batch)
        with second(tiny):
            assert not equal(answers(tiny, batch), alone)
        assert equal(answers(tiny, batch), alone)
    assert equal(answers(tiny, batch), bare) and attached(tiny) == ()


@pytest.mark.parametrize("pair", PAIRS)
def test_methods_come_off_in_the_reverse_order(tiny, batch, pair):
    """Fails if the first one can be taken off under the second, which would take the second's forward along."""
    first, second = (make() for make in PAIRS[pair])
    with ExitStack() as stack:
        stack.enter_context(first(tiny))
        stack.enter_context(second(tiny))
        both = answers(tiny, batch)
        with pytest.raises(UserError, match=r"detached before"):
            first.detach()
        assert equal(answers(tiny, batch), both)


def converted(model):
    gamma_mod.convert(model, (1, 2))
    return lambda: model.gamma_mod.remove()


METHODS = {
    "FitPrune": lambda model: attach(fitprune.Pruner(recipe((4, 3, 0, 1))), model),
    "DyVTE": lambda model: attach(dyvte.VisualExit(exit_at=1), model),
    "EAS": lambda model: attach(eas.Skipper(plan()), model),
    "gamma-MoD": converted,
}
TOGETHER = {("FitPrune", "DyVTE"), ("EAS", "FitPrune")}


def attach(method, model):
    method.attach(model)
    return method.detach


REFUSED = sorted({(one, two) for one in METHODS for two in METHODS if one != two} - TOGETHER)


@pytest.mark.parametrize(("first", "second"), REFUSED)
def test_every_other_pair_and_order_is_refused_in_one_line(tiny, first, second):
    """Fails if two that do not know of each other run side by side, or a refusal leaves something attached."""
    before = set(vars(tiny))
    undo = METHODS[first](tiny)
    try:
        with pytest.raises(UserError) as refused:
            METHODS[second](tiny)
        assert str(refused.value).startswith(f"{second} beside {first}: ") and "expected" in str(refused.value)
        assert attached(tiny) == (first,)
    finally:
        undo()
    assert set(vars(tiny)) == before and attached(tiny) == ()


def test_a_recipe_that_prunes_where_eas_skips_is_refused(tiny, batch):
    """Fails if the removal is silently left out: there is no attention to choose by."""
    with eas.Skipper(plan())(tiny), fitprune.Pruner(recipe())(tiny):
        with pytest.raises(UserError, match=r"layer 2, whose attention is skipped") as refused:
            tiny(**batch)
        assert "a recipe with 0 there" in str(refused.value)


@pytest.mark.parametrize("setting", [{"compact_every": 2}, {"fastv": dyvte.FastV()}])
def test_dyvte_beside_fitprune_refuses_what_would_touch_its_caches(tiny, setting):
    """Fails if rows can be hidden, or attention read, behind FitPrune's back."""
    with fitprune.Pruner(recipe())(tiny), pytest.raises(UserError, match="in this setting"):
        dyvte.VisualExit(exit_at=2, **setting).attach(tiny)
    assert attached(tiny) == ()


@pytest.fixture(scope="module")
def sloth():
    """FlashSloth of four layers, EmbQ before the third; 4 visual tokens and 3 queries an image."""
    text = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
        "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42,
        "patch_size": 7, "vision_use_head": False,
    }  # fmt: skip
    config = flashsloth.FlashSlothConfig(
        text_config=text, vision_config=vision, query_count=3, embq_layer=2, dot_token_id=3, newline_token_id=4,
        user_token_ids=(5, 6), end_token_id=57, query_token_id=58, image_token_id=59,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = flashsloth.FlashSlothForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def seen():
    """A prompt of FlashSloth's template: prefix, image, question, queries, role."""
    ids = torch.tensor([[5, 6, *[59] * 4, 4, 20, 21, 22, 3, *[58] * 3, 57, 7, 6]])
    pixels = torch.randn(1, 3, 42, 42, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def test_an_exit_before_embq_leaves_flashsloth_its_queries(sloth, seen):
    """No layer sees the image, EmbQ still does: as if its tokens were masked out. Fails if EmbQ reads and writes at the
    places of the whole prompt."""
    width = seen["input_ids"].shape[1]
    with torch.no_grad():
        masked = seen["attention_mask"].masked_fill(seen["input_ids"] == 59, 0)
        expected = sloth(**{**seen, "attention_mask": masked}, position_ids=torch.arange(width)[None]).logits[:, -1]
        blind = sloth(**seen).logits[:, -1]
        with dyvte.VisualExit(exit_at=-1)(sloth):
            found = sloth(**seen).logits[:, -1]
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(blind, expected, atol=1e-2)


def test_dyvte_on_flashsloth_shortens_its_caches_and_leaves_it(sloth, seen):
    """Fails if a decoder of parallel blocks is refused, an exit keeps its tokens, or something stays behind."""
    width = seen["input_ids"].shape[1]
    bare = answers(sloth, seen)
    with dyvte.VisualExit(exit_at=3)(sloth):
        assert torch.allclose(answers(sloth, seen)[0], bare[0], atol=1e-5)
    with dyvte.VisualExit(exit_at=1)(sloth) as exit, torch.no_grad():
        assert [rows[0] for rows in exit.kv_lengths(sloth(**seen).past_key_values)] == [
            width,
            width,
            width - 4,
            width - 4,
        ]
    assert equal(answers(sloth, seen), bare)


@pytest.mark.parametrize("method", ["FitPrune", "EAS", "gamma-MoD"])
def test_what_reads_into_blocks_refuses_flashsloth(sloth, method):
    """FlashSloth's blocks run attention and MLP side by side. Fails if one is attached and computes another block."""
    with pytest.raises(UserError) as refused:
        METHODS[method](sloth)
    assert "o_proj" in str(refused.value) or "pre-norm" in str(refused.value)
    assert attached(sloth) == ()
