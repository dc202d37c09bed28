"""Properties of pruning: what must stay exactly as it was, what must agree, and what is refused."""

import copy
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from fitprune import Pruner, Recipe
from fitprune.statistics import attention_mass, lowest_scores
from tenfold import UserError
from tenfold.testing.hosts import IMAGE, SCENARIOS, Prompts, build

MAIN = ("llava", "qwen2_vl")
RECIPE = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(4, 0, 5, 3))
ZERO = Recipe(model="tiny", num_layers=4, visual_tokens=16, remove=(0, 0, 0, 0))
# Goes through the attached layers and removes nothing of so few tokens.
NONE = Recipe(model="tiny", num_layers=4, visual_tokens=10**6, remove=(1, 0, 1, 1))


@pytest.fixture(scope="module", params=MAIN)
def host(request):
    return request.param, build(request.param)


@pytest.fixture(scope="module")
def model():
    return build("llava")


@pytest.fixture()
def inputs():
    return Prompts("llava").batch([[("image", 4), 6]])


def snapshot(model):
    """Everything that an attachment touches: attributes of modules, hooks, configurations."""
    return [
        (
            name,
            sorted(vars(module)),
            dict(module._forward_pre_hooks),
            dict(module._forward_hooks),
            id(getattr(module, "config", None)),
        )
        for name, module in model.named_modules()
    ]


@torch.no_grad()
@pytest.mark.parametrize("scenario", ["single", "left padding", "mixed V", "image and text-only"])
def test_zero_recipe_equals_the_unpruned_model_bit_for_bit(host, scenario):
    """Fails if an attached layer touches positions, masks or states although nothing was removed."""
    name, model = host
    inputs = Prompts(name).batch(*SCENARIOS[scenario])
    expected = model(**inputs).logits
    for recipe in (ZERO, NONE):
        pruner = Pruner(recipe)
        with pruner(model):
            assert torch.equal(model(**inputs).logits, expected)
        assert len(pruner.visual_tokens()) == 5 and len(set(pruner.visual_tokens())) == 1


@torch.no_grad()
def test_leaving_the_context_restores_the_model(host):
    """Fails if detach leaves a hook, an attribute or a configuration behind, also after an error inside."""
    name, model = host
    inputs = Prompts(name).batch(*SCENARIOS["left padding"])
    before, expected = snapshot(model), model(**inputs).logits
    with Pruner(RECIPE)(model):
        assert not torch.equal(model(**inputs).logits[:, -1], expected[:, -1])
    with pytest.raises(UserError), Pruner(RECIPE)(model):
        model(**inputs, labels=inputs["input_ids"])
    assert snapshot(model) == before
    assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_same_input_twice_gives_the_same_bits_and_inputs_stay_untouched(host):
    name, model = host
    inputs = Prompts(name).batch(*SCENARIOS["mixed V"])
    kept = copy.deepcopy(inputs)
    with Pruner(RECIPE)(model):
        first, second = (model(**inputs).logits for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(inputs[key], kept[key]) for key in kept)


@torch.no_grad()
def test_batch_equals_single_rows(host):
    """Fails if V, the scores or the removal counts of a row depend on the rows beside it."""
    name, model = host
    rows, _ = SCENARIOS["mixed V"]
    if name == "llava":
        rows = SCENARIOS["left padding"][0]
    batch = Prompts(name).batch(rows)
    prompts, singles = Prompts(name), []
    for row in rows:  # one generator: the same draws as the batch
        singles.append(prompts.batch([row]))
    pruner = Pruner(RECIPE)
    with pruner(model):
        together = model.generate(**batch, max_new_tokens=5, do_sample=False, suppress_tokens=[0, 3, 4, 7, 8])
        for row, single in enumerate(singles):
            alone = model.generate(**single, max_new_tokens=5, do_sample=False, suppress_tokens=[0, 3, 4, 7, 8])
            assert torch.equal(alone[0, -5:], together[row, -5:])


