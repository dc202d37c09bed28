"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Parity checks compare with golden data of the authors' code, which lies in the source tree (or under
`$TENFOLD_GOLDENS`) and does not travel in a wheel. Parameters and FLOPs are counted on full-size models without
weights. The mini check runs the model that ships on scenes that no training saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.cli import find_package_file
from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS, goldens
from tenfold.runs import read_json

if TYPE_CHECKING:
    from dit_sam.config import DITConfig

Check = Callable[[], Outcome]

VARIANTS = (
    *("layer_wise", "e2e", "e2e_token", "token_layer_wise", "cross_attention", "cross_attention_ffn"),
    *("layer_wise_vith", "default"),
)
PARITY = (
    *(f"encoder_{variant}" for variant in VARIANTS),
    *("net_layer_wise", "net_e2e", "text", "preprocess", "refer_conversion", "schedule", "metrics"),
)
# The released nets by their folder's name: variant and decoder layers.
NETS = {
    **{variant: (variant, 2) for variant in VARIANTS if variant != "default"},
    "default_sam": ("default", 2),
    "default_sam_add_2": ("default", 4),
    "default_sam_add_4": ("default", 6),
}
# Sentences of the live check; mIoU with the own ones over that with another scene's must be at least so much.
SENTENCES, RATIO = 100, 2.0


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    return {name: partial(parity, name) for name in PARITY} | {
        "official_keys": official_keys,
        "parameters": partial(parameters, "layer_wise"),
        "parameters_vith": partial(parameters, "layer_wise_vith"),
        "parameters_default": partial(parameters, "default_sam"),
        "parameters_text_path": parameters_text_path,
        "parameters_frozen": partial(parameters_trained, False),
        "parameters_frozen_text": partial(parameters_trained, True),
        "parameters_used": parameters_used,
        "flops_l_dit": partial(flops, "layer_wise", 512),
        "flops_default": partial(flops, "default_sam", 512),
        "flops_deeper": partial(flops, "default_sam_add_4", 512),
        "flops_1024": partial(flops, "layer_wise", 1024),
        "flops_vith": partial(flops, "layer_wise_vith", 512),
        "flops_overhead": flops_overhead,
        "flops_saved": flops_saved,
        "map_bytes": map_memory,
        "shipped_model": shipped_model,
    }


def parity(case: str) -> Outcome:
    """A golden case by name."""
    from dit_sam.evidence import parity as golden

    return golden.parity(case)


def net_config(name: str) -> DITConfig:
    """The dimensions of a released net."""
    from dit_sam.config import sized

    variant, layers = NETS[name]
    size = "vit_h" if variant == "layer_wise_vith" else "vit_b"
    return sized(size, variant, decoder_depth=layers)  # type: ignore[arg-type]


@cache
def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of everything in a release of a net, from this package's model."""
    import torch

    from dit_sam.checkpoints.keys import official, unused_shapes
    from dit_sam.model import DITSam

    config = net_config(name)
    with torch.device("meta"):
        model = DITSam(config)
    return {official(key): tuple(value.shape) for key, value in model.state_dict().items()} | unused_shapes(config)


def official_keys() -> Outcome:
    """Names, shapes and counts of all released nets against the authors' own list."""
    folder = goldens("dit_sam")
    if folder is None:
        return NO_GOLDENS
    listed = read_json(folder / "official_keys.json")
    wrong = []
    for name in NETS:
        shapes, counts = official_shapes(name), listed["parameter_counts"][name]
        own = {key: tuple(shape) for key, shape in listed["method_specific_keys"][name].items()}
        whole = name != "layer_wise" or shapes == {key: tuple(shape) for key, shape in listed[name].items()}
        if (
            not whole
            or own.items() - shapes.items()
            or len(shapes) != counts["n_keys"]
            or _total(name) != counts["total_parameters"]
        ):
            wrong.append(name)
    told = f"{len(NETS)} nets, {sum(len(official_shapes(name)) for name in NETS):,} weights"
    return Outcome(told, not wrong, f"differ: {', '.join(wrong)}" if wrong else "names, shapes and counts are equal")


def _total(name: str) -> int:
    """Parameters of a release; the one buffer of a state is none."""
    from math import prod

    return sum(prod(shape) for key, shape in official_shapes(name).items() if "gaussian_matrix" not in key)


