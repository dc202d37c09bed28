"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Parity checks compare with golden data of the authors' code, which lies in the source tree (or under
`$TENFOLD_GOLDENS`) and does not travel in a wheel. Parameters and costs are counted on full-size models without
weights. The mini ones run a planted router, and the model that ships.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold import UserError
from tenfold.cli import find_package_file
from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS, goldens
from tenfold.ledger.goldens import parity as compare_golden
from tenfold.ledger.text import small
from tenfold.runs import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from dtnet.config import DTNetConfig
    from dtnet.model import DTNet
    from tenfold.metrics.captions.coco import Meteor

Check = Callable[[], Outcome]

# Golden cases; that of the metrics has a class of its own.
PARITY = (
    "router",
    "cells",
    "positions",
    "encoder_layer",
    "model_xe",
    "beam_search",
    "scst",
    "lr_schedule",
    "augmentation",
    "text_pipeline",
)
# Of the live check: the scenes of the mini training, and how many of its test split are captioned.
TRAINING, VALIDATION, TESTING = 4000, 500, 100
# A planted router: the weights of its last layer times this.
PLANTED = 30.0
STATIC = ("gmc", "cpc")


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    return {name: partial(parity, name) for name in PARITY} | {
        "metrics": Metrics(),
        "official_keys": official_keys,
        "parameters": partial(parameters, "all"),
        "parameters_trainable": partial(parameters, "trainable"),
        "parameters_encoder": partial(parameters, "encoder"),
        "parameters_decoder": partial(parameters, "decoder"),
        "parameters_dynamic": parameters_dynamic,
        "macs_encoder": macs_encoder,
        "macs_static_encoder": macs_static_encoder,
        "macs_caption": partial(macs_caption, True),
        "macs_caption_official": partial(macs_caption, False),
        "macs_ratio": macs_ratio,
        "macs_counter": macs_counter,
        "swap_control": swap_control,
        "shipped_model": shipped_model,
    }


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from dtnet.evidence.parity import COMPUTATIONS, TOLERANCES

    return compare_golden("dtnet", case, COMPUTATIONS, TOLERANCES)


class Metrics:
    """The golden case of the metrics, whose METEOR reads its paraphrases for a dozen seconds before it answers."""

    def __init__(self) -> None:
        self._meteor: Meteor | None = None

    def begin(self) -> None:
        """Start METEOR."""
        from tenfold.metrics.captions.coco import Meteor

        if goldens("dtnet") is not None:
            with suppress(UserError):
                self._meteor = Meteor()

    def __call__(self) -> Outcome:
        """A golden case against this package."""
        from dtnet.evidence.parity import COMPUTATIONS, TOLERANCES
        from dtnet.evidence.parity.data import captions_scored

        computations = {**COMPUTATIONS, "metrics": partial(captions_scored, meteor=self._meteor)}
        try:
            return compare_golden("dtnet", "metrics", computations, TOLERANCES)
        finally:
            if self._meteor is not None:
                self._meteor.close()
                self._meteor = None


def official_keys() -> Outcome:
    """Names, shapes and numbers of parameters of the full-size model, against those of the authors' state dict."""
    from dtnet.checkpoints.keys import export_state

    folder = goldens("dtnet")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")
    model = full_model()
    ours = {name: list(tensor.shape) for name, tensor in export_state(model.state_dict()).items()}
    theirs = golden["keys"]
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    wrong += [part for part, count in counts(model).items() if golden[f"parameters_{part}"] != count]
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    return Outcome(f"{len(ours)} names agree", True, "with their shapes and the numbers of parameters")


def full_model(**changes: object) -> DTNet:
    """The paper's model without weights (meta device), or a variant of it."""
    import torch

    from dtnet.config import DTNetConfig
    from dtnet.model import DTNet

    with torch.device("meta"):
        return DTNet(DTNetConfig(**changes)).eval()  # type: ignore[arg-type]


def counts(model: DTNet) -> dict[str, int]:
    """Parameters: "total", "trainable", "encoder", "decoder"."""
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "encoder": sum(p.numel() for p in model.encoder.parameters()),
        "decoder": sum(p.numel() for p in model.decoder.parameters()),
    }


def parameters(part: str) -> Outcome:
    """Parameters of the full-size model, or of a part of it."""
    return Outcome(counts(full_model())["total" if part == "all" else part], True)


