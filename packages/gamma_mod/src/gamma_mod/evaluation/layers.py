"""`gamma-mod arank`: the ARank of every layer of a host, and the layers that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gamma_mod.data.prompts import batch_prompts
from gamma_mod.evaluation.answers import Host, on_device, open_host
from gamma_mod.evaluation.picture import rank_bars
from gamma_mod.evaluation.settings import ArankSettings, ConvertedHostSettings
from gamma_mod.placement import select_layers
from gamma_mod.ranks import head_ranks
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data import mini_sets
from tenfold.data.formats import read_calibration, read_llava_instruct
from tenfold.runs import atomic_write_json, fingerprint, run, track
from tenfold.runs.ranks import choose_device

PIXELS = 336


@dataclass(frozen=True)
class Ranking:
    """What the ranks say.

    Attributes:
        ranks: ARank of every layer. layers: those to convert.
        files: json, plot and list. metrics: as in the run's record.
    """

    ranks: list[float]
    layers: tuple[int, ...]
    files: tuple[Path, ...]
    metrics: dict[str, Any]


def run_arank(settings: ArankSettings, seed: int, output: Path) -> Ranking:
    """Measure, and write `arank.json`, `arank.png`, `layers.txt` and ``run.json`` into ``output``.

    Raises:
        UserError: model or data cannot be used, no samples, or nothing left to convert.
    """
    prompts = list(_prompts(settings, seed))
    shared = {name: value for name, value in settings.model_dump().items() if name in HOST_FIELDS}
    host = open_host(ConvertedHostSettings(**shared), str(choose_device(settings.device)), seed)
    if host.conversion is not None:
        raise UserError("ranks of a converted model", settings.model, "the dense model, before its conversion")
    data = {"model": host.fingerprint}
    if settings.data is not None:
        data["samples"] = fingerprint(Path(settings.data))
    config = settings.model_dump(mode="json")
    with run("gamma_mod", "arank", config=config, seed=seed, output=output, data=data) as current:
        ranks = head_ranks(host.model, (_encoded(host, one, settings.protocol) for one in track(prompts, "ARank")))
        found: list[float] = ranks.double().mean((0, 2)).tolist()
        layers = select_layers(found, num_dense=settings.num_dense, threshold=settings.threshold)
        spread = ranks.double().mean(2).std(0).tolist() if len(ranks) > 1 else [0.0] * len(found)
        content = {"arank": found, "spread_over_prompts": spread, "prompts": len(ranks), "layers": list(layers)}
        atomic_write_json(current.file("arank.json"), content)
        current.file("layers.txt").write_text(",".join(map(str, layers)) + "\n", encoding="utf-8")
        rank_bars(found, layers, current.file("arank.png"))
        current.metrics |= {"arank": found, "layers": list(layers), "prompts": len(ranks)}
    files = tuple(output / name for name in ("arank.json", "layers.txt", "arank.png"))
    return Ranking(found, layers, files, current.metrics)


HOST_FIELDS = ("model", "device", "dtype", "attention", "imports")


def _encoded(host: Host, prompt: tuple[Image.Image | None, str], protocol: str) -> dict[str, Any]:
    return on_device(host.model, batch_prompts(host.processor, [prompt[0]], [prompt[1]], protocol))


def _prompts(settings: ArankSettings, seed: int) -> Iterator[tuple[Image.Image | None, str]]:
    if settings.data is None:
        if settings.model != MINI:
            raise UserError("no samples", settings.model, "--data FILE with questions about images")
        for scene in mini_sets.calibration(seed, settings.samples, PIXELS):
            yield (scene.picture.open() if scene.picture is not None else None), scene.text
        return
    path = Path(settings.data)
    images = Path(settings.image_folder) if settings.image_folder else path.parent
    if path.suffix == ".json":
        for record in read_llava_instruct(path, images)[: settings.samples]:
            question = record.turns[0].text.replace("<image>", "").strip()
            yield record.image(), question
    else:
        for sample in read_calibration(path, images)[: settings.samples]:
            yield (sample.picture.open() if sample.picture is not None else None), sample.text
