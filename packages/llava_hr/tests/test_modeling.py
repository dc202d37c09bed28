"""LLaVA-HR as a transformers model: batching, caching, generation, saving, training (sheet sections 3.7, 3.8)."""

import json

import pytest
import torch
from llava_hr_fixtures import VOCABULARY, batched, tiny_config, tiny_images, tiny_inputs, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from llava_hr.configuration import LlavaHrConfig
from llava_hr.modeling import LlavaHrForConditionalGeneration, LlavaHrModel
from tenfold import UserError

MIXED = (1, 0, 2, 1)  # images per row: rows with one, none and several


@pytest.fixture(scope="module")
def model():
    """Shared by tests that leave it as it is. It never ends its answer, so lengths are known."""
    model = tiny_model()
    model.generation_config.eos_token_id = None
    return model


def count_runs(module):
    runs = []
    handle = module.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))
    return runs, handle


def greedy(model, inputs, steps):
    """Greedy decoding by recomputation: the whole prompt, images included, in every step."""
    ids, rest = inputs["input_ids"], {k: v for k, v in inputs.items() if k == "pixel_values"}
    logits = []
    for _ in range(steps):
        logits.append(model(input_ids=ids, **rest).logits[:, -1])
        ids = torch.cat((ids, logits[-1].argmax(dim=-1, keepdim=True)), dim=1)
    return ids[:, inputs["input_ids"].shape[1] :], torch.stack(logits, dim=1)


# --- saving and loading


def test_saved_and_loaded_bit_by_bit(tmp_path):
    """Fails if a weight is lost or renamed on the way, the layer scale ``gamma`` above all, or if weights are used
    where the file is mapped into memory (then the logits of this seed differ in the last bit)."""
    model = tiny_model(seed=2)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(key.endswith(".gamma") for key in stored) == 5 and stored.keys() == model.state_dict().keys()
    inputs = tiny_inputs(model, seed=2)[0]
    for loaded in (
        LlavaHrForConditionalGeneration.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        LlavaHrForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)[0],
    ):
        weights = loaded.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert type(AutoModel.from_pretrained(tmp_path)) is LlavaHrModel


def test_configurations_survive_json(tmp_path):
    """Fails if a field of the vision tower or the language model is dropped on the way."""
    config = LlavaHrConfig.named("x-13b", image_size=768, adapters=False)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LlavaHrConfig
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert loaded.vision_config.high_res_eps == 1e-5 and not loaded.vision_config.adapters
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava_hr"
    assert LlavaHrConfig().to_dict() == LlavaHrConfig.named("7b").to_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_absent_adapters_start_as_the_identity(tmp_path, dtype):
    """Stage 2 starts from a checkpoint without adapters. Fails if they, the align or the projector get transformers'
    general initialisation, or if weights that are there are touched."""
    trained = tiny_model(config=tiny_config(adapters=False))
    trained.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    scale = next(name for name in weights if name.endswith("gamma"))
    kept = {name: tensor for name, tensor in weights.items() if "vision_tower.align" not in name and name != scale}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["adapters"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))

    with torch.random.fork_rng():
        torch.manual_seed(0)  # few numbers are drawn: how near the largest comes to its bound is chance
        loaded = LlavaHrForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor.to(dtype)) for name, tensor in kept.items())
    assert bool((state[scale] == torch.tensor(1e-6, dtype=dtype)).all())
    tower = loaded.model.vision_tower
    assert len(tower.adapters) == 3
    for adapter in tower.adapters:
        low, high = torch.randn(1, 4, 16, dtype=dtype), torch.randn(1, 12, 2, 2, dtype=dtype)
        assert torch.equal(adapter(low, high, (2, 2))[0], low)
        for linear, bound in ((adapter.gate[0], 32**-0.5), (adapter.gate[2], 8**-0.5)):
            assert 0 < linear.bias.abs().max() <= bound * 1.01 and linear.weight.abs().max() > 0.6 * bound
        assert adapter.fast_conv.weight.abs().max() > 0 and adapter.fast_conv.bias.abs().sum() == 0
    assert 0.7 * 0.25 < tower.align.fast_proj.weight.abs().max() <= 0.25 * 1.01
    assert tower.align.slow_proj.bias.abs().max() > 0


