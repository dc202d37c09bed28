"""`e3-facenet train`: the paper's adversarial training, resumable bit for bit.

    run_train(load_config(TrainSettings, "mini"), seed=0, output=Path("runs/mini"))

The folder holds `model/` in the end, which `E3FaceNet.from_pretrained` opens; the discriminator lies beside it, for
going on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e3_facenet.checkpoints.load import start_weights
from e3_facenet.data.captioned import Pictures, open_split
from e3_facenet.data.mini_world import write_mini_world
from e3_facenet.discriminator import Discriminator
from e3_facenet.facenet import E3FaceNet, save_state
from e3_facenet.generator import Generator
from e3_facenet.miniature.model import train_clip
from e3_facenet.text import TextEncoder, load_text_encoder
from e3_facenet.training.settings import TrainSettings
from e3_facenet.training.stages import Players
from tenfold import UserError
from tenfold.pickled import load_pickled
from tenfold.runs import Run, last_complete_checkpoint, run, sample_rng, track, write_checkpoint
from tenfold.runs.context import require_unfinished
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.resumption import identity, require_same, threads
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

STATE, DISCRIMINATOR = "state.pt", "discriminator.safetensors"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "log_steps", "wandb", "data.folder", "data.in_memory")


@dataclass(frozen=True)
class Trained:
    """A finished training: the model's folder, the record's metrics, the iteration that this call went on from."""

    model: Path
    metrics: dict[str, Any]
    resumed: int


def build_networks(settings: TrainSettings, seed: int) -> tuple[Generator, Discriminator, Generator]:
    """Generator, discriminator and average, drawn by the seed without moving torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sample_rng(seed, 0, 1).integers(2**31)))
        generator = Generator(settings.generator_config())
        discriminator = Discriminator(settings.discriminator_config())
        average = Generator(settings.generator_config())
    average.load_state_dict(generator.state_dict())
    return generator, discriminator, average


def run_train(settings: TrainSettings, seed: int, output: Path, resume: bool = False) -> Trained:
    """Train, or go on training, into a folder; under `torchrun` every rank calls this.

    Args:
        settings: of the training. seed: of everything random in it.
        output: for checkpoints, metrics, record and model; all ranks must see the same one.
        resume: go on from the last complete checkpoint in `output`; from nothing where there is none.

    Raises:
        UserError: the folder holds a finished run, or checkpoints without `resume`; a checkpoint of other settings;
            data or weights that are missing or do not fit; a loss that is not finite; no CUDA where it is asked for.
    """
    require_unfinished(output)
    if not resume and last_complete_checkpoint(output) is not None:
        raise UserError("holds checkpoints of an earlier run", output, "--resume, or a new folder")
    device = choose_device(settings.device)
    with threads(settings.threads), ranks(device) as group:
        folder = Path(group.from_lead(lambda: str(_data(settings, output))))
        split = open_split(settings.data, folder, "train")
        prints = {"captions": split.fingerprint()}
        options: dict[str, Any] = {"output": None, "data": {}}
        if group.leads:
            options = {"output": output, "data": prints, "wandb_project": settings.wandb}
        with run("e3_facenet", "train", config=settings.model_dump(mode="json"), seed=seed, **options) as current:
            training = Training(
                settings,
                seed,
                output,
                Pictures(split, settings.generator_config().resolution, settings.data.in_memory),
                prints,
                group,
                current,
            )
            resumed = training.resume() if resume else 0
            training.run()
            current.metrics |= training.last | {"iterations": settings.iterations}
            if group.leads:
                training.save_model(current.file("model"))
    return Trained(output / "model", current.metrics, resumed)


def _data(settings: TrainSettings, output: Path) -> Path:
    """The data set's folder; the mini world is drawn where none is named."""
    if settings.data.folder is not None:
        return Path(settings.data.folder)
    mini = settings.data.mini
    if mini is None:
        raise UserError("no data", "data.folder", "--data FOLDER")
    folder = output / "data"
    if not (folder / "dataset.json").is_file():
        resolution = settings.generator_config().resolution
        write_mini_world(folder, mini.seed, mini.train, mini.test, resolution, mini.captions)
    return folder


