"""The gates: what the mini host answers, and where in its layers it reads the picture.

    python -m tenfold.data.mini_gate runs/mini_host/model --record gates.json      # adds this training seed's

A rule that chooses which visual tokens to drop, which to route or when to stop can only be told from another one in a
model that the choice matters to. So this measures, on held-out scenes, what is lost when all visual tokens are removed
after a layer, when some are kept or pass layers by, and when a layer's attention is taken away; oracles choose by what
the scene holds, against random choice. Each number stands beside the least (or most) that it must reach. A gate that is
missed stays missed: what builds on the host must then say so.

Needs the extra `tenfold[train]` (torch, transformers).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tenfold.cli import main as run_app
from tenfold.data import mini_host
from tenfold.data.mini_probes import LEARNT, Probes, Prompts, prompts
from tenfold.data.miniworld import flags
from tenfold.data.miniworld.flag_questions import KINDS, asked
from tenfold.runs import atomic_write_json, read_json

# Of the scenes that gates are measured on; the trainer's share no stream with these, whatever the seeds. Which kinds of
# questions are left out was decided on world 9001.
WORLD, COUNT = 9002, 100
LEFT = 0.4  # share of the visual tokens that are kept, where some are
KEPT_AFTER = (-1, 0, 2, 5)
PASSED = 0.5  # share of the visual tokens that pass by, where some do
ROUTED = {"all layers": range(12), "layers 0-5": range(6), "layers 5-10": range(5, 11)}
SHUFFLES = 20
# name -> (least, most), in per cent or points
GATES: dict[str, tuple[float | None, float | None]] = {
    "accuracy": (80, 92),
    "least lead over the majority class": (20, None),
    "layers that lose 5 points": (3, None),
    "layers after 3 that lose 5 points": (1, None),
    "loss by an oracle's keep-set": (None, 2),
    "loss by a random keep-set": (15, None),
    "oracle exit over two fixed exits": (8, None),
    "loss by exits shuffled within a kind": (2, None),
    "oracle over random routing": (8, None),
    "best minus worst attention removed": (10, None),
}


def objects_first(share: float, generator: torch.Generator) -> Callable[[Prompts], Tensor]:
    """Chooses a share of the visual tokens: objects and flags as far as it goes, then any."""
    return _chooser(lambda group: group.objects.float(), share, generator)


def objects_last(share: float, generator: torch.Generator) -> Callable[[Prompts], Tensor]:
    """Chooses a share of the visual tokens: ground as far as it goes, then any."""
    return _chooser(lambda group: -group.objects.float(), share, generator)


def anything(share: float, generator: torch.Generator) -> Callable[[Prompts], Tensor]:
    """Chooses a share of the visual tokens at random."""
    return _chooser(lambda group: torch.zeros(group.objects.shape), share, generator)


def _chooser(
    value: Callable[[Prompts], Tensor], share: float, generator: torch.Generator
) -> Callable[[Prompts], Tensor]:
    def choose(group: Prompts) -> Tensor:
        values = value(group) + 0.5 * torch.rand(group.objects.shape, generator=generator)
        best = values.argsort(dim=1, descending=True)[:, : round(share * values.shape[1])]
        return torch.zeros(values.shape, dtype=torch.bool).scatter(1, best, True)

    return choose


def stable_exits(said: Tensor) -> np.ndarray:
    """The first removal from which on every later one says what the whole model says: int `[questions]`.

    Args:
        said: `[layers + 1, questions]`, as `Probes.removed` gives it.
    """
    other = (said != said[-1]).numpy()
    return np.where(other.any(0), len(said) - other[::-1].argmax(0), 0)


def best_mixture(curve: np.ndarray, mean: float) -> float:
    """The best share of right answers by two fixed exits, drawn at random so that the mean exit is `mean`.

    Args:
        curve: `[exits]`.
        mean: of the exits' numbers.
    """
    best = 0.0
    for low in range(int(np.floor(mean)) + 1):
        for high in range(int(np.ceil(mean)), len(curve)):
            weight = 0.0 if high == low else (mean - low) / (high - low)
            best = max(best, float((1 - weight) * curve[low] + weight * curve[high]))
    return best


def measure(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int = WORLD,
    count: int = COUNT,
    noise: int = flags.NOISE,
) -> dict[str, Any]:
    """All gates of a host, with the curves behind them, in per cent.

    Args:
        model, processor: the mini host.
        seed: of the held-out scenes.
        count: questions of each kind.
        noise: of the pictures, in grey levels.
    """
    gate = Probes(model, processor, prompts(processor, seed, count), noise)
    sweep = gate.removed()
    right = gate.right(sweep)
    whole, overall = right[-1], gate.score(right[-1])
    majority = {kind: 100 * _majority(gate.answers[torch.from_numpy(gate.kinds == kind)]) for kind in LEARNT}
    exits = _exits(gate, sweep)
    keeps = _keeps(gate)
    routing = _routing(gate)
    attention = [gate.score(one) for one in gate.right(gate.without_attention())]
    curve = [gate.score(one) for one in right]
    losses = np.diff(curve)
    values = {
        "accuracy": overall,
        "least lead over the majority class": min(gate.by_kind(whole)[kind] - majority[kind] for kind in LEARNT),
        "layers that lose 5 points": int((losses >= 5).sum()),
        "layers after 3 that lose 5 points": int((losses[4:] >= 5).sum()),
        "loss by an oracle's keep-set": overall - keeps["0"]["oracle"],
        "loss by a random keep-set": overall - keeps["0"]["random"],
        "oracle exit over two fixed exits": exits["oracle"] - exits["best mixture"],
        "loss by exits shuffled within a kind": exits["oracle"] - exits["shuffled within a kind"],
        "oracle over random routing": max(
            routing[name]["oracle"] - routing[name]["random"] for name in ("all layers", "layers 0-5")
        ),
        "best minus worst attention removed": max(attention[1:]) - min(attention[1:]),
    }
    return {
        "world": {"seed": seed, "questions of a kind": count, "noise": noise},
        "gates": {name: _verdict(name, value) for name, value in values.items()},
        "accuracy": {**gate.by_kind(whole), **_not_learnt(model, processor, seed, count, noise)},
        "majority": majority,
        "removal": {"all": curve, **gate.by_kind(right)},
        "exits": exits,
        "keep-sets": keeps,
        "routing": routing,
        "attention removed": attention,
    }


def within(name: str, value: float) -> bool:
    """Whether a gate's value lies within its bounds, both included."""
    least, most = GATES[name]
    return (least is None or value >= least) and (most is None or value <= most)