def test_logits_are_made_for_the_positions_that_are_asked_for(model):
    """Fails if `logits_to_keep` is ignored: a prefill would make logits for every visual token."""
    row = tiny_inputs(model)[0]
    whole = model(**row).logits
    torch.testing.assert_close(model(**row, logits_to_keep=2).logits, whole[:, -2:], atol=1e-6, rtol=1e-5)
    chosen = torch.tensor([0, 3])
    torch.testing.assert_close(model(**row, logits_to_keep=chosen).logits, whole[:, chosen], atol=1e-6, rtol=1e-5)


def test_a_new_model_has_the_stated_initialisation():
    """Fails if transformers' general rules win over the method's: adapters, projector and layer scale."""
    model = tiny_model(trained=False)
    low, high = torch.randn(1, 4, 16), torch.randn(1, 12, 2, 2)
    assert all(torch.equal(a(low, high, (2, 2))[0], low) for a in model.model.vision_tower.adapters)
    assert 0.7 * 0.25 < model.model.multi_modal_projector.linear_1.weight.abs().max() <= 0.25
    scales = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert len(scales) == 5 and all(bool((scale == 1e-6).all()) for scale in scales)


# --- batches, caches, implementations


def test_a_batch_of_mixed_rows_equals_single_rows(model):
    """Rows with one, no and two images, padded on the left. Fails if images go to the wrong rows or if padding
    shifts positions."""
    rows = tiny_inputs(model, MIXED)
    batch = batched(rows)
    logits = model(**batch).logits
    generated = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, -6:]
    for index, row in enumerate(rows):
        alone = model(**row).logits[0]
        torch.testing.assert_close(logits[index, -len(alone) :], alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(model.generate(**row, max_new_tokens=6, do_sample=False)[0, -6:], generated[index])


def test_padding_on_either_side_gives_the_same_logits(model):
    rows = tiny_inputs(model, MIXED)
    for side in ("left", "right"):
        batch = batched(rows, side=side)
        logits = model(**batch).logits
        for index, row in enumerate(rows):
            alone = model(**row).logits[0]
            own = logits[index][batch["attention_mask"][index].bool()]
            torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-4)


