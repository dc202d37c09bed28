"""`dtnet claims --train`: the mini model in six variants with three seeds each, and what its captions come to.

    plain      global and projection cell alone: a transformer
    uniform    all five cells, the same weight each
    spatial    routers that see the mean over channels alone
    channel    routers that see the mean over positions alone
    joint      the paper's: this one goes on to self-critical training, by `dtnet train --config mini` itself
    blind      joint, but every training image has another one's features

Variants differ in nothing but that; plain to channel train with cross entropy only and are compared with joint as it
was before self-critical training. Every run trains and is measured in a process of its own, two at a time; what a run
has finished is kept in the folder, so that a killed one goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.cli import Experiments, Finding, load_config
from tenfold.ledger.seeds import apart, run_each, show, spread
from tenfold.runs import atomic_write_json, last_complete_checkpoint, read_json

if TYPE_CHECKING:
    from dtnet.data.caption_data import CaptionData
    from dtnet.model import DTNet
    from dtnet.training.settings import TrainSettings

SEEDS = (0, 1, 2)
WORKERS = 2
# As recorded on two cores that had other work as well; said up front.
MINUTES = 40
JOINT, BLIND, PLAIN = "joint", "blind", "plain"
ROUTED = ("spatial", "channel", JOINT)
# Variant -> what is other than in the shipped config `mini`.
VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: ("model.cells=[gmc, cpc]", "model.routing=uniform", "stages=[xe]"),
    "uniform": ("model.routing=uniform", "stages=[xe]"),
    "spatial": ("model.routing=spatial", "stages=[xe]"),
    "channel": ("model.routing=channel", "stages=[xe]"),
    JOINT: (),
    BLIND: ("blind=true",),
}
# One checkpoint an epoch: of those that stay, one holds the model before self-critical training.
FOR_ALL = ("checkpoint_steps=1000000",)
DATA = "data"


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains {len(VARIANTS)} variants of the mini model with {len(SEEDS)} seeds each (two of them self-critically "
        f"too) and captions 500 test scenes: about {MINUTES} minutes on two cores",
        conduct,
    )


def conduct(folder: Path, changes: Sequence[str] = ()) -> list[Finding]:
    """Train and measure every variant and seed, then judge the claims.

    Args:
        folder: for data and trainings; what is finished in it is kept.
        changes: further ``key=value`` of every training's settings.
    """
    from dtnet.data.mini import write_mini_coco

    mini = settings(JOINT, folder).data.mini
    assert mini is not None
    if not (folder / DATA).exists():
        write_mini_coco(folder / DATA, mini.seed, mini.train, mini.val, mini.test, images=False)
    # The long ones first.
    names = sorted(VARIANTS, key=lambda name: "stages=[xe]" in VARIANTS[name])
    work = [(variant, seed, folder, changes) for seed in SEEDS for variant in names]
    measured = run_each([(measure_run, *arguments) for arguments in work], WORKERS)
    by_variant: dict[str, list[Any]] = {name: [] for name in VARIANTS}
    for (variant, *_), found in zip(work, measured, strict=True):
        by_variant[variant].append(found)
    return judge(by_variant, nearest(folder))


def settings(variant: str, folder: Path, changes: Sequence[str] = ()) -> TrainSettings:
    """The settings of a variant's training on the data set in the experiments' folder."""
    from dtnet.training.settings import TrainSettings

    chosen = load_config(TrainSettings, "mini", (*VARIANTS[variant], *FOR_ALL, *changes))
    data = chosen.data.model_copy(update={"folder": str(folder / DATA)})
    return chosen.model_copy(update={"data": data})


def measure_run(variant: str, seed: int, folder: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Train one variant with one seed (or take what is there) and measure it; kept as ``<variant>-<seed>.json``.

    Args:
        changes: further ``key=value`` of the training's settings.

    Returns:
        "xe" and, where there was self-critical training, "scst": what `measure` found.
    """
    import torch

    from dtnet.data.caption_data import open_data
    from dtnet.model import DTNet
    from dtnet.training.run import run_train

    kept = folder / f"{variant}-{seed}.json"
    if kept.exists():
        return read_json(kept)
    chosen, work = settings(variant, folder, changes), folder / f"{variant}-{seed}"
    torch.set_num_threads(chosen.threads or 1)
    if not (work / "model").is_dir():
        run_train(chosen, seed, work, resume=last_complete_checkpoint(work) is not None)
    data = open_data(chosen.data, folder / DATA, chosen.model.grid)
    model = DTNet.from_pretrained(work / "model")
    found: dict[str, Any] = {"config": model.config.to_json(), "training": read_json(work / "run.json")["metrics"]}
    if "scst" in chosen.stages:
        found["scst"] = measure(model, data)
        model.load_state_dict(before_scst(work))
    found["xe"] = measure(model, data)
    atomic_write_json(kept, found)
    return found


