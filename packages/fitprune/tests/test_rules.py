"""Rules of selection behind one interface: the paper's own beside those that it is compared with."""

import pytest
import torch

from fitprune import Pruner, Recipe
from fitprune.rules import RULES, Observation, Random, last_token
from tenfold.hosts.ragged import Tokens
from tenfold.testing.hosts import IMAGE, SCENARIOS, Prompts, build

RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))
ZERO = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(0, 0, 0, 0))


@pytest.fixture(scope="module")
def model():
    return build("llava")


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_removes_what_the_recipe_says_and_treats_rows_alone(model, rule):
    """Fails if a rule looks at padding, or at the rows beside a row."""
    rows, _ = SCENARIOS["left padding"]
    batch, prompts = Prompts("llava").batch(rows), Prompts("llava")
    together = Pruner(RECIPE, rule=RULES[rule])
    with together(model):
        model(**batch)
    for row, parts in enumerate(rows):
        alone = Pruner(RECIPE, rule=RULES[rule])
        with alone(model):
            model(**prompts.batch([parts]))
        assert torch.equal(alone.surviving(), together.surviving(row))
        assert alone.surviving().sum(1).tolist() == RECIPE.alive()


@torch.no_grad()
def test_rules_choose_different_tokens(model):
    """Also: the inverse rule keeps none of what the product rule would keep as long as it can choose."""
    inputs = Prompts("llava").batch([[("image", 4), 6]])
    kept = {}
    for name, rule in {**RULES, "another seed": Random(seed=1)}.items():
        pruner = Pruner(Recipe("tiny", 4, 16, (8, 0, 0, 0)), rule=rule)
        with pruner(model):
            model(**inputs)
        kept[name] = tuple(pruner.surviving()[-1].tolist())
    assert len(set(kept.values())) == len(kept)
    assert [not keep for keep in kept["inverse"]] == list(kept["product"])


def test_last_token_rule_is_the_mean_attention_of_the_last_row():
    """Against the whole map, with grouped heads, cached keys, and padding on either side."""
    torch.manual_seed(0)
    batch, heads, kv_heads, width, past, size = 2, 4, 2, 9, 3, 8
    query, key = torch.randn(batch, heads, width, size), torch.randn(batch, kv_heads, past + width, size)
    for padded in (slice(0, 2), slice(7, 9)):
        mask = torch.ones(batch, width, dtype=torch.bool)
        mask[1, padded] = False
        visual = torch.zeros_like(mask)
        visual[:, 3:5] = True
        real = torch.cat((torch.ones(batch, past, dtype=torch.bool), mask), dim=1)
        seen = Observation(0, Tokens.of_prompt(visual, mask), query, key, size**-0.5, real)
        logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * size**-0.5
        hidden = torch.ones(width, past + width, dtype=torch.bool).triu(past + 1) | ~real[:, None, None]
        maps = logits.masked_fill(hidden, -torch.inf).softmax(-1).mean(1)[:, :, past:]
        last = [8, 8 if padded.start == 0 else 6]
        expected = torch.stack([maps[row, last[row]] for row in range(batch)])
        torch.testing.assert_close(last_token(seen), expected)


@torch.no_grad()
def test_tokens_removed_before_layer_0_are_as_if_masked(model):
    """A host that never sees them, at the positions of the whole prompt, gives the same logits and continues alike."""
    inputs = Prompts("llava").batch(SCENARIOS["left padding"][0])
    pruner = Pruner(ZERO, rule=Random(seed=3), before=10)
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [0, 3]}
    with pruner(model):
        pruned = model.generate(**inputs, **options)
        assert pruner.visual_tokens()[0] == (6, 6, 6)
    hidden = inputs["attention_mask"].clone()
    for row in range(3):
        columns = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        hidden[row, columns[~pruner.surviving(row)[0]]] = 0
    ids, whole = inputs["input_ids"], inputs["attention_mask"]
    for step in range(4):
        positions = (whole.cumsum(1) - 1).clamp(min=0)
        logits = model(ids, inputs["pixel_values"], hidden, positions, logits_to_keep=1).logits[:, -1]
        logits[:, [0, 3]] = -torch.inf
        following = logits.argmax(-1, keepdim=True)
        assert torch.equal(following[:, 0], pruned[:, inputs["input_ids"].shape[1] + step])
        ids, one = torch.cat((ids, following), dim=1), torch.ones_like(following)
        hidden, whole = torch.cat((hidden, one), dim=1), torch.cat((whole, one), dim=1)


@torch.no_grad()
def test_leaving_at_the_layers_output_keeps_the_same_tokens(model):
    inputs = Prompts("llava").batch([[("image", 4), 6]])
    early, late = Pruner(RECIPE), Pruner(RECIPE, at_output=True)
    logits = []
    for pruner in (early, late):
        with pruner(model):
            logits.append(model(**inputs).logits)
    assert torch.equal(early.surviving(), late.surviving())
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
