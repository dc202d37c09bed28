"""The trainer: what a finished training holds, what a step computes, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from llava_hr_fixtures import tiny_config, tiny_model
from llava_hr_training import (
    PRETRAIN_STEPS,
    SAMPLES,
    STEPS,
    bits,
    fork,
    lines,
    tiny_settings,
    weights,
    write_tiny_data,
    write_tiny_parts,
)
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CLIPVisionModel

import llava_hr
from llava_hr.checkpoints import projector
from llava_hr.miniature import model as mini
from llava_hr.training import stages, start
from llava_hr.training.plan import plan
from llava_hr.training.run import run_train
from llava_hr.training.settings import TrainSettings
from llava_hr.training.stages import data_of, order_of
from llava_hr.training.start import make_processor, model_config, new_parts
from tenfold import UserError
from tenfold.data.instruct import Collator
from tenfold.runs import RunRecord

IGNORED = -100


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def finished(data: Path, parts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of both stages."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    run_train(tiny_settings(data, parts), 0, folder)
    return folder


def start_of(parts: dict[str, str]) -> dict[str, torch.Tensor]:
    """The weights of language model and encoders, as their own libraries read them, by our names."""
    language = AutoModelForCausalLM.from_pretrained(parts["language_model"]).state_dict()
    clip = CLIPVisionModel.from_pretrained(parts["clip"]).state_dict()
    trunk = load_file(parts["convnext"])
    named = {f"model.language_model.{name.removeprefix('model.')}": value for name, value in language.items()}
    named["lm_head.weight"] = named.pop("model.language_model.lm_head.weight")
    named |= {f"model.vision_tower.vit.{name}": value for name, value in clip.items() if "post_layernorm" not in name}
    named |= {f"model.vision_tower.convnext.{name}": value for name, value in trunk.items() if "head." not in name}
    return named


class Seen(stages.StageTrainer):
    """Keeps what the model is given and has before each optimiser step."""

    steps: list[dict[str, Any]]

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
        recompute = getattr(model.model.vision_tower, "_gradient_checkpointing_func", None)
        step = {"stage": self.order.name, "inputs": inputs, "weights": _copy(model), "recompute": recompute}
        self.steps.append(step)
        return super().training_step(model, inputs, *rest)


def _copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each forward pass of a training begins with."""
    steps: list[dict[str, Any]] = []
    monkeypatch.setattr(Seen, "steps", steps, raising=False)
    monkeypatch.setattr(stages, "StageTrainer", Seen)
    return steps


def test_a_finished_training_holds_a_model_that_opens_its_record_and_its_curve(
    finished: Path, data: Path, parts: dict[str, str]
) -> None:
    """Fails if a part of the result is missing, a step is logged twice, or the model has other weights on reading."""
    model, processor = llava_hr.load(finished / "model", device="cpu")
    stored = weights(finished)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items()) and len(stored) > 100
    same = AutoModelForImageTextToText.from_pretrained(finished / "model")
    assert type(same) is type(model) and same.config.vision_config.image_size == 64
    image = Image.open(data / "images" / "000000000000.png")
    inputs = processor(images=image, text=processor.prompt("Which color?"), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
    rows = lines(finished)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["stage"] for row in rows] == ["pretrain"] * PRETRAIN_STEPS + ["finetune"] * (STEPS - PRETRAIN_STEPS)
    record = RunRecord.load(finished)
    assert record.metrics["finetune"] == {"steps": 6, "loss": rows[-1]["loss"]}
    assert record.data.keys() == {"pretrain json", "finetune json", "language model", "clip", "convnext"}
    assert {"mm_projector.bin", "model/model.safetensors", "model/config.json"} <= record.outputs.keys()
    assert not any("checkpoint" in name for name in record.outputs)