def test_positions_count_a_rows_own_tokens(model):
    """Fails if padding is counted: the language model gets 0..n-1 per row."""
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    rows = tiny_inputs(model, (0, 0), words=3)
    model(**batched(rows))
    model(**batched(rows, side="right"))
    handle.remove()
    assert seen[0].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]] and seen[1].tolist() == [[0, 1, 2, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("cache", [None, "static"])
def test_cached_decoding_equals_recomputation(model, cache):
    """Fails if the cache, its positions or the images at the prefill are wrong."""
    row = tiny_inputs(model, (2,))[0]
    tokens, logits = greedy(model, row, 8)
    output = model.generate(
        **row,
        max_new_tokens=8,
        do_sample=False,
        cache_implementation=cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(output.sequences[:, -8:], tokens)
    torch.testing.assert_close(torch.stack(output.logits, dim=1), logits, atol=1e-5, rtol=1e-4)


def test_generation_without_a_cache_keeps_the_images(model):
    """Fails if images are dropped after the first step although everything is computed again."""
    row = tiny_inputs(model)[0]
    tokens = model.generate(**row, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(tokens[:, -4:], greedy(model, row, 4)[0])


def test_sdpa_equals_eager(model, tmp_path):
    """In both towers. Fails if the choice does not reach the vision transformer."""
    model.save_pretrained(tmp_path)
    eager = LlavaHrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    batch = batched(tiny_inputs(model, MIXED))
    kinds = [m.model.vision_tower.vit.config._attn_implementation for m in (model, eager)]
    assert kinds == ["sdpa", "eager"]
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(eager(**batch).logits[mask], model(**batch).logits[mask], atol=1e-5, rtol=1e-4)
    ours, theirs = (m.generate(**batch, max_new_tokens=6, do_sample=False)[:, -6:] for m in (model, eager))
    assert torch.equal(ours, theirs)
    eager.set_attn_implementation("sdpa")
    assert eager.model.vision_tower.vit.config._attn_implementation == "sdpa"


def test_bfloat16_is_close_to_float32(model, tmp_path):
    """Fails if a part computes in another dtype, or the pixels are not cast."""
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    batch = batched(tiny_inputs(model, MIXED))
    mask = batch["attention_mask"].bool()
    exact, rounded = model(**batch).logits[mask], half(**batch).logits[mask]
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.03 * exact.norm()
    assert half.generate(**batch, max_new_tokens=3).shape[1] <= batch["input_ids"].shape[1] + 3


def test_the_same_inputs_give_the_same_bits_and_stay_as_they_were(model):
    batch = batched(tiny_inputs(model, MIXED))
    before = {name: tensor.clone() for name, tensor in batch.items()}
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in batch.items())


class AttentionMaps(TorchDispatchMode):
    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.seen = tokens, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[-2:] == self.tokens:
                self.seen.append(str(func))
        return result


def test_no_attention_map_is_made_at_the_prefill(model):
    """Fails if the language model or the tower runs eager attention."""
    row = tiny_inputs(model, words=40)[0]
    tokens = row["input_ids"].shape[1]
    with torch.no_grad(), AttentionMaps((tokens, tokens)) as maps:
        model(**row, use_cache=True)
    assert not maps.seen


# --- images


def test_the_projector_by_hand(model):
    """``Linear, exact GELU, Linear`` of the tower's features. Fails with another activation or a norm in between."""
    images, projector = tiny_images(1), model.model.multi_modal_projector
    hidden = projector.linear_1(model.model.vision_tower(images))
    expected = projector.linear_2(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(model.encode_images(images), expected, atol=1e-6, rtol=1e-6)


def test_an_image_is_encoded_once_for_several_turns(model):
    """Fails if visual tokens give other logits than pixels, or if the tower runs again."""
    batch = batched(tiny_inputs(model, MIXED))
    expected = model(**batch).logits
    visual_tokens = model.encode_images(batch.pop("pixel_values"))
    assert visual_tokens.shape == (4, model.config.num_image_tokens, 24)
    runs, handle = count_runs(model.model.vision_tower)
    output = model(**batch, visual_tokens=visual_tokens)
    assert torch.equal(output.logits, expected) and output.image_hidden_states is visual_tokens
    tokens = model.generate(**batch, visual_tokens=visual_tokens, max_new_tokens=4, do_sample=False)
    handle.remove()
    assert not runs and tokens.shape[1] == batch["input_ids"].shape[1] + 4


def test_the_tower_runs_once_per_answer_and_never_for_text(model):
    """Fails if text-only rows are sent through the tower, or images again at each step."""
    runs, handle = count_runs(model.model.vision_tower)
    model.generate(**batched(tiny_inputs(model, (0, 1, 0, 2))), max_new_tokens=4)
    assert runs == [3]
    model.generate(**batched(tiny_inputs(model, (0, 0))), max_new_tokens=4)
    handle.remove()
    assert runs == [3]


def test_a_second_turn_continues_the_cache(model):
    """Fails if positions or earlier images go wrong: a later turn with a second image equals one long prompt."""
    first, second = tiny_inputs(model, (1, 1))
    answer = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat((answer.sequences, second["input_ids"]), dim=1)
    continued = model.generate(
        input_ids=ids,
        pixel_values=second["pixel_values"],
        past_key_values=answer.past_key_values,
        max_new_tokens=4,
        do_sample=False,
    )
    pixels = torch.cat((first["pixel_values"], second["pixel_values"]))
    afresh = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4, do_sample=False)
    assert torch.equal(continued, afresh)


@pytest.mark.parametrize("given", ["pixel_values", "visual_tokens"])
def test_copies_of_a_row_keep_its_images_together(model, given):
    """For beams and several answers. Fails if images are repeated one by one: two of a row would come as 1, 1, 2, 2."""
    batch = batched(tiny_inputs(model, MIXED))
    expected = model(**batch).logits.repeat_interleave(3, dim=0)
    if given == "visual_tokens":
        batch["visual_tokens"] = model.encode_images(batch.pop("pixel_values"))
    input_ids, inputs = model._expand_inputs_for_generation(expand_size=3, **batch)
    assert torch.equal(input_ids, batch["input_ids"].repeat_interleave(3, dim=0))
    torch.testing.assert_close(model(input_ids=input_ids, **inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_beams_of_a_batch_equal_those_of_single_rows(model):
    """Fails if beams read the images of other rows, or if the tower runs for each beam."""
    rows = tiny_inputs(model, MIXED)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False}
    runs, handle = count_runs(model.model.vision_tower)
    together = model.generate(**batched(rows), **options)[:, -4:]
    handle.remove()
    assert runs == [4]
    assert torch.equal(together, torch.cat([model.generate(**row, **options)[:, -4:] for row in rows]))


def test_the_repetition_penalty_passes_over_placeholders(model):
    """Fails if the placeholder lies further beyond the vocabulary than transformers' processors allow: by one."""
    row = tiny_inputs(model)[0]
    assert row["input_ids"].max() == VOCABULARY
    plain = model.generate(**row, max_new_tokens=8, do_sample=False)
    tokens = model.generate(**row, max_new_tokens=8, do_sample=False, repetition_penalty=50.0)
    assert len(set(tokens[0, -8:].tolist())) == 8 > len(set(plain[0, -8:].tolist()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("pixel_values"), "4 placeholders in input_ids, 0 visual tokens"),
        (lambda row: row.update(pixel_values=tiny_images(2)), "4 placeholders in input_ids, 8 visual tokens"),
        (lambda row: row.update(visual_tokens=torch.zeros(1, 4, 24)), "images are given twice"),
        (lambda row: row.update(inputs_embeds=torch.zeros(1, 4, 24)), "either input_ids or inputs_embeds"),
        (lambda row: row.update(inputs_embeds=torch.zeros(1, 9, 24), input_ids=None), "input_ids with placeholders"),
    ],
)
def test_images_that_do_not_fit_are_refused(model, change, message):
    row = tiny_inputs(model)[0]
    change(row)
    with pytest.raises(UserError, match=message):
        model(**row)


def test_a_model_without_adapters_runs():
    model = tiny_model(config=tiny_config(image_size=32, adapters=False))
    row = tiny_inputs(model)[0]
    assert row["pixel_values"].shape[-1] == 32
    assert model.generate(**row, max_new_tokens=2).shape[1] > row["input_ids"].shape[1]


def test_another_language_model_can_be_inside(tmp_path):
    """Fails if the model or its configuration takes the language model for a Llama."""
    config = tiny_config().to_dict()
    config["text_config"] |= {"model_type": "qwen2", "num_key_value_heads": 2}
    model = tiny_model(config=LlavaHrConfig(**config))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded.model.language_model).__name__ == "Qwen2Model"
    batch = batched(tiny_inputs(model, MIXED))
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **options), model.generate(**batch, **options))
    config["text_config"]["model_type"] = "nothing"
    with pytest.raises(UserError, match="unknown model_type"):
        LlavaHrConfig(**config)


