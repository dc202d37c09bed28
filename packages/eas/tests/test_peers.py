"""EAS beside its users' other tools: each works as it does without EAS, or is refused by name."""

import copy
import threading
import warnings

import pytest
import torch
from eas_fixtures import Prompts, build, greedy, plan, skipper
from torch import nn

import eas
from eas.checkpoints import load as hub
from eas.checkpoints.folder import read_about
from eas.skipper import Skipper
from tenfold import UserError

STEP = torch.tensor([[11]])


def inputs(count=6, rows=1):
    return Prompts("llava").batch([[("image", 4), count]] * rows, "left")


@torch.no_grad()
def test_a_host_under_lora_is_served_and_not_folded():
    """Fails if LoRA layers are by-passed (logits equal those of the host with LoRA merged), or folded away."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llava"), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    merged = copy.deepcopy(model).merge_and_unload()
    with skipper()(model) as attached:
        found = model(**inputs()).logits
        with pytest.raises(UserError, match="cannot be folded: Linear"), attached.folded(prefill(model)):
            pass
        assert torch.equal(model(**inputs()).logits, found)
    with skipper()(merged):
        torch.testing.assert_close(found, merged(**inputs()).logits, atol=1e-4, rtol=1e-4)
    with skipper()(plain := build("llava")):
        assert not torch.allclose(found, plain(**inputs()).logits, atol=1e-2)


def prefill(model, count=6):
    return model(**inputs(count), use_cache=True).past_key_values


def test_lora_on_an_attached_host_leaves_the_adapters_alone():
    """Fails if PEFT wraps a module of EAS, or LoRA's own weights get no gradient through the blocks."""
    from peft import LoraConfig, get_peft_model

    model = build("llava")
    with skipper()(model) as attached:
        lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
        lora(**inputs(), labels=inputs()["input_ids"]).loss.backward()
        given = {name: one.grad for name, one in lora.named_parameters() if "lora_B" in name and one.grad is not None}
        moved = [name for name, one in given.items() if one.abs().max() > 0]
        assert any(".layers.0.self_attn.q_proj" in name for name in moved)
        assert any(".layers.1.mlp.up_proj" in name for name in moved)
        assert all(type(module) in (eas.Adapter, eas.PIA) for module in attached.modules())


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.batch = inputs(rows=8)
        self.batch["labels"] = self.batch["input_ids"].clone()
        self.batch["labels"][:, :-3] = -100

    def __len__(self):
        return 8

    def __getitem__(self, number):
        return {name: value[number] for name, value in self.batch.items()}


def test_trainers_trainer_tunes_the_adapters(tmp_path):
    """Fails if transformers' Trainer moves a frozen weight, moves no adapter, or what it made cannot be saved."""
    from transformers import Trainer, TrainingArguments

    model, start = build("llava").requires_grad_(False), Skipper(plan())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with start(model):
        for parameter in start.parameters():
            parameter.requires_grad_(True)
        first = [parameter.detach().clone() for parameter in start.parameters()]
        options = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none"}
        options |= {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
        trainer = Trainer(model, TrainingArguments(str(tmp_path / "t"), **options), train_dataset=Rows())
        trainer.train()
        moved = [not torch.equal(one, two) for one, two in zip(first, start.parameters(), strict=True)]
        assert sum(moved) > len(moved) / 2
        eas.save(start, tmp_path / "adapters", host="org/host")
        with torch.no_grad():
            expected = model.eval()(**inputs()).logits
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    eas.load(tmp_path / "adapters", model)
    with torch.no_grad():
        assert torch.equal(model(**inputs()).logits, expected)


@torch.no_grad()
def test_threads_share_an_attached_host():
    """Fails if one thread's prompt reaches another's router, global vector or prompt mask."""
    counts = (3, 9, 14)
    with skipper((0, 2))(model := build("llava")) as attached:
        expected = {count: greedy(model, inputs(count)) for count in counts}
        found, failed = {}, []
        begin = threading.Barrier(len(counts))

        @torch.no_grad()
        def work(count):
            try:
                begin.wait()
                for _ in range(3):
                    with attached.prompt(inputs(count)["attention_mask"]):
                        found[count] = greedy(model, inputs(count))
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(count,)) for count in counts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    for count in counts:
        assert torch.equal(found[count][0], expected[count][0]) and torch.equal(found[count][1], expected[count][1])


@torch.no_grad()
def test_another_prompt_meets_no_folded_one():
    """Fails if a second prompt (of another thread, or of this one) is decoded with the first one's matrices."""
    with skipper()(model := build("llava")) as attached:
        one, two = prefill(model, 4), prefill(model, 9)
        alone = model(input_ids=STEP, past_key_values=copy.deepcopy(two)).logits
        with attached.folded(one):
            model(input_ids=STEP, past_key_values=one)
            for call in (
                lambda: model(input_ids=STEP, past_key_values=two),
                lambda: model(**inputs(9)),
                lambda: greedy(model, inputs(9)),
            ):
                with pytest.raises(UserError, match="another prompt is folded"):
                    call()
        assert torch.equal(model(input_ids=STEP, past_key_values=two).logits, alone)


