"""`gamma-mod claims --train`: mini hosts converted and adapted under seven ways of routing, over three seeds.

The first six of twelve layers are converted: where the mini host still reads its picture, so that it matters which
tokens pass by. (Where the paper would convert, layers 3 to 10, even routing by what a patch shows answered no more than
four points above routing by chance on a development seed: nothing could be told there.) Every seed has a host of that
training seed; all arms of a seed start from it and see the same scenes in the same order. Accuracy is that of the
training-time top-k on held-out scenes. Rules are in `gamma_mod.evidence.findings` and were committed before the record.

Hosts are taken from ``hosts/0, hosts/1, ...`` in the output folder where they have been put there
(`python -m tenfold.data.train_mini_host --seed 1`); a seed without one takes the host that ships.

    learned       one shared router, questions protected, half of the routable tokens skipped
    learned-0.34  the same with a third skipped
    separate      a router of its own for every layer
    unprotected   every token competes
    random        a drawn choice of tokens of the same budget, the same in all layers
    random-redraw the same, drawn anew in every layer
    dense         no conversion, as many steps
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import kept, run_each
from tenfold.runs import atomic_write_json, fingerprint, read_json
from tenfold.runs.finite import require_finite_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gamma_mod.forward_pass import Chooser

SEEDS = (0, 1, 2)
ARMS = ("learned", "learned-0.34", "separate", "unprotected", "random", "random-redraw", "dense")
LAYERS = "first_half"
STEPS, BATCH, RATE, WARMUP = 80, 16, 1e-3, 8
RATIO, NOISE = 0.5, 34
TRAIN_WORLD, TEST_WORLD = 10_000, 20_000  # seeds of the development runs are 100 and up
QUESTIONS = 300
WORKERS = 2
THRESHOLD_SKIPS = (0.1, 0.25, 0.4, 0.55)


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"adapts the mini host {len(ARMS)} ways for {STEPS} steps, with {len(SEEDS)} seeds (about 20 minutes of one "
        "core)",
        conduct,
    )


def conduct(folder: Path) -> list[Finding]:
    """Run every arm and seed that is not in the folder yet, then judge the claims."""
    from gamma_mod.evidence.findings import judge

    work: list[tuple[Callable[..., Any], *tuple[Any, ...]]] = [
        (measure, arm, seed, folder) for seed in SEEDS for arm in ARMS if not kept(folder, arm, seed).exists()
    ]
    work += [(measure_start, seed, folder) for seed in SEEDS if not kept(folder, "start", seed).exists()]
    run_each(work, WORKERS)
    runs = {(arm, seed): read_json(kept(folder, arm, seed)) for arm in (*ARMS, "start") for seed in SEEDS}
    return judge(runs, SEEDS)


def measure(arm: str, seed: int, folder: Path) -> None:
    """Adapt and measure one arm of one seed; kept as ``folder/ARM-SEED.json``."""
    import torch

    from gamma_mod.forward_pass import choosing
    from gamma_mod.report import measure_skips
    from tenfold.data import mini_host

    torch.set_num_threads(1)
    host, processor = mini_host.load(host_of(seed, folder))
    model, chooser = build_arm(host, arm, seed)
    losses = adapt(model, processor, chooser, seed)
    with choosing(chooser) if chooser is not None else nullcontext(), measure_skips() as skips:
        accuracy = accuracy_of(model, processor, TEST_WORLD + seed, QUESTIONS, top_k=arm != "dense")
    found: dict[str, Any] = {"accuracy": accuracy, "loss": losses[-1], "skip": skips.ratio("training")}
    if arm == "learned":
        found["curve"] = threshold_curve(model, processor, seed)
    atomic_write_json(kept(folder, arm, seed), found)


def measure_start(seed: int, folder: Path) -> None:
    """The dense host before any step: skipping empty patches only (oracle), objects first, or at random; its ARank."""
    import torch

    from gamma_mod.conversion import convert
    from gamma_mod.data.scenes import encode, samples
    from gamma_mod.forward_pass import choosing
    from gamma_mod.ranks import arank
    from tenfold.data import mini_host

    torch.set_num_threads(1)
    host, processor = mini_host.load(host_of(seed, folder))
    some = samples(TEST_WORLD + seed, QUESTIONS, 12, NOISE)
    prompts = [
        {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        for batch in (encode(processor, [one], answers=False) for one in some)
    ]
    found: dict[str, Any] = {"host": fingerprint(host_of(seed, folder)), "arank": arank(host, prompts)}
    found["dense"] = accuracy_of(host, processor, TEST_WORLD + seed, QUESTIONS, top_k=False)
    convert(host, LAYERS, RATIO, seed=seed)
    be_certain(host)
    for name, prefer in (("oracle", 1.0), ("anti", -1.0), ("random", 0.0)):
        rule = by_occupancy(prefer, seed)
        with choosing(rule):
            found[name] = accuracy_of(host, processor, TEST_WORLD + seed, QUESTIONS, top_k=True, rule=rule)
    atomic_write_json(kept(folder, "start", seed), found)


def host_of(seed: int, folder: Path) -> Path:
    """The host of a seed: one of that training seed where it was put into the folder, else the one that ships."""
    from tenfold.data import mini_host

    own = folder / "hosts" / str(seed)
    return own if own.is_dir() else mini_host.path()


def build_arm(host: nn.Module, arm: str, seed: int) -> tuple[nn.Module, Chooser | None]:
    """The host of an arm, and the rule that chooses instead of the router."""
    from gamma_mod.conversion import convert

    if arm == "dense":
        return host, None
    ratio = 0.34 if arm == "learned-0.34" else RATIO
    protect = "none" if arm == "unprotected" else "question"
    convert(host, LAYERS, ratio, protect, seed=seed, shared_router=arm != "separate")
    if arm.startswith("random"):
        return host, at_random(seed, redraw=arm.endswith("redraw"))
    return host, None


def at_random(seed: int, *, redraw: bool) -> Chooser:
    """Routing by chance at the same budget: a drawn priority stands in for p; the protected stay protected."""
    import torch

    from gamma_mod.routing import choose_top_k

    state: dict[str, Any] = {"pass": None, "priority": None}
    generator = torch.Generator().manual_seed(seed + 1)

    def choose(_layer: int, keep_prob: Tensor, run: Any) -> tuple[Tensor, tuple[int, ...]]:
        if redraw or state["pass"] is not run:
            state["pass"], state["priority"] = run, torch.rand(keep_prob.shape, generator=generator)
        return choose_top_k(state["priority"], run.protected, run.counts, run.real), run.counts

    return choose


class Occupancy:
    """Routing by what a patch shows: ``prefer`` 1 keeps objects, -1 empty patches, 0 draws; the same in all layers."""

    def __init__(self, prefer: float, seed: int) -> None:
        import torch

        self.prefer, self.generator = prefer, torch.Generator().manual_seed(seed + 2)
        self.occupied: Tensor | None = None
        self._pass: Any = None
        self._priority: Any = None

    def __call__(self, _layer: int, keep_prob: Tensor, run: Any) -> tuple[Tensor, tuple[int, ...]]:
        import torch

        from gamma_mod.routing import choose_top_k

        assert self.occupied is not None
        if self._pass is not run:
            drawn = torch.rand(keep_prob.shape, generator=self.generator)
            self._pass = run
            self._priority = (drawn + 0.0 if not self.prefer else 0.5 * drawn + 0.5 * self._preferred()).clamp(0, 0.999)
        return choose_top_k(self._priority, run.protected, run.counts, run.real), run.counts

    def _preferred(self) -> Tensor:
        assert self.occupied is not None
        return (self.occupied if self.prefer > 0 else ~self.occupied).float()


def by_occupancy(prefer: float, seed: int) -> Occupancy:
    """See `Occupancy`."""
    return Occupancy(prefer, seed)


def be_certain(model: nn.Module) -> None:
    """Give a converted model a router that keeps every token with certainty, so that only the choice differs."""
    import torch

    from gamma_mod.routing import Router
    from tenfold.hosts import structure

    class Certain(Router):
        def forward(self, normed: Tensor, which: int = 0) -> Tensor:
            keep = torch.full(normed.shape[:-1], 40.0, device=normed.device)
            return torch.stack((-keep, keep), -1)

    conversion = structure.unwrap(model).gamma_mod
    conversion.decoder.router = Certain(conversion.hidden)


def adapt(model: nn.Module, processor: Any, chooser: Chooser | None, seed: int, steps: int = STEPS) -> list[float]:
    """Train all parameters on a seed's scenes; the losses."""
    import torch

    from gamma_mod.data.scenes import encode, samples
    from gamma_mod.forward_pass import choosing

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * max(0.0, 1 - step / steps)
    )
    losses = []
    model.train()
    for step in range(steps):
        batch = encode(processor, samples(TRAIN_WORLD + seed, step * BATCH, BATCH, NOISE), answers=True)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "labels")}
        with choosing(chooser) if chooser is not None else nullcontext():
            loss = model(**inputs, use_cache=False).loss
        require_finite_loss(loss, "experiment", step + 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def accuracy_of(
    model: nn.Module, processor: Any, world: int, count: int, *, top_k: bool, rule: Occupancy | None = None
) -> float:
    """Percent of questions whose first answer token is the right one.

    Args:
        top_k: by the training-time budget (the model in training mode; it has no dropout), else as at inference.
        rule: told which patches are occupied.
    """
    import torch

    from gamma_mod.data.scenes import answer_ids, encode, samples

    model.train(top_k)
    right = 0
    for first in range(0, count, 60):
        chosen = samples(world, first, min(60, count - first), NOISE)
        batch = encode(processor, chosen, answers=False)
        if rule is not None:
            rule.occupied = batch["occupied"]
        with torch.no_grad():
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
            logits = model(**inputs, use_cache=False).logits
        predicted = logits[torch.arange(len(chosen)), batch["last"]].argmax(-1)
        right += int((predicted == answer_ids(processor, chosen)).sum())
    model.eval()
    return 100 * right / count


def threshold_curve(model: nn.Module, processor: Any, seed: int) -> list[dict[str, float]]:
    """Accuracy at inference against the realised skip, by calibrated thresholds, and at the released 0.005."""
    from gamma_mod.data.scenes import encode, samples
    from gamma_mod.report import calibrate, measure_skips
    from tenfold.hosts import structure

    model.eval()
    batch = encode(processor, samples(TRAIN_WORLD + seed, 10**6, 32, NOISE), answers=False)
    prompts = [{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}]
    conversion = structure.unwrap(model).gamma_mod
    found = []
    for skip in (None, *THRESHOLD_SKIPS):
        if skip is None:
            conversion.configure(prefill_threshold=0.005)
        else:
            calibrate(model, prompts, skip)
        with measure_skips() as skips:
            accuracy = accuracy_of(model, processor, TEST_WORLD + seed, QUESTIONS, top_k=False)
        threshold = conversion.config.prefill_threshold
        found.append({"threshold": threshold, "skip": skips.prefill or 0.0, "accuracy": accuracy})
    return found
