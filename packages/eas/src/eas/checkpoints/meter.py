"""METER on disk: a Lightning checkpoint of METER or METER-EAS into a folder of ours, and that folder opened again.

    meter.json            sizes, task, skip list, what the weights are from and what was left out of them
    model.safetensors     all weights under the authors' names
    tokenizer.json, ...   RoBERTa's, copied
    answers.json          VQA: the answers of the classifier, in its order

The authors' evaluation of a tuned model cannot start: it reads search buffers that a tuned model does not have, and
overwrites the flags with a list that stands in the source. A checkpoint does not tell what it skips: say it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from eas.checkpoints.description import check_divided, check_sites, check_sizes
from eas.checkpoints.lightning import read_lightning
from eas.meter import Meter, MeterConfig, StaticAdapter, StaticPIA, merge
from eas.tower import interpolate_positions, side
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json, read_json
from tenfold.weights import check_fits, load_into, read_weights, require_finite

CONFIG, WEIGHTS, ANSWERS, FORMAT = "meter.json", "model.safetensors", "answers.json", "eas-meter"
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
POSITIONS, TYPES = "vit_model.visual.positional_embedding", "token_type_embeddings.weight"
# Of a checkpoint, by what it is: not needed by this task, and named in the result.
LEFT_OUT = {
    "heads of other tasks": re.compile(r"(mlm_score|itm_score|vqa_classifier|nlvr2_classifier|rank_output)\..*"),
    "RoBERTa's pooler": re.compile(r"text_transformer\.pooler\..*"),
    "position numbers": re.compile(r".*\.(position_ids|token_type_ids)"),
    "CLIP's text part": re.compile(
        r"vit_model\.(transformer\..*|token_embedding\..*|positional_embedding|ln_final\..*|text_projection|"
        r"logit_scale|visual\.proj)"
    ),
    "CLIP's last block": re.compile(r"vit_model\.visual\.transformer\.resblocks\.11\..*"),
    "search buffers": re.compile(r"nas_gate|skip_num"),
}
# What a tuning brings and METER's own pre-trained weights lack.
METHOD = re.compile(r"token4classifier|.*adapter.*|(vqa_classifier|nlvr2_classifier|rank_output)\..*")
# What the authors train on: VQA on all of val too, retrieval on val.
TRAINED_ON = {"vqa": ("train2014", "val2014"), "nlvr2": ("train",), "irtr": ("train", "val")}
# Parameters that the authors' model holds and never uses; they are left out here, and counted in its total.
NOT_BUILT = {"RoBERTa's pooler": 768 * 768 + 768, "CLIP's text positions and norm": 77 * 512 + 2 * 512}
ITM_HEAD = 1536 * 2 + 2  # frozen beside retrieval's own
_BOUNDS = {"vocabulary": 10**6, "text_positions": 10**5, "answers": 10**5, "size": 4096, "max_text": 10**4}


@dataclass(frozen=True)
class MeterAbout:
    """What a folder says of itself.

    Attributes:
        source: "tuned" or "pretrained": whether the checkpoint held adapters.
        trained_on: splits of the task's data that the weights have seen.
        search: SHA-256 of the search result that gave the list; None: it was given.
        left_out: what of the checkpoint has no place, by kind, with how many weights.
        skipped: classes of objects beside the weights that were not read.
    """

    source: str = "tuned"
    trained_on: tuple[str, ...] = ()
    search: str | None = None
    left_out: Mapping[str, int] | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConvertedMeter:
    """What was written, and what of the checkpoint has no place in it."""

    output: Path
    config: MeterConfig
    about: MeterAbout
    parameters: int


def convert_meter(
    source: str | Path,
    target: str | Path,
    config: MeterConfig,
    *,
    tokenizer: str | Path | None = None,
    answers: Sequence[str] | None = None,
    search: str | None = None,
    folded: bool = False,
    seed: int = 0,
) -> ConvertedMeter:
    """Turn a Lightning checkpoint into a folder of ours, whole or not at all.

    Weights of METER-EAS are taken as they are. Those of METER itself get what a tuning starts from: fresh adapters,
    ``token4classifier`` from RoBERTa's embedding of id 0, ``rank_output`` from row 1 of ``itm_score``, NLVR2's third
    token type from the second, a fresh head.

    Args:
        config: the task, the size of the pictures, what is skipped. Positions are interpolated to the size.
        tokenizer: RoBERTa's folder. answers: VQA's, one for each of the classifier's rows.
        folded: put the adapters into the matrices behind them, for good.

    Raises:
        UserError: a broken file, weights missing or without a place, another shape, answers that are not as many as
            the classifier has.
    """
    state, skipped = read_lightning(source)
    tuned = any("adapter" in name for name in state)
    state, left_out = fit(state, config, source, seed=seed)
    if config.task == "vqa" and answers is not None and len(answers) != config.answers:
        raise UserError(f"{len(answers)} answers", source, f"{config.answers}, the rows of vqa_classifier")
    if folded:
        with torch.random.fork_rng(devices=[]):
            model = Meter(config)
        model.load_state_dict(state)
        merge(model)
        config, state = model.config, model.state_dict()
    trained_on = TRAINED_ON[config.task] if tuned else ()
    about = MeterAbout("tuned" if tuned else "pretrained", trained_on, search, left_out, tuple(skipped))
    write_meter(target, config, state, about, tokenizer=tokenizer, answers=answers)
    return ConvertedMeter(Path(target), config, about, sum(tensor.numel() for tensor in state.values()))


def fit(
    state: Mapping[str, Tensor], config: MeterConfig, where: str | Path, *, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The weights that a model of `config` takes from a state dict, and by kind how many it leaves out.

    Raises:
        UserError: a weight is missing, has no place, or has another shape: the first is named, and how many there are.
    """
    with torch.device("meta"):
        wanted = Meter(replace(config, folded=False)).state_dict()
    tuned = any("adapter" in name for name in state)
    found, left_out = {}, dict.fromkeys(LEFT_OUT, 0)
    for name, tensor in state.items():
        if name in wanted:
            found[name] = tensor
            continue
        kind = next((kind for kind, pattern in LEFT_OUT.items() if pattern.fullmatch(name)), None)
        if kind is None:
            raise UserError(f"{name} has no place in METER", where, "a state dict of METER or METER-EAS")
        left_out[kind] += 1
    if POSITIONS in found:
        found[POSITIONS] = interpolate_positions(found[POSITIONS], side(config.size, config.vit_patch))
    if not tuned:
        missing = [name for name in wanted if name not in found and not METHOD.fullmatch(name)]
        if missing:
            raise UserError(f"{len(missing)} weights missing, such as {missing[0]}", where, "METER's own")
        found |= _start(state, found, config, seed)
    check_fits(wanted, found, where)
    require_finite(found, where)
    return {name: found[name] for name in wanted}, {kind: count for kind, count in left_out.items() if count}


