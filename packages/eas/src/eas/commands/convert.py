"""`eas convert`: its options; the work is imported when it is asked for."""

# Annotations are not deferred: typer evaluates them.

import zipfile
from pathlib import Path
from typing import Annotated

import typer

from tenfold import UserError
from tenfold.cli.output import echo

EPILOG = (
    "Examples: [bold]eas convert llava-eas-scienceqa adapters[/bold] · [bold]eas convert adapters release "
    "--to official --base vicuna-7b[/bold] · [bold]eas convert meter.ckpt runs/meter-vqa --task vqa --skip meter-vqa-10"
    " --as-released --tokenizer roberta-base --answers data/vqav2[/bold] · [bold]eas convert --check meter_vqa[/bold]"
)
LLAVA = ("vicuna_7b_sqa", "llava15_7b_aid_slake")
METER = ("meter_vqa", "meter_nlvr2", "meter_irtr")
LAVIN = ("lavin_7b", "lavin_13b")


def convert(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="SRC", help="An official checkpoint, a folder of ours, or (LaVIN, to train) LLaMA's."),
    ] = None,
    target: Annotated[Path | None, typer.Argument(metavar="DST", help="A new folder.")] = None,
    host: Annotated[str | None, typer.Option(help="llava, meter or lavin, where the file does not tell.")] = None,
    to: Annotated[str, typer.Option(help="ours or official.")] = "ours",
    base: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Frozen language model: LaVIN's LLaMA, or for --to official.")
    ] = None,
    tower: Annotated[Path | None, typer.Option(metavar="FOLDER", help="LaVIN: CLIP ViT-L/14.")] = None,
    task: Annotated[str | None, typer.Option(help="METER: vqa, nlvr2 or irtr (retrieval).")] = None,
    size: Annotated[int | None, typer.Option(help="METER: edge of the pictures; default 384, NLVR2 288.")] = None,
    skip: Annotated[
        str | None,
        typer.Option(help="METER, LaVIN: sites (13,8,17), a search.json, or a list of the authors (meter-vqa-10)."),
    ] = None,
    as_released: Annotated[
        bool,
        typer.Option("--as-released", help="METER: sites 18-23 by the authors' map, which never skips image cross."),
    ] = False,
    folded: Annotated[
        bool, typer.Option("--folded", help="METER: put the adapters into the matrices for good.")
    ] = False,
    tokenizer: Annotated[Path | None, typer.Option(metavar="FOLDER", help="METER: RoBERTa's.")] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FOLDER|FILE", help="METER: VQAv2's annotations, or a json of 3,129 answers.")
    ] = None,
    check: Annotated[
        str | None, typer.Option(metavar="HOST", help=f"Compare full-size names: {', '.join(LLAVA + METER + LAVIN)}.")
    ] = None,
) -> None:
    """Take what a tuning made out of an official checkpoint, or (LLaVA) put it back, bit for bit."""
    if check is not None:
        _check(check)
        return
    if source is None or target is None:
        raise UserError("nothing to convert", expected="eas convert SRC DST")
    if to not in ("ours", "official"):
        raise UserError("unknown format", f"--to {to}", "ours or official")
    if host not in (None, "llava", "meter", "lavin"):
        raise UserError("unknown host", f"--host {host}", "llava, meter or lavin")
    if host == "lavin" or (host is None and tower is not None and (source.suffix == ".pth" or source.is_dir())):
        _lavin(source, target, base, tower, skip)
        return
    if host == "meter" or (host is None and source.suffix == ".ckpt" and zipfile.is_zipfile(source)):
        if to == "official":
            raise UserError("--to official", "METER", "nothing: its weights keep the official names")
        _meter(source, target, task, size, skip, as_released, folded, tokenizer, answers)
        return
    if task or size or skip or as_released or folded or tokenizer or answers or tower:
        raise UserError("options of METER or LaVIN", source, "a checkpoint of theirs, or --host meter or lavin")

    from eas.checkpoints.convert import convert as work

    made = work(source, target, to=to, base=base)
    echo(
        f"wrote {made.output}: skips {list(made.plan.skip)} of {made.plan.layers}; {made.modules:,} parameters of "
        f"adapters and PIAs, {made.projector:,} of the projector; {made.frozen:,} are the host's"
    )


