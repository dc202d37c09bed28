"""The mini model's training: same seed, same bits, also after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from inst_diff_edit.miniature import model as mini
from inst_diff_edit.training.run import Training, TrainSettings, batch_at, learning_rate, price_at, train
from tenfold import UserError
from tenfold.runs import RunRecord, last_complete_checkpoint, read_jsonl
from tenfold.testing.processes import held

SHORT = TrainSettings(steps=6, batch=2, warmup=2)


def weights(folder):
    return {part: getattr(mini.load(folder), part).state_dict() for part in ("unet", "text_encoder")}


def same(first, second):
    return all(torch.equal(first[part][name], second[part][name]) for part in first for name in first[part])


def test_a_batch_depends_on_seed_and_step_only():
    tokenizer = mini.tokenizer()
    first, again = (batch_at(tokenizer, SHORT, 0, 3) for _ in range(2))
    assert torch.equal(first.latents, again.latents) and torch.equal(first.noise, again.noise)
    other = batch_at(tokenizer, SHORT, 0, 4)
    assert not torch.equal(first.noise, other.noise)


def test_latents_are_pixels_times_the_factor():
    tokenizer = mini.tokenizer()
    half, whole = (batch_at(tokenizer, replace(SHORT, scaling_factor=factor), 0, 3) for factor in (0.5, 1.0))
    assert torch.allclose(2 * half.latents, whole.latents) and whole.latents.max() > 0.5
    assert mini.build(0, 0.5).vae.config.scaling_factor == 0.5


def test_most_times_are_early_and_none_is_left_out():
    """Fails if the share of early times is not taken from the settings."""
    tokenizer, settings = mini.tokenizer(), replace(SHORT, batch=200, early=300, early_share=0.5)
    times = batch_at(tokenizer, settings, 0, 0).times
    assert 0.55 < (times < 300).float().mean() < 0.75 and times.max() > 900


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, SHORT) for step in range(6)]
    assert rates[1] == max(rates) == SHORT.peak and rates[-1] < rates[2]


def test_the_price_of_attention_rises_to_its_full_height():
    settings = replace(SHORT, price=0.5, price_from=2, price_full=6)
    assert [price_at(step, settings) for step in (0, 2, 4, 6, 9)] == [0, 0, 0.25, 0.5, 0.5]


def test_a_price_makes_the_model_look_less_at_words():
    """Fails if the price is not in the loss, or special tokens are charged for."""
    free, dear = (Training(replace(SHORT, price=price, price_from=-1, price_full=0), 0) for price in (0.0, 10.0))
    spent = [[training.step(0)["attention_to_words"] for _ in range(8)] for training in (free, dear)]
    assert spent[0][0] == spent[1][0] > 0 and spent[1][-1] < 0.8 * spent[0][-1]


def test_one_step_lowers_the_loss_of_its_own_batch():
    training = Training(SHORT, 0)
    before = training.step(1)["loss"]
    assert training.step(1)["loss"] < before


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    """Fails if optimiser state, running mean or step number is not restored, or noise comes from a global stream."""
    train(SHORT, 0, tmp_path / "whole", every=10, resume=False, project=None)
    torn = Training(SHORT, 0)
    for step in range(4):
        torn.step(step)
    from tenfold.runs import write_checkpoint

    write_checkpoint(tmp_path / "torn", 4, torn.save)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        done = train(SHORT, 0, tmp_path / "torn", every=10, resume=True, project=None)
    assert done.metrics["resumed_from"] == 4
    assert same(weights(tmp_path / "whole" / "model"), weights(tmp_path / "torn" / "model"))


@pytest.mark.slow
def test_killed_on_progress_and_resumed(tmp_path):
    """A real kill, when the third step has been logged. Fails if the resumed run starts from nothing."""
    command = [sys.executable, "-m", "inst_diff_edit", "train", "--steps", "40", "--batch", "2"]
    options = ["--checkpoint-every", "2", "--output", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *options], env=environment)
    while last_complete_checkpoint(tmp_path / "killed") is None or not (tmp_path / "killed/metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, *options, "--resume"], env=environment, check=True)
    subprocess.run([*command, "--output", str(tmp_path / "whole")], env=environment, check=True)
    record = RunRecord.load(tmp_path / "killed")
    assert record.metrics["resumed_from"] > 0
    assert [row["step"] for row in read_jsonl(tmp_path / "killed/metrics.jsonl")] == list(range(1, 41))
    assert same(weights(tmp_path / "killed/model"), weights(tmp_path / "whole/model"))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    from tenfold.runs import write_checkpoint

    write_checkpoint(tmp_path / "run", 4, Training(SHORT, 0).save)
    with pytest.raises(UserError, match="made with another seed"):
        train(SHORT, 1, tmp_path / "run", every=10, resume=True, project=None)
    with pytest.raises(UserError, match="holds checkpoints of an unfinished run"):
        train(SHORT, 0, tmp_path / "run", every=10, resume=False, project=None)
    with pytest.raises(UserError, match="nothing to resume from"):
        train(SHORT, 0, tmp_path / "other", every=10, resume=True, project=None)


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path, monkeypatch):
    """Weights belong to one. Fails if the tokenizer is not of what a checkpoint must agree in, or trained anew."""
    from tenfold.runs import write_checkpoint

    write_checkpoint(tmp_path / "run", 4, Training(SHORT, 0).save)
    shutil.copytree(mini.TOKENIZER, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text((tmp_path / "other" / "tokenizer.json").read_text() + "\n")
    shipped = mini.load().tokenizer.get_vocab()
    assert mini.tokenizer().get_vocab() == mini.build(1).tokenizer.get_vocab() == shipped
    monkeypatch.setattr(mini, "TOKENIZER", tmp_path / "other")
    with pytest.raises(UserError, match="made with another tokenizer"):
        train(SHORT, 0, tmp_path / "run", every=10, resume=True, project=None)


def test_a_second_training_in_one_folder_is_told_of_the_first(tmp_path):
    """Fails if both write there: their checkpoints' temporary folders, and their curves, are one."""
    with held(tmp_path / "run") as process, pytest.raises(UserError, match=rf"process {process} is writing there"):
        train(SHORT, 0, tmp_path / "run", every=2, resume=False, project=None)
    assert not [path for path in (tmp_path / "run").iterdir() if not path.name.startswith(".tmp")]