def parameters(name: str) -> Outcome:
    """Parameters of a release, what nothing reads included."""
    return Outcome(_total(name), None)


def parameters_text_path() -> Outcome:
    """Those of the text's way into the encoder."""
    from math import prod

    shapes = official_shapes("layer_wise")
    return Outcome(sum(prod(shape) for key, shape in shapes.items() if key.startswith("visual_encoder.probs")), None)


def parameters_trained(frozen_text: bool) -> Outcome:
    """Those that train with a frozen encoder; those that nothing reads are counted, as the authors' are."""
    import torch

    from dit_sam.checkpoints.keys import unused_shapes
    from dit_sam.model import DITSam
    from dit_sam.training.plan import freeze

    config = net_config("layer_wise")
    with torch.device("meta"):
        model = DITSam(config)
    freeze(model, "encoder", frozen_text)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    unused = sum(torch.Size(shape).numel() for shape in unused_shapes(config).values())
    return Outcome(trained + unused, None, f"{trained:,} without those that nothing reads")


def parameters_used() -> Outcome:
    """Those that can change a mask."""
    from dit_sam.costs import used_parameters

    return Outcome(used_parameters(net_config("layer_wise")), None)


def _giga_flops(name: str, size: int) -> float:
    from dit_sam.costs import decoder_macs, encoder_macs, text_macs

    config = net_config(name)
    macs = encoder_macs(config, size) + text_macs(config, config.text_depth) + decoder_macs(config, size)
    return 2 * macs / 1e9


def flops(name: str, size: int) -> Outcome:
    """GFLOPs of a released net at so many pixels, as its code runs it."""
    return Outcome(round(_giga_flops(name, size), 2), None, "multiply-accumulates count twice")


def flops_overhead() -> Outcome:
    """What text in the encoder adds, in per cent of the encoder's FLOPs without it."""
    from dit_sam.costs import encoder_macs

    ours, baseline = (encoder_macs(net_config(name)) for name in ("layer_wise", "default_sam"))
    return Outcome(round(100 * (ours / baseline - 1), 2), None, "of the encoder")


def flops_saved() -> Outcome:
    """What this package leaves out of L-DIT's FLOPs, in per cent: queries of text, eleven of BERT's layers."""
    from dit_sam.costs import decoder_macs, encoder_macs, text_macs

    config = net_config("layer_wise")
    ours = 2 * (encoder_macs(config, text_queries=False) + text_macs(config) + decoder_macs(config)) / 1e9
    released = _giga_flops("layer_wise", 512)
    return Outcome(round(100 * (1 - ours / released), 2), None, f"{ours:.2f} of {released:.2f} GFLOPs")


def map_memory() -> Outcome:
    """Of one picture's map in one block."""
    from dit_sam.costs import map_bytes

    return Outcome(
        round(map_bytes(net_config("layer_wise")) / 1e6, 2), None, "kept for each of 12 blocks while training"
    )


def shipped_model() -> Outcome:
    """P@0.5 of the model that ships on unseen mini scenes, and mIoU with another scene's sentences."""
    import tempfile

    from dit_sam.data.mini import write_mini
    from dit_sam.data.sets import ReferringSet
    from dit_sam.evaluation.model import MINI_MODEL
    from dit_sam.evaluation.run import MINI_SCENES
    from dit_sam.evidence.experiments import measured
    from dit_sam.model import DITSam

    folder = find_package_file("dit_sam", MINI_MODEL)
    if folder is None:
        return Outcome(None, None, "no model ships")
    with tempfile.TemporaryDirectory() as place:
        write_mini(Path(place, "data"), MINI_SCENES)
        samples = ReferringSet(Path(place, "data"), "mini").samples("test")[:SENTENCES]
        found = measured(DITSam.from_pretrained(folder), samples)
    own, other = found["all"]["mIoU"], found["other"]["mIoU"]
    detail = f"{len(samples)} sentences, mIoU {own:.1f}; another scene's sentences {other:.1f} mIoU"
    return Outcome(round(found["all"]["P@0.5"], 1), own >= RATIO * other, detail)


def figures(folder: Path) -> list[Figure]:
    """The report's pictures, drawn from recorded results."""
    from dit_sam.evidence.figures import draw

    return draw(folder)