def _meter(
    source: Path,
    target: Path,
    task: str | None,
    size: int | None,
    skip: str | None,
    as_released: bool,
    folded: bool,
    tokenizer: Path | None,
    answers: Path | None,
) -> None:
    from eas.checkpoints.meter import TRAINED_ON, convert_meter
    from eas.data.meter import read_answers
    from eas.meter import MeterConfig

    if task not in TRAINED_ON:
        raise UserError(f"task {task}", "METER", "--task vqa, nlvr2 or irtr: a checkpoint does not say it")
    sites, search = _sites(skip)
    texts = None if answers is None else read_answers(answers)
    sizes = {"vqa": (384, 50), "nlvr2": (288, 50), "irtr": (384, 40)}[task]
    config = MeterConfig(
        task=task,  # type: ignore[arg-type]
        size=size or sizes[0],
        max_text=sizes[1],
        answers=3129 if texts is None else len(texts),
        skip=sites,
        as_released=as_released,
    )
    made = convert_meter(source, target, config, tokenizer=tokenizer, answers=texts, search=search, folded=folded)
    left = ", ".join(f"{count} of {kind}" for kind, count in (made.about.left_out or {}).items()) or "nothing"
    echo(f"wrote {made.output}: {made.parameters:,} parameters, {made.about.source}; skips {made.config.skip}")
    echo(f"left out: {left}; classes not read: {', '.join(made.about.skipped) or 'none'}")


def _sites(skip: str | None) -> tuple[tuple[int, ...], str | None]:
    """A skip list from numbers, a name of the authors or a search's file, and that file's hash."""
    from eas.plan import released
    from eas.result import SearchResult

    if skip is None:
        return (), None
    if Path(skip).is_file():
        found = SearchResult.load(skip)
        return found.skip, found.sha256
    return (tuple(map(int, skip.split(","))) if skip.replace(",", "").isdigit() else released(skip)), None


def _lavin(source: Path, target: Path, base: Path | None, tower: Path | None, skip: str | None) -> None:
    from eas.checkpoints.lavin import convert_lavin

    if source.is_dir() and (base or skip):
        raise UserError("--base or --skip", source, "a checkpoint in front of them: a LLaMA is taken as it is")
    base = source if source.is_dir() else base
    if base is None or tower is None:
        raise UserError("frozen parts are missing", source, "--base LLAMA and --tower CLIP")
    checkpoint = None if source.is_dir() else source
    made = convert_lavin(checkpoint, target, base=base, tower=tower, skip=_sites(skip)[0])
    echo(f"wrote {made.output}: skips {list(made.config.skip)} of {made.config.layers}; {made.trained:,} parameters of")
    echo(f"the method, {made.frozen:,} frozen ones; classes not read: {', '.join(made.skipped) or 'none'}")


def _check(host: str) -> None:
    from tenfold.ledger.goldens import goldens
    from tenfold.runs import read_json

    folder = goldens("eas")
    if folder is None:
        raise UserError("the official list of weights does not travel in a wheel", expected="the source tree")
    if host not in LLAVA + METER + LAVIN:
        raise UserError("no such host", f"--check {host}", ", ".join(LLAVA + METER + LAVIN))
    golden = read_json(folder / "official_keys.json")
    if host in METER:
        from eas.checkpoints.meter import key_report as meter_report

        count, parameters, wrong = meter_report(host, golden)
    elif host in LAVIN:
        from eas.checkpoints.lavin import key_report as lavin_report

        count, parameters, wrong = lavin_report(host, golden)
    else:
        from eas.checkpoints.convert import key_report

        report = key_report(host, golden)
        count, parameters, wrong = report.count, report.parameters, report.wrong
    for line in wrong:
        echo(line)
    verdict = f"{len(wrong)} differ" if wrong else "all agree by name and shape"
    echo(f"{host}: {count:,} weights, {parameters:,} parameters: {verdict}")
    if wrong:
        raise typer.Exit(1)
