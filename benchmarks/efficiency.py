"""Which method makes a vision-language model cheaper, and at what price: all of them on one host, side by side.

    python benchmarks/efficiency.py
    python benchmarks/efficiency.py --model llava-hf/llava-1.5-7b-hf --data data/gqa --benchmark gqa --output mine.json
    python benchmarks/efficiency.py --random-weights --layers 4

Writes a run record, and beside it a page in markdown and a picture of the same name. FitPrune, DyVTE, EAS and gamma-MoD
are attached to the host one after the other, and the peers that FitPrune's package has; every one answers the same
questions, and its FLOPs, time and memory are measured on the same prompts in the same rounds.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold import UserError
from tenfold.cli.app import main
from tenfold.cli.settings import MINI, checked
from tenfold.runs import atomic_write_json, atomic_write_text, run, track

if TYPE_CHECKING:
    from efficiency.host import Settings

    from tenfold.runs.progress import Progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
OUTPUT = Path("benchmarks/results/efficiency-cpu.json")


def compare(settings: Settings, seed: int, progress: Progress = track) -> dict[str, Any]:
    """Answers and costs of every method on one host: the metrics of the record, and ``data``, what was read."""
    from efficiency.arms import percent
    from efficiency.asking import ask, counts_positions_once, pairs, second_questions
    from efficiency.costs import measure
    from efficiency.elsewhere import compare_elsewhere
    from efficiency.findings import grouped, rows
    from efficiency.host import open_subject

    from tenfold.hosts.answers import Protocol, encode_batch

    subject = open_subject(settings, seed, progress)
    host, items, arms = subject.host, subject.items, subject.found.arms
    left_out = dict(subject.found.left_out)
    answers = ask(host, arms, items, settings.batch, settings.max_new_tokens, progress)
    asked = pairs(items, settings.pairs) if counts_positions_once(host.model) else []
    second: dict[str, Any] = {}
    if asked:
        firsts = [members[0] for members in grouped(arms).values()]
        chosen = [arm for arm in firsts if not arm.point.endswith("%") or arm.point == percent(middle(settings.ratios))]
        second = second_questions(host, chosen, items, asked, settings.max_new_tokens, progress)
        left_out |= {
            f"{arm.method}, second question": "its layers keep different numbers of words"
            for arm in chosen
            if not any(second[arm.key])
        }
    elif settings.pairs:
        left_out["second questions"] = "no two questions about one picture, or positions along several axes"
    protocol = Protocol.of(host.model, host.processor)
    prompts = []
    for item in spread_over_kinds(items, settings.costed):
        one = protocol.prompt(host.processor, item.picture(), item.text)
        prompts.append(encode_batch(host.processor, host.model, [one]))
    timed = [members[0] for members in grouped(arms).values()]
    costs = measure(
        host.model,
        timed,
        prompts,
        options={"max_new_tokens": settings.max_new_tokens},
        new_tokens=settings.new_tokens,
        rounds=settings.rounds,
        progress=progress,
    )
    shape = {"model": settings.model, "layers": depth(host.model), "dtype": str(host.model.dtype).partition(".")[2]}
    return {
        "host": shape,
        "questions": len(items),
        "costed": len(prompts),
        "rounds": settings.rounds,
        "left_out": left_out,
        "rows": rows(arms, costs, items, answers, asked, second),
        "elsewhere": compare_elsewhere(host, arms, progress) if settings.model == MINI else [],
        "data": subject.data,
    }


def compare_cost(settings: Settings, seed: int, progress: Progress = track) -> dict[str, Any]:
    """The same without answers: a host of full width with random weights."""
    from efficiency import arms as made
    from efficiency import full_size
    from efficiency.costs import measure
    from efficiency.findings import rows

    from tenfold.runs.ranks import choose_device

    device = choose_device(settings.device)
    model = full_size.build(settings.layers or full_size.LAYERS, made.dtype_of(settings.precision), device, seed)
    prompts = [full_size.prompt(model, seed)]
    found = full_size.arms(model, seed)
    length = {"max_new_tokens": settings.new_tokens, "min_new_tokens": settings.new_tokens}
    costs = measure(
        model,
        found.arms,
        prompts,
        options=length,
        new_tokens=settings.new_tokens,
        rounds=settings.rounds,
        progress=progress,
    )
    return {
        "host": full_size.shown(model, prompts),
        "costed": len(prompts),
        "rounds": settings.rounds,
        "left_out": found.left_out,
        "rows": rows(found.arms, costs),
        "data": {},
    }


def depth(model: Any) -> int:
    from efficiency.arms import depth as layers

    return layers(model)


def middle(ratios: tuple[float, ...]) -> float:
    """The ratio at which second questions are asked."""
    return sorted(ratios)[len(ratios) // 2]


def spread_over_kinds(items: Any, count: int) -> list[Any]:
    """So many questions, one of each kind in turn."""
    kinds: dict[str, list[Any]] = {}
    for item in items:
        kinds.setdefault(item.kind, []).append(item)
    found: list[Any] = []
    depth = 0
    while len(found) < min(count, len(items)):
        found += [one[depth] for one in kinds.values() if depth < len(one)]
        depth += 1
    return found[:count]


@app.command(epilog="Example: [bold]python benchmarks/efficiency.py --ratio 0.6 --limit 64[/bold]")
def efficiency(
    model: Annotated[str, typer.Option(help="mini, a folder in transformers' layout, or a hub id.")] = "mini",
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="Of the benchmark's files.")] = None,
    benchmark: Annotated[str | None, typer.Option(metavar="NAME", help="gqa, textvqa, pope, ...")] = None,
    split: Annotated[str | None, typer.Option(help="Of the benchmark.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="FILE|NAME:PERCENT", help="Of FitPrune; one, or one for each ratio.")
    ] = None,
    dyvte: Annotated[str | None, typer.Option(metavar="FOLDER", help="A finished dyvte train.")] = None,
    eas: Annotated[str | None, typer.Option(metavar="FOLDER", help="A finished eas train.")] = None,
    gamma_mod: Annotated[str | None, typer.Option(metavar="FOLDER", help="A finished gamma-mod train.")] = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Share of the visual FLOPs to save; repeat it.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Draws of what draws at random.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many questions.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Pairs of questions about one picture; 0 for none.")] = None,
    costed: Annotated[int | None, typer.Option(help="Prompts whose cost is measured.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Of timing.")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Of a timed answer.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch; for the mini host 1.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="LLaVA-1.5-7B's size; cost alone.")] = False,
    layers: Annotated[int | None, typer.Option(help="Of the random weights' decoder; 0 for all 32.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the random weights: float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of questions, fit and draws.")] = 0,
    output: Annotated[Path, typer.Option(metavar="FILE.json", help="Page and picture go beside it.")] = OUTPUT,
) -> None:
    """Compare what makes a vision-language model cheaper, on one host."""
    from efficiency.host import Settings

    given = dict(locals())
    names = {"recipe": "recipes", "ratio": "ratios"}
    values = {
        names.get(key, key): value for key, value in given.items() if names.get(key, key) in Settings.model_fields
    }
    settings = checked(Settings, {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()})
    if output.suffix != ".json":
        raise UserError("not a json file", output, "FILE.json")
    from efficiency.page import draw, markdown

    from tenfold.runs.provenance import hardware

    work = compare_cost if settings.random_weights else compare
    import torch

    mini = settings.model == MINI and not settings.random_weights
    if chosen := settings.threads or (1 if mini else 0):
        torch.set_num_threads(chosen)
    with run("tenfold", "efficiency", config=settings.model_dump(mode="json"), seed=seed, output=None) as current:
        found = work(settings, seed)
        data = found.pop("data")
        machine = hardware()
        found["machine"] = machine.gpu or f"{machine.cpu}, {machine.threads} threads"
        current.metrics |= found
    record = current.record
    assert record is not None
    record = record.model_copy(update={"data": data})
    picture = output.with_suffix(".png")
    draw(found["rows"], picture)
    command = "python benchmarks/efficiency.py " + shlex.join(sys.argv[1:])
    atomic_write_text(output.with_suffix(".md"), markdown(found, command.strip(), picture.name))
    atomic_write_json(output, record.model_dump(mode="json"))
    typer.echo(markdown(found, command.strip(), None))


if __name__ == "__main__":
    main(app)
