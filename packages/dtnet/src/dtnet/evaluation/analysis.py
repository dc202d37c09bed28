"""Which cells an image uses, and whether it matters: the routing report (`dtnet analyze`).

    paths = collect_paths(model, features)             # weights of every image, layer and cell
    cell_rows(paths, model.config)                     # mean and spread over images, passed share, ...
    router_units(model, features)                      # hidden units of every router, and how many ever fire
    swap_test(model, features, captions)               # loss with own weights, another image's, the mean ones

The paper draws discrete paths; the released router is soft, so "passed" is a threshold on weights afterwards. A weight
that is the same for every image is no path of an image: that is what spread, kinds and swap test are here to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dtnet.config import DTNetConfig
from dtnet.data.datasets import pad_ids
from dtnet.model import DTNet, evaluating
from dtnet.router import Paths, Router
from dtnet.vocabulary import PAD
from tenfold import UserError
from tenfold.runs import sample_rng

BATCH = 100


def collect_paths(model: DTNet, features: Tensor, batch: int = BATCH) -> Paths:
    """The path weights of images, in eval mode, on the CPU.

    Args:
        features: `[images, n, d_in]`.
        batch: images at a time.

    Returns:
        `[images, layers, cells]` each.
    """
    with torch.no_grad(), evaluating(model):
        found = [model.encode(part.to(model.device)).paths for part in features.split(batch)]
    return Paths(*(torch.cat([part.float().cpu() for part in parts]) for parts in zip(*found, strict=True)))


def router_units(model: DTNet, features: Tensor, batch: int = BATCH) -> list[dict[str, Any]]:
    """Hidden units of every router's last two layers, and how many of them fire for any image.

    A router in which none fires is dead: its weights are those of its last bias, the same for every image, and no
    gradient reaches what is before them.

    Args:
        features: `[images, n, d_in]`.

    Returns:
        A row a layer and kind of cells: "layer", "cells" ("spatial" or "channel"), "units", "firing".
    """
    rows: list[dict[str, Any]] = []
    fired: list[Tensor] = []
    with ExitStack() as handles:
        for number, layer in enumerate(model.encoder.layers):
            for cells in ("spatial", "channel"):
                router = getattr(layer, f"{cells}_router")
                if not isinstance(router, Router):
                    continue
                hidden: Any = router.last_layers[1]  # the ReLU between them
                rows.append({"layer": number, "cells": cells})
                fired.append(torch.zeros(int(router.last_layers[0].out_features), dtype=torch.bool))  # type: ignore[arg-type]

                def watch(module: Any, inputs: Any, output: Tensor, at: int = len(fired) - 1) -> None:
                    fired[at] |= (output.detach() > 0).any(0).cpu()

                handles.callback(hidden.register_forward_hook(watch).remove)
        collect_paths(model, features, batch)
    return [row | {"units": len(one), "firing": int(one.sum())} for row, one in zip(rows, fired, strict=True)]


def passed(paths: Paths, threshold: float | None = None) -> Paths:
    """Which cells an image passes: bool `[images, layers, cells]`.

    Args:
        threshold: the least weight of a passed cell; None: 1 / P of the P cells that share the weight.

    Raises:
        UserError: a threshold outside (0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(f"threshold {threshold}", "passed cells", "above 0 and up to 1")
    # A hair below: a third in float32 counts as a third.
    return Paths(*(part >= (threshold or 1 / part.shape[-1]) - 1e-6 for part in paths))


def cell_rows(paths: Paths, config: DTNetConfig, threshold: float | None = None) -> list[dict[str, Any]]:
    """One row a layer and cell: mean, spread (standard deviation), least and greatest weight over the images, and the
    share of images that pass it."""
    through = passed(paths, threshold)
    rows: list[dict[str, Any]] = []
    for layer in range(config.encoder_layers):
        for names, weights, passing in zip(_cells(config), paths, through, strict=True):
            for number, name in enumerate(names):
                weight = weights[:, layer, number].double()
                rows.append(
                    {
                        "layer": layer,
                        "cell": name,
                        "mean": weight.mean().item(),
                        "spread": weight.std(correction=0).item(),
                        "min": weight.min().item(),
                        "max": weight.max().item(),
                        "passed": passing[:, layer, number].double().mean().item(),
                    }
                )
    return rows


def passed_counts(paths: Paths, threshold: float | None = None) -> list[int]:
    """Passed cells of each image, over all layers (the paper's figures group images by this number)."""
    return sum(part.flatten(1).sum(1) for part in passed(paths, threshold)).tolist()  # type: ignore[union-attr]


def kind_variance(paths: Paths, kinds: Sequence[str]) -> dict[str, float]:
    """How much of the weights' variance over images lies between kinds of scenes.

    Args:
        kinds: of each image.

    Returns:
        "between" (variance of the kinds' means), "within" (mean variance inside a kind), and the "share" that lies
        between, all summed over layers and cells; share 0 where nothing varies.

    Raises:
        UserError: not one kind for each image.
    """
    flat = torch.cat([part.flatten(1) for part in paths], dim=1).double()  # [images, layers * cells]
    if len(kinds) != len(flat):
        raise UserError(f"{len(kinds)} kinds of {len(flat)} images", "kind_variance", "one for each")
    overall = flat.mean(dim=0)
    between = within = 0.0
    for kind in sorted(set(kinds)):
        group = flat[torch.tensor([one == kind for one in kinds])]
        between += len(group) / len(flat) * (group.mean(dim=0) - overall).square().sum().item()
        within += len(group) / len(flat) * group.var(dim=0, correction=0).sum().item()
    total = between + within
    return {"between": between, "within": within, "share": between / total if total else 0.0}


def other_paths(paths: Paths, seed: int = 0) -> Paths:
    """The paths of images, every image's given to another one, along one random circle.

    Raises:
        UserError: fewer than two images.
    """
    count = len(paths.spatial)
    if count < 2:
        raise UserError(f"{count} image", "swap test", "at least two")
    circle = torch.from_numpy(sample_rng(seed, 0, 0).permutation(count))
    other = torch.empty_like(circle)
    other[circle] = circle.roll(1)
    return Paths(*(part[other] for part in paths))


def mean_paths(paths: Paths) -> Paths:
    """The mean weights, for every image the same: `[images, layers, cells]`."""
    return Paths(*(part.mean(dim=0, keepdim=True).expand_as(part) for part in paths))


def memory_change(model: DTNet, features: Tensor, given: Paths, batch: int = BATCH) -> float:
    """How far the encoder's output moves when these weights replace the routers': norm of the change over norm."""
    change = total = 0.0
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(features), batch):
            part = features[start : start + batch].to(model.device)
            own = model.encode(part).memory
            other = model.encode(part, override_paths=_rows(given, start, batch)).memory
            change += (other - own).double().square().sum().item()
            total += own.double().square().sum().item()
    return (change / total) ** 0.5


