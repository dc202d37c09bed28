"""LaVIN in training: adapters in tower and decoder, projector and modality tokens, from ScienceQA's official files.

The recipe (section 5) is in ``configs/lavin-scienceqa-7b.yaml``: a rate of 9e-3 for 256 samples, by share of an epoch,
two of twenty rising and half a cosine to zero; the loss is of the answers' tokens. Frozen weights are shared by search
and tuning, which both begin with fresh adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eas.adapters import Adapter
from eas.checkpoints.lavin import TOKENIZER, LavinAbout, read_frozen, read_lavin_about, write_adapters
from eas.data.lavin import LavinBatch, LavinSamples, SentencePiece
from eas.lavin import IGNORED, Lavin, Prefixes
from eas.result import SearchResult
from eas.training.plan import lavin_config, plan_of
from eas.training.settings import StageSettings, TrainSettings
from tenfold import UserError
from tenfold.data.formats.scienceqa import read_scienceqa
from tenfold.runs import fingerprint
from tenfold.weights import check_fits

SPLITS, HELD_OUT = ("train",), "val"


class LavinTrainee:
    """LaVIN whose adapters, projector and modality tokens move (`eas.training.stages.Trainee`).

    Args:
        means: what they run over: the "prompt", or "all" positions, padding and answers too, as released.
    """

    def __init__(self, model: Lavin, prefixes: Prefixes, means: str = "all") -> None:
        self.model, self.prefixes, self.means = model, prefixes, means
        self.sites, self.parameters = model.config.layers, dict(model.trained())

    def factor(self, name: str, settings: StageSettings) -> float:
        """One rate for all."""
        return 1.0

    def set_skip(self, skip: tuple[int, ...]) -> None:
        self.model.set_skip(skip)

    def count(self, batch: LavinBatch) -> int:
        """Tokens of the answers."""
        return int((batch.labels != IGNORED).sum())

    def loss(self, batch: LavinBatch) -> Tensor:
        """The sum of the cross entropy over the answers' tokens."""
        model, frozen = self.model, self.model.tok_embeddings.weight
        ids, labels, lengths = (one.to(frozen.device) for one in (batch.ids, batch.labels, batch.lengths))
        images = batch.images.to(frozen.device, model.backbone.visual.class_embedding.dtype)
        sequence, labels = model.insert(ids, images, batch.pictures, self.prefixes, labels)
        hidden = model.run(sequence, model.train_step(sequence, self._prompt(labels, lengths)))
        asked = labels[:, 1:] != IGNORED  # the head runs where an answer is learnt
        return F.cross_entropy(model.output(hidden[:, :-1][asked]).float(), labels[:, 1:][asked], reduction="sum")

    def _prompt(self, labels: Tensor, lengths: Tensor) -> Tensor | None:
        """``[batch, tokens]`` bool, what is in front of the answers; None: all positions."""
        if self.means == "all":
            return None
        there = torch.arange(labels.shape[1], device=labels.device) < lengths[:, None]
        return there & ((labels != IGNORED).cumsum(1) == 0)

    @contextmanager
    def scoring(self, means: str) -> Iterator[None]:
        before, self.means = self.means, means
        try:
            yield
        finally:
            self.means = before

    def close(self) -> None:
        """Nothing: the next stage makes a model of its own on the same frozen weights."""


