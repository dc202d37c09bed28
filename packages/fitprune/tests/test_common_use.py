"""What users do with a pruned model besides a prompt: caches whose rows move, autocast, threads, copies, other ways to
generate, prompts without a question."""

import copy
import threading

import pytest
import torch

import fitprune
from fitprune import Pruner, Recipe
from fitprune.rules import Random, self_mass
from tenfold import UserError
from tenfold.testing.hosts import SCENARIOS, Prompts, build

RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))
ZERO = Recipe.zero(4, 16)


@pytest.fixture(scope="module")
def model():
    return build("llava")


@pytest.fixture()
def inputs():
    return Prompts("llava").batch([[("image", 4), 6]])


def rows_of(batch, order):
    """A batch's rows in another order: every row of LLaVA's has one image."""
    return {name: value[order] for name, value in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("change", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
@pytest.mark.parametrize("copied", [False, True])
def test_the_books_of_a_cache_follow_its_rows(model, change, copied):
    """Fails if what is padding stays with the row's number: the step's logits are then off by whole units."""
    batch = Prompts("llava").batch(SCENARIOS["left padding"][0])
    order = torch.tensor({"reorder_cache": [2, 1, 0], "batch_select_indices": [2, 0]}.get(change, [0, 0, 1, 1, 2, 2]))
    with Pruner(RECIPE)(model):
        moved = model(**batch, use_cache=True).past_key_values
        moved = copy.deepcopy(moved) if copied else moved
        getattr(moved, change)(2 if change == "batch_repeat_interleave" else order)
        there = model(**rows_of(batch, order), use_cache=True).past_key_values
        following = torch.full((len(order), 1), 11)
        mask = torch.cat((batch["attention_mask"][order], torch.ones_like(following)), dim=1)
        steps = [model(input_ids=following, attention_mask=mask, past_key_values=one).logits for one in (moved, there)]
    torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_under_autocast_scores_stay_float32(model, inputs):
    """Fails if autocast reaches the scores: a RuntimeError, or other tokens than bfloat16 itself would choose."""
    expected, seen = Pruner(RECIPE), []

    def watched(observation):
        seen.append(fitprune.rules.product(observation))
        return seen[-1]

    with expected(model):
        model(**inputs)
    pruner = Pruner(RECIPE, rule=watched)
    with torch.autocast("cpu", torch.bfloat16), pruner(model):
        model(**inputs)
        model.generate(**inputs, max_new_tokens=3)
        with Pruner(RECIPE, rule=fitprune.rules.last_token)(build("llava")) as other:
            other._attachment.model(**inputs)
    assert {scores.dtype for scores in seen} == {torch.float32}
    assert pruner.visual_tokens() == expected.visual_tokens()


def test_a_recipe_can_be_fitted_under_autocast(model):
    """Fails if the statistics are rounded: the recipe then differs from that of the bfloat16 host's own scores."""
    prompts = Prompts("llava")
    samples = [prompts.batch([[("image", 4), words]]) for words in (4, 7)]
    with torch.autocast("cpu", torch.bfloat16):
        recipe = fitprune.fit(model, None, samples, ratio=0.5)
    assert sum(recipe.remove) > 0 and recipe.reduction == pytest.approx(0.5, abs=0.1)


def test_threads_share_a_pruned_model(model):
    """Six of them, each with prompts of its own. Fails if a pass's state belongs to the model instead of the thread."""
    prompts = Prompts("llava")
    asked = [prompts.batch([[("image", 4), 3 + thread]]) for thread in range(6)]
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [0, 3, 4, 7, 8]}
    found, errors = {}, []
    start = threading.Barrier(6)

    def ask(number):
        try:
            start.wait()
            for _ in range(3):
                answer = model.generate(**asked[number], **options)
                assert torch.equal(found.setdefault(number, answer), answer)
        except Exception as error:  # of any kind: it is the test's finding
            errors.append(error)

    with Pruner(RECIPE)(model):
        alone = [model.generate(**one, **options) for one in asked]
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert all(torch.equal(found[number], expected) for number, expected in enumerate(alone))


@torch.no_grad()
def test_a_copy_of_a_pruned_model_is_not_pruned(model, inputs):
    """Fails if a copy prunes for ever, or the original does not any more; part of a model is not copied."""
    plain = model(**inputs).logits
    with Pruner(RECIPE)(model) as pruner:
        pruned = model(**inputs).logits
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**inputs).logits, plain)
        assert torch.equal(model(**inputs).logits, pruned)
        with pytest.raises(UserError, match="a copy of a part"):
            copy.deepcopy(model.model)
        assert pruner.visual_tokens()[-1] == (4,)
    assert "__deepcopy__" not in vars(model) and "generate" not in vars(model)
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "use_cache=False under pruning"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation under pruning"),
        ({"assistant_model": "twin"}, "assisted generation under pruning"),
        ({"prefill_chunk_size": 4}, "a prompt in chunks"),
        ({"cache_implementation": "static"}, "a static cache under pruning"),
    ],
)
def test_generation_that_pruning_breaks_is_refused_at_the_start(model, inputs, options, message):
    """By argument and by the model's own settings. Fails if the model runs before it is refused, or if a recipe that
    removes nothing refuses it."""
    options = {name: build("llava") if value == "twin" else value for name, value in options.items()}
    runs = []
    handle = model.model.register_forward_pre_hook(lambda *_: runs.append(1))
    with Pruner(RECIPE)(model), pytest.raises(UserError, match=message):
        model.generate(**inputs, max_new_tokens=3, **options)
    if "assistant_model" not in options:
        settings = copy.deepcopy(model.generation_config)
        settings.update(**options, max_new_tokens=3)
        with Pruner(RECIPE)(model), pytest.raises(UserError, match=message):
            model.generate(**inputs, generation_config=settings)
    handle.remove()
    assert not runs
    if "prefill_chunk_size" not in options:  # LLaVA itself splits no prompt with an image
        answers = [model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)]
        with Pruner(ZERO)(model):
            answers.append(model.generate(**inputs, max_new_tokens=3, do_sample=False, **options))
        assert torch.equal(*answers)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_that_ends_in_its_image_is_pruned_by_self_mass(model, side, caplog):
    """Its last token stays. Fails if it is refused, if rows with a question are judged without it, if nobody is told,
    or if the token leaves whose logits are asked for."""
    rows = [[5, ("image", 4)], [("image", 4), 8]]
    batch, prompts = Prompts("llava").batch(rows, side), Prompts("llava")
    pruner = Pruner(RECIPE)
    with pruner(model):
        logits = model(**batch).logits
    assert "row 0 ends in its image" in caplog.text
    assert pruner.visual_tokens()[-1] == (4, 4) and pruner.surviving(0)[-1, -1]
    for row, (parts, rule) in enumerate(zip(rows, (self_mass, fitprune.rules.product), strict=True)):
        alone = Pruner(RECIPE, rule=rule)
        with alone(model):
            single = model(**prompts.batch([parts])).logits
        assert torch.equal(alone.surviving(), pruner.surviving(row))
        if side == "left":
            torch.testing.assert_close(single[:, -1], logits[row : row + 1, -1], atol=1e-4, rtol=1e-4)
    every = Pruner(Recipe("tiny", 4, 16, (16, 0, 0, 0)))
    with every(model):
        model(**Prompts("llava").batch([[5, ("image", 4)]]))
    assert every.visual_tokens()[-1] == (1,)
    with pytest.raises(UserError, match="without a text after its image"):
        fitprune.fit(model, None, [Prompts("llava").batch([[5, ("image", 4)]])])


