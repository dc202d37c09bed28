"""Evaluations and speeds as tables for the terminal, with the paper's values beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from inst_diff_edit.checkpoints.settings import MINI
from inst_diff_edit.evaluation.settings import EvalSettings
from tenfold.cli import package_file
from tenfold.ledger import load_ledger

if TYPE_CHECKING:
    from inst_diff_edit.evaluation.run import Evaluation

# Measure -> heading, factor (papers print IoU and LPIPS times 100), digits.
MEASURES: dict[str, tuple[str, float, int]] = {
    "iou": ("mask IoU, 512 x 512", 100, 1),
    "iou_64": ("mask IoU, 64 x 64", 100, 1),
    "mask_share": ("share of the picture in the mask", 100, 1),
    "lpips_alex": ("LPIPS, AlexNet", 100, 1),
    "lpips_vgg": ("LPIPS, VGG", 100, 1),
    "change_rate_alex": ("change inside / outside, AlexNet", 1, 2),
    "change_rate_vgg": ("change inside / outside, VGG", 1, 2),
    "fid": ("FID", 1, 1),
    "csfid": ("CSFID", 1, 1),
    "clip_phrase": ("CLIP score, target phrase", 1, 3),
    "clip_sentence": ("CLIP score, target sentence", 1, 3),
}
# How many the official lists hold.
RECORDS = {"Editing-Mask": 200, "ImageNet": 1092, "Imagen": 360}
# (method, set) -> measure -> the claim that holds the published value. Backbone and text are not stated there.
CLAIMS: dict[tuple[str, str], dict[str, str]] = {
    ("inst-diff-edit", "Editing-Mask"): {"iou": "editing-mask-iou"},
    ("diffedit", "Editing-Mask"): {"iou": "editing-mask-diffedit"},
    ("sdedit", "Editing-Mask"): {f"change_rate_{net}": "ablation-no-mask" for net in ("alex", "vgg")},
    ("inst-diff-edit", "Imagen"): {
        "lpips_alex": "imagen-lpips",
        "lpips_vgg": "imagen-lpips",
        "fid": "imagen-fid",
        "clip_phrase": "imagen-clip",
        "clip_sentence": "imagen-clip",
    },
    ("inst-diff-edit", "ImageNet"): {
        "lpips_alex": "imagenet-lpips",
        "lpips_vgg": "imagenet-lpips",
        "csfid": "imagenet-csfid",
    },
}


def published(settings: EvalSettings, name: str, records: int) -> dict[str, float]:
    """Measure -> the paper's value for a set, from the claims; nothing for the mini model or part of a set."""
    if settings.model == MINI or records != RECORDS[name]:
        return {}
    values = {claim.id: claim.value for claim in load_ledger(package_file("inst_diff_edit", "claims.yaml")).claims}
    claims = CLAIMS.get((settings.method, name), {})
    found = ((measure, values.get(claim)) for measure, claim in claims.items())
    return {measure: float(value) for measure, value in found if isinstance(value, int | float)}


def eval_tables(evaluation: Evaluation) -> Group:
    """One table for each set, and what was left out."""
    parts: list[Any] = []
    for name, found in evaluation.metrics["sets"].items():
        known = published(evaluation.settings, name, found["records"])
        paper = {measure: value for measure, value in known.items() if measure in found}
        title = f"{name}, {found['records']} records, {evaluation.settings.method}"
        table = Table("measure", title=title, title_justify="left")
        for heading in ("ours", *(["paper"] if paper else [])):
            table.add_column(heading, justify="right")
        for measure, (heading, factor, digits) in MEASURES.items():
            if measure in found:
                theirs = [f"{paper[measure]:.{digits}f}" if measure in paper else ""] if paper else []
                table.add_row(heading, f"{factor * found[measure]:.{digits}f}", *theirs)
        parts.append(table)
        if paper:
            parts.append(Text("paper: Stable Diffusion 1.4 with its inpainting model; backbone and texts not stated"))
    parts += [Text(f"left out: {line}") for line in evaluation.skipped]
    return Group(*parts, Text(f"wrote pictures, masks and results to {evaluation.folder}", overflow="fold"))


def bench_tables(metrics: Mapping[str, Any]) -> Group:
    """What every method takes, and speed-ups: realised, predicted by FLOPs, and one over the other."""
    size = metrics["size"]
    title = f"one picture, {size['edge']} pixels, {size['steps']} steps, {size['dtype']}, random weights"
    costs = Table("method", title=title, title_justify="left")
    for heading in ("seconds", "TFLOPs", "UNet samples", "UNet calls", "peak GiB"):
        costs.add_column(heading, justify="right")
    for method, row in metrics["methods"].items():
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"
        cells = (f"{row['seconds']:.3f}", f"{row['tflops']:.4g}", str(row["samples"]), str(row["calls"]), peak)
        costs.add_row(method, *cells)
    ratios = Table("method", "against", title="times faster", title_justify="left")
    for heading in ("realised", "predicted", "realised / predicted"):
        ratios.add_column(heading, justify="right")
    for row in metrics["speed_ups"]:
        values = (f"{row[name]:.2f}" for name in ("realised", "predicted", "realised_over_predicted"))
        ratios.add_row(row["ours"], row["baseline"], *values)
    return Group(costs, ratios)