def before_scst(work: Path) -> dict[str, Any]:
    """The weights that a finished training started its self-critical stage from.

    Of the newest two checkpoints the older one is the end of cross entropy, when the second stage is one epoch long.
    """
    import torch

    from dtnet.training.run import STATE

    older = min(work.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    state = torch.load(older / STATE, map_location="cpu", weights_only=True)
    if "scst" in state["progress"]["by_stage"] or "xe" not in state["progress"]["by_stage"]:
        raise RuntimeError(f"{older} is not the end of cross entropy: the config mini has several SCST epochs")
    return state["best"]


def measure(model: DTNet, data: CaptionData) -> dict[str, Any]:
    """Captions of test by beam search and greedily, and what the routing is worth on val.

    Returns:
        "beam" and "greedy" (CIDEr-D times 100, share of captions that are a reference, mean log-probability), and
        "routing" as of `analyze.report`.
    """
    import torch

    from dtnet.beam import beam_search, greedy
    from dtnet.data.mini import scene_kinds
    from dtnet.evaluation.analysis import report
    from tenfold.metrics.captions import split_words

    ids = data.captions.images("test")
    features = data.features.batch(ids)
    with torch.inference_mode():
        beams = [beam_search(model, part, 5, 20, early_stop=True) for part in features.split(100)]
        greedily = [greedy(model, part, 20) for part in features.split(100)]
    val = data.captions.images("val")
    kinds = scene_kinds(data.files["captions"].parent)
    captions = [[data.vocabulary.encode(split_words(text)) for text in data.captions.captions[one]] for one in val]
    return {
        "beam": caption_scores(model, data, ids, beams),
        "greedy": caption_scores(model, data, ids, greedily),
        "routing": report(
            model, data.features.batch(val), kinds=[kinds[one] for one in val], captions=captions
        ),
    }  # fmt: skip


def caption_scores(model: DTNet, data: CaptionData, ids: Sequence[int], found: Sequence[Any]) -> dict[str, float]:
    """CIDEr-D, exact captions and log-probability of the best beams of test's images, batch after batch."""
    from dtnet.evaluation.baselines import split_cider

    rows = [row for part in found for row in part.tokens[:, 0].tolist()]
    texts = dict(zip(ids, data.vocabulary.decode_all(rows), strict=True))
    gained = [value for part in found for value in part.log_probs[:, 0].double().sum(-1).tolist()]
    return {
        "cider": split_cider(texts, data, "test"),
        "exact": float(np.mean([texts[one] in data.captions.captions[one] for one in ids])),
        "log_prob": float(np.mean(gained)),
    }


def nearest(folder: Path) -> dict[str, float]:
    """The nearest-caption baseline on test."""
    from dtnet.data.caption_data import open_data
    from dtnet.evaluation.baselines import nearest_caption_baseline, split_cider

    chosen = settings(JOINT, folder)
    data = open_data(chosen.data, folder / DATA, chosen.model.grid)
    texts = nearest_caption_baseline(data, "test")
    exact = float(np.mean([text in data.captions.captions[one] for one, text in texts.items()]))
    return {"cider": split_cider(texts, data, "test"), "exact": exact}


def judge(measured: Mapping[str, Sequence[Mapping[str, Any]]], baseline: Mapping[str, float]) -> list[Finding]:
    """Findings from every run's measurements.

    A claim holds when the difference of means exceeds the larger of the two spreads over seeds. Beams and greedy
    decoding are compared on the same models, by their differences: higher log-probability by more than the differences'
    spread, CIDEr-D lower by no more than that.
    """
    ours, blind = _cider(measured[JOINT], "scst"), _cider(measured[BLIND], "scst")
    start = _cider(measured[JOINT], "xe")
    xe = {name: _cider(measured[name], "xe") for name in VARIANTS if name != BLIND}
    seeds = f"{len(ours)} seeds"
    gained = {key: _pairs(measured[JOINT], key) for key in ("log_prob", "cider")}
    gained_xe = {key: _pairs(measured[JOINT], key, "xe") for key in ("log_prob", "cider")}
    own, another, mean = (_swap(measured[JOINT], "xe", name) for name in ("own", "another", "mean"))
    others = ("uniform", "spatial", "channel")
    alone = {name: _swap(measured[name], "xe", "another") - _swap(measured[name], "xe", "own") for name in others[1:]}
    more = bool(gained["log_prob"].mean() > spread(gained["log_prob"]))
    not_worse = bool(gained["cider"].mean() >= -spread(gained["cider"]))
    return [
        Finding(
            "mini-caption", ours.mean(), bool(apart(ours, blind) and ours.mean() - baseline["cider"] > spread(ours)),
            f"CIDEr-D {show(ours)}; nearest training caption {baseline['cider']:.1f}; without images {show(blind)}; "
            f"exactly a reference {_mean(measured[JOINT], 'exact'):.1%}, nearest {baseline['exact']:.1%}, without "
            f"images {_mean(measured[BLIND], 'exact'):.1%}; {seeds}",
            {"table": [_row("joint, self-critical", ours, ours=True), _row("joint, cross entropy", start),
                       _row("nearest training caption", np.array([baseline["cider"]])), _row("without images", blind)]},
        ),
        Finding(
            "mini-scst", (ours - start).mean(), apart(ours, start),
            f"CIDEr-D {show(start)} before, {show(ours)} after; by seed "
            f"{', '.join(f'{value:+.1f}' for value in ours - start)}",
        ),
        Finding(
            "mini-beam", gained["log_prob"].mean(), more and not_worse,
            f"5 beams over greedy: log-probability {show(gained['log_prob'], 3)}, CIDEr-D {show(gained['cider'])}; "
            f"before self-critical training {show(gained_xe['log_prob'], 3)} and {show(gained_xe['cider'])}; {seeds}",
        ),
        Finding(
            "mini-cells", (xe[JOINT] - xe[PLAIN]).mean(), apart(xe[JOINT], xe[PLAIN]),
            f"CIDEr-D after cross entropy {show(xe[JOINT])}, plain transformer {show(xe[PLAIN])}; {seeds}",
            {"table": table(measured)},
        ),
        Finding(
            "mini-router", xe[JOINT].mean(), all(apart(xe[JOINT], xe[other]) for other in others),
            f"CIDEr-D after cross entropy {show(xe[JOINT])}, "
            + ", ".join(f"{other} {show(xe[other])}" for other in others) + f"; {seeds}",
        ),
        Finding(
            "mini-paths", (another - own).mean(), apart(another, own),
            f"loss of a word {show(own, 4)} by an image's own weights, {show(another - own, 5)} more by another "
            f"image's, {show(mean - own, 5)} more by the mean ones; {_spreads(measured[JOINT])}; another image's in "
            f"routers of one branch: {show(alone['spatial'], 5)} spatial, "
            f"{show(alone['channel'], 5)} channel; "
            f"{seeds}",
            {"routing": {name: [run["xe"]["routing"] for run in measured[name]] for name in ROUTED}},
        ),
    ]  # fmt: skip


def table(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each variant after cross entropy, with its parameters and the encoder's multiply-accumulates."""
    from dtnet.config import DTNetConfig
    from dtnet.costs import encoder_macs

    names = {
        PLAIN: "plain transformer", "uniform": "five cells, uniform", "spatial": "router: spatial branch",
        "channel": "router: channel branch", JOINT: "joint router",
    }  # fmt: skip
    rows = []
    for variant, name in names.items():
        config = DTNetConfig.from_json(measured[variant][0]["config"])
        row = _row(name, _cider(measured[variant], "xe"), ours=variant == JOINT)
        row["exact"] = float(np.mean([run["xe"]["beam"]["exact"] for run in measured[variant]]))
        rows.append(row | {"parameters": parameters(config), "encoder_macs": encoder_macs(config)})
    return rows


def parameters(config: Any) -> int:
    """All parameters of a model that is not made."""
    import torch

    from dtnet.model import DTNet

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DTNet(config).parameters())


def _cider(runs: Sequence[Mapping[str, Any]], stage: str) -> np.ndarray:
    return np.array([run[stage]["beam"]["cider"] for run in runs])


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([run["scst"]["beam"][key] for run in runs]))


def _pairs(runs: Sequence[Mapping[str, Any]], key: str, stage: str = "scst") -> np.ndarray:
    """What beams gain over greedy decoding, seed by seed."""
    return np.array([run[stage]["beam"][key] - run[stage]["greedy"][key] for run in runs])


def _swap(runs: Sequence[Mapping[str, Any]], stage: str, name: str) -> np.ndarray:
    return np.array([run[stage]["routing"]["swap"][name] for run in runs])


def _spreads(runs: Sequence[Mapping[str, Any]]) -> str:
    reports = [run["xe"]["routing"] for run in runs]
    largest = max(row["spread"] for one in reports for row in one["cells"])
    shares = np.array([one["kinds"]["share"] for one in reports])
    return f"largest spread of a weight over images {largest:.4f}, {shares.mean():.0%} of it between kinds of scenes"


def _row(name: str, values: np.ndarray, ours: bool = False) -> dict[str, Any]:
    row = {"name": name, "mean": values.mean(), "spread": spread(values), "seeds": values.tolist()}
    return row | ({"ours": True} if ours else {})