@torch.no_grad()
def test_a_recipe_of_zeros_refuses_nothing_that_the_model_can_do(model, inputs):
    """Fails if labels, a mask of four dimensions, a static cache or a cropped one is refused, or changes a number."""
    width = inputs["input_ids"].shape[1]
    full = torch.ones(1, 1, width, width, dtype=torch.bool).tril()
    found = []
    for recipe in (None, ZERO):
        pruner = Pruner(recipe) if recipe else None
        if pruner:
            pruner.attach(model)
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        masked = model(**{**inputs, "attention_mask": full}).logits
        ending = model(input_ids=inputs["input_ids"][:, :19], pixel_values=inputs["pixel_values"]).logits
        cache = model(**inputs, use_cache=True).past_key_values
        cache.crop(-2)
        cropped = model(input_ids=torch.tensor([[11]]), past_key_values=cache).logits
        found.append((loss, masked, ending, cropped))
        if pruner:
            pruner.detach()
    assert all(torch.equal(plain, zero) for plain, zero in zip(*found, strict=True))


@torch.no_grad()
def test_random_tokens_are_drawn_for_every_question(model):
    """Fails if one set of places is drawn for all questions, or a question's draw depends on seed or layer alone."""
    prompts, kept = Prompts("llava"), []
    batch = prompts.batch([[("image", 4), 6] for _ in range(8)])
    pruner = Pruner(Recipe("tiny", 4, 16, (8, 0, 0, 0)), rule=Random(0))
    for _ in range(2):
        with pruner(model):
            model(**batch)
        kept.append([tuple(pruner.surviving(row)[-1].tolist()) for row in range(8)])
    assert kept[0] == kept[1] and len(set(kept[0])) == 8
    same = rows_of(batch, torch.zeros(8, dtype=torch.long))
    with pruner(model):
        model(**same)
    assert {tuple(pruner.surviving(row)[-1].tolist()) for row in range(8)} == {kept[0][0]}
    share = torch.tensor(kept[0]).float().mean(0)
    assert share.min() > 0 and share.max() < 1


def test_prompt_tuning_is_refused_by_its_name():
    """Fails if its virtual tokens, which come as embeddings, end in a message about inputs_embeds that nobody gave."""
    peft = pytest.importorskip("peft")
    sizes = {"num_layers": 4, "token_dim": 32, "num_attention_heads": 4}
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, **sizes)
    tuned = peft.get_peft_model(build("llava"), config)
    with pytest.raises(UserError, match=r"PROMPT_TUNING.*LoRA"):
        Pruner(RECIPE).attach(tuned)


@pytest.mark.slow
@torch.no_grad()
def test_a_pruned_model_compiles(inputs):
    """Attached first, compiled then: equal results. Fails if the README's sentence is not true."""
    model = build("llava")
    with Pruner(RECIPE)(model):
        expected = model(**inputs).logits
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