def _verdict(name: str, value: float) -> dict[str, Any]:
    least, most = GATES[name]
    value = round(float(value), 2)
    return {"value": value, "least": least, "most": most, "passed": within(name, value)}


def _not_learnt(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, seed: int, count: int, noise: int
) -> dict[str, Any]:
    """Accuracy in the kinds that the gates go without."""
    kinds = [kind for kind in KINDS if kind not in LEARNT]
    probes = Probes(model, processor, prompts(processor, seed, count, kinds), noise)
    return probes.by_kind(probes.right(probes.removed()[-1]))


def _majority(answers: Tensor) -> float:
    return float(answers.bincount().max()) / len(answers)


def _exits(gate: Probes, sweep: Tensor) -> dict[str, Any]:
    """Oracle exits from one draw of the noise, judged on another."""
    exits = stable_exits(sweep)
    right = gate.right(gate.removed(draw=1))
    questions = np.arange(len(exits))
    random = np.random.default_rng(0)
    within, over = [], []
    for _ in range(SHUFFLES):
        moved = exits.copy()
        for kind in dict.fromkeys(gate.kinds):
            moved[gate.kinds == kind] = random.permutation(exits[gate.kinds == kind])
        within.append(right[moved, questions].mean())
        over.append(right[random.permutation(exits), questions].mean())
    return {
        "mean layer": float(exits.mean() - 1),
        "oracle": 100 * float(right[exits, questions].mean()),
        "whole": 100 * float(right[-1].mean()),
        "best mixture": 100 * best_mixture(right.mean(1), float(exits.mean())),
        "shuffled": 100 * float(np.mean(over)),
        "shuffled within a kind": 100 * float(np.mean(within)),
        "mean layer of a kind": {kind: float(exits[gate.kinds == kind].mean() - 1) for kind in LEARNT},
        "deviation within a kind": {kind: float(exits[gate.kinds == kind].std()) for kind in LEARNT},
    }