def test_the_tower_can_be_replaced():
    """What the comparisons of variants rely on: any module from pixels to features."""

    class Blocks(nn.Module):
        num_tokens, hidden_size = 4, 16

        def forward(self, pixel_values):
            return (
                nn.functional.adaptive_avg_pool2d(pixel_values, 2).flatten(2).transpose(1, 2).repeat(1, 1, 6)[:, :, :16]
            )

    model = tiny_model()
    model.model.vision_tower = Blocks()
    assert model(**tiny_inputs(model)[0]).logits.isfinite().all()


# --- training


def labelled(model, images=MIXED):
    batch = batched(tiny_inputs(model, images), side="right")
    hidden = (batch["attention_mask"] == 0) | (batch["input_ids"] == model.config.image_token_id)
    return batch | {"labels": batch["input_ids"].masked_fill(hidden, -100)}


def test_the_loss_is_the_mean_over_labelled_tokens(model):
    """By hand. Fails if ignored labels or padding count, or if labels are not shifted by one."""
    batch = labelled(model)
    output = model(**batch)
    logits, labels = output.logits[:, :-1], batch["labels"][:, 1:]
    picked = logits[labels != -100].log_softmax(-1).gather(1, labels[labels != -100][:, None])
    torch.testing.assert_close(output.loss, -picked.mean())
    half = model(**batch, num_items_in_batch=2 * len(picked)).loss
    torch.testing.assert_close(half, output.loss / 2)