@torch.no_grad()
@pytest.mark.parametrize("way", ["dispatched", "offloaded"])
def test_a_device_map_keeps_its_hooks(way):
    """Fails if accelerate's hooks are lost, or a layer without memory (offloaded) is attached to."""
    from accelerate import cpu_offload, dispatch_model

    with skipper()(model := build("llava")):
        expected = greedy(model, inputs())
    if way == "dispatched":
        dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    else:
        cpu_offload(model, execution_device=torch.device("cpu"))
    before = [vars(layer).get("_old_forward") for layer in model.model.language_model.layers]
    if way == "offloaded":
        with pytest.raises(UserError, match="block 0 is offloaded"):
            skipper().attach(model)
    else:
        with skipper()(model):
            found = greedy(model, inputs())
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert [vars(layer).get("_old_forward") for layer in model.model.language_model.layers] == before


@torch.no_grad()
def test_an_8_bit_host_is_served_and_not_folded():
    """Fails if a block reads a quantised weight: torch's own 8-bit layers hold packed ones."""
    from torch.ao.quantization import quantize_dynamic

    model = build("llava")
    with warnings.catch_warnings():  # deprecated in favour of a package that is not needed for this
        warnings.simplefilter("ignore")
        quantised = quantize_dynamic(copy.deepcopy(model.model.language_model), {nn.Linear}, dtype=torch.qint8)
    model.model.language_model = quantised
    plain = model(**inputs()).logits
    with Skipper(plan((), adapter_rank=0))(model):
        assert torch.equal(model(**inputs()).logits, plain)
    with skipper()(model) as attached:
        tokens, _ = greedy(model, inputs())
        assert tokens.shape == (1, 4)
        with pytest.raises(UserError, match="cannot be folded"), attached.folded(prefill(model)):
            pass


def test_compiled_before_is_refused():
    """Fails if a compiled model is attached to in silence."""
    with pytest.raises(UserError, match="compiled"):
        skipper().attach(torch.compile(build("llava"), backend="eager"))


@pytest.mark.slow
@torch.no_grad()
def test_compiled_after_agrees():
    """Fails if compiling an attached model loses its state."""
    with skipper((0, 2))(model := build("llava")):
        expected = model(**inputs(), use_cache=False).logits
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(**inputs(), use_cache=False).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_card_and_the_upload(tmp_path, monkeypatch):
    """Fails if the card's header lacks licence, base model or tags, or an upload sends anything but the folder."""
    from huggingface_hub import HfApi

    sent = {}

    def create(self, repository, **options):
        sent["made"] = (repository, options["private"], self.token)

    def upload(self, **options):
        from pathlib import Path

        sent["files"] = {file.name: file.read_bytes() for file in Path(options["folder_path"]).iterdir()}
        return options["repo_id"]

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    made = skipper()
    facts = {"host": "llava-hf/llava-1.5-7b-hf", "data": "AID, train20", "run": "eas-train-1"}
    assert eas.push_to_hub(made, "me/adapters", private=True, token="t", **facts) == "me/adapters"
    assert sent["made"] == ("me/adapters", True, "t")
    assert set(sent["files"]) == {"README.md", "eas.json", "adapters.safetensors"}
    card = sent["files"]["README.md"].decode()
    header = card.split("---")[1]
    assert "base_model: llava-hf/llava-1.5-7b-hf" in header and "license: other" in header and "- eas" in header
    assert "AID, train20" in card and "eas-train-1" in card
    (tmp_path / "down").mkdir()
    for name, content in sent["files"].items():
        (tmp_path / "down" / name).write_bytes(content)
    assert read_about(tmp_path / "down")[1].data == "AID, train20"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path / "down"))
    model = build("llava")
    got = hub.load("me/adapters", model, revision="main")
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), made.parameters(), strict=True))
    eas.save(made, tmp_path / "local", host="sha256:ab")
    assert "base_model" not in (tmp_path / "local" / "README.md").read_text()
    with pytest.raises(UserError, match="nothing to save"):
        eas.save(Skipper(plan()), tmp_path / "nothing")


def test_no_such_repository_is_one_line(monkeypatch):
    """Fails if a hub that cannot be reached is a traceback."""

    def gone(*args, **options):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", gone)
    with pytest.raises(UserError, match="nor a repository") as error:
        eas.load("me/adapters", build("llava"))
    assert "\n" not in str(error.value)


def test_random_modules_are_far_from_the_identity():
    """The fixtures' modules must move logits, or nothing above can fail."""
    model = build("llava")
    with torch.no_grad():
        plain = model(**inputs()).logits
        with skipper(())(model):
            assert not torch.allclose(model(**inputs()).logits, plain, atol=1e-1)
