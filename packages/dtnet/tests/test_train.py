"""The trainer: what a finished training holds, what a step computes, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dtnet_fixtures import STEPS, TINY, XE_STEPS, tiny_settings, weights, write_tiny_data

from dtnet.beam import beam_search
from dtnet.data.caption_data import SwappedFeatures, open_data
from dtnet.data.datasets import ImageDataset, PairDataset
from dtnet.model import DTNet
from dtnet.training.plan import plan
from dtnet.training.run import Training, build_model, run_train
from dtnet.training.schedule import cosine_rate
from dtnet.training.settings import TrainSettings
from dtnet.training.stages import CrossEntropy, SelfCritical, search, search_then_score
from dtnet.vocabulary import PAD
from tenfold import UserError
from tenfold.metrics.captions import split_words
from tenfold.metrics.captions.cider import CiderD
from tenfold.runs import RunRecord, run
from tenfold.runs.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of both stages."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    run_train(tiny_settings(data), 0, folder)
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stages(settings: TrainSettings, data: Path, seed: int = 0):
    """Both stages, the data and a model that is not trained."""
    opened = open_data(settings.data, data, settings.model.grid)
    plans = plan(settings, len(opened.captions.pairs("train")), len(opened.captions.images("train")))
    xe = CrossEntropy(plans[0], settings, opened, seed, ALONE)
    scst = SelfCritical(plans[1], settings, opened, seed, ALONE)
    return xe, scst, opened, build_model(settings, opened, seed)


def lively(model: DTNet, seed: int = 0) -> DTNet:
    """Norms that do not leave the mean over channels at zero, as they do in a new model, and words worth a beam."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(0.3 * torch.randn(module.weight.shape, generator=generator))
                module.bias.add_(0.3 * torch.randn(module.bias.shape, generator=generator))
    return model


def test_a_finished_training_holds_a_model_that_captions_its_record_and_its_curve(finished: Path, data: Path) -> None:
    """Fails if a part of the result is missing, or a step is logged twice."""
    model = DTNet.from_pretrained(finished / "model")
    assert model.vocabulary is not None and model.feature_settings == {"name": "mini"}
    features = open_data(tiny_settings(data).data, data, 7).features
    (caption,) = model.caption(features.batch([features.ids()[0]]), beam_size=2, max_len=8)
    assert set(caption.text.split()) <= set(model.vocabulary.words)
    steps = [row for row in lines(finished) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["stage"] for row in steps] == ["xe"] * XE_STEPS + ["scst"] * (STEPS - XE_STEPS)
    assert all("reward" in row for row in steps[XE_STEPS:])
    validated = [row["step"] for row in lines(finished) if "val_cider" in row]
    assert validated == [5, 10, 13, 16]
    record = RunRecord.load(finished)
    assert record.metrics["steps"] == STEPS and record.data.keys() == {"captions", "features", "vocabulary"}
    assert {"model/model.safetensors", "model/config.json", "model/vocabulary.json"} <= record.outputs.keys()


def test_the_same_seed_gives_the_same_bits_and_another_one_others(finished: Path, data: Path, tmp_path: Path) -> None:
    """Fails if anything random in a training is not drawn by the seed."""
    run_train(tiny_settings(data), 0, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(finished)
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    run_train(tiny_settings(data, scst={"epochs": 0}), 1, tmp_path / "other")
    assert lines(tmp_path / "other")[0]["loss"] != lines(finished)[0]["loss"]


def test_cross_entropy_is_the_mean_over_words_and_ends(data: Path) -> None:
    """Against log-probabilities picked one by one. Fails if `<pad>` counts, or a word is its own target."""
    settings = tiny_settings(data, augment=False)
    xe, _, _, model = stages(settings, data)
    model.eval()
    batch = next(xe.batches(0))
    assert (batch.ids == PAD).any()
    loss, _ = xe.loss(model, batch, batch.features)
    log_probs = model(batch.features, batch.ids)
    picked = [
        log_probs[row, place, batch.ids[row, place + 1]].item()
        for row in range(len(batch.ids))
        for place in range(batch.ids.shape[1] - 1)
        if batch.ids[row, place + 1] != PAD
    ]
    assert loss.item() == pytest.approx(-sum(picked) / len(picked), rel=1e-5)


def test_the_self_critical_loss_raises_what_is_better_than_the_mean_of_its_image(data: Path) -> None:
    """By hand: rewards by CIDEr-D on words, the mean of the beams taken off, twenty slots whatever the length.

    Fails if the baseline is the batch's, the sum is divided by the caption's length, or a reward is another beam's.
    """
    settings = tiny_settings(data, augment=False)
    _, scst, opened, model = stages(settings, data)
    lively(model).eval()
    batch = next(scst.batches(0))
    loss, values = scst.loss(model, batch, batch.features)
    beams = beam_search(model, batch.features, beam_size=2, max_len=8, out_size=2)
    references = opened.captions.references("train")
    cider = CiderD.from_captions([[split_words(text) for text in texts] for texts in references.values()])
    expected, rewards = 0.0, []
    for image, image_id in enumerate(batch.image_ids):
        theirs = [[split_words(text) for text in references[image_id]]] * 2
        captions = [opened.vocabulary.decode(row, collapse=False).split() for row in beams.tokens[image]]
        _, scores = cider.score(captions, theirs)
        rewards += scores.tolist()
        for score, row in zip(scores, beams.log_probs[image], strict=True):
            expected -= (score - scores.mean()) * row.sum().item() / 8 / (2 * len(batch.image_ids))
    assert values["reward"].item() == pytest.approx(sum(rewards) / len(rewards), rel=1e-5)
    assert expected and loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-10)


