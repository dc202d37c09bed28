"""Training: killed and resumed to the same bits, two ranks, losses that are not numbers, the paper's plan."""

import os
import subprocess
import sys

import pytest
import torch
from e3_facenet_fixtures import TINY, make_generator, tiny_training
from safetensors.torch import load_file

from e3_facenet import E3FaceNet
from e3_facenet.losses import (
    location_loss,
    normal_loss,
    paper_regulariser,
    released_regulariser,
    virtual_normals,
)
from e3_facenet.miniature.model import mini_clip
from e3_facenet.training import run as module
from e3_facenet.training.plan import plan
from e3_facenet.training.run import run_train
from e3_facenet.training.settings import TrainSettings
from e3_facenet.training.stages import Players
from tenfold import UserError
from tenfold.cli import load_config


@pytest.fixture(autouse=True)
def _untrained_clip(monkeypatch):
    monkeypatch.setattr(module, "load_text_encoder", lambda name: mini_clip(0))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A whole training of four iterations."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_text_encoder", lambda name: mini_clip(0))
        return run_train(tiny_training(str(world)), 1, folder)


def weights(folder):
    return load_file(folder / "model.safetensors") | load_file(folder / "discriminator.safetensors")


def test_a_killed_training_ends_with_the_same_bits(finished, world, tmp_path, monkeypatch):
    """Fails if a draw comes from global state, or the optimiser, the average or a buffer is not kept."""
    settings, iterate = tiny_training(str(world)), Players.iterate

    def dies(self, iteration):
        if iteration == 3:
            raise KeyboardInterrupt
        return iterate(self, iteration)

    monkeypatch.setattr(Players, "iterate", dies)
    with pytest.raises(KeyboardInterrupt):
        run_train(settings, 1, tmp_path / "cut")
    monkeypatch.setattr(Players, "iterate", iterate)
    torch.rand(3)  # where the global generator stands must not matter
    again = run_train(settings, 1, tmp_path / "cut", resume=True)
    assert again.resumed == 2
    ours, theirs = weights(again.model), weights(finished.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.metrics == finished.metrics


def test_a_trained_model_opens_and_draws(finished, clip_folder):
    """Fails if the folder lacks a part."""
    face = E3FaceNet.from_pretrained(finished.model, clip=clip_folder)
    assert face.generate("a face with black hair").images.shape == (5, 3, 32, 32)
    assert (finished.model / "README.md").is_file()


def test_a_continuation_with_other_settings_is_refused(finished, world, tmp_path):
    """Fails if a checkpoint of another rate is gone on from."""
    import shutil

    shutil.copytree(finished.model.parent, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").unlink()
    with pytest.raises(UserError, match="holds checkpoints"):
        run_train(tiny_training(str(world)), 1, tmp_path / "copy")
    with pytest.raises(UserError, match="another rate"):
        run_train(tiny_training(str(world), rate=9e-3), 1, tmp_path / "copy", resume=True)


def test_a_loss_that_is_no_number_ends_the_training(world, tmp_path):
    """Fails if NaN is trained on: one line with phase and iteration, the checkpoints before it kept."""
    settings = tiny_training(str(world))
    patch = pytest.MonkeyPatch()
    original = module.build_networks

    def spoiled(chosen, seed):
        networks = original(chosen, seed)
        networks[1].real.out.bias.data.fill_(float("nan"))
        return networks

    patch.setattr(module, "build_networks", spoiled)
    with pytest.raises(UserError, match=r"Gmain\.loss is nan.*Gmain, iteration 0"):
        run_train(settings, 1, tmp_path / "nan")
    patch.undo()
    assert not (tmp_path / "nan" / "run.json").exists()


def test_micro_batches_share_their_numbers_between_ranks(world):
    """Fails if a micro-batch's draws depend on the rank: two ranks' gradients sum to one rank's."""
    from e3_facenet.data.captioned import Pictures, open_split
    from e3_facenet.discriminator import Discriminator

    settings = tiny_training(str(world), loss={"path_length": False, "r1": 0.0})
    pictures = Pictures(open_split(settings.data, world, "train"), 32, True)
    gradients = []
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            discriminator = Discriminator(settings.discriminator_config())
        generator = make_generator()
        players = Players(
            settings, 1, generator, discriminator, make_generator(), mini_clip(0), pictures, torch.device("cpu"), rank,
            count,
        )  # fmt: skip
        kept = {}
        players._gather = lambda model, sums, kept=kept: kept.update(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "match" in name}
        )
        players.optimizers["G"].step = lambda: None
        players.iterate(1)
        gradients.append(kept)
    assert gradients[0]
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name] + gradients[2][name], whole, atol=2e-4, rtol=2e-2)


