"""`llava-hr claims --train`: the miniature in six variants and one of them at another size, three seeds each.

    vit          (a) ViT alone at 84 pixels              align        (c) both, final combination only
    convnext     (b) ConvNeXt alone at 192 pixels        mra          (d) both, and three MR-Adapters: LLaVA-HR
    vit_double   (f) ViT alone at 168 pixels,            low_to_high  (e) adapters the other way round
                     four times the visual tokens        mra_96       (d) trained and asked at 96 pixels

Arms of a seed share the start of what they have in common, the data and their order; all are asked the same questions.
They start from the encoders and the language model that ship; the encoders never saw grain. One arm on a development
seed, for those who change the world:

    python -m llava_hr.evidence.arms --output runs/pilot --arm convnext --seed 100

What their answers come to is judged in `findings`, by the rule that claims.yaml states.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from llava_hr.data.mini_questions import COARSE, DEV, FINE, RECORD
from llava_hr.evidence.findings import ARMS, CONVNEXT, CURVE, MRA, MRA_HALF, SEEDS, judge
from tenfold import UserError
from tenfold.cli import Experiments, Finding
from tenfold.cli import main as run_app
from tenfold.ledger.seeds import kept, run_each
from tenfold.runs import atomic_write_json, read_json

if TYPE_CHECKING:
    from llava_hr.evidence.experiments import Data, Plan

WORKERS = 2
PER_KIND = 300
# Expected on two quiet cores; said up front.
MINUTES = 30


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains {len(ARMS)} variants of the miniature with {len(SEEDS)} seeds each and asks each {PER_KIND} questions "
        f"of {len(COARSE) + len(FINE)} kinds: about {MINUTES} minutes on two cores",
        conduct,
    )


def conduct(
    folder: Path,
    plan: Plan | None = None,
    per_kind: int = PER_KIND,
    workers: int = WORKERS,
) -> list[Finding]:
    """Train and measure every variant and seed, then judge the claims.

    Args:
        folder: for what is finished; a killed run goes on from it.
        plan: other steps than the usual ones.
        per_kind: questions of each kind.
        workers: runs at a time, a thread each.
    """
    from llava_hr.evidence.experiments import Plan

    plan = plan or Plan()
    missing = [(arm, seed) for seed in SEEDS for arm in ARMS if not kept(folder, arm, seed).exists()]
    run_each([(measure_run, arm, seed, folder, plan, per_kind) for arm, seed in missing], workers)
    measured = {arm: [read_json(kept(folder, arm, seed)) for seed in SEEDS] for arm in ARMS}
    return judge(measured, step_zero())


def measure_run(arm: str, seed: int, folder: Path, plan: Plan, per_kind: int, world: int = RECORD) -> dict[str, Any]:
    """Train one variant with one seed and measure it on held-out scenes; kept as `folder/<arm>-<seed>.json`."""
    import torch

    from llava_hr.data.mini_questions import held_out
    from llava_hr.evidence import experiments

    torch.set_num_threads(1)
    own = replace(plan, size=plan.size // 2) if arm == MRA_HALF else plan
    losses: list[float] = []
    data = training_data(plan)
    start = time.process_time()
    trained = MRA if arm == MRA_HALF else arm
    model = experiments.train(trained, seed, data, own, lambda _, loss: losses.append(loss))
    seconds = round(time.process_time() - start)
    found = experiments.measure(model, held_out(world, per_kind, grain=own.grain), own.size)
    curves = {"caption_loss": _curve(losses[: own.captions]), "loss": _curve(losses[own.captions :])}
    found = {"arm": arm, "seed": seed, "plan": asdict(own), "cpu_seconds": seconds, **curves, **found}
    atomic_write_json(kept(folder, arm, seed), found)
    return found


def _curve(losses: list[float]) -> list[float]:
    return [round(float(np.mean(losses[at : at + CURVE])), 4) for at in range(0, len(losses), CURVE)]


@lru_cache(maxsize=1)
def training_data(plan: Plan) -> Data:
    """Drawn once a process."""
    from llava_hr.evidence.experiments import Data

    return Data(plan)


def step_zero(seed: int = 0) -> float:
    """Largest difference between (d) and (c) before their training."""
    from llava_hr.data.mini_questions import held_out
    from llava_hr.evidence.experiments import step_zero_difference

    return step_zero_difference(seed, held_out(DEV, 4))


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m llava_hr.evidence.arms --output runs/pilot --arm convnext --seed 100")
def pilot(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For the measurements.")],
    arm: Annotated[str, typer.Option(help=f"One of {', '.join(ARMS)}.")] = CONVNEXT,
    seed: Annotated[int, typer.Option(min=100, help="A development seed: the record uses others.")] = 100,
    grain: Annotated[int | None, typer.Option(min=0, max=127, help="By default the record's.")] = None,
) -> None:
    """Train one arm and ask it about the world DEV; fine questions also in four bands of grain."""
    from llava_hr.data.mini_questions import held_out
    from llava_hr.data.mini_world import scene
    from llava_hr.evidence.experiments import Plan

    if arm not in ARMS:
        raise UserError("unknown arm", arm, ", ".join(ARMS))
    plan = Plan() if grain is None else Plan(grain=grain)
    found = measure_run(arm, seed, output, plan, PER_KIND, DEV)
    for name, kinds in (("fine", FINE), ("coarse", COARSE)):
        told = ", ".join(f"{kind} {100 * found['accuracy'][kind]:.1f}" for kind in kinds)
        typer.echo(f"{name}: {100 * np.mean([found['accuracy'][kind] for kind in kinds]):.1f} % ({told})")
    bands: list[list[int]] = [[], [], [], []]
    asked = held_out(DEV, len(found["right"][FINE[0]]), FINE, plan.grain)
    for one, sign in zip(asked, "".join(found["right"][kind] for kind in FINE), strict=True):
        bands[4 * scene(one.world, one.index, plan.grain).grain // (plan.grain + 1)].append(int(sign))
    shares = ", ".join(f"{100 * np.mean(band):.1f}" if band else "-" for band in bands)
    typer.echo(f"fine by grain, from 0 to {plan.grain} in four bands: {shares}")


if __name__ == "__main__":
    run_app(app)