def test_a_second_pass_gives_the_log_probabilities_of_the_search(data: Path) -> None:
    """Without dropout. Fails if a word is scored after another prefix, or a slot after `<eos>` counts."""
    settings = tiny_settings(data, augment=False)
    _, scst, _, model = stages(settings, data)
    lively(model).eval()
    with torch.no_grad():
        model.decoder.fc.weight[3] = 0.98 * model.decoder.fc.weight[18]  # a likely word: some captions end early
    features = next(scst.batches(0)).features
    tokens, by_beam = search(model, features, 3, 8)
    again, by_pass = search_then_score(model, features, 3, 8)
    assert torch.equal(tokens, again) and (by_beam == 0).any()
    assert torch.allclose(by_beam, by_pass, atol=1e-5)
    by_beam.mean().backward()
    first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    by_pass.mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, first[name], atol=1e-5), name


def test_self_critical_training_starts_from_the_best_weights_with_a_fresh_optimiser(data: Path, tmp_path: Path) -> None:
    """Fails if the last weights go on although others were better, or Adam's averages are carried over."""
    settings = tiny_settings(data)
    opened = open_data(settings.data, data, 7)
    seen = {}

    class Watched(Training):
        def _validate(self, stage):
            # The first epoch is declared better than the second.
            self.validation.cider = lambda model: 50.0 - self.progress.step
            super()._validate(stage)

        def _step(self, stage, optimizer, batch, epoch, number):
            if self.progress.step == XE_STEPS:
                seen["start"] = {name: value.clone() for name, value in self.model.state_dict().items()}
                seen["best"], seen["optimiser"] = self.best, dict(optimizer.state)
                seen["betas"] = optimizer.param_groups[0]["betas"]
            super()._step(stage, optimizer, batch, epoch, number)

    with run("dtnet", "train", config={}, seed=0, output=tmp_path / "run") as current:
        training = Watched(settings, 0, tmp_path / "run", opened, {}, ALONE, current)
        training.run()
    assert training.progress.best_step == 5 and seen["optimiser"] == {} and seen["betas"] == (0.9, 0.999)
    assert all(torch.equal(seen["start"][name], value) for name, value in seen["best"].items())
    assert {name: values["best"] for name, values in training.progress.by_stage.items()} == {"xe": 45.0, "scst": 37.0}


def test_as_good_as_the_best_is_the_best(data: Path, tmp_path: Path) -> None:
    """Fails if only a higher score replaces the best weights."""
    settings = tiny_settings(data, scst={"epochs": 0})
    with run("dtnet", "train", config={}, seed=0, output=tmp_path / "run") as current:
        opened = open_data(settings.data, data, 7)
        training = Training(settings, 0, tmp_path / "run", opened, {}, ALONE, current)
        training.validation.cider = lambda model: 7.0
        training.run()
    assert training.progress.best_step == XE_STEPS


def test_a_batch_depends_on_seed_stage_epoch_and_number_alone(data: Path) -> None:
    """Fails if batches share a stream, or an epoch that is taken up in its middle has another order."""
    settings = tiny_settings(data)
    xe, scst, _, _ = stages(settings, data)
    whole = [batch.ids for batch in xe.batches(1)]
    rest = [batch.ids for batch in xe.batches(1, first=3)]
    assert len(whole) == 5 and all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert not torch.equal(whole[0], next(xe.batches(0)).ids)
    images = next(scst.batches(0)).image_ids
    assert images == next(scst.batches(0)).image_ids != next(scst.batches(1)).image_ids
    assert len(set(images)) == 4
    batch = next(xe.batches(0))
    changed = [xe.features(batch, 0, number) for number in range(12)]
    assert any(not torch.equal(one, batch.features) for one in changed)
    assert all(torch.equal(one, xe.features(batch, 0, number)) for number, one in enumerate(changed))