def swap_test(
    model: DTNet, features: Tensor, captions: Sequence[Sequence[Sequence[int]]], seed: int = 0, batch: int = BATCH
) -> dict[str, float]:
    """The loss on the true captions with an image's own path weights, another image's, and the mean ones.

    A model whose paths depend on the image, and need to, loses by another image's. One whose router has become a fixed
    mixture does not notice.

    Args:
        features: `[images, n, d_in]`.
        captions: of each image its captions as ids, ``<bos>`` words ``<eos>``.
        seed: of who is swapped with whom.

    Returns:
        Mean negative log-likelihood of a word, in nats, for "own", "another" and "mean"; and the relative change of the
        encoder's output, "memory_another" and "memory_mean".

    Raises:
        UserError: fewer than two images, or captions of another number of images.
    """
    if len(captions) != len(features):
        raise UserError(f"captions of {len(captions)} images", "swap test", f"of {len(features)}, as features")
    paths = collect_paths(model, features, batch)
    given = {"own": paths, "another": other_paths(paths, seed), "mean": mean_paths(paths)}
    found = {name: caption_loss(model, features, captions, one, batch) for name, one in given.items()}
    return found | {
        f"memory_{name}": memory_change(model, features, given[name], batch) for name in ("another", "mean")
    }


def caption_loss(
    model: DTNet,
    features: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    given: Paths | None = None,
    batch: int = BATCH,
) -> float:
    """Mean negative log-likelihood of a word of the captions, in nats; with these path weights where they are given."""
    found = image_losses(model, features, captions, given, batch)
    return (found.negative.sum() / found.words.sum()).item()