def test_gradient_checkpointing_changes_no_gradient():
    """Decoder layers, ViT layers and ConvNeXt blocks each run once more in the backward pass. Fails if one of them is
    left out or if gradients stop, as with the re-entrant kind."""
    model = tiny_model().train()
    tower = model.model.vision_tower
    watched = [tower.convnext.stages[2].blocks[0].mlp, tower.vit.encoder.layers[0].mlp]
    watched.append(model.model.language_model.layers[0].mlp)
    runs = []
    for index, module in enumerate(watched):
        module.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    batch, gradients = labelled(model), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        runs.clear()
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        assert sorted(runs) == sorted([0, 1, 2] * (1 + checkpointing))
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


def test_every_parameter_takes_part_in_training():
    """Data-parallel training waits for each gradient. Fails if the model keeps a weight that nothing uses."""
    model = tiny_model().train()
    model(**labelled(model)).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_a_dummy_image_keeps_ranks_in_step():
    """Fails if a text-only batch leaves tower or projector out, or if the dummy changes loss or gradients."""
    model = tiny_model().train()
    batch = labelled(model, (0, 0))
    runs, _ = count_runs(model.model.vision_tower)
    results = []
    for dummy in (False, True):
        model.dummy_image = dummy
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    assert runs == [1] and torch.equal(results[0][0], results[1][0])
    for name, gradient in results[1][1].items():
        without = results[0][1][name]
        assert gradient is not None
        assert torch.equal(gradient, torch.zeros_like(gradient) if without is None else without)
    assert any(gradient is None for gradient in results[0][1].values())
    model.eval().generate(**batched(tiny_inputs(model, (0,))), max_new_tokens=3)
    assert runs == [1, 1]
    model(**labelled(model))
    assert runs == [1, 1, 4]


def test_frozen_towers_still_pass_gradients_to_align_and_projector():
    """Stage 1. Fails if the towers run without a graph where the projector needs one."""
    model = tiny_model(config=tiny_config(adapters=False)).train().requires_grad_(False)
    trained = [*model.model.vision_tower.align.parameters(), *model.model.multi_modal_projector.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**labelled(model), use_cache=False).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


# --- the libraries around


def test_devices_are_mapped(model, tmp_path):
    """Fails if a part cannot be placed or off-loaded apart from the others (the tower stays in one piece)."""
    model.save_pretrained(tmp_path / "model")
    batch = batched(tiny_inputs(model, MIXED))
    expected = model.generate(**batch, max_new_tokens=3, do_sample=False)
    maps = [
        {"": "cpu"},
        {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu"}
        | {"model.language_model": "cpu", "lm_head": "disk"},
    ]
    for device_map in maps:
        placed = AutoModelForImageTextToText.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        )
        placed.generation_config.eos_token_id = None
        assert torch.equal(placed.generate(**batch, max_new_tokens=3, do_sample=False), expected)
    assert {"LlavaHrVisionTower", "LlamaDecoderLayer"} <= set(model._no_split_modules)


def test_the_forward_pass_compiles():
    """Without a graph break. Fails if the forward pass asks for values of tensors while it is traced."""
    config = tiny_config()
    config.text_config.num_hidden_layers = 1
    model = tiny_model(config=config)
    batch = batched(tiny_inputs(model, MIXED))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        logits = compiled(**batch, use_cache=False).logits
        torch.testing.assert_close(logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


def test_lora_wraps_the_model(tmp_path):
    """Fails if PEFT finds no layers, or if saving and loading its adapters changes the result."""
    peft = pytest.importorskip("peft")
    model = tiny_model()
    batch = labelled(model)
    base = model(**batch).logits.detach()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    wrapped(**batch).loss.backward()
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert any("language_model" in name for name in trained) and any("vit" in name for name in trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1)
    changed = wrapped(**batch).logits
    with wrapped.disable_adapter():
        torch.testing.assert_close(wrapped(**batch).logits, base)
    wrapped.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    torch.testing.assert_close(again(**batch).logits, changed)
    row = tiny_inputs(model)[0]
    assert again.generate(**row, max_new_tokens=2).shape[1] > row["input_ids"].shape[1]


def test_the_decoder_is_found_by_its_structure(model):
    """What methods rely on that attach to a host. Fails if layers and input embedding stand in different modules."""
    decoder = model.model.language_model
    assert model.get_input_embeddings() is decoder.embed_tokens
    assert len(decoder.layers) == model.config.get_text_config().num_hidden_layers
    assert model.config.image_token_id == VOCABULARY and model.get_output_embeddings() is model.lm_head
