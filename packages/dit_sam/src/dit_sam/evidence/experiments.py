"""`dit-sam claims --train`: the paper's frozen-encoder comparison at laptop scale, in arms and seeds.

    default        text in the mask decoder alone (two layers)
    default_add_2  the same with four decoder layers
    e2e            E-DIT: text travels through the frozen encoder
    layer_wise     L-DIT: a fresh projection of the text before every block

All arms of a seed start from the same stage 0 (a small SAM that was taught points), see the same batches and train the
same steps, by `dit-sam train --config mini` itself; only the variant differs. What came out is judged in `findings`,
by rules that stand in claims.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_sam.evidence.findings import DEEPER, DEFAULT, E_DIT, L_DIT, POINTS, judge
from tenfold.cli import Experiments, Finding, load_config
from tenfold.ledger.seeds import kept, run_each
from tenfold.runs import atomic_write_json, read_json

if TYPE_CHECKING:
    from dit_sam.data.samples import Sample
    from dit_sam.model import DITSam
    from dit_sam.training.settings import TrainSettings

SEEDS = (0, 1, 2, 3, 4)
WORKERS = 2
# CPU minutes of one core, from the steps of a development seed on a busy machine; said up front.
MINUTES = 60
# Arm -> what is other than in the shipped config `mini`.
ARMS: dict[str, tuple[str, ...]] = {
    DEFAULT: ("model.variant=default",),
    DEEPER: ("model.variant=default", "model.decoder_depth=4"),
    E_DIT: ("model.variant=e2e",),
    L_DIT: (),
}
DATA = "data"


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains {len(ARMS)} arms of the mini model with {len(SEEDS)} seeds each: about {MINUTES} minutes of one core",
        conduct,
    )


def conduct(
    folder: Path, seeds: Sequence[int] = SEEDS, changes: Sequence[str] = (), workers: int = WORKERS
) -> list[Finding]:
    """Train and measure every arm and seed, then judge the claims.

    Args:
        folder: for what is finished; a killed run goes on from it.
        changes: to the config, for short runs.
    """
    measure(folder, seeds, changes, workers)
    return judge(read_measured(folder, seeds))


def measure(folder: Path, seeds: Sequence[int], changes: Sequence[str] = (), workers: int = WORKERS) -> None:
    """Make what is missing of all measurements, each in a process of its own."""
    from dit_sam.data.mini import write_mini

    settings = arm_settings(L_DIT, folder, 0, changes)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DATA).exists():
        write_mini(folder / DATA, settings.data.mini)
    left = [seed for seed in seeds if not kept(folder, POINTS, seed).exists()]
    run_each([(measure_points, folder, seed, tuple(changes)) for seed in left], workers)
    arms = [(arm, seed) for seed in seeds for arm in ARMS if not kept(folder, arm, seed).exists()]
    run_each([(measure_arm, folder, arm, seed, tuple(changes)) for arm, seed in arms], workers)


def read_measured(folder: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Arm (and `points`) -> its measurements, a seed each."""
    return {name: [read_json(kept(folder, name, seed)) for seed in seeds] for name in (POINTS, *ARMS)}


def arm_settings(arm: str, folder: Path, seed: int, changes: Sequence[str]) -> TrainSettings:
    """The training of an arm: the shipped config, from the seed's stage 0 on the experiments' data."""
    from dit_sam.training.settings import TrainSettings

    places = (f"data.folder={folder / DATA}", f"start.model={folder / f'{POINTS}-{seed}'}")
    return load_config(TrainSettings, "mini", (*ARMS[arm], *places, *changes))


def measure_points(folder: Path, seed: int, changes: Sequence[str] = ()) -> None:
    """Stage 0 of a seed, and its gate: mIoU of masks from points."""
    import torch

    from dit_sam.miniature.model import point_iou, train_points

    torch.set_num_threads(1)
    settings = arm_settings(L_DIT, folder, seed, changes)
    model = train_points(settings.data.mini, seed, settings.start.point_steps)
    model.save_pretrained(folder / f"{POINTS}-{seed}", trained="points on mini scenes", replace=True)
    atomic_write_json(kept(folder, POINTS, seed), {"point_mIoU": point_iou(model, settings.data.mini, seed)})


def measure_arm(folder: Path, arm: str, seed: int, changes: Sequence[str] = ()) -> None:
    """Train an arm and measure its last weights on the unseen scenes of test."""
    from dit_sam.data.sets import ReferringSet
    from dit_sam.model import DITSam
    from dit_sam.training.run import run_train

    output = folder / f"{arm}-{seed}"
    settings = arm_settings(arm, folder, seed, changes)
    if not (output / "run.json").exists():
        run_train(settings, seed, output, resume=True)
    model = DITSam.from_pretrained(output / "last")
    trainable = sum(weight.numel() for weight in trained_weights(model, settings))
    samples = ReferringSet(folder / DATA, "mini").samples("test")
    atomic_write_json(kept(folder, arm, seed), {"trainable": trainable, **measured(model, samples)})


def trained_weights(model: DITSam, settings: TrainSettings) -> list[Any]:
    """What the training of an arm moves."""
    from dit_sam.training.plan import freeze

    freeze(model, settings.freeze, settings.freeze_text)
    return [weight for weight in model.parameters() if weight.requires_grad]


def measured(model: DITSam, samples: Sequence[Sample], batch: int = 50) -> dict[str, Any]:
    """Scores in per cent by kind of sentence, and of two controls: another scene's sentences, directions turned."""
    import torch

    from dit_sam.data.mini import LOOK, PLACE
    from dit_sam.data.words import kind, turned
    from dit_sam.predictor import DitPredictor
    from dit_sam.scores import overlap, referring_scores

    torch.set_num_threads(1)
    predictor = DitPredictor(model, batch_size=batch, protocol="official")
    half = len(samples) // 2
    ways: dict[str, list[Any]] = {"own": [], "other": [], "turned": []}
    for start in range(0, len(samples), batch):
        some = range(start, min(start + batch, len(samples)))
        images = [samples[i].image() for i in some]
        truths = [samples[i].mask(image) > 0 for i, image in zip(some, images, strict=True)]
        predictor.set_images(images)
        sentences = {
            "own": [samples[i].sentences[0] for i in some],
            "other": [samples[(i + half) % len(samples)].sentences[0] for i in some],
            "turned": [turned(samples[i].sentences[0]) for i in some],
        }
        for way, said in sentences.items():
            masks = [one.masks[0] for one in predictor.predict(text=[[one] for one in said])]
            ways[way] += [overlap(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
    kinds = np.array([kind(sample.sentences[0]) for sample in samples])
    return {
        "all": referring_scores(ways["own"]),
        "other": referring_scores(ways["other"]),
        **{
            name: referring_scores([ways[way][i] for i in np.flatnonzero(kinds == of)])
            for name, way, of in ((LOOK, "own", LOOK), (PLACE, "own", PLACE), ("place_turned", "turned", PLACE))
        },
        "sentences": len(samples),
    }
