"""This package's format: a folder with ``eas.json`` (the plan and where it comes from) and ``adapters.safetensors``.

The frozen host is not in it: a tuning of a 7B host is 0.1 GB. ``README.md`` is a model card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from eas.checkpoints import keys
from eas.plan import Plan
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_bytes, atomic_write_json, atomic_write_text, read_json
from tenfold.weights import read_weights

CONFIG, WEIGHTS, CARD = "eas.json", "adapters.safetensors", "README.md"
FORMAT = "eas-adapters"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WIDEST = 2**20  # of any decoder


@dataclass(frozen=True)
class About:
    """What a folder says of itself beside its plan.

    Attributes:
        width: of the host's decoder.
        host: fingerprint or name of the frozen model it was tuned on; "" where it is not known.
        prompt_format: of a ScienceQA tuning, such as "QCM-ALE"; None: another task.
        search: SHA-256 of the search result that gave the skip list; None: the list was given.
        data: what it was trained on: a name, or a fingerprint.
        run: id of the run that made it, where it is kept apart from its run.json; a training leaves it to that file, so
            that the same training writes the same bytes.
    """

    width: int
    host: str = ""
    prompt_format: str | None = None
    search: str | None = None
    data: str = ""
    run: str | None = None


def fill(skipper: Skipper, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Put weights under our names into a built skipper: all that its plan needs, and no other but a projector's.

    Raises:
        UserError: one is missing, unexpected, of another shape, or not finite; the first is named.
    """
    wanted = keys.named(skipper.adapters, skipper.pias)
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        raise UserError(f"{len(missing)} weights are missing, first {missing[0]}", where, "all of the plan's modules")
    projector = {name: value for name, value in weights.items() if name.startswith(keys.PROJECTOR)}
    unexpected = sorted(weights.keys() - wanted.keys() - projector.keys())
    if unexpected:
        raise UserError(f"{len(unexpected)} weights have no place, first {unexpected[0]}", where, "the plan's modules")
    for name, tensor in weights.items():
        shape = wanted[name].shape if name in wanted else tensor.shape
        if tensor.shape != shape:
            raise UserError(f"{name} {list(tensor.shape)}", where, f"{list(shape)}")
        if not torch.is_floating_point(tensor) or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} is not finite", where, "finite floating-point weights")
    for kind, modules in (("adapter", skipper.adapters), ("pia", skipper.pias)):
        for layer, module in modules.items():
            state = {leaf: weights[f"layers.{layer}.{kind}.{leaf}"].detach().clone() for leaf in module.state_dict()}
            module.load_state_dict(state, assign=True)  # also into modules that have no memory yet
    # The linear projector of LLaVA's first version is the first layer of transformers' two, the second an identity.
    renamed = {
        name.removeprefix(keys.PROJECTOR).replace("linear.", "linear_1."): value for name, value in projector.items()
    }
    skipper.projector = {name: nn.Parameter(value.detach().clone()) for name, value in renamed.items()}


def weights_of(skipper: Skipper, linear: bool = False) -> dict[str, Tensor]:
    """All that a tuning made, under our names.

    Args:
        linear: the projector is LLaVA's first, one linear layer.
    """
    found: dict[str, Tensor] = {
        key: value.detach() for key, value in keys.named(skipper.adapters, skipper.pias).items()
    }
    for name, value in skipper.projector.items():
        found[keys.PROJECTOR + (name.replace("linear_1.", "linear.") if linear else name)] = value.detach()
    return found


def save_folder(skipper: Skipper, folder: str | Path, about: About, *, linear: bool = False) -> None:
    """Write a tuning into a new folder, whole or not at all."""
    weights = {name: value.cpu().contiguous() for name, value in weights_of(skipper, linear).items()}
    with atomic_directory(folder) as place:
        atomic_write_json(place / CONFIG, _content(skipper.plan, about))
        atomic_write_bytes(place / WEIGHTS, save(weights, metadata={"format": "pt"}))
        atomic_write_text(place / CARD, card(skipper.plan, about))


def _content(plan: Plan, about: About) -> dict[str, Any]:
    return {"format": FORMAT, "plan": plan.to_dict(), **vars(about)}


def read_about(folder: str | Path) -> tuple[Plan, About]:
    """A folder's plan and what it says of itself. Raises UserError for a missing or broken ``eas.json``."""
    path = Path(folder) / CONFIG
    content = read_json(path)
    names = set(About.__dataclass_fields__)
    known, needed = {"format", "plan", *names}, {"format", "plan", "width"}
    good = isinstance(content, dict) and content.get("format") == FORMAT
    if not good or not needed <= set(content) <= known:
        raise UserError("no EAS adapters", path, f"format {FORMAT}, plan, {', '.join(sorted(names))}")
    about = vars(About(0)) | {name: content[name] for name in names & set(content)}
    texts = isinstance(about["host"], str) and isinstance(about["data"], str)
    if type(about["width"]) is not int or not 1 <= about["width"] <= WIDEST or not texts:
        raise UserError("width, host or data of another type", path, f"a whole number up to {WIDEST:,} and two texts")
    if any(about[name] is not None and not isinstance(about[name], str) for name in ("prompt_format", "search", "run")):
        raise UserError("prompt_format, search or run of another type", path, "texts, or null")
    return Plan.from_dict(content["plan"], path), About(**about)


def load_folder(folder: str | Path) -> tuple[Skipper, About]:
    """Open a tuning.

    Raises:
        UserError: no such folder, a broken file, weights that do not fit the plan or are not finite.
    """
    plan, about = read_about(folder)
    skipper = Skipper(plan)
    skipper.build(about.width, device="meta")
    path = Path(folder) / WEIGHTS
    fill(skipper, read_weights(path), path)
    return skipper, about


def card(plan: Plan, about: About) -> str:
    """The model card that a folder carries."""
    # Only a name of the hub is one that the card's header may point at.
    base = f"base_model: {about.host}\n" if HUB_ID.fullmatch(about.host) else ""
    told = [f"Frozen host: `{about.host or 'unknown'}`, whose licence holds for what is derived from it."]
    told.append(f"Trained on: {f'`{about.data}`' if about.data else 'not recorded'}.")
    if about.prompt_format:
        told.append(f"Prompts in the format {about.prompt_format}.")
    if about.search:
        told.append(f"The list was found by the search with SHA-256 `{about.search}`.")
    told.append(f"Made by run `{about.run}`." if about.run else "Its run.json stands beside this folder.")
    return (
        f"---\nlicense: other\nlibrary_name: eas\n{base}tags:\n- eas\n- attention-skipping\n- adapters\n---\n"
        f"# EAS adapters\n\nSkips the attention of layers {', '.join(map(str, plan.skip)) or 'none'} of {plan.layers}; "
        f"adapter rank {plan.adapter_rank}, PIA rank {plan.pia_rank} (Wu et al., 2024, arXiv 2403.15226).\n"
        + "".join(f"{line}\n" for line in told)
        + '\n```python\nimport eas\n\nskipper = eas.load("this folder", model)\nmodel.generate(**inputs)\n```\n'
    )
