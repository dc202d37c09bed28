"""Training: the same bits after a kill, two ranks as one, frozen parts, a loss that is not finite (D4)."""

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
from dit_sam_tiny import SHORT, rank, run, tiny_model

from dit_sam.model import DITSam
from dit_sam.training import run as module
from dit_sam.training.augment import example
from dit_sam.training.plan import dry_run, freeze
from dit_sam.training.run import run_train
from dit_sam.training.settings import AugmentSettings, TrainSettings
from tenfold import UserError
from tenfold.cli import load_config
from tenfold.runs import read_jsonl, sample_rng


def settings(*changes):
    return load_config(TrainSettings, "mini", (*SHORT, *changes))


def weights(folder):
    return DITSam.from_pretrained(Path(folder) / "last").state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A short training that nobody killed."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    trained = run_train(settings(), 0, folder)
    assert trained.metrics["steps"] == 6
    return folder


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_killed_training_ends_with_the_same_bits(whole, tmp_path, monkeypatch, step):
    """Fails if raw weights, their average, the optimiser, the order or a draw were not taken up as they were."""
    real = module.Training._step

    def dying(self, batch, epoch):
        if self.progress.step == step:
            raise KeyboardInterrupt
        real(self, batch, epoch)

    monkeypatch.setattr(module.Training, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run_train(settings(), 0, tmp_path / "run")
    monkeypatch.setattr(module.Training, "_step", real)
    trained = run_train(settings(), 0, tmp_path / "run", resume=True)
    assert (trained.resumed > 0) == (step > 1)
    assert same(weights(whole), weights(tmp_path / "run"))
    assert [row["loss"] for row in read_jsonl(whole / "metrics.jsonl") if "loss" in row] == [
        row["loss"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in row
    ]


def test_another_training_is_not_gone_on_with(tmp_path):
    """Fails if a checkpoint of other settings were taken up, or a finished folder overwritten."""
    run_train(settings("epochs=1", "warmup_epochs=0.5"), 0, tmp_path / "run")
    with pytest.raises(UserError):
        run_train(settings("epochs=1"), 0, tmp_path / "run")


def test_two_ranks_follow_one(tmp_path, whole):
    """Fails if gradients were averaged instead of summed, a batch shared unevenly, or val padded: within 1e-5."""
    (tmp_path / "data").symlink_to(whole / "checkpoint-data")
    start = whole / "checkpoint-points"
    one = tmp_path / "one"
    run_train(settings(f"start.model={start}", f"data.folder={tmp_path / 'data'}"), 0, one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=rank, args=(number, port, tmp_path / "two", start, queue)) for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
        assert process.exitcode == 0
    found = dict(queue.get() for _ in processes)
    assert found[0] == found[1]
    ours, theirs = weights(one), weights(tmp_path / "two")
    # A key's bias has no gradient in theory; Adam moves it by rounding noise.
    for name in ours:
        if "qkv.bias" not in name and "k_proj.bias" not in name and "key.bias" not in name:
            assert torch.allclose(ours[name], theirs[name], atol=2e-4), name
    first = [
        [row["loss"] for row in read_jsonl(f / "metrics.jsonl") if "loss" in row][:2] for f in (one, tmp_path / "two")
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, monkeypatch):
    """Fails if NaN were trained on: the last checkpoint stays, the line says the step."""
    real = module.mask_loss
    calls = []

    def loss(logits, masks):
        calls.append(1)
        return real(logits, masks) * (float("nan") if len(calls) > 3 else 1.0)

    monkeypatch.setattr(module, "mask_loss", loss)
    with pytest.raises(UserError, match="loss nan in step 3"):
        run_train(settings(), 0, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-3").is_dir() and not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("what", "text", "path", "encoder", "bert"),
    [
        ("none", False, True, True, True),
        ("encoder", False, True, False, True),
        ("encoder_as_flag", False, False, False, True),
        ("encoder", True, True, False, False),
    ],
)
def test_what_is_frozen(what, text, path, encoder, bert):
    """Fails if the text's way into the encoder were frozen with it, or the neck were not."""
    model = tiny_model()
    freeze(model, what, text)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert ("image_encoder.text_path.probs.0.weight" in trained) == path
    assert ("image_encoder.neck.0.weight" in trained) == encoder
    assert ("text_encoder.embeddings.word_embeddings.weight" in trained) == bert
    assert "mask_decoder.mask_tokens.weight" in trained


@pytest.mark.parametrize(
    ("config", "trainable", "steps"),
    [
        ("layer_wise", 212_867_120, 26_480),
        ("frozen", 123_196_208, 16_550),
        ("layer_wise_vith", 806_589_232, 16_550),
        ("default_sam", 203_414_576, 16_550),
    ],
)
def test_a_dry_run_says_the_papers_numbers(config, trainable, steps):
    """Fails if a shipped config trained other weights, steps or rates than the paper's."""
    dry = dry_run(load_config(TrainSettings, config))
    assert dry.trainable + dry.unused == trainable
    assert dry.plan.per_epoch == 662 and dry.plan.steps == steps
    assert dry.plan.rate(0) == 1e-7 and dry.plan.rate(dry.plan.warmup) == pytest.approx(1e-4)
    code, said, _ = run("train", "--config", config, "--dry-run")
    assert code == 0 and f"{trainable:,}" in said and f"{steps:,}" in said


def test_augmentation_repeats_and_mirrors(mini_data):
    """Fails if a draw came from a global state, or a mirrored picture kept its sentence."""
    from dit_sam.data.sets import ReferringSet
    from dit_sam.data.words import swapped

    config = tiny_model().config
    sample = ReferringSet(mini_data, "mini").samples("train")[0]
    rule = AugmentSettings(scales=2, jitter=1.0, flip=0.0)
    one = example(sample, config, rule, sample_rng(0, 1, 2))
    torch.manual_seed(5)
    other = example(sample, config, rule, sample_rng(0, 1, 2))
    assert torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)
    assert not torch.equal(one.image, example(sample, config, rule, sample_rng(0, 1, 3)).image)
    plain = example(sample, config, AugmentSettings(scales=1, jitter=0, flip=0), sample_rng(0, 0, 0))
    mirrored = example(sample, config, AugmentSettings(scales=1, jitter=0, flip=1.0), sample_rng(0, 0, 0))
    assert torch.equal(mirrored.image, plain.image.flip(-1)) and torch.equal(mirrored.mask, plain.mask.flip(-1))
    assert mirrored.sentence == swapped(plain.sentence)