@pytest.mark.slow
def test_two_processes_follow_one(finished, world, tmp_path):
    """Fails if gradients, buffers or draws of two gloo ranks differ from one rank's: in the first iteration."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(os.path.dirname(__file__))!r})\n"
        "from e3_facenet_fixtures import tiny_training\nfrom e3_facenet.miniature.model import mini_clip\n"
        "from e3_facenet.training import run as module\nmodule.load_text_encoder = lambda name: mini_clip(0)\n"
        f"module.run_train(tiny_training({str(world)!r}, iterations=1), 1, Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    folders = []
    for count in (1, 2):
        folders.append(tmp_path / f"ranks{count}")
        subprocess.run([*command, str(count), str(script), str(folders[-1])], check=True, timeout=300)
    one, two = (weights(folder / "model") for folder in folders)
    # Running averages follow a rank's own passes, as released: half as many steps of 1e-3 on two ranks. So the second
    # micro-batch sees others, and Adam's first step, a sign, turns round where a gradient is next to nothing.
    averages = [name for name in one if name.endswith("w_avg")]
    for name in averages:
        start = 0.0 if name.startswith("mapping") else 1.0
        assert 0.3 < float((two[name] - start).norm() / (one[name] - start).norm()) < 0.7, name
    apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one if name not in averages])
    assert (apart > 1e-4).float().mean() < 0.05  # 0.21 where gradients stay with their rank


def test_the_shipped_config_is_the_papers_recipe():
    """Fails if a rate, a beta, a length or the average differs from the released recipe."""
    settings = load_config(TrainSettings, "mm-celeba")
    (g_rate, g_betas), (d_rate, d_betas) = settings.generator_adam(), settings.discriminator_adam()
    assert g_rate == pytest.approx(2.0e-4) and g_betas == pytest.approx((0, 0.991992), abs=1e-6)
    assert d_rate == pytest.approx(2.3529e-4, rel=1e-4) and d_betas == pytest.approx((0, 0.990585), abs=1e-6)
    assert settings.ema_decay() == pytest.approx(0.997784, abs=1e-6)
    found = plan(settings)
    assert found.networks["generator"] == 82_756_100 and found.networks["discriminator"] == 36_961_857
    assert found.networks["enhancers"] == 77_139_844 and found.networks["text head"] == 9_187_840
    assert found.schedule["pictures"] == "4,000 thousand, counted from 24,000 to 28,000"


def test_the_mini_config_is_the_same_trainer():
    settings = load_config(TrainSettings, "mini")
    assert plan(settings).networks["generator"] > 100_000 and settings.clip == "mini"


def test_the_released_regulariser_ignores_normals_and_the_papers_does_not():
    """Fails if the two regularisers are mixed up: 1.5 L_loc against L_loc + 0.5 L_normal."""
    points = torch.randn(2, 3, 8, 8)
    assert torch.equal(released_regulariser(points), 1.5 * location_loss(points))
    assert torch.allclose(paper_regulariser(points), location_loss(points) + 0.5 * normal_loss(points))


def test_normals_of_a_plane_point_away_from_the_camera():
    """As released. Fails if the cross product is taken the other way round."""
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    points = torch.stack([torch.zeros(6, 6), column, -row])[None]  # seen from +x, y to the right, z up
    assert torch.allclose(virtual_normals(points)[0, :, 0, 0], torch.tensor([-1.0, 0.0, 0.0]))


def test_no_data_and_no_clip_are_named(tmp_path):
    with pytest.raises(UserError, match="no data"):
        settings = tiny_training()
        run_train(
            settings.model_copy(update={"data": settings.data.model_copy(update={"mini": None})}), 0, tmp_path / "a"
        )
    with pytest.raises(UserError, match="no such folder"):
        run_train(tiny_training(str(tmp_path / "nowhere")), 0, tmp_path / "b")


def test_offsets_can_be_left_out_or_fed_with_other_captions(world, tmp_path):
    """Fails if a control trains as the method does."""
    for number, kind in enumerate(("none", "shuffled")):
        trained = run_train(
            tiny_training(str(world), loss={"offset": kind, "regulariser": "none"}, iterations=1),
            0,
            tmp_path / str(number),
        )
        assert ("Gmain.offset" in trained.metrics) and (trained.metrics["Gmain.offset"] == 0.0) == (kind == "none")


def test_dimensions_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="a power of two"):
        tiny_training(generator=TINY.to_json() | {"resolution": 33}).generator_config()
    with pytest.raises(UserError, match="unknown field 'depth'"):
        tiny_training(generator={"depth": 3}).generator_config()