def _start(
    state: Mapping[str, Tensor], found: Mapping[str, Tensor], config: MeterConfig, seed: int
) -> dict[str, Tensor]:
    """What a tuning of METER's own weights starts with."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Meter(replace(config, folded=False))
    for module in fresh.modules():
        if isinstance(module, StaticAdapter | StaticPIA):
            module.start(generator)
    for name, value in fresh.state_dict().items():
        if name in found or not METHOD.fullmatch(name):
            continue
        head = re.fullmatch(r"(vqa_classifier|nlvr2_classifier)\.[03]\.weight", name)
        made[name] = torch.randn(value.shape, generator=generator) * 0.02 if head else value.clone()
    text = {
        name.removeprefix("text_transformer."): value
        for name, value in found.items()
        if name.startswith("text_transformer.")
    }
    fresh.text_transformer.load_state_dict(text)
    with torch.no_grad():
        made["token4classifier"] = fresh.text_transformer.eval().embeddings(torch.zeros(1, 1, dtype=torch.long))
    if config.task == "irtr" and "itm_score.fc.weight" in state:
        made["rank_output.weight"] = state["itm_score.fc.weight"][1:2].clone()
        made["rank_output.bias"] = state["itm_score.fc.bias"][1:2].clone()
    types = found.get(TYPES)
    if config.task == "nlvr2" and types is not None and len(types) == 2:
        made[TYPES] = torch.cat((types, types[1:2]))
    return made


def write_meter(
    target: str | Path,
    config: MeterConfig,
    state: Mapping[str, Tensor],
    about: MeterAbout,
    *,
    tokenizer: str | Path | None = None,
    answers: Sequence[str] | None = None,
) -> None:
    """Write a folder of ours, whole or not at all. Raises UserError for a tokenizer's folder without one."""
    files = [] if tokenizer is None else [path for name in TOKENIZER if (path := Path(tokenizer, name)).is_file()]
    if tokenizer is not None and not files:
        raise UserError("no tokenizer", tokenizer, "tokenizer.json, or vocab.json and merges.txt")
    with atomic_directory(target) as folder:
        atomic_write_json(folder / CONFIG, {"format": FORMAT, "config": asdict(config), "about": asdict(about)})
        save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / WEIGHTS)
        for path in files:
            shutil.copyfile(path, folder / path.name)
        if answers is not None:
            atomic_write_json(folder / ANSWERS, list(answers))