class ImageLosses(NamedTuple):
    """What every image's captions cost, float64 `[images]` each.

    Attributes:
        negative: log-likelihood of all words, in nats. words: how many; ``<eos>`` counts. right: how many are the
            likeliest in their place.
    """

    negative: Tensor
    words: Tensor
    right: Tensor


def image_losses(
    model: DTNet,
    features: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    given: Paths | None = None,
    batch: int = BATCH,
) -> ImageLosses:
    """The captions of every image by themselves; with these path weights where they are given."""
    parts: list[Tensor] = []
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(features), batch):
            own = None if given is None else _rows(given, start, batch)
            encoded = model.encode(features[start : start + batch].to(model.device), override_paths=own)
            texts = captions[start : start + batch]
            counts = torch.tensor([len(one) for one in texts], device=model.device)
            ids = pad_ids([ids for one in texts for ids in one]).to(model.device)  # [captions, length]
            memory = encoded.memory.repeat_interleave(counts, dim=0)
            log_probs = model.decoder(ids[:, :-1], memory)
            targets = ids[:, 1:]
            losses = F.nll_loss(log_probs.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="none")
            image = torch.arange(len(texts), device=model.device).repeat_interleave(counts)
            counted = targets != PAD
            right = counted & (log_probs.argmax(dim=-1) == targets)
            values = torch.stack([part.sum(1).double() for part in (losses.view_as(targets), counted, right)])
            sums = torch.zeros(3, len(texts), dtype=torch.float64, device=model.device)
            parts.append(sums.index_add(1, image, values).cpu())
    return ImageLosses(*torch.cat(parts, dim=1))


def report(
    model: DTNet,
    features: Tensor,
    *,
    threshold: float | None = None,
    kinds: Sequence[str] | None = None,
    captions: Sequence[Sequence[Sequence[int]]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The whole report as JSON: "cells", "routers", "passed_cells", and, where kinds and captions are known, "kinds"
    and "swap".

    Raises:
        UserError: as the parts.
    """
    paths = collect_paths(model, features)
    counts = passed_counts(paths, threshold)
    cells = sum(len(names) for names in _cells(model.config)) * model.config.encoder_layers
    found: dict[str, Any] = {
        "images": len(features),
        "routing": model.config.routing,
        "threshold": threshold or "1 / cells that share the weight",
        "cells": cell_rows(paths, model.config, threshold),
        "routers": router_units(model, features),
        "passed_cells": {"of": cells, "mean": sum(counts) / len(counts), "min": min(counts), "max": max(counts)},
    }
    if kinds is not None:
        found["kinds"] = kind_variance(paths, kinds)
    if captions is not None and len(features) > 1:
        found["swap"] = swap_test(model, features, captions, seed)
    return found


def image_paths(paths: Paths, config: DTNetConfig, names: Sequence[Any]) -> list[dict[str, Any]]:
    """Every image's weights as JSON: layers of cell -> weight."""
    rows = []
    for number, name in enumerate(names):
        layers: list[Mapping[str, float]] = []
        for layer in range(config.encoder_layers):
            pairs = zip(_cells(config), paths, strict=True)
            layers.append(
                {cell: part[number, layer, k].item() for cells, part in pairs for k, cell in enumerate(cells)}
            )
        rows.append({"image": name, "layers": layers})
    return rows


def _cells(config: DTNetConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return config.spatial_cells, config.channel_cells


def _rows(paths: Paths, start: int, batch: int) -> Paths:
    return Paths(*(part[start : start + batch] for part in paths))
