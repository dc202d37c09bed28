"""LLaVA-HR as a transformers model: saving, training, the libraries around (sheet section 3.8)."""

import json

import pytest
import torch
from llava_hr_fixtures import MIXED, VOCABULARY, batched, count_runs, tiny_config, tiny_inputs, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from llava_hr.checkpoints.load import align
from llava_hr.configuration import LlavaHrConfig
from llava_hr.modeling import LlavaHrForConditionalGeneration, LlavaHrModel


@pytest.fixture(scope="module")
def model():
    """Shared by tests that leave it as it is. It never ends its answer, so lengths are known."""
    model = tiny_model()
    model.generation_config.eos_token_id = None
    return model


# --- saving and loading


def test_saved_and_loaded_bit_by_bit(tmp_path):
    """Fails if a weight is lost or renamed on the way, the layer scale ``gamma`` above all, or if aligned weights are
    used where the file is mapped into memory (then the logits of this seed differ in the last bit)."""
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
        align(loaded)
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
