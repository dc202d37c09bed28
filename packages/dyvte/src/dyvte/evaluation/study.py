"""`dyvte analyze`: the paper's three-stage study (figures 2 to 5) of any host on any samples.

Layer by layer: the head-maximum attention of visual on visual, text on visual and text on text tokens, its entropy, and
what becomes of the answers when the image leaves there (the manual exit), teacher-forced on the samples' answers. No
n x n map is stored, and no sample is run more than twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dyvte.analysis import MEASURES, Stages, stages, watch
from dyvte.branches import IGNORED, LabelRule, run_branches
from dyvte.calibration import exits_at, margins, threshold_for
from dyvte.data.prompts import encode_answers, find_protocol
from dyvte.data.samples import TrainingSample, mini_samples, read_samples
from dyvte.evaluation.model import open_gates
from dyvte.evaluation.settings import AnalyzeSettings, CalibrateSettings
from dyvte.exits import VisualExit
from dyvte.gates import GateConfig
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.hosts.answers import Protocol, encode_batch
from tenfold.hosts.loading import Host, load_host
from tenfold.runs import atomic_write_json, fingerprint, run, track

TABLE, FIGURE = "layers.json", "layers.png"


@dataclass(frozen=True)
class Study:
    """What the study of a host found.

    Attributes:
        measures: name -> per layer (mean, standard deviation over samples).
        answers: accuracy of the answers' tokens when the image leaves after layer -1 (before the first), 0, 1, ...;
            the last is the dense model.
        exits: share of samples per layer that the label rule would let leave there.
        stages: by our rule.
        samples: how many.
        files: what was written.
    """

    measures: Mapping[str, list[tuple[float, float]]]
    answers: list[float]
    exits: list[float]
    stages: Stages
    samples: int
    files: Sequence[Path]

    def figures(self) -> dict[str, Any]:
        """For the run's record."""
        found: dict[str, Any] = {name: [mean for mean, _ in rows] for name, rows in self.measures.items()}
        found |= {"answers": self.answers, "exit_labels": self.exits, "samples": self.samples}
        return found | {"fusion_until": self.stages.fusion, "reasoning_from": self.stages.reasoning}


def study_samples(settings: AnalyzeSettings, seed: int) -> list[TrainingSample]:
    """The samples of a study, in the order of their file.

    Raises:
        UserError: a broken or empty file, or no samples named for a host other than the mini host.
    """
    if settings.samples is None:
        if settings.model != MINI:
            raise UserError("no samples", settings.model, "--samples FILE.json --image-folder FOLDER")
        return mini_samples(seed + 1_000_000, settings.limit)
    images = settings.image_folder or Path(settings.samples).parent
    return read_samples(settings.samples, images, rounds="first", seed=seed)[: settings.limit]


def run_analyze(settings: AnalyzeSettings, seed: int, output: Path, host: Host | None = None) -> Study:
    """Study a host; write table, picture and ``run.json`` into ``output``.

    Raises:
        UserError: model or samples cannot be used.
    """
    samples = study_samples(settings, seed)
    opened = host or load_host(settings)
    protocol = find_protocol(settings.protocol, opened.model, opened.processor)
    data = {"model": opened.fingerprint}
    data |= {"samples": fingerprint(Path(settings.samples))} if settings.samples else {}
    config = settings.model_dump(mode="json")
    with run("dyvte", "analyze", config=config, seed=seed, output=output, data=data) as current:
        measured, answered, exits = [], [], []
        for start in track(range(0, len(samples), settings.batch), "samples"):
            some = samples[start : start + settings.batch]
            measured.append(measure(opened, protocol, some))
            right, left = manual_exits(opened, protocol, some)
            answered.append(right)
            exits.append(left)
        everything, right, left = torch.cat(measured), torch.cat(answered), torch.cat(exits)
        spread = everything.std(0, unbiased=False)
        measures = {
            name: list(zip(everything.mean(0)[:, i].tolist(), spread[:, i].tolist(), strict=True))
            for i, name in enumerate(MEASURES)
        }
        cross = [mean for mean, _ in measures["w_cross"]]
        files = [output / TABLE, output / FIGURE]
        found = Study(measures, right.mean(0).tolist(), left.mean(0).tolist(), stages(cross), len(samples), files)
        atomic_write_json(current.file(TABLE), {**found.figures(), "measures": found.measures})
        draw(found, current.file(FIGURE))
        current.metrics.update(found.figures())
    return found