def parameters_dynamic() -> Outcome:
    """What the full-size model has beside a plain transformer."""
    whole = counts(full_model())["total"]
    dynamic = whole - counts(full_model(cells=STATIC, routing="uniform"))["total"]
    return Outcome(dynamic, None, f"{dynamic / whole:.1%} of {whole:,}")


def macs_encoder() -> Outcome:
    """One image through the encoder, in millions."""
    from dtnet.config import DTNetConfig
    from dtnet.costs import encoder_macs

    ratio = encoder_macs(DTNetConfig()) / encoder_macs(DTNetConfig(cells=STATIC))
    return Outcome(encoder_macs(DTNetConfig()) / 1e6, None, f"{ratio:.2f} times those of a plain transformer")


def macs_static_encoder() -> Outcome:
    """One image through a plain transformer encoder, in millions."""
    from dtnet.config import DTNetConfig
    from dtnet.costs import encoder_macs

    return Outcome(encoder_macs(DTNetConfig(cells=STATIC)) / 1e6, None)


def macs_caption(cached: bool) -> Outcome:
    """The decoder's work for a caption of 5 beams and 20 steps, in millions."""
    from dtnet.config import DTNetConfig
    from dtnet.costs import caption_macs

    return Outcome(caption_macs(DTNetConfig(), cached=cached) / 1e6, None)


def macs_ratio() -> Outcome:
    """From features to caption: the authors' work over ours."""
    from dtnet.config import DTNetConfig
    from dtnet.costs import caption_macs, encoder_macs

    config = DTNetConfig()
    theirs, ours = (encoder_macs(config) + caption_macs(config, cached=cached) for cached in (False, True))
    return Outcome(theirs / ours, None, f"{theirs / 1e6:,.0f} against {ours / 1e6:,.0f} M MACs")


def macs_counter() -> Outcome:
    """The closed formulas against torch's count: the full-size encoder, its variants and both
    searches on a small model."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from dtnet import costs
    from dtnet.beam import beam_search
    from dtnet.evidence.official_style import reprojecting_beam_search
    from dtnet.model import DTNet

    def counted(work: Callable[[], object]) -> int:
        # The products inside fused attention are seen only where it is spelled out.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() // 2

    wrong = []
    # The full size once: what an image costs does not depend on weights, and the variants differ in their cells alone.
    for changes in ({}, {"cells": STATIC}, {"routing": "spatial"}, {"routing": "channel"}):
        model = DTNet(replace(small_config(), **changes)).eval() if changes else full_model()
        expected = costs.encoder_macs(model.config) + costs.geometry_macs(model.config)
        device = next(model.parameters()).device
        features = torch.zeros(1, model.config.positions, model.config.d_in, device=device)
        if counted(partial(model.encode, features)) != expected:
            wrong.append(f"encoder {changes}")
    small = DTNet(small_config()).eval()
    features, beams, length = small_features(2), 4, 9
    encoder = 2 * costs.encoder_macs(small.config) + costs.geometry_macs(small.config)
    whole: dict[str, Any] = {"early_stop": False}
    for search, cached, options in ((beam_search, True, whole), (reprojecting_beam_search, False, {})):
        expected = encoder + 2 * costs.caption_macs(small.config, beams, length, cached=cached)
        if counted(partial(search, small, features, beams, length, **options)) != expected:
            wrong.append(search.__name__)
    return Outcome(f"{len(wrong)} of 6 differ" if wrong else "6 counts agree", not wrong, ", ".join(wrong))


def small_config() -> DTNetConfig:
    """Dimensions of a model that takes milliseconds."""
    from dtnet.config import DTNetConfig

    sizes = {"d_in": 24, "d_model": 64, "heads": 4, "d_k": 16, "d_v": 16, "d_ff": 128, "encoder_layers": 2}
    return DTNetConfig(**sizes, decoder_layers=2, vocabulary_size=40, max_len=20)  # type: ignore[arg-type]


def small_features(images: int) -> Tensor:
    """Random features for it: `[images, 49, 24]`."""
    import torch

    generator = torch.Generator().manual_seed(1)
    # What differs between images as a whole is what pooling over positions leaves.
    whole = 2 * torch.randn(images, 1, 24, generator=generator)
    return whole + torch.randn(images, 49, 24, generator=generator)


def swap_control() -> Outcome:
    """A router that was made to depend on the image: another image's weights must change the output, its own not."""
    from dtnet.evaluation.analysis import collect_paths, memory_change, other_paths

    model, features = planted_router(), small_features(20)
    paths = collect_paths(model, features)
    own, another = (memory_change(model, features, given) for given in (paths, other_paths(paths)))
    spread = max(part.std(dim=0).max().item() for part in paths)
    detail = f"relative change of the encoder's output; own weights {small(own)}, spread of a weight {spread:.2f}"
    return Outcome(another, bool(another > 0.05 and own < 1e-6), detail)


