"""What an iteration is made of: micro-batches drawn by seed, phases in order, gradients of all ranks, the average.

Every micro-batch of every phase has a generator of its own, seeded by (seed, iteration, phase, number). A resumed
training therefore draws the same numbers, and so do two ranks that share the micro-batches of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from e3_facenet.camera import gaussian_poses
from e3_facenet.data.captioned import Pictures
from e3_facenet.discriminator import Discriminator
from e3_facenet.generator import Generator
from e3_facenet.nerf import Random
from e3_facenet.text import Text, TextEncoder
from e3_facenet.training.phases import DREG_EVERY, GREG_EVERY, Faces, Phase, Step
from e3_facenet.training.settings import TrainSettings
from tenfold import UserError
from tenfold.runs import sample_generator, sample_rng

PHASES = ("Gmain", "Greg", "Dmain", "Dreg")


class Players:
    """Both networks, the average, their optimisers, and one iteration of training.

    Args:
        rank, world: this process among its peers; all hold the same weights.
    """

    def __init__(
        self,
        settings: TrainSettings,
        seed: int,
        generator: Generator,
        discriminator: Discriminator,
        average: Generator,
        encoder: TextEncoder,
        pictures: Pictures,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.settings, self.seed, self.device, self.rank, self.world = settings, seed, device, rank, world
        self.generator = generator.to(device).train()
        self.discriminator = discriminator.to(device).train()
        self.average = average.to(device).eval().requires_grad_(False)
        self.encoder, self.pictures = encoder.to(device), pictures
        loss = settings.loss
        self.step = Step(
            self.generator, self.discriminator, self.encoder if loss.contrast and loss.text else None,
            loss.regulariser, clip_rescale=loss.contrast_rescale,
            conditional=loss.offset != "none" and loss.text, r1_gamma=loss.r1,
            clip_weight=loss.contrast,
        )  # fmt: skip
        (g_rate, g_betas), (d_rate, d_betas) = settings.generator_adam(), settings.discriminator_adam()
        self.optimizers = {
            "G": torch.optim.Adam(self.generator.parameters(), g_rate, g_betas, eps=1e-8),
            "D": torch.optim.Adam(self.discriminator.parameters(), d_rate, d_betas, eps=1e-8),
        }
        self.micros = settings.batch // settings.micro
        if self.micros < world:
            raise UserError(f"{self.micros} micro-batches for {world} ranks", "batch", "at least one a rank")

    def iterate(self, iteration: int) -> dict[str, float]:
        """All phases of an iteration that are due; returns their mean terms.

        Raises:
            UserError: a loss that is not finite (names phase and iteration).
        """
        logged: dict[str, float] = {}
        for number, phase in enumerate(PHASES):
            if not self._due(phase, iteration):
                continue
            player = "G" if phase.startswith("G") else "D"
            model: nn.Module = self.generator if player == "G" else self.discriminator
            other: nn.Module = self.discriminator if player == "G" else self.generator
            other.requires_grad_(False)
            model.requires_grad_(True)
            self.optimizers[player].zero_grad(set_to_none=True)
            sums: dict[str, Tensor] = {}
            for micro in range(self.rank, self.micros, self.world):
                found = self._phase(phase, iteration, number, micro)
                # Adam does not see the scale of a loss: the mean over micro-batches stands for the reference's sum.
                (found.loss / self.micros).backward()
                for name, value in {"loss": found.loss, **found.parts}.items():
                    name = f"{phase}.{name}"
                    sums[name] = sums.get(name, torch.zeros([])) + value.detach().mean().cpu() / self.micros
            self._gather(model, sums)
            logged |= self._finite(sums, phase, iteration)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(nan=0.0, posinf=1e5, neginf=-1e5)
            self.optimizers[player].step()
            model.requires_grad_(False)
        self._follow()
        return logged

    def _due(self, phase: str, iteration: int) -> bool:
        if phase == "Greg":
            return self.settings.loss.path_length and iteration % GREG_EVERY == 0
        return phase != "Dreg" or (self.settings.loss.r1 > 0 and iteration % DREG_EVERY == 0)

    def _phase(self, phase: str, iteration: int, number: int, micro: int) -> Phase:
        draw = sample_generator(self.seed, iteration * len(PHASES) + number, micro)
        self.step.draws = Random(draw, self.device)
        count = self.settings.micro
        if phase == "Gmain":
            return self.step.generator_main(self._faces(draw, count))
        if phase == "Greg":
            return self.step.generator_path_length(self._faces(draw, max(count // 2, 1)))
        images, text = self._real(iteration, micro, count)
        if phase == "Dmain":
            return self.step.discriminator_main(self._faces(draw, count), images, text)
        return self.step.discriminator_r1(images, text)

    def _faces(self, draw: torch.Generator, count: int) -> Faces:
        """A batch to generate: noise, random captions of the split, cameras around the front."""
        c, split = self.generator.config, self.pictures.split
        rows = torch.randint(len(split), (count,), generator=draw).tolist()
        text = self._text([split.captions[row] for row in rows])
        if self.settings.loss.offset == "shuffled":  # a control: the enhancer reads somebody else's caption
            others = torch.randint(len(split), (count,), generator=draw).tolist()
            text = Text(text.t, self.encoder([split.captions[row] for row in others]).tokens)
        z, z_bg = torch.randn(count, c.z_dim, generator=draw), torch.randn(count, c.bg_dim, generator=draw)
        pose = gaussian_poses(torch.randn(count, 2, generator=draw), c)
        mixing = None
        if torch.rand([], generator=draw).item() < self.settings.loss.mixing:
            second = torch.randn(count, c.z_dim, generator=draw)
            cutoff = int(torch.randint(1, c.num_ws, [], generator=draw))
            mixing = (second.to(self.device), cutoff)
        return Faces(z.to(self.device), text, pose.to(self.device), z_bg.to(self.device), mixing)

    def _real(self, iteration: int, micro: int, count: int) -> tuple[Tensor, Text]:
        """Real pictures and their captions: every pair (and its mirror image) once an epoch, shuffled anew."""
        split, flip = self.pictures.split, self.settings.data.flip
        total = len(split) * (2 if flip else 1)
        first = iteration * self.settings.batch + micro * count
        chosen = []
        for place in range(first, first + count):
            epoch, offset = divmod(place, total)
            chosen.append(int(self._order(epoch, total)[offset]))
        rows = [number % len(split) for number in chosen]
        images = self.pictures.batch(rows, [number >= len(split) for number in chosen])
        return images.to(self.device), self._text([split.captions[row] for row in rows])

    def _text(self, captions: Sequence[str]) -> Text:
        """Encoded captions; nothing at all where the training has no text."""
        text = self.encoder(captions)
        return text if self.settings.loss.text else Text(torch.zeros_like(text.t), torch.zeros_like(text.tokens))

    def _order(self, epoch: int, total: int) -> Any:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._shuffled = epoch, sample_rng(self.seed, 2**40 + epoch, 0).permutation(total)
        return self._shuffled

    def _gather(self, model: nn.Module, sums: dict[str, Tensor]) -> None:
        """Sum gradients and logged terms over the ranks; average the buffers that follow the passes."""
        if self.world == 1:
            return
        reduce(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
        reduce(sums.values())
        statistics = [buffer for buffer in self.generator.buffers() if buffer.is_floating_point()]
        mean = self.step.path_length_mean = self.step.path_length_mean.clone()
        for value in (*statistics, mean):
            value /= self.world
        reduce((*statistics, mean))

    def _finite(self, sums: dict[str, Tensor], phase: str, iteration: int) -> dict[str, float]:
        values = {name: float(value) for name, value in sums.items()}
        if not all(torch.tensor(list(values.values())).isfinite().tolist()):
            wrong = next(name for name, value in values.items() if not torch.tensor(value).isfinite())
            raise UserError(f"{wrong} is {values[wrong]}", f"{phase}, iteration {iteration}", "a lower rate or r1")
        return values

    def _follow(self) -> None:
        """The averaged generator takes a step towards the trained one; buffers are copied."""
        decay = self.settings.ema_decay()
        with torch.no_grad():
            for ours, theirs in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                ours.copy_(theirs.lerp(ours, decay))
            for buffer, newer in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                buffer.copy_(newer)

    def state(self) -> dict[str, Any]:
        """Everything that the next iteration depends on."""
        return {
            "generator": self.generator.state_dict(), "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(), "path_length_mean": self.step.path_length_mean,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.average.load_state_dict(state["average"])
        self.step.path_length_mean = state["path_length_mean"]
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


def reduce(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over the ranks, in place."""
    for tensor in tensors:
        distributed.all_reduce(tensor)
