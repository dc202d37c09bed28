"""The checks behind `claims.yaml`: what this package recomputes of the paper, by name.

Parity checks compare with golden data of the authors' code, which lies in the source tree (or under
`$TENFOLD_GOLDENS`) and does not travel in a wheel. Parameters and costs are counted on full-size models without
weights. The mini one runs the model that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tenfold.ledger import Figure, Outcome
from tenfold.ledger.goldens import NO_GOLDENS, goldens
from tenfold.runs import read_json

Check = Callable[[], Outcome]

PARITY = (
    "text_encoder", "mapping", "sce", "layers", "camera", "nerf_blocks", "synthesis_eval", "discriminator",
    "train_step", "metrics",
)  # fmt: skip


def checks() -> Mapping[str, Check]:
    """Check name -> function, for every claim of the ledger that is recomputed here."""
    parts = ("generator", "discriminator", "enhancers", "foreground", "background", "mapping")
    return (
        {name: partial(parity, name) for name in PARITY}
        | {f"parameters_{part}": partial(parameters, part) for part in parts}
        | {
            "official_keys": official_keys,
            "gflops_view": partial(gflops, False, False),
            "gflops_folded": partial(gflops, True, False),
            "gflops_edit": partial(gflops, False, True),
            "gflops_enhancers": partial(gflops_enhancers, False),
            "gflops_enhancers_folded": partial(gflops_enhancers, True),
            "gflops_counter": gflops_counter,
            "iterations": iterations,
            "folding": folding,
            "shipped_model": shipped_model,
        }
    )


def parity(case: str) -> Outcome:
    """A golden case against this package."""
    from e3_facenet.evidence.parity import parity as check

    return check(case)


def official_keys() -> Outcome:
    """Names, shapes and numbers of parameters of both full-size networks, against those of the released pickle."""
    import torch

    from e3_facenet.checkpoints.keys import to_official
    from e3_facenet.config import DiscriminatorConfig, GeneratorConfig
    from e3_facenet.discriminator import Discriminator
    from e3_facenet.generator import Generator

    folder = goldens("e3_facenet")
    if folder is None:
        return NO_GOLDENS
    golden = read_json(folder / "official_keys.json")
    with torch.device("meta"):
        networks = {"G_ema": ("generator", Generator(GeneratorConfig())),
                    "D": ("discriminator", Discriminator(DiscriminatorConfig()))}  # fmt: skip
    wrong, agreed = [], 0
    for part, (kind, network) in networks.items():
        ours = {name: list(tensor.shape) for name, tensor in to_official(network.state_dict(), kind).items()}
        theirs = golden[part]["keys"]
        wrong += [
            f"{part}.{name}" for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)
        ]
        agreed += len(theirs)
        if sum(parameter.numel() for parameter in network.parameters()) != golden[part]["parameters"]:
            wrong.append(f"parameters of {part}")
    if wrong:
        return Outcome(f"{len(wrong)} differ", False, ", ".join(wrong[:5]))
    return Outcome(f"{agreed} names agree", True, "with their shapes and the numbers of parameters")


def parameters(part: str) -> Outcome:
    """Parameters of a full-size network, or of a part of it."""
    from e3_facenet.training.plan import count
    from e3_facenet.training.settings import TrainSettings

    return Outcome(count(TrainSettings())[part], True)


def gflops(folded: bool, edit: bool) -> Outcome:
    """One view at full size."""
    from e3_facenet.config import GeneratorConfig
    from e3_facenet.costs import enhancer_share, view_macs

    share = f"the enhancers are {enhancer_share(GeneratorConfig()):.1%} of it" if not folded and not edit else ""
    return Outcome(2 * view_macs(GeneratorConfig(), folded, edit) / 1e9, True, share)


def gflops_enhancers(folded: bool) -> Outcome:
    """The enhancers of one view."""
    from e3_facenet.config import GeneratorConfig
    from e3_facenet.costs import enhancer_macs, folded_macs

    count, config = (folded_macs if folded else enhancer_macs), GeneratorConfig()
    return Outcome(2 * sum(count(config, resolution) for resolution in config.blocks) / 1e9, True)


def gflops_counter() -> Outcome:
    """The closed formulas against torch's count of products, on a small model's real modules."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from e3_facenet.costs import block_macs, enhancer_macs, field_macs
    from e3_facenet.evidence.official_style import _conv, _rgb
    from e3_facenet.evidence.speed import random_generator
    from e3_facenet.generator import Generator

    config = small_config()
    model: Generator = random_generator(config, 0)
    resolution = config.blocks[0]
    d_in, _ = config.block_channels(resolution)
    x = torch.randn(1, d_in, resolution // 2, resolution // 2)
    ws, tokens = torch.randn(1, config.num_ws, config.w_dim), torch.randn(1, 77, config.token_dim)
    rays = config.nerf_resolution**2

    def counted(work: Callable[[], object]) -> int:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() // 2

    enhancer: Any = model.enhancers[str(resolution)]
    block: Any = model.blocks[str(resolution)]
    points = torch.rand(1, rays * 2 * config.ray_samples, 3)
    outside = torch.rand(1, rays * config.bg_samples, 4)
    code = torch.randn(1, config.bg_dim)
    rows = (config.nerf_resolution, config.nerf_resolution)
    # Styles come from w by small products of their own, which the formulas leave out: they are taken off.
    affine = config.w_dim * (sum(layer.weight.shape[1] for layer in (block.conv0, block.conv1, block.torgb)))
    foreground: Any = model.field.foreground
    styles = config.w_dim * sum(
        layer.weight.shape[1] for layer in (*foreground.layers, foreground.sigma, foreground.feature)
    )
    fields = field_macs(config)
    found = {
        "enhancer": (counted(lambda: enhancer(x, tokens, False)), enhancer_macs(config, resolution)),
        "block": (
            counted(lambda: _rgb(block.torgb, _conv(block.conv1, _conv(block.conv0, x, ws[:, 0]), ws[:, 1]), ws[:, 2]))
            - affine,
            block_macs(config, resolution),
        ),
        "foreground": (counted(lambda: foreground(points, ws[:, : config.fg_ws], rows)) - styles, fields["foreground"]),
        "background": (counted(lambda: model.field.background(outside, code, rows)), fields["background"]),
    }
    wrong = [f"{name}: counted {ours}, formula {formula}" for name, (ours, formula) in found.items() if ours != formula]
    return Outcome(f"{len(found) - len(wrong)} of {len(found)} equal", not wrong, "; ".join(wrong) or ", ".join(found))


def small_config() -> Any:
    """A generator of two blocks, for checks that run one."""
    from e3_facenet.miniature.model import mini_generator

    return mini_generator()


def iterations() -> Outcome:
    """Iterations of the shipped config of the paper's setting, which its counter of pictures gives."""
    from e3_facenet.training.settings import TrainSettings
    from tenfold.cli import load_config

    settings = load_config(TrainSettings, "mm-celeba")
    agrees = settings.iterations * settings.batch == 4_000_000
    return Outcome(settings.iterations, agrees, f"from 24,000 to 28,000 thousand pictures, {settings.batch} at a time")


def folding() -> Outcome:
    """The folded enhancer against the plain one: offsets and gradients, with queries folded in and not."""
    import torch

    from e3_facenet.config import GeneratorConfig
    from e3_facenet.enhancer import StyleEnhancer

    largest = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for channels in (8, 96):  # queries folded into the keys, and not
            config = GeneratorConfig(w_dim=16, token_dim=24, heads=4, head_dim=8)
            enhancer = StyleEnhancer(channels, 8, config)
            x, tokens = torch.randn(2, channels, 8, 8), torch.randn(2, 11, 24)
            with torch.enable_grad():
                weights = tuple(enhancer.parameters())
                plain, folded = (
                    [dw, *torch.autograd.grad(dw.square().sum(), weights)]
                    for dw in (enhancer(x, tokens, form) for form in (False, True))
                )
            for a, b in zip(plain, folded, strict=True):
                largest = max(largest, ((a - b).norm() / a.norm().clamp(min=1e-12)).item())
    return Outcome(largest, largest < 1e-5, "largest relative difference of dw and of its gradients")


def shipped_model() -> Outcome:
    """The mini model that ships, on captions that its training never saw together: depth against the true heads."""
    import torch

    from e3_facenet.camera import poses
    from e3_facenet.data.mini_world import draw, sample
    from e3_facenet.evaluation.model import mini_model_path
    from e3_facenet.evidence.experiments import YAWS, depth_correlation
    from e3_facenet.facenet import E3FaceNet
    from e3_facenet.miniature.model import captions_of

    model = E3FaceNet.from_pretrained(mini_model_path())
    attributes, _, background = sample(0, 13, 8)
    depths, cosines = [], []
    for number, caption in enumerate(captions_of(attributes, 0, 14)):
        portrait = model.generate(caption, poses(YAWS), seed=number, psi=1.0)
        depths.append(portrait.depth)
        text = torch.nn.functional.normalize(model.encoder([caption]).t, dim=-1)
        cosines.append((model.encoder.picture_features(portrait.images, rescale=True) * text).sum(-1).mean())
    repeated, count = attributes.repeat_interleave(5, dim=0), len(attributes)
    true = draw(repeated, poses(YAWS).repeat(count, 1, 1), background.repeat_interleave(5, dim=0)).depth
    value = depth_correlation(torch.cat(depths), true)
    detail = f"caption score {float(torch.stack(cosines).mean()):.3f}; {count} captions, five views each"
    return Outcome(value, value > 0.5, detail)


def figures(folder: Path) -> list[Figure]:
    """Pictures for the report: a face of the mini model and its edit, and the recorded arms."""
    from e3_facenet.evaluation.generate import DEMO
    from e3_facenet.evaluation.model import mini_model_path
    from e3_facenet.evaluation.picture import strip
    from e3_facenet.evidence.figures import draw_arms
    from e3_facenet.facenet import E3FaceNet
    from tenfold.cli import find_package_file

    drawn: list[Figure] = []
    model = E3FaceNet.from_pretrained(mini_model_path())
    portrait = model.generate(DEMO.text)
    assert DEMO.edit is not None
    strip([portrait, model.edit(portrait, DEMO.edit, 1.0)]).save(folder / "views.png")
    drawn.append(Figure(folder / "views.png", f"The mini model: {DEMO.text}; then {DEMO.edit}; depth; normals."))
    recorded = find_package_file("e3_facenet", "results")
    for claim, caption in (
        ("mini-sce", "Attribute accuracy of the arms, in percent (recorded; chance is 40)."),
        ("mini-views", "Multi-view cosine of a judge's features, by arm (recorded)."),
    ):
        if recorded is not None and (recorded / f"{claim}.json").is_file():
            table = read_json(recorded / f"{claim}.json")["table"]
            drawn.append(Figure(draw_arms(table, folder / f"{claim}.png"), caption))
    return drawn
