"""EAS on the task that its adapters were tuned for, and methods on the two models that are cheap by design, each on the
miniature that ships with that paper's package.

There FitPrune has a recipe fitted for it, gamma-MoD a router that nobody trained, DyVTE an exit set by hand: they go
together, and this is what it costs; what training would make of it is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from efficiency.arms import Arm
from efficiency.costs import count
from tenfold.cli.settings import HostSettings
from tenfold.hosts.answers import Prompt, encode_batch, generate
from tenfold.hosts.loading import Host
from tenfold.runs.progress import Progress

QUESTIONS, CALIBRATION, WORLD = 24, 8, 5_000_000
OWN_QUESTIONS = 96
RATIO, SKIP = 0.4, 0.3


@dataclass(frozen=True)
class Asked:
    """A question, as the model reads it, and its one-word answer."""

    prompt: Prompt
    answer: str


@dataclass(frozen=True)
class Elsewhere:
    """A host with its questions, and the methods on it: label -> (what attaches it, knobs)."""

    name: str
    model: Any
    processor: Any
    asked: Sequence[Asked]
    methods: Mapping[str, tuple[Callable[[Any], AbstractContextManager[Any]], str]]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The host by itself, then every method: right answers, and shares of its cost on one prompt."""
        arms = {"": (lambda model: nullcontext(), ""), **self.methods}
        whole: tuple[int, int, int] | None = None
        inputs = self._encode(self.asked[:1])
        for label, (attach, knobs) in arms.items():
            arm = Arm(label, "", "both", attach)
            with arm.on(self.model) as model:
                said = [one.text for batch in self._batches() for one in self._answer(model, batch)]
            cost = count(self.model, arm, inputs, {"max_new_tokens": 4})
            whole = whole or cost
            right = sum(text == one.answer for text, one in zip(said, self.asked, strict=True)) / len(self.asked)
            yield {
                "host": self.name,
                "method": label,
                "knobs": knobs,
                "questions": len(self.asked),
                "accuracy": right,
                "flops_share": cost[0] / whole[0],
                "kv_share": cost[1] / whole[1],
            }

    def _batches(self) -> Iterator[Sequence[Asked]]:
        for start in range(0, len(self.asked), 8):
            yield self.asked[start : start + 8]

    def _answer(self, model: Any, batch: Sequence[Asked]) -> Any:
        prompts = [one.prompt for one in batch]
        return generate(model, self.processor, prompts, max_new_tokens=4, inputs=self._encode(batch))

    def _encode(self, batch: Sequence[Asked]) -> dict[str, Tensor]:
        return encode_batch(self.processor, self.model, [one.prompt for one in batch])


def compare_elsewhere(host: Host, arms: Sequence[Arm], progress: Progress) -> list[dict[str, Any]]:
    """Rows of all three.

    Args:
        host: the mini host. arms: on it; EAS's is asked its own task.
    """
    found = []
    for make in progress((lambda: _own_task(host, arms), _llava_hr, _flashsloth), "other hosts"):
        found += list(make().rows())
    return found


def _own_task(host: Host, arms: Sequence[Arm]) -> Elsewhere:
    from eas.miniature import task
    from tenfold.data import mini_host

    asked = [
        Asked(Prompt(mini_host.prompt(text), (image,)), answer)
        for image, text, answer in task.questions(task.DEMO_WORLD + 1, OWN_QUESTIONS)
    ]
    methods = {f"EAS, {arm.point}": (arm.attach, arm.knobs) for arm in arms if arm.method == "EAS"}
    return Elsewhere("the mini host on EAS's own task", host.model, host.processor, asked, methods)


def _llava_hr() -> Elsewhere:
    from fitprune.evaluation.baselines import FitPrune
    from fitprune.fitting import fit
    from llava_hr.data.mini_questions import KINDS, held_out
    from llava_hr.data.mini_world import render, scene
    from llava_hr.evaluation.model import open_host
    from tenfold.data.formats.prompts import short_answer

    host = open_host(HostSettings())
    asked = []
    for one in held_out(WORLD, (QUESTIONS + CALIBRATION) // len(KINDS)):
        picture = render(scene(one.world, one.index))
        asked.append(_asked(host.processor, picture, short_answer(one.question.text), one.question.answer))
    every = len(asked) // CALIBRATION  # one of each kind is fitted on, the others are asked
    held = asked[::every]
    shown = [one for number, one in enumerate(asked) if number % every]
    prompts = [encode_batch(host.processor, host.model, [one.prompt]) for one in held]
    recipe = fit(host.model, host.processor, prompts, RATIO)
    methods = {
        "FitPrune": (FitPrune(recipe), f"recipe {list(recipe.remove)}, fitted for {RATIO:.0%}"),
        "γ-MoD": (_converted(host.model, prompts), f"layer 1 of 3, untrained router, skips {SKIP:.0%} of its tokens"),
    }
    return Elsewhere("LLaVA-HR's miniature", host.model, host.processor, shown, methods)


def _converted(model: Any, prompts: Sequence[Mapping[str, Tensor]]) -> Callable[[Any], AbstractContextManager[Any]]:
    import gamma_mod

    @contextmanager
    def attach(host: Any) -> Iterator[None]:
        gamma_mod.convert(host, (1,), decode_skip=False)
        try:
            gamma_mod.calibrate(host, prompts, SKIP)
            yield
        finally:
            host.gamma_mod.remove()

    return attach


def _flashsloth() -> Elsewhere:
    import dyvte
    from flashsloth.data import mini_world
    from flashsloth.evaluation.model import open_host

    host = open_host(HostSettings())
    asked = []
    for index in range(QUESTIONS):
        shown = mini_world.draw(WORLD, index)
        one = mini_world.question(shown, "shape", 0)
        asked.append(_asked(host.processor, mini_world.render(shown), one.text, one.answer))
    methods = {
        "DyVTE, no image in the decoder": (dyvte.VisualExit(exit_at=-1), "by hand, no gates; EmbQ still looks"),
        "DyVTE, exit after layer 1": (dyvte.VisualExit(exit_at=1), "by hand, no gates"),
    }
    return Elsewhere("FlashSloth's miniature", host.model, host.processor, asked, methods)


def _asked(processor: Any, image: Image.Image, text: str, answer: str) -> Asked:
    return Asked(Prompt(processor.prompt(text), (image.convert("RGB"),)), answer)
