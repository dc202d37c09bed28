"""The miniature: eight arms of a seed, trained alike on scenes of which half are tagged, and what paths are worth.

    uniform    all five cells, the same weight each
    spatial    routers that see the mean over channels alone
    channel    routers that see the mean over positions alone
    joint      the paper's: this one goes on to self-critical training
    leaky      joint, but its last ReLU lets a tenth of what is negative through: no unit can die (a deviation)
    oracle     all five cells, but tagged scenes are sent by ORACLE's first cells and the others by its second ones
    plain      global and projection cell alone: a transformer
    blind      joint, but every training image has another one's features

Arms differ in nothing but that: a seed's arms share the order of the captions, and all weights that they have in common
start alike. Cross entropy is one pass over the captions, so that there is no choice among checkpoints: the last
weights are measured. Every arm runs in a process of its own; what has finished is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtnet.beam import beam_search, greedy
from dtnet.config import DTNetConfig
from dtnet.data.caption_data import CaptionData, open_data
from dtnet.data.datasets import PairDataset
from dtnet.data.mini import scene_tags, write_mini_coco
from dtnet.evaluation.analysis import (
    caption_loss,
    cell_rows,
    collect_paths,
    image_losses,
    kind_variance,
    mean_paths,
    other_paths,
    router_units,
)
from dtnet.evaluation.baselines import nearest_caption_baseline, split_cider
from dtnet.model import DTNet
from dtnet.router import Paths, Router
from dtnet.training.plan import plan
from dtnet.training.run import build_model, run_train
from dtnet.training.settings import TrainSettings
from dtnet.training.stages import CrossEntropy, negative_log_likelihood
from dtnet.vocabulary import PAD
from tenfold.cli import load_config
from tenfold.ledger.seeds import kept
from tenfold.metrics.captions import split_words
from tenfold.runs import atomic_write_json, last_complete_checkpoint, read_json
from tenfold.runs.finite import require_finite_loss
from tenfold.runs.ranks import Ranks

CONFIG, DATA = "mini-paths", "data"
UNIFORM, SPATIAL, CHANNEL, JOINT, LEAKY = "uniform", "spatial", "channel", "joint", "leaky"
ORACLE, PLAIN, BLIND = "oracle", "plain", "blind"
# Arm -> what is other than in the config.
ARMS: dict[str, tuple[str, ...]] = {
    JOINT: (),
    UNIFORM: ("model.routing=uniform",),
    SPATIAL: ("model.routing=spatial",),
    CHANNEL: ("model.routing=channel",),
    LEAKY: (),
    ORACLE: ("model.routing=uniform",),
    PLAIN: ("model.cells=[gmc, cpc]", "model.routing=uniform"),
    BLIND: ("blind=true",),
}
ROUTED = (SPATIAL, CHANNEL, JOINT, LEAKY)
CAPTIONED = (JOINT, BLIND)
# The cells of tagged scenes, and those of the others; of each the same weight.
TAGGED_CELLS, OTHER_CELLS = ("gmc", "cpc"), ("lmc", "amc", "cac")
LEAK = 0.1
PERMUTATIONS = 20
# Steps whose mean is one point of a training's curve.
CURVE = 20


def settings(arm: str, folder: Path, changes: Sequence[str] = ()) -> TrainSettings:
    """The settings of an arm's training on the data set in the experiments' folder."""
    chosen = load_config(TrainSettings, CONFIG, (*ARMS[arm], *changes))
    return chosen.model_copy(update={"data": chosen.data.model_copy(update={"folder": str(folder / DATA)})})


def prepare(folder: Path, changes: Sequence[str] = ()) -> None:
    """Draw the data set, where it is not there yet."""
    mini = settings(JOINT, folder, changes).data.mini
    assert mini is not None
    if not (folder / DATA).exists():
        write_mini_coco(folder / DATA, mini.seed, mini.train, mini.val, mini.test, images=False, tagged=True)


def run_arm(arm: str, seed: int, folder: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Train and measure one arm of one seed, or take what is kept.

    Args:
        changes: further ``key=value`` of the training's settings.

    Returns:
        "curve" of the training; "losses", "routing", "captions" as `measure` and `captions` give them; of the joint arm
        also "scst", its captions after self-critical training.
    """
    path = kept(folder, arm, seed)
    if path.exists():
        return read_json(path)
    chosen = settings(arm, folder, changes)
    torch.set_num_threads(chosen.threads or 1)
    data, tags = open_data(chosen.data, folder / DATA, chosen.model.grid), scene_tags(folder / DATA)
    model, curve = train(chosen, arm, data, tags, seed)
    found = {"config": model.config.to_json(), "curve": curve, **measure(model, arm, data, tags)}
    if arm in CAPTIONED:
        found["captions"] = captions(model, data)
    if arm == JOINT:
        before = folder / f"{arm}-{seed}"
        model.save_pretrained(before, replace=True)
        found["scst"] = captions(self_critical(chosen, seed, before, folder / f"scst-{seed}"), data)
    atomic_write_json(path, found)
    return found