def _keeps(gate: Probes) -> dict[str, dict[str, float]]:
    table = {}
    for after in KEPT_AFTER:
        generator = torch.Generator().manual_seed(0)
        rules = {"oracle": objects_first, "random": anything}
        table[str(after)] = {
            name: gate.score(gate.right(gate.kept(rule(LEFT, generator), after))) for name, rule in rules.items()
        }
    return table


def _routing(gate: Probes) -> dict[str, dict[str, float]]:
    table = {}
    for name, layers in ROUTED.items():
        generator = torch.Generator().manual_seed(0)
        rules = {"oracle": objects_last, "random": anything}
        table[name] = {
            rule_name: gate.score(gate.right(gate.routed(_once(rule(PASSED, generator)), layers)))
            for rule_name, rule in rules.items()
        }
    return table


def _once(choose: Callable[[Prompts], Tensor]) -> Callable[[Prompts], Tensor]:
    """The same choice in every layer."""
    kept: dict[int, Tensor] = {}

    def again(group: Prompts) -> Tensor:
        if id(group) not in kept:
            kept[id(group)] = choose(group)
        return kept[id(group)]

    return again


@torch.inference_mode()
def evaluate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    count: int,
    *,
    size: int = mini_host.IMAGE_SIZE,
    ending: str = "",
    noise: int = flags.NOISE,
    batch: int = 100,
    kinds: Sequence[str] = KINDS,
) -> dict[str, float]:
    """Held-out accuracy per kind of question: answered by `generate` as a user calls it, and compared as text.

    Args:
        model, processor: the mini host.
        seed: of the scenes.
        count: questions of each kind.
        size: edge of the pictures before the processor resizes them.
        ending: added to every question after a newline.
        noise: of the pictures, in grey levels.
        batch: questions at once; they differ in length, so the shorter ones are padded on the left.
        kinds: of questions.

    Returns:
        kind -> share of right answers.
    """
    table = {}
    for kind in kinds:
        pairs = asked(kind, seed, count)
        hits = 0
        for start in range(0, count, batch):
            part = pairs[start : start + batch]
            texts = [mini_host.prompt(question.text + (f"\n{ending}" if ending else "")) for _, question in part]
            images = [flags.render(scene, size, noise=noise) for scene, _ in part]
            said = mini_host.answer(model, processor, images, texts)
            hits += sum(word == question.answer for word, (_, question) in zip(said, part, strict=True))
        table[kind] = hits / count
    return table


def show(measured: Mapping[str, Any]) -> str:
    """The gates as lines of text."""
    lines = []
    for name, gate in measured["gates"].items():
        bounds = [f"{word} {gate[key]}" for key, word in (("least", "at least"), ("most", "at most")) if gate[key]]
        lines.append(f"{'passed' if gate['passed'] else 'MISSED'}  {gate['value']:7.2f}  {name} ({', '.join(bounds)})")
    return "\n".join(lines)


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m tenfold.data.mini_gate runs/mini_host/model")
def mini_gate(
    folder: Annotated[Path, typer.Argument(help="A trained mini host, as transformers saves it.")],
    record: Annotated[Path | None, typer.Option(help="File to add to; default: FOLDER/gates.json.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the held-out scenes.")] = WORLD,
    count: Annotated[int, typer.Option(min=2, help="Questions of each kind.")] = COUNT,
    noise: Annotated[int, typer.Option(min=0, help="Of the pictures, in grey levels.")] = flags.NOISE,
) -> None:
    """Measure the gates of a mini host, with their curves, and add them to a record under the host's training seed."""
    trained = read_json(folder / "training.json")["seed"]
    path = record or folder / "gates.json"
    seeds = read_json(path)["seeds"] if path.exists() else {}
    torch.set_num_threads(1)
    model, processor = mini_host.load(folder)
    measured = measure(model, processor, seed, count, noise)
    atomic_write_json(path, {"seeds": {**seeds, str(trained): json.loads(json.dumps(measured))}})
    typer.echo(show(measured))


if __name__ == "__main__":
    run_app(app)
