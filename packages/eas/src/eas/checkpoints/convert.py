"""Official LLaVA-EAS checkpoints into this package's folder, and back, bit for bit.

A release is a whole language model whose skipped layers lack ``self_attn`` and ``adapter_attn``. Its frozen weights are
those of the host; only adapters, PIAs and the projector are taken over. The skip list is read off the names that are
there: in the authors' code it stands in two source files, and nothing in a checkpoint says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eas.checkpoints import keys
from eas.checkpoints.folder import About, fill, load_folder, save_folder, weights_of
from eas.plan import Plan
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.runs import atomic_directory
from tenfold.weights import StoredTensor, WeightFiles, write_weights

LAYER = re.compile(r"model\.layers\.(\d+)\.")
ATTENTION = re.compile(r"model\.layers\.(\d+)\.self_attn\.")


@dataclass(frozen=True)
class Converted:
    """What was written: parameters of adapters and PIAs, of the projector, and what was left to the host."""

    output: Path
    plan: Plan
    modules: int
    projector: int
    frozen: int


def plan_of(shapes: Mapping[str, tuple[int, ...]], where: str | Path, **knobs: Any) -> Plan:
    """The plan that a release's names and shapes show.

    Args:
        knobs: what shapes do not tell: scale, temperature, dropout.

    Raises:
        UserError: no adapters, a name that is none of the method's, or layers that differ in their ranks.
    """
    if wrong := keys.unused(shapes):
        raise UserError(f"{wrong[0]} is no weight of LLaVA-EAS", where, "adapter_attn, replaced_adapter, mm_projector")
    found = {key: match for key in shapes if (match := keys.OFFICIAL.fullmatch(key))}
    if not found:
        raise UserError("no adapters in it", where, "model.layers.N.adapter_attn and replaced_adapter")
    layers = 1 + max(int(match[1]) for key in shapes if (match := LAYER.match(key)))
    has = {kind: {int(match[1]) for match in found.values() if match[2] == kind} for kind in keys.KINDS}
    attention = {int(match[1]) for key in shapes if (match := ATTENTION.match(key))}
    skip = has["replaced_adapter"] - has["adapter_attn"]
    if has["replaced_adapter"] & has["adapter_attn"] or skip | has["adapter_attn"] != set(range(layers)):
        raise UserError("layers with both modules, or with neither", where, "a tuned checkpoint: one module a layer")
    if attention & skip:
        raise UserError(
            f"layer {min(attention & skip)} has attention and PIA", where, "skipped layers without self_attn"
        )
    ranks = {}
    for kind in keys.KINDS:
        sizes = {
            shapes[key][:1] + shapes[key.replace("conv_A", "conv_B")][1:2] for key in found if f"{kind}.conv_A.w" in key
        }
        if len(sizes) > 1:
            raise UserError(f"{kind} of several ranks", where, "one rank")
        ranks[kind] = sizes.pop() if sizes else (0, 0)
    rank, part = ranks["adapter_attn"] if has["adapter_attn"] else ranks["replaced_adapter"]
    return Plan(
        layers=layers,
        skip=tuple(sorted(skip)),
        adapter_rank=ranks["adapter_attn"][0],
        pia_rank=ranks["replaced_adapter"][0],
        groups=rank // part if part else 2,
        **knobs,
    )


def convert(source: str | Path, target: str | Path, *, to: str = "ours", base: str | Path | None = None) -> Converted:
    """Convert a release, or one of our folders.

    Args:
        source: an official checkpoint's folder or file, or (``to="official"``) a folder of ours.
        target: a new folder.
        base: for the way back, the frozen language model in the official layout: the result is then a whole checkpoint,
            without the attention of skipped layers; otherwise it holds the method's weights alone.

    Raises:
        UserError: what is missing, broken or does not fit; nothing is written then.
    """
    if to == "official":
        return _to_official(Path(source), Path(target), base)
    with WeightFiles(source) as files:
        shapes = {name: tensor.shape for name, tensor in files.tensors.items()}
        plan = plan_of(shapes, source)
        ours = {name: keys.from_official(name) for name in shapes}
        read = {name: files.tensors[name].read() for name, found in ours.items() if found}
        frozen = sum(tensor.numbers for name, tensor in files.tensors.items() if not ours[name])
    weights = keys.tensors_from_official(read)
    width = weights[next(name for name in weights if name.endswith(".A.weight"))].shape[1]
    skipper = Skipper(plan)
    skipper.build(width, device="meta")
    fill(skipper, weights, source)
    linear = f"{keys.PROJECTOR}linear.weight" in weights
    save_folder(skipper, target, About(width=width), linear=linear)
    projector = sum(value.numel() for value in skipper.projector.values())
    modules = sum(value.numel() for value in weights.values()) - projector
    return Converted(Path(target), plan, modules, projector, frozen)


def _to_official(source: Path, target: Path, base: str | Path | None) -> Converted:
    skipper, _ = load_folder(source)
    linear = not any(name.startswith("linear_2") for name in skipper.projector)
    own = {
        name: StoredTensor.of(value) for name, value in keys.tensors_to_official(weights_of(skipper, linear)).items()
    }
    projector = sum(value.numel() for value in skipper.projector.values())
    modules = sum(tensor.numbers for tensor in own.values()) - projector
    if base is None:
        with atomic_directory(target) as folder:
            write_weights(folder, own)
        return Converted(target, skipper.plan, modules, projector, 0)
    with WeightFiles(base) as files:
        frozen = {name: tensor for name, tensor in files.tensors.items() if name not in own}
        frozen = {name: tensor for name, tensor in frozen.items() if not _dropped(name, skipper.plan)}
        held = {int(match[1]) for name in files.tensors if (match := LAYER.match(name))}
        if held != set(range(skipper.plan.layers)):
            raise UserError(f"{len(held)} layers", base, f"the {skipper.plan.layers} layers of the frozen host")
        with atomic_directory(target) as folder:
            write_weights(folder, frozen | own)
        return Converted(target, skipper.plan, modules, projector, sum(tensor.numbers for tensor in frozen.values()))


def _dropped(name: str, plan: Plan) -> bool:
    match = ATTENTION.match(name)
    return match is not None and int(match[1]) in plan.skip


@dataclass(frozen=True)
class KeyReport:
    """A full-size tuning against the official list of names and shapes."""

    host: str
    count: int
    parameters: int
    wrong: list[str]


def key_report(host: str, golden: Mapping[str, Any]) -> KeyReport:
    """Build a host's adapters at full size without memory and compare their official names and shapes.

    Args:
        host: "vicuna_7b_sqa" or "llava15_7b_aid_slake".
        golden: the content of ``official_keys.json``.
    """
    entry = golden[host]
    pia_rank, linear = (256, True) if host == "vicuna_7b_sqa" else (128, False)
    plan = Plan(layers=32, skip=tuple(entry["skip_list"]), adapter_rank=128, pia_rank=pia_rank)
    skipper = Skipper(plan)
    skipper.build(4096, device="meta")
    sizes = {"linear_1": (4096, 1024)} if linear else {"linear_1": (4096, 1024), "linear_2": (4096, 4096)}
    for name, shape in sizes.items():
        for leaf, size in (("weight", shape), ("bias", shape[:1])):
            skipper.projector[f"{name}.{leaf}"] = torch.nn.Parameter(torch.empty(size, device="meta"))
    ours = {name: list(value.shape) for name, value in keys.tensors_to_official(weights_of(skipper, linear)).items()}
    theirs = entry["keys"]
    wrong = [
        f"{name}: {ours.get(name, 'missing')}, official {theirs.get(name, 'none')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    count = sum(torch.Size(shape).numel() for shape in ours.values())
    if count != entry["counts"]["trainable"]:
        wrong.append(f"{count:,} parameters, official {entry['counts']['trainable']:,}")
    return KeyReport(host, len(ours), count, wrong)