def planted_router(scale: float = PLANTED) -> DTNet:
    """A small random model whose LayerNorms have gains and whose routers' weights are scaled up."""
    import torch
    from torch import nn

    from dtnet.model import DTNet
    from dtnet.router import Router

    model = DTNet(small_config()).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data += 0.5 * torch.randn(module.weight.shape, generator=generator)
            module.bias.data += 0.5 * torch.randn(module.bias.shape, generator=generator)
        if isinstance(module, Router):
            last = module.joint[-1]
            assert isinstance(last, nn.Linear)
            last.weight.data *= scale
    return model


def shipped_model() -> Outcome:
    """Captions of the mini model that ships on test scenes of its world, against the nearest training caption."""
    from dtnet.data.mini import draw_mini_coco
    from dtnet.evaluation.baselines import nearest_caption_baseline, split_cider
    from dtnet.evaluation.demo import mini_model_path
    from dtnet.model import DTNet

    model = DTNet.from_pretrained(mini_model_path())
    # The training's own data set, but for its validation and most of its test split.
    data = draw_mini_coco(0, TRAINING, VALIDATION, TESTING, without=("val",))
    ids = data.captions.images("test")
    found = model.caption(data.features.batch(ids))
    captions = {image_id: caption.text for image_id, caption in zip(ids, found, strict=True)}
    ours = split_cider(captions, data, "test")
    nearest = split_cider(nearest_caption_baseline(data), data, "test")
    exact = sum(text in data.captions.captions[image_id] for image_id, text in captions.items())
    detail = f"nearest caption of {TRAINING:,} images {nearest:.1f}; {exact} of {TESTING} captions are a reference"
    return Outcome(ours, bool(ours > nearest), detail)


def figures(folder: Path) -> list[Figure]:
    """Pictures for the report: the routing of the model that ships, and what is recorded of the miniature."""
    from dtnet.evaluation.picture import draw_comparison
    from dtnet.evidence.figures import draw_record

    drawn: list[Figure] = []
    with suppress(UserError):  # no model ships with this package
        drawn += _routing(folder)
    recorded = find_package_file("dtnet", "results")
    if recorded is None:
        return drawn
    drawn += draw_record(recorded, folder)
    if (recorded / "mini-caption.json").is_file():
        table = read_json(recorded / "mini-caption.json")["table"]
        caption = "CIDEr-D of the joint arm on 500 unseen scenes, against what it must beat."
        drawn.append(Figure(draw_comparison(table, folder / "mini-caption.png"), caption))
    return drawn


def _routing(folder: Path) -> list[Figure]:
    from dtnet.evaluation.analysis import cell_rows, collect_paths
    from dtnet.evaluation.demo import DemoSettings, held_out_scenes, mini_model_path, run_demo
    from dtnet.evaluation.picture import draw_weights
    from dtnet.model import DTNet

    model = DTNet.from_pretrained(mini_model_path())
    with tempfile.TemporaryDirectory(prefix="dtnet-figures-") as temporary:
        data = held_out_scenes(Path(temporary, "coco"), 100, images=False)
        paths = collect_paths(model, data.features.batch(data.captions.images("test")))
        demo = run_demo(DemoSettings(), Path(temporary, "demo"))
        (folder / "paths.png").write_bytes(demo.picture.read_bytes())
    draw_weights(cell_rows(paths, model.config), folder / "weights.png")
    return [
        Figure(
            folder / "paths.png", "The mini model captions held-out scenes; filled cells have at least 1 / P weight."
        ),
        Figure(folder / "weights.png", "Weights of its cells over 100 held-out scenes."),
    ]
