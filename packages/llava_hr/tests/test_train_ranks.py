"""Two ranks on one batch do what one process does: alone, under ZeRO-2 and under ZeRO-3."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from llava_hr_fixtures import tiny_model
from llava_hr_training import (
    SAMPLES,
    bits,
    in_ranks,
    lines,
    tiny_settings,
    weights,
    write_tiny_data,
    write_tiny_parts,
)
from safetensors.torch import load_file

import llava_hr
from llava_hr.miniature import model as mini
from llava_hr.training import stages
from llava_hr.training.plan import plan
from llava_hr.training.run import run_train
from llava_hr.training.settings import TrainSettings
from llava_hr.training.stages import data_of, order_of
from llava_hr.training.start import make_processor, model_config
from tenfold import UserError
from tenfold.cli.stages import StageName
from tenfold.runs import launch
from tenfold.runs.launch import missing_tools

# One sample on a rank at a time, in random order: again and again one rank has an image and the other has none.
MIXED = {"sampler": "random", "batch": 4, "per_device": 1, "epochs": 2, "steps": 2}
SHORT: dict[str, Any] = {"pretrain": {"steps": 2}, "finetune": MIXED}
STEPS = 6
# Adam divides small gradients by their own size: after a few steps at rates of 1e-2 what is rounded otherwise has moved
# a weight by this much.
WITHIN = 5e-5
COUNTS: dict[StageName, int] = {"pretrain": SAMPLES, "finetune": SAMPLES}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainSettings]:
    """Settings of a training, changed as asked."""
    data = write_tiny_data(tmp_path_factory.mktemp("data") / "mini")
    parts = write_tiny_parts(tmp_path_factory.mktemp("parts"))

    def settings(**changes: Any) -> TrainSettings:
        groups = {name: {**SHORT.get(name, {}), **changes.get(name, {})} for name in ("pretrain", "finetune")}
        return tiny_settings(data, parts, **{**changes, **groups})

    return settings


@pytest.fixture(scope="module")
def one(make: Callable[..., TrainSettings], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training in one process; on two ranks some of its samples meet others of the other modality."""
    folder, settings = tmp_path_factory.mktemp("one") / "run", make()
    run_train(settings, 0, folder)
    data = Path(settings.data.folder or "")
    samples = data_of(settings.finetune, data, make_processor(settings, model_config(settings, "finetune")))
    images = [samples.modality_lengths[index] > 0 for index in order_of(samples, plan(settings, COUNTS, 1)[1], 0)]
    assert {images[at] is images[at + 1] for at in range(0, len(images), 2)} == {True, False}
    return folder


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed, loaded before the forks; gloo does its communication, so that nothing is compiled for it."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    # By its full name: the package has an attribute `torch` that is torch itself.
    monkeypatch.setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)
    monkeypatch.setattr(launch, "missing_tools", list)


