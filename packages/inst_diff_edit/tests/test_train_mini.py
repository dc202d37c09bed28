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
from inst_diff_edit.training.run import Training, TrainSettings, batch_at, learning_rate, price_share, train
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
    tokenizer, settings = mini.tokenizer(), replace(SHORT, batch=200, early=(100, 300), early_share=0.5)
    times = batch_at(tokenizer, settings, 0, 0).times
    assert 0.5 < ((times >= 100) & (times < 300)).float().mean() < 0.7 and times.min() < 100 and times.max() > 900


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, SHORT) for step in range(6)]
    assert rates[1] == max(rates) == SHORT.peak and rates[-1] < rates[2]


def test_the_price_of_attention_rises_to_its_full_height():
    settings = replace(SHORT, steps=20, price_rises=(0.1, 0.3))
    assert [price_share(step, settings) for step in (0, 2, 4, 6, 9)] == pytest.approx([0, 0, 0.5, 1, 1])


@pytest.mark.parametrize(("price", "spent"), [("word_price", "attention_to_words"), ("end_price", "attention_to_end")])
def test_a_price_makes_the_model_look_less_there(price, spent):
    """Fails if a price is not in the loss, or asked for other tokens."""
    free = replace(SHORT, word_price=0.0, end_price=0.0, price_rises=(-1, 0))
    logs = []
    for settings in (free, replace(free, **{price: 10.0})):
        training = Training(settings, 0)
        logs.append([training.step(0) for _ in range(8)])
    assert logs[0][0][spent] == logs[1][0][spent] > 0 and logs[1][-1][spent] < 0.8 * logs[0][-1][spent]
    other = {"attention_to_words": "attention_to_end", "attention_to_end": "attention_to_words"}[spent]
    assert logs[1][-1][other] > logs[1][-1][spent]


def test_a_pictures_error_counts_by_sigma_squared_within_bounds():
    """Fails if every time counts alike, or the bounds are not the settings'."""
    training = Training(replace(SHORT, weights=(0.1, 2.0)), 0)
    kept = training.noising.alphas_cumprod
    weight = training.variance.clamp(0.1, 2.0)
    assert weight[0] == pytest.approx(0.1) and weight[999] == pytest.approx(2.0)
    assert weight[400] == pytest.approx(((1 - kept) / kept)[400]) and 0.1 < weight[400] < 2
    alike = Training(replace(SHORT, weights=(1.0, 1.0)), 0)
    assert training.step(0)["loss"] != alike.step(0)["loss"]


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
    from inst_diff_edit.data.scenes import WORDS

    tokenizer = mini.tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS)
    assert len(tokenizer("raccoon").input_ids) > 3


def test_the_text_tower_is_fixed_and_its_start_token_says_the_same_in_every_prompt():
    """Fails if training changes the tower, or the start token hears of words."""
    training = Training(SHORT, 0)
    before = {name: value.clone() for name, value in training.pipe.text_encoder.state_dict().items()}
    training.step(0)
    after = training.finished().text_encoder.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    one, two = training.pipe._encode_prompts(["a striped lemon", "a plain door on grass"], None, guided=False)
    assert torch.equal(one[0], two[0]) and not torch.allclose(one[4], two[6], atol=0.1)  # start, and end


def test_a_noun_knows_its_adjective_and_the_end_no_word_more_than_others():
    """Fails if the head that reads the token before reads another one, or the end has it too."""
    pipe = mini.build(0)

    def said(prompt, place):
        return pipe._encode_prompts([prompt], None, guided=False)[0, place]

    plain, striped, far = (said(prompt, 3) for prompt in ("a plain lemon", "a striped lemon", "striped a lemon"))
    assert (plain - striped).norm() > 1.5 * (far - said("plain a lemon", 3)).norm()
    last = said("a plain door", 4) - said("a plain rose", 4)
    first = said("door plain a", 4) - said("rose plain a", 4)
    assert 0.5 < last.norm() / first.norm() < 2