def test_each_stage_follows_its_schedule(finished: Path) -> None:
    """Fails if the optimiser keeps a rate, or self-critical training goes on with that of cross entropy."""
    rates = [row["learning_rate"] for row in lines(finished) if "loss" in row]
    xe, scst = TINY["xe"], TINY["scst"]
    assert rates[:XE_STEPS] == [cosine_rate(step, XE_STEPS, xe["warmup"], xe["rate"]) for step in range(XE_STEPS)]
    assert rates[XE_STEPS:] == [cosine_rate(step, 6, 0, scst["rate"]) for step in range(6)]


def test_training_lowers_the_loss_and_leaves_frozen_positions_alone(data: Path, tmp_path: Path) -> None:
    """Fails if the optimiser does not move the weights, or moves the table of positions."""
    settings = tiny_settings(data, xe={"epochs": 1, "steps": 25, "rate": 1e-2}, scst={"epochs": 0}, augment=False)
    run_train(settings, 0, tmp_path / "run")
    losses = [row["loss"] for row in lines(tmp_path / "run") if "loss" in row]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.5
    trained = DTNet.from_pretrained(tmp_path / "run" / "model")
    new = build_model(settings, open_data(settings.data, data, 7), 0)
    assert torch.equal(trained.decoder.position_embedding.weight, new.decoder.position_embedding.weight)
    assert not torch.equal(trained.decoder.fc.weight, new.decoder.fc.weight)


def test_frozen_batch_norm_keeps_its_statistics(data: Path, tmp_path: Path) -> None:
    """Fails if freeze_bn normalises by the batch, or the default does not."""
    moved = {}
    for freeze in (False, True):
        settings = tiny_settings(data, xe={"epochs": 1, "steps": 2}, scst={"epochs": 0}, freeze_bn=freeze)
        run_train(settings, 0, tmp_path / str(freeze))
        model = DTNet.from_pretrained(tmp_path / str(freeze) / "model")
        counts = [int(v) for name, v in model.state_dict().items() if name.endswith("num_batches_tracked")]
        moved[freeze] = max(counts)
    assert moved == {False: 4, True: 0}  # brb_identity works twice a forward


def test_blind_training_gives_no_image_its_own_features(data: Path) -> None:
    """Fails if an image keeps its features, or two get the same ones."""
    settings = tiny_settings(data, blind=True)
    opened = open_data(settings.data, data, 7)
    ids = opened.captions.images("train")
    swapped = SwappedFeatures(opened.features, ids, 0)
    others = [next(o for o in ids if torch.equal(opened.features[o], swapped[i])) for i in ids]
    assert sorted(others) == sorted(ids) and all(a != b for a, b in zip(others, ids, strict=True))
    xe, scst, _, _ = stages(settings, data)
    assert isinstance(xe.dataset, PairDataset) and isinstance(scst.dataset, ImageDataset)
    for stage in (xe, scst):
        assert torch.equal(stage.dataset.features[ids[0]], swapped[ids[0]])


def test_bf16_trains_close_to_float32(data: Path, tmp_path: Path) -> None:
    """Fails if autocast reaches the weights, or a loss comes out in another type."""
    first = {}
    for precision in ("fp32", "bf16"):
        settings = tiny_settings(
            data, xe={"epochs": 1, "steps": 3}, scst={"epochs": 1, "steps": 1}, precision=precision
        )
        run_train(settings, 0, tmp_path / precision)
        first[precision] = next(row["loss"] for row in lines(tmp_path / precision) if "loss" in row)
        model = DTNet.from_pretrained(tmp_path / precision / "model")
        assert all(value.dtype == torch.float32 for value in model.parameters())
    assert first["bf16"] == pytest.approx(first["fp32"], rel=0.03) and first["bf16"] != first["fp32"]