def train(
    chosen: TrainSettings, arm: str, data: CaptionData, tags: Mapping[int, bool], seed: int
) -> tuple[DTNet, list[float]]:
    """Cross entropy by the package's own stage, model and rates; returns the last weights and the training's losses.

    Args:
        tags: of the images, for the oracle's paths.
    """
    ranks = Ranks()
    steps = plan(chosen, len(data.captions.pairs("train")), len(data.captions.images("train")))[0]
    stage = CrossEntropy(steps, chosen, data, seed, ranks)
    model = start(chosen, data, seed).train()
    if arm == LEAKY:
        leak(model)
    optimizer = stage.optimizer(model)
    losses: list[float] = []
    assert isinstance(stage.dataset, PairDataset)
    for epoch in range(steps.settings.epochs):
        for number, (batch, share) in enumerate(zip(stage.batches(epoch), stage.shares(epoch), strict=True)):
            images = stage.dataset.image_ids[list(share)].tolist()
            given = oracle_paths([tags[one] for one in images], model.config) if arm == ORACLE else None
            for group in optimizer.param_groups:
                group["lr"] = steps.rate(epoch, number)
            log_probs = model(batch.features, batch.ids[:, :-1], override_paths=given)
            loss = negative_log_likelihood(log_probs, batch.ids) / (batch.ids[:, 1:] != PAD).sum()
            require_finite_loss(loss.detach(), steps.name, len(losses) + 1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    points = [float(np.mean(losses[at : at + CURVE])) for at in range(0, len(losses), CURVE)]
    return model.eval(), points


def start(chosen: TrainSettings, data: CaptionData, seed: int) -> DTNet:
    """An arm's model before its training: what the joint arm's has as well is the same in both."""
    model = build_model(chosen, data, seed)
    whole = chosen.model.model_copy(update={"cells": DTNetConfig().cells, "routing": JOINT})
    common = build_model(chosen.model_copy(update={"model": whole}), data, seed).state_dict()
    own = model.state_dict()
    model.load_state_dict({name: common.get(name, tensor) for name, tensor in own.items()})
    return model


def leak(model: DTNet) -> None:
    """Let the last ReLU of every joint router leak: a unit that never fires still passes a gradient on."""
    for module in model.encoder.modules():
        if isinstance(module, Router):
            module.joint[1] = nn.LeakyReLU(LEAK)


def oracle_paths(tags: Sequence[bool], config: DTNetConfig) -> Paths:
    """The weights that scenes get whose tags are told: `[images, layers, cells]`."""

    def weights(names: Sequence[str]) -> Tensor:
        named = torch.tensor([[float(name in cells) for name in names] for cells in (OTHER_CELLS, TAGGED_CELLS)])
        rows = named / named.sum(dim=1, keepdim=True)  # [2, cells]
        return rows[torch.tensor(tags).long()][:, None].expand(-1, config.encoder_layers, -1)

    return Paths(weights(config.spatial_cells), weights(config.channel_cells))


def measure(model: DTNet, arm: str, data: CaptionData, tags: Mapping[int, bool]) -> dict[str, Any]:
    """What val's captions cost.

    Returns:
        "losses": of every scene the loss of a word of its captions. "tagged": which scenes are. "right": per cent of
        the words that the model thought likeliest. Of a routed arm "routing": "cells" (`analysis.cell_rows`), "routers"
        (`router_units`), "share" (of the weights' variance that lies between tagged and other scenes), "own" (loss of a
        word), "another" (with another image's weights, of every permutation) and "mean" (with the mean ones).
    """
    ids = data.captions.images("val")
    features = data.features.batch(ids)
    said = [[data.vocabulary.encode(split_words(text)) for text in data.captions.captions[one]] for one in ids]
    marks = [tags[one] for one in ids]
    given = oracle_paths(marks, model.config) if arm == ORACLE else None
    cost = image_losses(model, features, said, given)
    found: dict[str, Any] = {
        "losses": (cost.negative / cost.words).tolist(),
        "tagged": marks,
        "right": 100 * (cost.right.sum() / cost.words.sum()).item(),
    }
    if arm in ROUTED:
        paths = collect_paths(model, features)
        others = [other_paths(paths, seed) for seed in range(PERMUTATIONS)]
        found["routing"] = {
            "cells": cell_rows(paths, model.config),
            "routers": router_units(model, features),
            "share": kind_variance(paths, ["tagged" if mark else "other" for mark in marks])["share"],
            "own": (cost.negative.sum() / cost.words.sum()).item(),
            "another": [caption_loss(model, features, said, one) for one in others],
            "mean": caption_loss(model, features, said, mean_paths(paths)),
        }
    return found


def captions(model: DTNet, data: CaptionData) -> dict[str, dict[str, float]]:
    """Test's captions by five beams ("beam") and one after the other ("greedy"): `scores` of each."""
    ids = data.captions.images("test")
    parts = data.features.batch(ids).split(100)
    with torch.inference_mode():
        beams = [beam_search(model, part, 5, 20, early_stop=True) for part in parts]
        greedily = [greedy(model, part, 20) for part in parts]
    return {"beam": scores(data, ids, beams), "greedy": scores(data, ids, greedily)}


def scores(data: CaptionData, ids: Sequence[int], found: Sequence[Any]) -> dict[str, float]:
    """CIDEr-D times 100, the share of captions that are a reference in per cent, and the mean log-probability."""
    rows = [row for part in found for row in part.tokens[:, 0].tolist()]
    texts = dict(zip(ids, data.vocabulary.decode_all(rows), strict=True))
    gained = [value for part in found for value in part.log_probs[:, 0].double().sum(-1).tolist()]
    return {
        "cider": split_cider(texts, data, "test"),
        "exact": 100 * float(np.mean([texts[one] in data.captions.captions[one] for one in ids])),
        "log_prob": float(np.mean(gained)),
    }


def self_critical(chosen: TrainSettings, seed: int, before: Path, work: Path) -> DTNet:
    """The model of a folder after self-critical training, by `dtnet train` itself."""
    if not (work / "model").is_dir():
        after = chosen.model_copy(update={"stages": ("scst",), "start": str(before)})
        run_train(after, seed, work, resume=last_complete_checkpoint(work) is not None)
    return DTNet.from_pretrained(work / "model")


def nearest(folder: Path, changes: Sequence[str] = ()) -> float:
    """CIDEr-D of the nearest training caption on test."""
    chosen = settings(JOINT, folder, changes)
    data = open_data(chosen.data, folder / DATA, chosen.model.grid)
    return split_cider(nearest_caption_baseline(data, "test"), data, "test")


def signal(folder: Path, changes: Sequence[str] = ()) -> dict[str, float]:
    """How well a linear reading of val's features tells tagged scenes, fitted on train: the area under its curve.

    Returns:
        "pooled": of the mean over positions. "single": of one position, the mean of them all.
    """
    chosen = settings(JOINT, folder, changes)
    data, tags = open_data(chosen.data, folder / DATA, chosen.model.grid), scene_tags(folder / DATA)

    def read(split: str) -> tuple[Tensor, Tensor]:
        ids = data.captions.images(split)
        return data.features.batch(ids).double(), torch.tensor([tags[one] for one in ids])

    (known, its), (unseen, true) = read("train"), read("val")
    places = [area(known[:, place], its, unseen[:, place], true) for place in range(known.shape[1])]
    return {"pooled": area(known.mean(dim=1), its, unseen.mean(dim=1), true), "single": float(np.mean(places))}


def area(known: Tensor, its: Tensor, unseen: Tensor, true: Tensor) -> float:
    """Area under the ROC curve, on unseen images, of Fisher's discriminant of `[images, channels]` of known tags."""
    within = sum(torch.cov(known[its == side].T) for side in (True, False))
    ridge = 1e-6 * torch.eye(known.shape[1], dtype=known.dtype)
    direction = torch.linalg.solve(within + ridge, known[its].mean(dim=0) - known[~its].mean(dim=0))
    marks = unseen @ direction
    higher = (marks[true][:, None] > marks[~true]).double() + 0.5 * (marks[true][:, None] == marks[~true])
    return higher.mean().item()