class Training:
    """A training in progress.

    Args:
        settings, seed, output: as for `run_train`. pictures: of the train split. fingerprints: of its files.
        group: this process among its peers. current: where metrics are logged.
    """

    def __init__(
        self,
        settings: TrainSettings,
        seed: int,
        output: Path,
        pictures: Pictures,
        fingerprints: Mapping[str, str],
        group: Ranks,
        current: Run,
    ) -> None:
        self.settings, self.output, self.group, self.current = settings, output, group, current
        self.identity = identity(settings.model_dump(mode="json"), seed, group.world, fingerprints, FREE)
        generator, discriminator, average = build_networks(settings, seed)
        if settings.start is not None:
            started = start_weights(settings.start, generator, discriminator)
            average.load_state_dict(generator.state_dict())
            if group.leads:
                new = f": {', '.join(started.new)}" if started.new else ""
                logger.info("start: %d tensors copied, %d new%s", len(started.copied), len(started.new), new)
        if float(generator.alpha) not in (1.0, -1.0):
            raise UserError(f"progressive state {float(generator.alpha)}", settings.start, "weights of full resolution")
        generator.alpha.fill_(1.0)  # as the official recipe: no progressive growing happens
        average.alpha.fill_(1.0)
        self.encoder = self._encoder(seed)
        self.players = Players(
            settings, seed, generator, discriminator, average, self.encoder, pictures, group.device, group.rank,
            group.world,
        )  # fmt: skip
        self.done, self.last = 0, dict[str, float]()

    def _encoder(self, seed: int) -> TextEncoder:
        # Every rank trains the same mini CLIP.
        name = self.settings.clip
        encoder = train_clip(seed) if name == "mini" else load_text_encoder(name)
        config = self.settings.generator_config()
        widths = (encoder.clip.config.projection_dim, encoder.clip.config.text_config.hidden_size)
        if widths != (config.t_dim, config.token_dim):
            raise UserError(f"a CLIP of widths {widths}", self.settings.clip, f"{(config.t_dim, config.token_dim)}")
        return encoder

    def run(self) -> None:
        """All iterations from where the training stands."""
        steps = range(self.done, self.settings.iterations)
        for iteration in track(steps, "iterations") if self.group.leads else steps:
            self.last = self.players.iterate(iteration)
            self.done = iteration + 1
            if self.done % self.settings.log_steps == 0:
                self.current.log(self.done, **self.last)
            if self.done % self.settings.checkpoint_steps == 0 or self.done == self.settings.iterations:
                self._save()

    def _save(self) -> None:
        state = {"players": self.players.state(), "done": self.done, "last": self.last, "identity": self.identity}
        if self.group.leads:
            write_checkpoint(self.output, self.done, lambda folder: torch.save(state, folder / STATE))
        self.group.meet()

    def resume(self) -> int:
        """Take up the last complete checkpoint; returns its iteration, 0 where there is none.

        Raises:
            UserError: it was made with other settings, seed, ranks or data, or cannot be read.
        """
        checkpoint = last_complete_checkpoint(self.output)
        if checkpoint is None:
            return 0
        state = load_pickled(checkpoint / STATE, "a checkpoint")
        require_same(self.identity, state["identity"], checkpoint)
        self.players.load_state(state["players"])
        self.done, self.last = state["done"], state["last"]
        if self.group.leads:
            logger.info("going on after iteration %d of %d", self.done, self.settings.iterations)
        return self.done

    def save_model(self, folder: Path) -> None:
        """The averaged generator as `E3FaceNet.from_pretrained` reads it, and the discriminator beside it."""
        name = None if self.settings.clip == "mini" else self.settings.clip
        config = self.settings.discriminator_config().to_json()
        card = f"Trained for {self.done} iterations of {self.settings.batch} pictures (run {self.current.id})."
        require_finite(self.players.average.state_dict(), "the trained weights")
        E3FaceNet(self.players.average, self.encoder, name).write(folder, card, {"discriminator": config})
        save_state(self.players.discriminator.state_dict(), folder / DISCRIMINATOR)