class LavinHost:
    """The frozen parts of a folder, and ScienceQA (`eas.training.hosts.TrainingHost`)."""

    outcome = "adapters"
    unread = ("data.train", "data.images", "data.pad", "data.false_texts", "adapters.use_global", "adapters.projector",
              "adapters.as_released", "search.cross", "search.head", "tune.cross", "tune.head")  # fmt: skip

    def __init__(self, settings: TrainSettings, seed: int, device: torch.device) -> None:
        self.settings, self.seed, self.device = settings, seed, device
        self.folder = Path(settings.model)
        self.config, about = read_lavin_about(self.folder)
        self.sites, self.format = self.config.layers, settings.prompt_format or about.prompt_format
        self.frozen: dict[str, Tensor] = {}
        plan_of(settings.adapters, self.sites)  # its ranks go together
        if settings.adapters.adapter == 0:
            raise UserError("adapters.adapter=0", "LaVIN", "a rank")

    def read_data(self) -> None:
        """Read ScienceQA's official files."""
        data, search = self.settings.data, self.settings.search
        splits, held_out = data.splits or SPLITS, data.held_out or HELD_OUT
        if data.folder is None:
            raise UserError("no data", "--data", "a folder: eas train --help shows the tree")
        searching = "search" in self.settings.stages
        if searching and held_out in splits:
            told = f"trained on {', '.join(splits)}"
            raise UserError(f"data.held_out {held_out}", told, "a split that is not trained on")
        self.samples = self._samples(splits, self.settings.adapters.means)
        self.held_out = self._samples((held_out,), search.scored) if searching else None
        none, image = self.samples.prefixes
        self.prefixes = Prefixes(image, none)
        files = {"train": "problems.json", "splits": "pid_splits.json"}
        self.prints = {name: fingerprint(Path(data.folder, file)) for name, file in files.items()}
        self.prints["model"] = fingerprint(self.folder)

    def _samples(self, splits: tuple[str, ...], means: str) -> LavinSamples:
        folder = self.settings.data.folder or ""
        return LavinSamples(
            [one for split in splits for one in read_scienceqa(folder, split)],
            SentencePiece(self.folder / TOKENIZER),
            size=self.config.size,
            features=self.config.features,
            prompt_format=self.format,
            max_length=self.settings.data.max_length,
            full=means == "all",
        )

    def trainee(self, skip: tuple[int, ...], *, both: bool) -> LavinTrainee:
        """LaVIN without these attentions, or, for a search, with both modules in every layer."""
        if not self.frozen:  # shared by the stages
            dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
            self.frozen = read_frozen(self.folder, dtype, self.device)
        with torch.device("meta"):
            model = Lavin(lavin_config(self.config, self.settings.adapters, skip), both=both)
        method = {name for name, _ in model.trained()}
        wanted = {name: value for name, value in model.state_dict().items() if name not in method}
        if missing := [name for name in wanted if name not in self.frozen]:  # a folder has no attention that it skips
            expected = "a folder of all attentions: eas convert LLAMA FOLDER --tower CLIP"
            raise UserError(f"no weight {missing[0]}", self.folder, expected)
        there = {name: self.frozen[name] for name in wanted}
        check_fits(wanted, there, self.folder)
        model.load_state_dict(there, strict=False, assign=True)
        begin(model, torch.Generator().manual_seed(self.seed))
        model.to(self.device)
        model.checkpointing = self.settings.gradient_checkpointing
        return LavinTrainee(model, self.prefixes, self.settings.adapters.means)

    def save(self, trainee: Any, target: Path, result: SearchResult | None) -> None:
        """Write what was trained, without the frozen parts."""
        about = LavinAbout(
            self.format,
            host=self.prints["model"],
            data=self.prints["train"],
            search=None if result is None else result.sha256,
        )
        write_adapters(target, trainee.model, about)


def begin(model: Lavin, generator: torch.Generator) -> None:
    """Draw what a tuning starts with, on the CPU: adapters and PIAs as they say, xavier and no bias for the projector.

    The modality tokens are drawn as torch draws an embedding.
    """
    for module in model.modules():
        if isinstance(module, Adapter):
            module.to_empty(device="cpu")
            module.start(generator)
    projector = model.adapter_proj.to_empty(device="cpu")
    for linear in projector.children():
        assert isinstance(linear, nn.Linear)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
    nn.init.normal_(model.adapter_modality_embedding.to_empty(device="cpu").weight, generator=generator)