def read_meter_about(folder: str | Path) -> tuple[MeterConfig, MeterAbout]:
    """A folder's sizes and what it says of itself. Raises UserError for a missing or broken ``meter.json``."""
    path = Path(folder) / CONFIG
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"format", "config", "about"} or content["format"] != FORMAT:
        raise UserError("no METER of ours", path, f"format {FORMAT}, config, about: what eas convert writes")
    about = content["about"]
    names = [field.name for field in fields(MeterAbout)]
    if not isinstance(about, dict) or set(about) != set(names) or about["source"] not in ("tuned", "pretrained"):
        raise UserError("about is of another form", path, ", ".join(names))
    lists = (about["trained_on"], about["skipped"])
    if any(not isinstance(one, list) or not all(isinstance(text, str) for text in one) for one in lists):
        raise UserError("trained_on or skipped is no list of texts", path, "lists of texts")
    if about["search"] is not None and not isinstance(about["search"], str):
        raise UserError("search is no text", path, "a SHA-256, or null")
    told = about | {"trained_on": tuple(about["trained_on"]), "skipped": tuple(about["skipped"])}
    return _config(content["config"], path), MeterAbout(**told)


def _config(content: Any, path: Path) -> MeterConfig:
    check_sizes(MeterConfig(), content, path, _BOUNDS)
    if content["task"] not in TRAINED_ON:
        raise UserError(f"task {str(content['task'])[:40]!r}", path, ", ".join(TRAINED_ON))
    check_sites(content["skip"], 24, path)
    config = MeterConfig(**content | {"skip": tuple(content["skip"])})
    whole = [(config.width, config.heads), (config.text_width, config.heads), (config.vit_width, config.vit_heads)]
    whole += [(config.adapter_rank, config.groups), (config.pia_rank, config.groups), (config.size, config.vit_patch)]
    check_divided([*whole, (config.width, config.groups)], path)
    return config


def open_meter(folder: str | Path) -> tuple[Meter, MeterAbout]:
    """The model of a folder, in eval mode, on the CPU.

    Raises:
        UserError: a broken file, or weights that do not fit what ``meter.json`` says.
    """
    config, about = read_meter_about(folder)
    path = Path(folder) / WEIGHTS
    weights = read_weights(path)
    with torch.device("meta"):
        check_fits(Meter(config).state_dict(), weights, path)  # before a model of a damaged size takes memory
    with torch.random.fork_rng(devices=[]):
        model = Meter(config)
    load_into(model, weights, path)
    return model.eval(), about


def classifier_answers(folder: Path, count: int) -> list[str]:
    """The answers beside a model of VQA, one for each of the classifier's rows. Raises UserError for other ones."""
    path = folder / ANSWERS
    content = read_json(path) if path.is_file() else None
    if not isinstance(content, list) or len(content) != count or not all(isinstance(one, str) for one in content):
        raise UserError("no answers for the classifier's rows", path, f"a list of {count} texts: eas convert --answers")
    return content


def key_report(host: str, golden: Mapping[str, Any]) -> tuple[int, int, list[str]]:
    """Compare names, shapes and counts at full size, without memory.

    Args:
        host: "meter_vqa", "meter_nlvr2" or "meter_irtr". golden: ``official_keys.json``.

    Returns:
        Names, parameters that a tuning moves, and what differs.
    """
    entry = golden[host]
    task = host.removeprefix("meter_")
    with torch.device("meta"):
        model = Meter(MeterConfig(task=task, size=288 if task == "nlvr2" else 384))  # type: ignore[arg-type]
    ours = {name: list(value.shape) for name, value in model.trained()}
    theirs = {name: shape for name, shape in golden["meter_vqa"]["keys"].items() if "adapter" in name} | entry["keys"]
    wrong = [
        f"{name}: {ours.get(name, 'missing')}, official {theirs.get(name, 'none')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]
    adapters = sum(value.numel() for name, value in model.named_parameters() if "adapter" in name)
    counts = {
        "total": sum(value.numel() for value in model.parameters()) + sum(NOT_BUILT.values()),
        "trainable": sum(value.numel() for _, value in model.trained()),
        "all_adapters": adapters,
    }
    counts["total"] += ITM_HEAD if task == "irtr" else 0
    counts["base_without_adapters"] = counts["total"] - adapters
    wrong += [
        f"{name}: {count:,} parameters, official {entry['counts'][name]:,}"
        for name, count in counts.items()
        if count != entry["counts"][name]
    ]
    return len(ours), counts["trainable"], wrong
