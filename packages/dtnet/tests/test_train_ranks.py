"""Two ranks on one batch do what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from dtnet_fixtures import in_ranks, tiny_settings, weights, write_tiny_data

from dtnet.data.caption_data import open_data
from dtnet.model import DTNet
from dtnet.training.data_parallel import sum_gradients, summed
from dtnet.training.run import build_model, run_train
from tenfold.runs.ranks import Ranks
from tenfold.runs.ranks import ranks as joined

# Everything that ranks do differently on purpose is off: dropout, augmentation, BatchNorm's own statistics.
QUIET = {"augment": False, "freeze_bn": True, "model": {"dropout": 0.0, "attention_dropout": 0.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose norms are not at their first values: the mean over channels carries signal, not rounding."""
    settings = tiny_settings(data, **QUIET)
    model = build_model(settings, open_data(settings.data, data, 7), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(0.3 * torch.randn(module.weight.shape, generator=generator))
                module.bias.add_(0.3 * torch.randn(module.bias.shape, generator=generator))
    folder = tmp_path_factory.mktemp("start") / "model"
    model.save_pretrained(folder)
    return folder


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("stage", ["xe", "scst"])
def test_two_ranks_follow_one(stage: str, data: Path, start: Path, tmp_path: Path) -> None:
    """Five steps on the same batches: losses within 1e-5 (xe) or 0.1 % (scst), weights within 2e-6.

    But for the biases of keys: attention is the same whatever they are, so their gradient is rounding, and Adam makes
    steps of that.

    Fails if a rank's share is another one's, if gradients are averaged instead of summed (or the mean is each rank's
    own: shares hold unequally many words), or if the reward's baseline crosses images.
    """
    changes = {"epochs": 1, "steps": 5, "rate": 1e-3, "schedule": "cosine"}
    settings = tiny_settings(data, **QUIET, **{stage: changes}, stages=[stage], start=str(start))
    run_train(settings, 0, tmp_path / "one")
    in_ranks(lambda: run_train(settings, 0, tmp_path / "two"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    # Self-critical losses are differences from a mean: of the order of 1e-5 themselves.
    within = {"abs": 1e-5} if stage == "xe" else {"rel": 1e-3, "abs": 1e-9}
    assert len(one) == 5 and all(one) and one == pytest.approx(two, **within)
    ours, theirs = (DTNet.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two"))
    before = DTNet.from_pretrained(start).state_dict()
    moved = max((ours[name] - before[name]).abs().max().item() for name in ours)
    compared = [name for name in ours if not name.endswith(".k.bias")]
    apart = max((ours[name] - theirs[name]).abs().max().item() for name in compared)
    assert moved > 2e-3 and apart < 2e-6 and len(ours) - len(compared) == 3


def test_two_ranks_train_both_stages_and_go_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    """The whole recipe with everything on, from a checkpoint in the middle.

    Fails if ranks write over each other, if they hold different weights when one of them saves, or if a rank's
    dropout is another one's after the continuation.
    """
    settings = tiny_settings(data, xe={"epochs": 1, "steps": 3}, scst={"epochs": 1, "steps": 3})
    in_ranks(lambda: run_train(settings, 0, tmp_path / "whole"))
    first = tiny_settings(data, xe={"epochs": 1, "steps": 3}, scst={"epochs": 1, "steps": 3})

    def stopped() -> None:
        from dtnet.training import stages

        loss, count = stages.SelfCritical.loss, 0

        def breaks(self, *args):
            nonlocal count
            count += 1
            if count == 3:
                os._exit(0)  # both ranks, after step 5
            return loss(self, *args)

        stages.SelfCritical.loss = breaks
        run_train(first, 0, tmp_path / "run")

    in_ranks(stopped)
    assert not (tmp_path / "run" / "run.json").exists()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-[0-9]*")) == [
        "checkpoint-3",
        "checkpoint-4",
    ]
    in_ranks(lambda: run_train(settings, 0, tmp_path / "run", resume=True))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 6


def test_ranks_sum_gradients_and_average_statistics(tmp_path: Path) -> None:
    """Fails if a parameter without a gradient gets one, or running statistics stay each rank's own."""

    def work() -> None:
        with joined(torch.device("cpu")) as ranks:
            model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
            model[0].weight.grad = torch.full((3, 2), float(ranks.rank + 1))
            model[1].running_mean.fill_(10.0 * ranks.rank)
            sum_gradients(ranks, model)
            assert model[0].weight.grad.eq(3).all() and model[2].weight.grad is None
            assert model[1].running_mean.eq(5).all() and model[1].running_var.eq(1).all()
            assert summed(ranks, torch.tensor(ranks.rank + 1.0)).item() == 3
            assert ranks.gather(ranks.rank) == [0, 1] and ranks.tell(ranks.rank) == 0

    in_ranks(work)


def test_a_batch_is_shared_out_whole() -> None:
    """Fails if an item of a batch of odd size is lost or given twice."""
    for world in (1, 2, 3):
        shares = [Ranks(rank, world, torch.device("cpu")).share(list(range(7))) for rank in range(world)]
        assert [item for share in shares for item in share] == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_torchrun_starts_two_ranks(data: Path, tmp_path: Path) -> None:
    """The documented command. Fails if a rank prints, writes or names the folder on its own."""
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(data).model_dump(mode="json")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += ["-m", "dtnet", "train", "--config", str(config), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    in_ranks(lambda: run_train(tiny_settings(data), 0, tmp_path / "forks"))
    assert weights(tmp_path / "run") == weights(tmp_path / "forks")
