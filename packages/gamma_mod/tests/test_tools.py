"""D14, D15: what users bring along. PEFT, transformers' Trainer, accelerate's device maps, torch.compile, the hub."""

from pathlib import Path

import pytest
import torch
from gamma_mod_fixtures import converted, generate, labels_of, prompts
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.utils import hub

import gamma_mod
from gamma_mod.storage import CONFIG, WEIGHTS
from tenfold import UserError
from tenfold.testing.hosts import build

ROUTER = "language_model.router.weight"


def adapters(model, **options):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options))


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits


def test_peft_trains_adapters_and_the_router_saves_loads_and_merges_them(tmp_path):
    """`modules_to_save=["router"]`. Fails if the conversion keeps the router that PEFT has wrapped, or its old path."""
    inputs = prompts()
    model = adapters(converted(prefill_threshold=0.5), modules_to_save=["router"])
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    before = logits(model, inputs)
    for _ in range(2):
        model.train()(**inputs, labels=labels_of(inputs)).loss.backward()
        optimizer.step()
    trained = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert any("router.modules_to_save" in name for name in trained) and any("lora_A" in name for name in trained)
    after = logits(model, inputs)
    assert (after - before).abs().max() > 0.01
    model.save_pretrained(tmp_path / "adapters")
    again = PeftModel.from_pretrained(converted(prefill_threshold=0.5), tmp_path / "adapters")
    assert torch.equal(logits(again, inputs), after)
    merged = model.merge_and_unload()
    assert (logits(merged, inputs) - after).abs().max() < 5e-4  # rounding: 5e-5 in the worst of 150 draws
    merged.save_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / WEIGHTS).exists()


def test_a_model_under_adapters_can_be_converted():
    """Adapters first. Fails if the decoder is looked for above PEFT's wrapping, or the router is frozen."""
    model = gamma_mod.convert(adapters(build("llava")), (1, 2))
    inputs = prompts()
    model.train()(**inputs, labels=labels_of(inputs)).loss.backward()
    (router,) = [value for name, value in model.named_parameters() if name.endswith(ROUTER)]
    assert router.grad is not None and router.grad.any()
    assert generate(model.eval(), inputs, steps=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_transformers_own_trainer_trains_a_converted_model(tmp_path):
    """No class of ours: the loss is in the output. Fails if a checkpoint lacks the conversion."""
    model, inputs = converted(), prompts()
    rows = [
        {**{name: value[row] for name, value in inputs.items()}, "labels": labels_of(inputs)[row]} for row in range(3)
    ]
    before = model.gamma_mod.router.weight.clone()
    options = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=3, learning_rate=0.1, use_cpu=True,
        report_to=[], save_steps=2, disable_tqdm=True, remove_unused_columns=False, optim="sgd",
    )  # fmt: skip
    Trainer(model, options, train_dataset=rows).train()
    assert not torch.equal(model.gamma_mod.router.weight, before)
    assert (tmp_path / "checkpoint-2" / CONFIG).exists()


@pytest.mark.parametrize("first", ["convert", "offload"])
def test_accelerates_hooks_and_a_conversion_go_together(first):
    """What `device_map` puts on layers: weights wait elsewhere and come when a module is called. Fails if a converted
    layer replaces the hook, or reads a weight past it."""
    accelerate = pytest.importorskip("accelerate")
    inputs = prompts()
    expected = logits(converted(prefill_threshold=0.5), inputs)
    if first == "convert":
        model = converted(prefill_threshold=0.5)
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        model = build("llava")
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        gamma_mod.convert(model, (1, 2), prefill_threshold=0.5)
        model.gamma_mod.router.weight.data *= 6.0
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("by", ["push_to_hub", "save_pretrained"])
def test_pushed_to_the_hub_goes_what_save_pretrained_writes(by, tmp_path, monkeypatch):
    """Nothing is sent here: the library's own upload is stood in for. Fails if the conversion's files are written after
    the upload, or the library's options are dropped."""
    sent = {}

    def upload(self, folder, repo_id, files_timestamps, **options):
        sent.update(files={path.name for path in Path(folder).iterdir()}, repo=repo_id, **options)

    class Hub:
        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

    class Card:
        def save(self, path):
            Path(path).write_text("---\n---\n")

    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
    monkeypatch.setattr(hub, "hf_api", Hub)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: Card())
    model = converted()
    if by == "push_to_hub":
        model.push_to_hub("me/mine", commit_message="first")
    else:
        model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/mine", commit_message="first")
        assert (tmp_path / "mine" / CONFIG).exists()
    assert sent["repo"] == "me/mine" and sent["commit_message"] == "first"
    assert {CONFIG, WEIGHTS, "model.safetensors", "config.json", "README.md"} <= sent["files"]


def test_a_card_says_what_was_converted_and_by_which_run(tmp_path):
    """Fails if a folder of this machine is told as the base model, or the thresholds are left out."""
    converted(prefill_threshold=0.25).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nlicense: other\ntags:\n- gamma-mod\n")
    assert "Decoder layers 1, 2" in card and "0.25 (prompts)" in card and "base_model" not in card


def test_a_compiled_model_is_not_converted():
    """Fails if the conversion hooks the wrapper, whose graph would never see it."""
    with pytest.raises(UserError, match="compiled model"):
        gamma_mod.convert(torch.compile(build("llava"), backend="eager"), (1, 2))


@pytest.mark.slow
def test_a_compiled_model_gives_what_the_model_gives():
    """The graph breaks in each converted layer, as its sizes depend on the data. Fails if a trace keeps the first
    prompt's choice."""
    model, inputs = converted(prefill_threshold=0.5), prompts()
    compiled = torch.compile(model.eval(), backend="eager")
    for rows in (inputs, prompts(rows=[[("image", 4), 8], [("image", 4), 2]])):
        with torch.no_grad():
            assert torch.allclose(compiled(**rows).logits, logits(model, rows), atol=1e-5)