def follows(run: Path, one: Path) -> None:
    """Losses, norms of gradients and weights are those of one process."""
    assert len(lines(run)) == len(lines(one)) == STEPS
    for ours, theirs in zip(lines(run), lines(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    ours, theirs = weights(run), weights(one)
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < WITHIN
    model, _ = llava_hr.load(run / "model", device="cpu")
    assert all(torch.equal(value, ours[name]) for name, value in model.state_dict().items())


def test_two_ranks_follow_one(make: Callable[..., TrainSettings], one: Path, tmp_path: Path) -> None:
    """Both stages, with ranks that have an image beside ranks that have none: losses within 1e-5, weights within 2e-5.

    Fails if a rank's samples are another one's or another epoch's, if the loss is a mean of means (they have unequally
    many answers), or if a rank without an image leaves the tower without a gradient.
    """
    in_ranks(lambda: run_train(make(), 0, tmp_path / "run"))
    follows(tmp_path / "run", one)


class LooksFirst(stages.StageTrainer):
    """Before the first step of ZeRO-3: the model is in pieces, and gathered it has the weights of the files."""

    parts: Any

    def train(self, *arguments: Any, **options: Any) -> Any:
        if self.order.name == "finetune":
            self.look()
        return super().train(*arguments, **options)

    def look(self) -> None:
        from deepspeed import zero

        found = {}
        for name, value in self.model.named_parameters():
            assert value.numel() == 0, "not in pieces"
            with zero.GatheredParameters([value]):
                found[name] = value.detach().clone()
        trunk = load_file(self.parts.convnext)
        loaded = [name for name in trunk if not name.startswith("head.")]
        assert len(loaded) > 50
        for name in loaded:
            assert torch.equal(found[f"model.vision_tower.convnext.{name}"], trunk[name]), name
        clip = load_file(Path(self.parts.clip) / "model.safetensors")
        language = load_file(Path(self.parts.language_model) / "model.safetensors")
        name = "encoder.layers.3.mlp.fc1.weight"
        theirs = next(value for key, value in clip.items() if key.endswith(name))
        assert torch.equal(found[f"model.vision_tower.vit.{name}"], theirs)
        assert torch.equal(found["lm_head.weight"], language["lm_head.weight"])
        assert not found["model.vision_tower.adapters.2.slow_proj.weight"].any()


def test_zero_2_and_zero_3_follow_one(
    make: Callable[..., TrainSettings],
    one: Path,
    tmp_path: Path,
    deepspeed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The paper's own: ZeRO-2 for stage 1, ZeRO-3 for stage 2, where the official code cannot load a ConvNeXt.

    Fails if weights are loaded into a model that is in pieces and keeps what it was created with, if a rank without an
    image runs other modules or in another order than one with an image, or if what is saved is a rank's share.
    """
    settings = make(pretrain={"deepspeed": "zero2"}, finetune={"deepspeed": "zero3"})
    monkeypatch.setattr(LooksFirst, "parts", settings.model, raising=False)
    monkeypatch.setattr(stages, "StageTrainer", LooksFirst)
    in_ranks(lambda: run_train(settings, 0, tmp_path / "run"))
    follows(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed_json", ["zero2", "zero3"])
def test_deepspeed_goes_on_bit_for_bit(
    deepspeed_json: str, make: Callable[..., TrainSettings], tmp_path: Path, deepspeed: None
) -> None:
    """Both ranks die after step 3 of stage 2, of which step 2 has a checkpoint.

    Fails if a rank's share of the optimiser is not taken up, or the ranks go on from different steps.
    """
    settings = make(stages=["finetune"], finetune={"deepspeed": deepspeed_json})
    in_ranks(lambda: run_train(settings, 0, tmp_path / "whole"))

    class Dies(stages.Curve):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 3:
                os._exit(0)
            super().on_step_end(args, state, control, **rest)

    def stopped() -> None:
        stages.Curve = Dies
        run_train(settings, 0, tmp_path / "run")

    in_ranks(stopped)
    assert not (tmp_path / "run" / "run.json").exists()

    def resumed() -> None:
        assert run_train(settings, 0, tmp_path / "run", resume=True).resumed == 2

    in_ranks(resumed)
    assert bits(tmp_path / "run", stage_1=False) == bits(tmp_path / "whole", stage_1=False)


@pytest.mark.slow
def test_two_ranks_are_killed_and_go_on_bit_for_bit(make: Callable[..., TrainSettings], tmp_path: Path) -> None:
    """SIGKILL of both after step 3 of stage 2. Fails if a rank writes over the other, or takes another order up."""
    settings = make()
    in_ranks(lambda: run_train(settings, 0, tmp_path / "whole"))

    class Dies(stages.Curve):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if self.plan.name == "finetune" and state.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            super().on_step_end(args, state, control, **rest)

    def stopped() -> None:
        stages.Curve = Dies
        run_train(settings, 0, tmp_path / "run")

    with pytest.raises(AssertionError, match="-9"):
        in_ranks(stopped)
    in_ranks(lambda: run_train(settings, 0, tmp_path / "run", resume=True))
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed_json", ["zero2", "zero3"])
def test_bf16_under_deepspeed_writes_a_bf16_model(
    deepspeed_json: str, make: Callable[..., TrainSettings], one: Path, tmp_path: Path, deepspeed: None
) -> None:
    """Fails if rotary frequencies are rounded when a model is made in pieces, or another type is saved."""
    settings = make(precision="bf16", finetune={"deepspeed": deepspeed_json})
    in_ranks(lambda: run_train(settings, 0, tmp_path / "run"))
    losses, exact = ([row["loss"] for row in lines(run)] for run in (tmp_path / "run", one))
    assert losses == pytest.approx(exact, rel=0.03)
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_factory_s_model_is_cut_into_pieces_by_deepspeed(
    make: Callable[..., TrainSettings], tmp_path: Path, deepspeed: None
) -> None:
    """Fails if a model that was made whole trains otherwise under ZeRO-3."""
    values = make(stages=["finetune"]).model_dump()
    words = len(mini.vocabulary())
    config = make_config(make, words)
    runs = []
    for name in (None, "zero3"):
        values["finetune"]["deepspeed"] = name
        values["model"] = {"size": "mini"}
        settings, folder = TrainSettings.model_validate(values), tmp_path / str(name)
        runs.append(folder)
        in_ranks(lambda s=settings, f=folder: run_train(s, 0, f, factory=lambda stage, seed: tiny_model(seed, config)))
    ours, theirs = (weights(run) for run in runs)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < WITHIN


def make_config(make: Callable[..., TrainSettings], words: int) -> Any:
    """The tiny model's config, with the miniature's words."""
    from llava_hr_fixtures import tiny_config

    return tiny_config(64, True, words, words)


def test_deepspeed_says_what_it_lacks(
    make: Callable[..., TrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a missing launcher, package or tool shows as another library's traceback."""
    settings = make(stages=["finetune"], finetune={"deepspeed": "zero3"})

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            run_train(settings, 0, tmp_path / "run")

    monkeypatch.delenv("RANK", raising=False)
    refused("without a launcher.*torchrun --nproc_per_node")
    monkeypatch.setenv("RANK", "0")
    with monkeypatch.context() as patch:
        patch.setattr(launch, "find_spec", lambda name: None)
        refused(r'not installed.*pip install "llava-hr\[deepspeed\]"')
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setattr(sys, "executable", str(tmp_path / "python"))
        refused("no g.. and no ninja.*PATH")
        (tmp_path / "ninja").write_text("#!/bin/sh\n")
        (tmp_path / "ninja").chmod(0o755)
        assert missing_tools() == ["g++"]
        patch.setenv("PATH", "/nowhere")
        assert missing_tools() == ["g++"] and os.environ["PATH"].endswith(str(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_two_ranks_with_zero_2_and_zero_3(
    make: Callable[..., TrainSettings], one: Path, tmp_path: Path
) -> None:
    """The documented command, with DeepSpeed's own communication compiled. Fails if a rank prints, writes or names the
    folder on its own, or if anything but gloo sums otherwise."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    if missing := missing_tools():
        pytest.skip(f"DeepSpeed compiles on the CPU: no {' and no '.join(missing)}")
    settings = make(pretrain={"deepspeed": "zero2"}, finetune={"deepspeed": "zero3"})
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += ["-m", "llava_hr", "train", "--config", str(config), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 2
    follows(tmp_path / "run", one)