@torch.no_grad()
def measure(host: Host, protocol: Protocol, samples: Sequence[TrainingSample]) -> Tensor:
    """The measures of `dyvte.analysis.MEASURES`, ``[samples, layers, 5]``, of prompts without answers."""
    prompts = [protocol.prompt(host.processor, sample.image(), sample.question) for sample in samples]
    inputs = encode_batch(host.processor, host.model, prompts)
    config: Any = host.model.config
    layers = config.get_text_config().num_hidden_layers
    exit = VisualExit(exit_at=layers - 1)  # after the last layer: nothing is left out
    with exit(host.model), watch(host.model, exit.present) as measured:
        host.model(**inputs, use_cache=False)
    return torch.stack([layer.cpu() for layer in measured], dim=1)


@torch.no_grad()
def manual_exits(host: Host, protocol: Protocol, samples: Sequence[TrainingSample]) -> tuple[Tensor, Tensor]:
    """What an exit after every layer does to the answers, teacher-forced.

    Returns:
        Whether all of an answer's tokens are right, ``[samples, layers + 2]``: without the image, with an exit after
        layer 0, 1, ..., and dense; and whether the label rule lets it leave, ``[samples, layers]``.
    """
    inputs, labels = encode_answers(host.processor, host.model, protocol, samples)
    whole: Any = host.model.config
    text = whole.get_text_config()
    config = GateConfig(text.num_hidden_layers, text.hidden_size)
    branches = run_branches(host.model, inputs, labels, range(text.num_hidden_layers), config)
    rule = LabelRule()
    exits = [rule.judge(branches.dense, exited, branches.targets).labels for exited in branches.exited]
    blind = without_image(host, inputs, labels)
    right = [blind, *(_right(exited, branches.targets) for exited in branches.exited)]
    right.append(_right(branches.dense, branches.targets))
    return torch.stack(right, dim=1).float().cpu(), torch.stack(exits, dim=1).float().cpu()


def without_image(host: Host, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Whether each answer is right when no layer sees the image, ``[samples]`` bool."""
    exit = VisualExit(exit_at=-1)
    with exit(host.model):
        logits = host.model(**inputs, use_cache=False).logits.float()
        tokens = exit.entering[0]
    kept = labels.gather(1, tokens.index).masked_fill(~tokens.real, IGNORED)
    targets = torch.cat((kept[:, 1:], kept.new_full((len(kept), 1), IGNORED)), dim=1)
    return _right(logits, targets)


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    return ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(1)


def draw(found: Study, path: Path) -> None:
    """The study as one picture: stacked attention by layer, entropies, and answers under a manual exit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    layers = range(len(found.exits))
    base = [0.0] * len(found.exits)
    for name, label in (("w_cross", "text to image"), ("w_visual", "image to image"), ("w_text", "text to text")):
        heights = [mean for mean, _ in found.measures[name]]
        left.bar(layers, heights, bottom=base, label=label)
        base = [a + b for a, b in zip(base, heights, strict=True)]
    left.set(title="Attention, head maximum", xlabel="layer")
    left.legend(fontsize=7)
    for name, label in (("entropy_cross", "text to image"), ("entropy_text", "text to text")):
        means, spreads = zip(*found.measures[name], strict=True)
        middle.plot(layers, means, label=label)
        middle.fill_between(
            layers,
            [m - s for m, s in zip(means, spreads, strict=True)],
            [m + s for m, s in zip(means, spreads, strict=True)],
            alpha=0.2,
        )
    middle.set(title="Entropy", xlabel="layer")
    middle.legend(fontsize=7)
    right.plot(range(-1, len(found.exits)), found.answers[:-1], marker="o", label="right answers")
    right.axhline(found.answers[-1], linestyle=":", label="dense")
    right.plot(layers, found.exits, marker=".", label="exit labels")
    right.set(title="Image leaves after layer", xlabel="layer (-1: before the first)", ylim=(0, 1.02))
    right.legend(fontsize=7)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def run_calibrate(settings: CalibrateSettings, seed: int, host: Host | None = None) -> tuple[float, float, int]:
    """The threshold for a mean exit layer on a host's samples, the mean that it reaches, and their number.

    Raises:
        UserError: model, gates or samples cannot be used, or the mean exit layer is out of reach.
    """
    samples = study_samples(settings, seed)
    gates = open_gates(settings.gates, settings.model)
    opened = host or load_host(settings)
    protocol = find_protocol(settings.protocol, opened.model, opened.processor)
    starts = range(0, len(samples), settings.batch)
    batches = (
        [protocol.prompt(opened.processor, one.image(), one.question) for one in samples[s : s + settings.batch]]
        for s in starts
    )
    found = margins(opened.model, gates, (encode_batch(opened.processor, opened.model, one) for one in batches))
    threshold = threshold_for(found, settings.mean_exit)
    return threshold, float(exits_at(found, threshold).double().mean()), len(found)