def test_each_stage_trains_what_the_paper_says_from_what_it_says(
    finished: Path, data: Path, parts: dict[str, str], tmp_path: Path, seen: list[dict[str, Any]]
) -> None:
    """Stage 1: projector and final align move, without adapters. Stage 2: all moves, from stage 1's and the encoders'
    weights, the adapters from an identity. And all of it again gives the same bits.

    Fails if a frozen part moves, a trained one does not, stage 2 begins with other weights, an epoch repeats the order
    of the one before, or anything random in a training is not drawn by the seed.
    """
    run_train(tiny_settings(data, parts), 0, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(finished)
    given = start_of(parts)
    first, second = (next(step for step in seen if step["stage"] == name) for name in ("pretrain", "finetune"))
    end = [step for step in seen if step["stage"] == "pretrain"][-1]["weights"]
    for name, value in first["weights"].items():
        frozen = name in given
        assert torch.equal(end[name], value) is frozen, name
        assert torch.equal(value, given[name]) if frozen else name.startswith(projector.TRAINED), name
    assert not any(".adapters." in name for name in first["weights"])
    handed = projector.read(tmp_path / "run" / "mm_projector.bin")
    fresh = new_parts(model_config(tiny_settings(data, parts), "finetune"), 0)
    for name, value in second["weights"].items():
        expected = handed.get(name, given.get(name, fresh.get(name)))
        assert torch.equal(value, expected), name
        if name.endswith((".slow_proj.weight", ".fast_proj.weight")) and ".adapters." in name:
            assert not value.any()
    assert not torch.equal(handed[projector.NAMES[0]], first["weights"][projector.NAMES[0]])
    trained = weights(tmp_path / "run")
    still = {name for name, value in second["weights"].items() if torch.equal(trained[name], value)}
    # What never gets a gradient: the class token is dropped before the first layer.
    assert {name for name in still if "embed_tokens" not in name} == {
        "model.vision_tower.vit.embeddings.class_embedding"
    }
    batches = [step["inputs"]["input_ids"] for step in seen if step["stage"] == "finetune"]
    assert [batch.tolist() for batch in batches[:6]] != [batch.tolist() for batch in batches[6:]]  # two epochs
    pixels = {
        step["stage"]: step["inputs"]["pixel_values"].shape[-1] for step in seen if "pixel_values" in step["inputs"]
    }
    assert pixels == {"pretrain": 32, "finetune": 64}


def test_the_loss_is_the_mean_over_the_answers_of_the_whole_batch(
    data: Path, parts: dict[str, str], tmp_path: Path, seen: list[dict[str, Any]]
) -> None:
    """Against cross entropy by hand, over two forward passes of unequally many answers.

    Fails if each forward pass has a mean of its own ("batch"), or has not ("micro_batch", the official code's).
    """
    found = {}
    for mean in ("batch", "micro_batch"):
        seen.clear()
        settings = tiny_settings(data, parts, stages=["finetune"], finetune={"epochs": 1, "steps": 1}, loss=mean)
        run_train(settings, 0, tmp_path / mean)
        sums, counts = [], []
        for step in seen:
            model = tiny_model(config=model_config(settings, "finetune"))
            model.config.image_token_id = len(mini.vocabulary())
            model.load_state_dict(step["weights"])
            with torch.no_grad():
                logits = model(**{key: value for key, value in step["inputs"].items() if key != "labels"}).logits
            labels = step["inputs"]["labels"][:, 1:]
            sums.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum").item())
            counts.append(int((labels != IGNORED).sum()))
        assert len(counts) == 2 and counts[0] != counts[1]
        means = [total / count for total, count in zip(sums, counts, strict=True)]
        found[mean] = (lines(tmp_path / mean)[0]["loss"], sum(sums) / sum(counts), sum(means) / 2)
    assert found["batch"][0] == pytest.approx(found["batch"][1], rel=1e-5)
    assert found["micro_batch"][0] == pytest.approx(found["micro_batch"][2], rel=1e-5)
    assert abs(found["batch"][1] - found["batch"][2]) > 1e-4


def test_each_stage_follows_its_schedule(finished: Path, data: Path, parts: dict[str, str]) -> None:
    """Fails if a stage takes the other's rate, or the schedule is not what `--dry-run` says."""
    stages = plan(tiny_settings(data, parts), {"pretrain": SAMPLES, "finetune": SAMPLES}, 1)
    expected = [stage.rate(step) for stage in stages for step in range(stage.steps)]
    assert [row["learning_rate"] for row in lines(finished)] == pytest.approx(expected, abs=1e-12)


def test_an_order_depends_on_seed_and_epoch_alone(data: Path, parts: dict[str, str]) -> None:
    """Fails if batches mix modalities where they need not, an epoch repeats the one before, or the number of ranks
    counts."""
    settings = tiny_settings(data, parts, finetune={"group": 4})
    config = model_config(settings, "finetune")
    samples = data_of(settings.finetune, data, make_processor(settings, config))
    counts = {"pretrain": SAMPLES, "finetune": SAMPLES}
    orders = [order_of(samples, plan(settings, counts, ranks)[1], 0) for ranks in (1, 2)]
    epochs = [list(orders[0]), list(orders[1])]
    orders[0].set_epoch(1)
    assert epochs[0] == epochs[1] != list(orders[0]) and sorted(epochs[0]) == list(range(SAMPLES))
    modal = [{samples.modality_lengths[index] > 0 for index in epochs[0][at : at + 4]} for at in range(0, SAMPLES, 4)]
    assert all(len(kinds) == 1 for kinds in modal)
    random = [order_of(samples, plan(settings, counts, 1)[0], seed) for seed in (0, 0, 1)]
    assert list(random[0]) == list(random[1]) != list(random[2])
    short = plan(tiny_settings(data, parts, finetune={"steps": 1}), counts, 1)[1]
    assert len(order_of(samples, short, 0)) == len(list(order_of(samples, short, 0))) == 8


def test_a_batch_without_an_image_leaves_the_tower_a_gradient_of_zero(data: Path, parts: dict[str, str]) -> None:
    """As the official code's zero images do. Fails if the tower has no gradient there: its averages would stand still
    on one rank, and not on two."""
    settings = tiny_settings(data, parts)
    config = model_config(settings, "finetune")
    samples = data_of(settings.finetune, data, make_processor(settings, config))
    text = [number for number, words in enumerate(samples.modality_lengths) if words < 0]
    model = tiny_model(config=config).train()
    model.dummy_image = True
    batch = Collator(samples.processor)([samples[number] for number in text[:2]])
    assert "pixel_values" not in batch
    model(**batch).loss.backward()
    for name, value in model.named_parameters():
        tower = "vision_tower" in name or "projector" in name
        assert value.grad is not None and (tower is not bool(value.grad.any())), name


def test_training_lowers_the_loss_and_another_seed_takes_another_way(
    finished: Path, data: Path, parts: dict[str, str], tmp_path: Path
) -> None:
    """Fails if the optimiser does not move the weights, or moves them uphill, or the seed does not count."""
    losses = [row["loss"] for row in lines(finished)]
    assert losses[-1] < losses[PRETRAIN_STEPS] - 0.2
    run_train(tiny_settings(data, parts, stages=["pretrain"], pretrain={"steps": 1}), 1, tmp_path / "other")
    assert lines(tmp_path / "other")[0]["loss"] != losses[0]


def test_recomputed_activations_and_bf16_train_close_to_the_rest(
    data: Path, parts: dict[str, str], tmp_path: Path, seen: list[dict[str, Any]]
) -> None:
    """Fails if gradient checkpointing is off, re-entrant, or changes a gradient, if bfloat16 reaches the loss, or the
    written model is another type than asked for."""
    curves = {}
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "recomputed": {"gradient_checkpointing": True}}
    for name, change in (kinds | {"bf16": {"precision": "bf16"}}).items():
        short = tiny_settings(data, parts, stages=["finetune"], finetune={"epochs": 1, "steps": 2}, **change)
        run_train(short, 0, tmp_path / name)
        assert (name == "recomputed") is (seen[-1]["recompute"] is not None)
        curves[name] = [row[value] for row in lines(tmp_path / name) for value in ("loss", "grad_norm")]
    (keywords,) = {str(step["recompute"].keywords) for step in seen if step["recompute"] is not None}
    assert keywords == "{'use_reentrant': False}"
    assert curves["recomputed"] == pytest.approx(curves["plain"], rel=1e-5)
    assert curves["bf16"] == pytest.approx(curves["plain"], rel=0.02) and curves["bf16"] != curves["plain"]
    assert {value.dtype for value in weights(tmp_path / "bf16").values()} == {torch.bfloat16}