def test_what_a_training_refuses(finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it before the first step.

    Fails if a finished run, checkpoints, other dimensions or missing data are written over or passed by.
    """
    settings = tiny_settings(data)

    def missing() -> str:
        raise UserError("no Java", "PATH")

    with pytest.raises(UserError, match="holds a finished run"):
        run_train(settings, 0, finished)
    shutil.copytree(finished / f"checkpoint-{STEPS}", tmp_path / "run" / f"checkpoint-{STEPS}")
    with pytest.raises(UserError, match="--resume"):
        run_train(settings, 0, tmp_path / "run")
    with pytest.raises(UserError, match=r"another seed, xe.batch"):
        run_train(tiny_settings(data, xe={"batch": 4}), 3, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="features are 24 wide"):
        run_train(tiny_settings(data, model={"d_in": 32}), 0, tmp_path / "wide")
    with pytest.raises(UserError, match="no such file"):
        run_train(tiny_settings(data, data={"features": "missing.h5"}), 0, tmp_path / "missing")
    with pytest.raises(UserError, match="no data"):
        run_train(TrainSettings(), 0, tmp_path / "none")
    with pytest.raises(UserError, match="other dimensions"):
        run_train(tiny_settings(data, start=str(finished / "model"), model={"d_ff": 8}), 0, tmp_path / "start")
    with pytest.raises(UserError, match="a caption of"):
        run_train(tiny_settings(data, model={"max_len": 8}), 0, tmp_path / "long")
    with pytest.raises(ValueError, match=r"model.max_len should be 8 or more"):
        tiny_settings(data, model={"max_len": 7})
    with monkeypatch.context() as patch:
        patch.setattr("tenfold.metrics.captions.ptb.find_java", missing)
        with pytest.raises(UserError, match="no Java"):
            run_train(tiny_settings(data, validation={"tokens": "ptb"}), 0, tmp_path / "java")
    assert not any((tmp_path / name).exists() for name in ("long", "java", "wide", "missing", "none", "start"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no such CUDA device"):
            run_train(tiny_settings(data, device="cuda"), 0, tmp_path / "cuda")


def test_a_training_can_start_from_another_model(finished: Path, data: Path, tmp_path: Path) -> None:
    """Self-critical training alone, from a folder. Fails if the weights are drawn anew."""
    settings = tiny_settings(data, start=str(finished / "model"), stages=["scst"], scst={"epochs": 1, "steps": 1})
    opened = open_data(settings.data, data, 7)
    theirs = DTNet.from_pretrained(finished / "model").state_dict()
    ours = build_model(settings, opened, 5).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    run_train(settings, 0, tmp_path / "run")
    assert [row["stage"] for row in lines(tmp_path / "run")] == ["scst", "scst"]


def test_the_mini_world_is_drawn_where_no_folder_is_named(tmp_path: Path) -> None:
    """Fails if the drawn data are not kept with the run, or the trained model cannot caption an image."""
    values = tiny_settings(tmp_path).model_dump()
    values["data"] |= {"folder": None, "mini": {"train": 20, "val": 3, "test": 2}}
    values["xe"] |= {"epochs": 1, "steps": 1}
    values["scst"] |= {"epochs": 0}
    run_train(TrainSettings.model_validate(values), 0, tmp_path / "run")
    assert (tmp_path / "run" / "data" / "dataset_coco.json").is_file()
    from tenfold.data.miniworld import render, scene

    model = DTNet.from_pretrained(tmp_path / "run" / "model")
    assert len(model.caption([render(scene(0, 0), 56)], beam_size=2, max_len=5)) == 1


def test_wandb_receives_the_curves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline by default. Fails if the project is not handed on, or the scores of val are left out."""
    opened, logged = {}, []
    tracker = SimpleNamespace(log=lambda values, step: logged.append((step, *values)), finish=lambda exit_code: None)

    def init(**options):
        opened.update(options)
        return tracker

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **options: None))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    settings = tiny_settings(data, xe={"epochs": 1, "steps": 2}, scst={"epochs": 0}, wandb="captions")
    run_train(settings, 0, tmp_path / "run")
    assert opened["project"] == "captions" and opened["mode"] == "offline"
    assert [step for step, *names in logged if "loss" in names] == [1, 2]
    assert [step for step, *names in logged if "val_cider" in names] == [2]


@pytest.mark.slow
def test_the_official_tokenisers_serve_a_whole_training(data: Path, tmp_path: Path) -> None:
    """spaCy's words, PTB's for reward and score, a vocabulary counted here: the settings of COCO at this size.

    Captions of shapes are the same words either way, so the weights must be those of the training by white space. Fails
    if the reward's words or the vocabulary are others than the captions'.
    """
    small = {"xe": {"epochs": 1, "steps": 2}, "scst": {"epochs": 1, "steps": 2}}
    run_train(tiny_settings(data, **small), 0, tmp_path / "whitespace")
    official = tiny_settings(
        data,
        xe=small["xe"],
        scst={**small["scst"], "tokens": "ptb"},
        validation={"tokens": "ptb"},
        **{"data": {"tokens": "spacy", "vocabulary": None}},
    )
    run_train(official, 0, tmp_path / "official")
    assert weights(tmp_path / "official") == weights(tmp_path / "whitespace")
    rewards = [
        [row["reward"] for row in lines(tmp_path / name) if "reward" in row] for name in ("official", "whitespace")
    ]
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize("stage", ["xe", "scst"])
def test_a_rate_that_is_far_too_high_ends_the_training(stage: str, data: Path, tmp_path: Path) -> None:
    """Fails if NaN is trained on: the training would end well, with a best step and weights that are no numbers."""
    settings = tiny_settings(data, **{stage: {"rate": 1e30, "warmup": 0}})
    with pytest.raises(UserError, match=rf"the loss is not finite .*{stage}, step"):
        run_train(settings, 0, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "run.json").exists()
