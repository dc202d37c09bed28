"""The cheap baseline: one attention at a time is taken out, nothing is trained (x + FFN(gamma2 * norm1(x))).

What is scored is how far the host then is from what it says with all attentions, where the records have their answers:
the answers themselves are of a task that it has not learnt.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eas import costs
from eas.data.records import read_records
from eas.data.samples import Encoder
from eas.evaluation.settings import SensitivitySettings
from eas.miniature import task
from eas.plan import Plan
from eas.result import SearchResult
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.hosts.loading import load_host
from tenfold.runs import fingerprint, run, track


def run_sensitivity(settings: SensitivitySettings, seed: int, output: Path) -> SearchResult:
    """Score a host without each of its attentions, and write the K that cost least as ``search.json``.

    Raises:
        UserError: model or data cannot be used, or K does not fit the host.
    """
    if (settings.data is None) != (settings.images is None):
        raise UserError("records without pictures", "--data", "--data FILE --images FOLDER")
    if settings.data is None and settings.model != MINI:
        raise UserError("no data", "--data", "--data FILE --images FOLDER")
    host = load_host(settings)
    layers = costs.Shape.of(host.model.config).layers
    if settings.removed >= layers:
        raise UserError(f"removed {settings.removed}", f"a host of {layers} layers", f"1 to {layers - 1}")
    with tempfile.TemporaryDirectory(prefix="eas-list-") as folder:
        place, images = settings.data, settings.images
        if place is None or images is None:
            task.write(Path(folder, "mini"), settings.samples, seed=seed, test=1)
            place, images = str(Path(folder, "mini", task.TRAIN)), str(Path(folder, "mini", task.IMAGES))
        records = read_records(place, images)[: settings.samples]
        data = {"model": host.fingerprint, "questions": fingerprint(Path(place))}
        encoder = Encoder(host.processor)
        samples = [encoder.sample(record) for record in records]
    with run("eas", "sensitivity", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        batches = [encoder.collate(samples[at : at + settings.batch]) for at in range(0, len(samples), settings.batch)]
        said = [labelled(host.model, batch).argmax(-1) for batch in batches]
        losses = []
        for layer in track(list(range(layers)), "layers"):
            plan = Plan(layers=layers, skip=(layer,), adapter_rank=0, pia_rank=2, identity_start=True)
            with Skipper(plan)(host.model):
                losses.append(mean_loss(host.model, batches, said))
        order = sorted(range(layers), key=lambda site: losses[site])
        removed = settings.removed
        result = SearchResult(
            rule="sensitivity",
            sites=layers,
            removed=removed,
            preferences=tuple(-loss for loss in losses),
            skip=tuple(order[:removed]),
            margin=losses[order[removed]] - losses[order[removed - 1]],
            updates=0,
            seed=seed,
            host=data["model"],
            data=data["questions"],
        )
        result.save(current.file("search.json"))
        current.metrics.update(metrics(result))
    return result


def metrics(result: SearchResult) -> dict[str, Any]:
    """For the run's record."""
    return {"skip": list(result.skip), "margin": result.margin}


def mean_loss(model: Any, batches: list[dict[str, Tensor]], said: list[Tensor]) -> float:
    """Cross entropy of the tokens that the whole host says, over all labelled positions."""
    losses = [
        nn.functional.cross_entropy(labelled(model, batch), tokens, reduction="sum")
        for batch, tokens in zip(batches, said, strict=True)
    ]
    return float(sum(losses)) / max(1, sum(len(tokens) for tokens in said))


@torch.inference_mode()
def labelled(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits ``[labels, vocabulary]`` float32 of the positions that predict a label."""
    place = next(model.parameters())
    given = {name: value.to(place.device) for name, value in batch.items() if name != "labels"}
    if "pixel_values" in given:
        given["pixel_values"] = given["pixel_values"].to(place.dtype)
    logits = model(**given, use_cache=False).logits[:, :-1].float()
    return logits[(batch["labels"][:, 1:] != -100).to(place.device)]