def test_stage_2_alone_starts_from_a_projector_or_from_a_whole_model(
    finished: Path,
    data: Path,
    parts: dict[str, str],
    tmp_path: Path,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails if a projector that is given is not taken, or a whole model begins with other weights than its own, or is
    opened more than once."""
    short = {"stages": ["finetune"], "finetune": {"epochs": 1, "steps": 1}}
    settings = tiny_settings(data, parts, **short, model={"projector": str(finished / "mm_projector.bin")})
    run_train(settings, 0, tmp_path / "projector")
    handed = projector.read(finished / "mm_projector.bin")
    assert all(torch.equal(seen[0]["weights"][name], value) for name, value in handed.items())
    seen.clear()
    values = tiny_settings(data, {}, **short).model_dump()
    values["model"] = {"start": str(finished / "model")}
    opened, whole = [], start._whole
    monkeypatch.setattr(start, "_whole", lambda folder, files: opened.append(folder) or whole(folder, files))
    run_train(TrainSettings.model_validate(values), 0, tmp_path / "whole")
    assert opened == [finished / "model"]
    stored = weights(finished)
    assert all(torch.equal(seen[0]["weights"][name], value) for name, value in stored.items())


def test_a_factory_gives_the_model_instead(data: Path, tmp_path: Path) -> None:
    """As experiments with other towers do. Fails if stage 2 does not get what stage 1 trained."""
    made: dict[str, Any] = {}

    def factory(stage: str, seed: int) -> torch.nn.Module:
        words = len(mini.vocabulary())
        config = tiny_config(32 if stage == "pretrain" else 64, stage == "finetune", words, words)
        made[stage] = tiny_model(seed + 5, config)
        made[f"{stage} before"] = _copy(made[stage])
        return made[stage]

    values = tiny_settings(data, {}, finetune={"epochs": 1, "steps": 1}).model_dump()
    values["model"] = {"size": "mini"}
    trained = run_train(TrainSettings.model_validate(values), 0, tmp_path / "run", factory=factory)
    handed = projector.read(trained.projector)
    name = projector.NAMES[0]
    assert torch.equal(dict(made["pretrain"].named_parameters())[name], handed[name])
    assert not torch.equal(made["pretrain before"][name], handed[name])
    # The first step's rate is zero, so what stage 2 began with is what it ends with.
    assert torch.equal(weights(tmp_path / "run")[name], handed[name])


def test_what_a_training_refuses(finished: Path, data: Path, parts: dict[str, str], tmp_path: Path) -> None:
    """All of it before the first step, and without a trace.

    Fails if a finished run, other files, other settings, data or weights that do not fit are written over or passed by.
    """

    def refused(
        message: str, *changes: Any, resume: bool = False, folder: Path = tmp_path / "new", **options: Any
    ) -> None:
        with pytest.raises(UserError, match=message):
            run_train(*changes or (tiny_settings(data, parts, **options), 0), folder, resume)

    refused("holds a finished run", folder=finished)
    shutil.copytree(finished, tmp_path / "begun", ignore=shutil.ignore_patterns("run.json"))
    refused("not empty.*--resume", folder=tmp_path / "begun")
    refused("another finetune.learning_rate, seed", tiny_settings(data, parts, finetune={"learning_rate": 1.0}), 3,
            folder=tmp_path / "begun", resume=True)  # fmt: skip
    refused("no such folder", tiny_settings(tmp_path / "nowhere", parts), 0)
    refused("no data.*--data", data={"folder": None})
    refused("no such file", finetune={"data": "missing.json"})
    refused("no language model to start from.*--lm", model={"language_model": None})
    refused("no such model", model={"clip": str(tmp_path / "nowhere")})
    refused("no such file.*mm_projector.bin", stages=["finetune"], model={"projector": str(tmp_path / "nowhere.bin")})
    refused("image_size", finetune={"image_size": 63})
    refused("template|conversation", finetune={"conversation": "vicuna_v9"})
    if not torch.cuda.is_available():
        refused("no such CUDA device", device="cuda")
    assert not (tmp_path / "new").exists()


def test_broken_data_and_weights_are_named(data: Path, parts: dict[str, str], tmp_path: Path) -> None:
    """Fails if a broken file is read as something else, or an image that breaks in a worker shows a traceback."""
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    records = json.loads((data / "instruct.json").read_text())

    def refused(message: str, content: Any = records, parts: dict[str, str] = parts, **changes: Any) -> None:
        (broken / "instruct.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError, match=message) as error:
            run_train(tiny_settings(broken, parts, stages=["finetune"], **changes), 0, tmp_path / "run")
        assert "Traceback" not in str(error.value)

    refused("instruct.json", "[{")
    refused("instruct.json", [])
    refused("record 0", [{"id": 1}])
    refused("0000.png", [{**records[0], "image": "missing/0000.png"}])
    foreign = write_tiny_parts(tmp_path / "parts", seed=1)
    (Path(foreign["convnext"])).write_bytes(Path(foreign["convnext"]).read_bytes()[:2000])
    refused("convnext.safetensors", parts={**parts, "convnext": foreign["convnext"]})
    refused("not CLIP .*llama", parts={**parts, "clip": parts["language_model"]})
    refused("not a language model .*clip", parts={**parts, "language_model": parts["clip"]})
    wider = tiny_settings(broken, parts).model.config["vision_config"] | {"high_res_dims": [4, 6, 8, 14]}
    refused("by the config", model={"config": {"vision_config": wider}})
    assert not (tmp_path / "run").exists()
    for name in {record["image"] for record in records if "image" in record}:
        (broken / "images" / name).write_bytes(b"no image")
    refused(r"\.png")
    shutil.rmtree(tmp_path / "run")
    # In a fork, for torch waits five seconds for the process that reads.
    child = fork(lambda: refused(r"\.png", data={"workers": 1}))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_wandb_receives_the_curves(
    data: Path, parts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline by default. Fails if the project is not handed on, or a step is left out."""
    opened, logged = {}, []
    tracker = SimpleNamespace(log=lambda values, step: logged.append((step, *values)), finish=lambda exit_code: None)

    def init(**options: Any) -> Any:
        opened.update(options)
        return tracker

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **options: None))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run_train(tiny_settings(data, parts, stages=["pretrain"], wandb="llava"), 0, tmp_path / "run")
    assert opened["project"] == "llava" and opened["mode"] == "offline"
    assert [step for step, *names in logged if "loss" in names] == [1, 2, 3]