def test_a_rate_that_is_far_too_high_ends_the_training(tmp_path):
    """Fails if NaN is trained on, and a model written whose pictures are black."""
    with pytest.raises(UserError, match=r"the loss is not finite .*mini model, step"):
        train(replace(SHORT, peak=1e30), 0, tmp_path / "run", every=10, resume=False, project=None)
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "run.json").exists()


def test_the_autoencoder_of_pixels_does_nothing():
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    coder = mini.PixelAutoencoder()
    encoded = coder.encode(pixels).latent_dist
    assert torch.equal(encoded.mean, pixels) and not encoded.std.any()
    assert torch.equal(coder.decode(pixels).sample, pixels)


def test_every_word_of_the_mini_world_is_one_token_and_others_come_in_pieces():
    from inst_diff_edit.data.scenes import OTHER_WORDS, WORDS

    tokenizer = mini.tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS + OTHER_WORDS)
    assert len(tokenizer("raccoon").input_ids) > 3


def test_the_text_tower_is_fixed_and_special_tokens_say_the_same_in_every_prompt():
    """Fails if words mix, or training changes the tower."""
    training = Training(SHORT, 0)
    before = {name: value.clone() for name, value in training.pipe.text_encoder.state_dict().items()}
    training.step(0)
    assert all(
        torch.equal(value, before[name]) for name, value in training.finished().text_encoder.state_dict().items()
    )
    one, two = training.pipe._encode_prompts(["a tomato", "a leaf and a tomato"], None, guided=False)
    assert torch.equal(one[0], two[0]) and torch.equal(one[0], one[3]) and torch.equal(one[0], one[15])
    assert torch.equal(one[2], two[5])
    gram = two[[0, 1, 2, 3, 5]] @ two[[0, 1, 2, 3, 5]].T / two.shape[-1]
    assert torch.allclose(gram, torch.eye(5), atol=0.01)