@torch.no_grad()
def test_cached_decoding_equals_recomputation_with_the_same_keep_sets(model, inputs):
    """One-token steps on the cache against one pass that feeds prompt and answer in two chunks."""
    answer = torch.tensor([[11, 12, 13, 14]])
    mask = torch.ones_like(inputs["input_ids"])
    with Pruner(RECIPE)(model):
        stepwise = model(**inputs, use_cache=True).past_key_values
        chunked = copy.deepcopy(stepwise)
        rows = []
        for step in range(4):
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
            out = model(input_ids=answer[:, step : step + 1], attention_mask=mask, past_key_values=stepwise)
            rows.append(out.logits[:, -1])
        at_once = model(input_ids=answer, attention_mask=mask, past_key_values=chunked).logits
    torch.testing.assert_close(torch.stack(rows, dim=1), at_once, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("scenario", ["single", "mixed V"])
def test_dropping_at_the_layer_output_gives_the_same_survivors(host, scenario, monkeypatch):
    """The generic path (blocks that are not plain pre-norm) differs in cost, not in numbers."""
    name, model = host
    inputs = Prompts(name).batch(*SCENARIOS[scenario])
    with Pruner(RECIPE)(model):
        early = model(**inputs).logits
    monkeypatch.setattr("fitprune.attachment.is_plain_pre_norm", lambda module: False)
    with Pruner(RECIPE)(model):
        late = model(**inputs).logits
    torch.testing.assert_close(late, early, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_plain_blocks_project_only_survivors(host):
    """o_proj and MLP of the removing layer already run on fewer rows. Fails if the drop moves behind the
    projection."""
    name, model = host
    inputs = Prompts(name).batch(*SCENARIOS["single"])
    seen = {}
    layers = model.model.language_model.layers
    handles = [
        module.register_forward_hook(lambda m, a, out, key=(number, part): seen.update({key: out.shape[1]}))
        for number, layer in enumerate(layers)
        for part, module in (
            ("q_proj", layer.self_attn.q_proj),
            ("o_proj", layer.self_attn.o_proj),
            ("mlp", layer.mlp),
        )
    ]
    pruner = Pruner(RECIPE)
    with pruner(model):
        model(**inputs)
    for handle in handles:
        handle.remove()
    widths = [tokens.width for tokens in pruner.entering]
    for number in range(4):
        assert seen[number, "q_proj"] == widths[number]
        assert seen[number, "o_proj"] == seen[number, "mlp"] == widths[number + 1]


@torch.no_grad()
def test_removals_follow_the_recipe_scaled_to_each_row(host):
    name, model = host
    inputs = Prompts(name).batch(*SCENARIOS["mixed V"])
    pruner = Pruner(RECIPE)
    with pruner(model):
        model(**inputs)
    entering = pruner.visual_tokens()
    for row, visual in enumerate(entering[0]):
        removed = [before[row] - after[row] for before, after in pairwise(entering)]
        assert removed == [count * visual // 16 for count in RECIPE.remove]
        assert pruner.surviving(row).sum(1).tolist() == [counts[row] for counts in entering]


@torch.no_grad()
def test_bfloat16_is_close_to_float32(inputs):
    """Scores are float32 in both; rounding moves the pruned logits no further than a few times the host's
    own."""
    error = {}
    half_inputs = {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}
    full, half = build("llava"), build("llava").bfloat16()
    for recipe in (NONE, RECIPE):
        logits = []
        for host, values in ((full, inputs), (half, half_inputs)):
            with Pruner(recipe)(host):
                logits.append(host(**values).logits[0, -1].float())
        error[recipe] = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert 0 < error[RECIPE] < max(4 * error[NONE], 0.1)


@torch.no_grad()
def test_embeddings_with_a_visual_mask_equal_input_ids(model):
    inputs = Prompts("llava").batch(*SCENARIOS["left padding"])
    captured = {}

    def keep(module, args, kwargs):
        captured["inputs_embeds"] = kwargs["inputs_embeds"]

    handle = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with Pruner(RECIPE)(model):
        expected = model(**inputs).logits
    handle.remove()
    with Pruner(RECIPE)(model, visual_mask=inputs["input_ids"] == IMAGE):
        got = model(inputs_embeds=captured["inputs_embeds"], attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(got, expected)


@torch.no_grad()
def test_text_alone_is_left_alone(model):
    inputs = Prompts("llava").batch([[9], [4]])
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with Pruner(RECIPE)(model):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), expected)


@torch.no_grad()
def test_adapters_on_the_output_projection_see_the_survivors(inputs):
    """PEFT replaces o_proj by a module of its own; pruning equals the merged model's."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(build("llava"), config).eval()
    with Pruner(RECIPE)(adapted):
        got = adapted(**inputs).logits
    merged = adapted.merge_and_unload()
    with Pruner(RECIPE)(merged):
        torch.testing.assert_close(got, merged(**inputs).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_offloaded_layers_are_pruned_alike(inputs):
    """accelerate keeps weights elsewhere and swaps every module's forward; its hooks must go on working."""
    accelerate = pytest.importorskip("accelerate")
    plain, offloaded = build("llava"), build("llava")
    with Pruner(RECIPE)(plain):
        expected = plain(**inputs).logits
    accelerate.cpu_offload(offloaded, execution_device=torch.device("cpu"))
    unpruned = offloaded(**inputs).logits
    with Pruner(RECIPE)(offloaded):
        assert torch.equal(offloaded(**inputs).logits, expected)
    assert torch.equal(offloaded(**inputs).logits, unpruned)


def test_scores_never_hold_a_whole_attention_map():
    """At 3,000 tokens and 32 heads one map is 1.15 GB; scoring may take a tenth. Fails if rows are not in
    blocks."""
    tokens, heads, width = 3000, 32, 8
    query, key = torch.randn(2, 1, heads, tokens, width).unbind(0)
    visual = torch.zeros(1, tokens, dtype=torch.bool)
    visual[:, 35:2935] = True
    text = torch.zeros_like(visual)
    text[:, 2935:] = True

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        """Bytes of new storage alive at once, and the largest tensor ever made."""

        live, peak, largest = {}, 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.live[tensor.untyped_storage().data_ptr()] = (
                        torch.multiprocessing.reductions.StorageWeakRef(tensor.untyped_storage()),
                        tensor.untyped_storage().nbytes(),
                    )
                    self.largest = max(self.largest, tensor.untyped_storage().nbytes())
            self.live = {pointer: entry for pointer, entry in self.live.items() if not entry[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.live.values()))
            return result

    with Largest() as memory:
        mass = attention_mass(query, key, width**-0.5, visual=visual, text=text, num_visual=visual.sum(1), first_row=35)
    whole = 4 * heads * tokens * tokens
    assert memory.peak < whole / 8
    assert 0 < memory.largest < whole / 20
    # Rows of attention sum to one, so all heads' maximum over the text rows is at least one per row.
    assert mass.cross.sum() > 0


def test_blocked_scores_equal_the_whole_map():
    """Any number of rows at a time gives the same sums, with cached keys and padding too."""
    torch.manual_seed(0)
    batch, heads, kv_heads, tokens, past, width = 2, 4, 2, 23, 5, 8
    query, key = torch.randn(batch, heads, tokens, width), torch.randn(batch, kv_heads, past + tokens, width)
    real = torch.ones(batch, past + tokens, dtype=torch.bool)
    real[1, :3] = False
    visual = torch.zeros(batch, tokens, dtype=torch.bool)
    visual[:, 4:15] = True
    text = torch.zeros_like(visual)
    text[:, 15:] = True
    logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * width**-0.5
    hidden = torch.ones(tokens, past + tokens, dtype=torch.bool).triu(past + 1) | ~real[:, None, None]
    strongest = logits.masked_fill(hidden, -torch.inf).softmax(-1).amax(1)[:, :, past:]
    for rows in (1, 4, 100):
        mass = attention_mass(
            query,
            key,
            width**-0.5,
            visual=visual,
            text=text,
            num_visual=visual.sum(1),
            first_row=4,
            real_keys=real,
            block_rows=rows,
        )
        torch.testing.assert_close(mass.self_, (strongest * visual[:, :, None]).sum(1) / 11, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(mass.cross, (strongest * text[:, :, None]).sum(1), atol=1e-6, rtol=1e-5)


def test_ties_remove_the_later_token_first():
    score = torch.tensor([[0.5, 0.1, 0.1, 0.1, 0.0]])
    candidates = torch.tensor([[True, True, True, True, False]])
    assert lowest_scores(score, candidates, torch.tensor([2])).tolist() == [[False, False, True, True, False]]


@torch.no_grad()
def test_caches_do_not_leave_their_context(model, inputs):
    with Pruner(RECIPE)(model):
        cache = model(**inputs, use_cache=True).past_key_values
        cropped = copy.deepcopy(cache)
    following = {"input_ids": torch.tensor([[11]]), "past_key_values": cache}
    with Pruner(RECIPE)(model), pytest.raises(UserError, match="pruned elsewhere"):
        model(**following)
    pruner = Pruner(RECIPE)
    with pruner(model):
        cropped = model(**inputs, use_cache=True).past_key_values
        cropped.crop(-2)
        with pytest.raises(UserError, match="changed between passes"):
            model(input_ids=torch.tensor([[11]]), past_key_values=cropped)


@torch.no_grad()
def test_a_cache_filled_before_pruning_can_be_continued(model, inputs):
    """A first turn outside the context, the image inside: the old entries stay whole in every layer."""
    opening = torch.tensor([[1, 20, 21, 22]])
    cache = DynamicCache(config=model.config.get_text_config())
    model(input_ids=opening, past_key_values=cache)
    with Pruner(RECIPE)(model) as pruner:
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], past_key_values=cache)
        assert pruner.kv_lengths(cache) == [[4 + 25], [4 + 21], [4 + 21], [4 + 16]]
