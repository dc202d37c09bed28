"""DTNet (section 3): a grid of CNN features into a caption.

model = DTNet.from_pretrained("folder")
model.caption(features)                                  # [Caption(text="a red kite over a beach", ...)]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dtnet.config import DTNetConfig
from dtnet.decoder import Decoder
from dtnet.encoder import Encoded, Encoder, sinusoid
from dtnet.features import build_extractor
from dtnet.router import Paths
from dtnet.vocabulary import Vocabulary
from tenfold import UserError
from tenfold.runs import atomic_directory, atomic_write_json, read_json
from tenfold.runs.finite import require_finite_values
from tenfold.weights import load_into, read_weights

CONFIG, WEIGHTS, VOCABULARY = "config.json", "model.safetensors", "vocabulary.json"


@dataclass(frozen=True)
class Caption:
    """A caption of one image.

    Attributes:
        text: the words, a word that repeats the one before it left out.
        log_prob: sum of the words' log-probabilities, ``<eos>`` included.
        tokens: the ids, up to and without ``<eos>``.
        paths: with `return_paths`, the weights of the cells: `[layers, 3]` and `[layers, 2]`.
    """

    text: str
    log_prob: float
    tokens: tuple[int, ...]
    paths: Paths | None = None


class DTNet(nn.Module):
    """The model.

    Args:
        config: its dimensions.
        seed: of the weights; torch's global generator on the CPU is left as it was.

    Attributes:
        config: as given.
        encoder, decoder: the two halves.
        vocabulary: None, or what `caption` turns ids into words with.
        feature_settings: None, or what `dtnet.features.build_extractor` makes the extractor of, for images.
    """

    def __init__(self, config: DTNetConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.vocabulary: Vocabulary | None = None
        self.feature_settings: dict[str, Any] | None = None
        # Of the last settings, with them: reading a backbone takes seconds.
        self._extractor: tuple[dict[str, Any], Any] | None = None
        with _own_randomness(seed):
            self.encoder = Encoder(config)
            self.decoder = Decoder(config)
            self._initialise()

    def _initialise(self) -> None:
        # Section 3.5: convolutions, both embeddings and the frozen positions too. Released checkpoints hold positions
        # drawn at random, not a sinusoid.
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        if self.config.init == "sinusoid":
            table = sinusoid(torch.arange(self.config.max_len + 1), self.config.d_model)
            table[0] = 0
            with torch.no_grad():
                self.decoder.position_embedding.weight.copy_(table)

    @property
    def device(self) -> torch.device:
        return self.encoder.fc.weight.device

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        override_paths: Paths | None = None,
    ) -> Tensor:
        """Teacher forcing: the log-probabilities of the word after each word.

        Args:
            features: `[batch, n, d_in]` float, row-major grid.
            tokens: `[batch, length]` int64, ``<bos>`` first, padded on the right with ``pad_id``.
            padding: `[batch, n]` bool, True where a feature is no feature; None: all are (as in the official code).
            override_paths: as for `encode`.

        Returns:
            `[batch, length, vocabulary]` float32; uniform where the token is padding.

        Raises:
            UserError: as `encode`; tokens of another batch, or longer than the decoder's positions.
        """
        if tokens.dim() != 2 or len(tokens) != len(features) or tokens.shape[1] > self.config.max_len:
            expected = f"[{len(features)}, at most {self.config.max_len}]"
            raise UserError(f"tokens of shape {list(tokens.shape)}", "DTNet", expected)
        encoded = self.encode(features, padding, override_paths=override_paths)
        return self.decoder(tokens, encoded.memory, encoded.mask)

    def encode(
        self,
        features: Tensor,
        padding: Tensor | None = None,
        *,
        override_paths: Paths | None = None,
        hard: str | float | None = None,
    ) -> Encoded:
        """The encoder alone.

        Args:
            features, padding: as for `forward`.
            override_paths: these weights instead of the routers' (`[batch or 1, layers, cells]`): another image's, the
                mean of the batch, ...
            hard: None: all cells, weighted (the paper). "top1": only the cell with the largest weight. A number: only
                cells with at least that weight, and the largest. A dropped cell is not computed; the kept weights are
                scaled to sum to 1, the others are 0 in `Encoded.paths`. In eval mode.

        Raises:
            UserError: features, padding or paths of another shape; an image that is all padding; another `hard`.
        """
        config = self.config
        if features.dim() != 3 or features.shape[1:] != (config.positions, config.d_in):
            expected = f"[batch, {config.positions}, {config.d_in}]"
            raise UserError(f"features of shape {list(features.shape)}", "DTNet", expected)
        if padding is not None:
            if padding.shape != features.shape[:2] or padding.dtype != torch.bool:
                what = f"padding of shape {list(padding.shape)}, {padding.dtype}"
                raise UserError(what, "DTNet", f"{list(features.shape[:2])}, torch.bool")
            if bool(padding.all(dim=1).any()):
                raise UserError("an image that is all padding", "DTNet", "at least one feature an image")
        if hard is not None and hard != "top1" and not (isinstance(hard, float | int) and 0 < hard <= 1):
            raise UserError(f"hard routing {hard!r}", "DTNet", "top1, or a weight above 0 and up to 1")
        given = None if override_paths is None else self._fitting(override_paths, len(features))
        features = features.to(self.encoder.fc.weight.dtype)
        memory, paths = self.encoder(features, padding, given, hard)
        return Encoded(memory, None if padding is None else ~padding[:, None, None], paths)

    def _fitting(self, paths: Paths, batch: int) -> Paths:
        layers, cells = self.config.encoder_layers, (self.config.spatial_cells, self.config.channel_cells)
        for part, names in zip(paths, cells, strict=True):
            if part.dim() != 3 or part.shape[1:] != (layers, len(names)) or len(part) not in (1, batch):
                expected = f"[{batch} or 1, {layers}, {len(names)}]"
                raise UserError(f"paths of shape {list(part.shape)}", "override_paths", expected)
        return Paths(*(part.to(self.encoder.fc.weight).expand(batch, -1, -1) for part in paths))

    @torch.no_grad()
    def caption(
        self,
        inputs: Tensor | Sequence[Image.Image],
        *,
        beam_size: int = 5,
        max_len: int = 20,
        return_paths: bool = False,
    ) -> list[Caption]:
        """Captions of images, by beam search in eval mode without gradients.

        Args:
            inputs: features `[batch, n, d_in]`, or images.
            beam_size, max_len: of the search.
            return_paths: also the weights of the cells.

        Raises:
            UserError: no vocabulary; images, but no feature extractor; features of another shape; features or
                log-probabilities that are not finite.
        """
        from dtnet.beam import beam_search

        if self.vocabulary is None:
            raise UserError("the model has no vocabulary", "caption", "model.vocabulary = Vocabulary.load(file)")
        features = inputs if isinstance(inputs, Tensor) else self._extracted(inputs)
        require_finite_values(features, "features", "caption")
        with evaluating(self):
            encoded = self.encode(features.to(self.device))
            beams = beam_search(self, encoded, beam_size, max_len, early_stop=True)
        require_finite_values(beams.log_probs[:, 0], "log-probabilities", "caption")
        captions = []
        for number, (row, gained) in enumerate(zip(beams.tokens[:, 0].tolist(), beams.log_probs[:, 0], strict=True)):
            end = row.index(self.config.eos_id) if self.config.eos_id in row else len(row)
            text = self.vocabulary.decode(row)
            paths = Paths(*(part[number].float().cpu() for part in encoded.paths)) if return_paths else None
            captions.append(Caption(text, float(gained.sum()), tuple(row[:end]), paths))
        return captions

    def _extracted(self, images: Sequence[Image.Image]) -> Tensor:
        if self.feature_settings is None:
            expected = "features, or a model whose config.json names its feature extractor"
            raise UserError("images, but no feature extractor", "caption", expected)
        settings = self.feature_settings
        if self._extractor is None or self._extractor[0] != settings:
            self._extractor = (dict(settings), build_extractor(settings))
        return self._extractor[1](images)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> DTNet:
        """Read what `save_pretrained` wrote, in eval mode.

        Raises:
            UserError: no such folder (hub ids are not looked up), a broken file, weights or words that do not fit.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError("no such folder", folder, f"a folder with {CONFIG} and {WEIGHTS}")
        values = read_json(folder / CONFIG)
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise UserError("no dimensions of a DTNet", folder / CONFIG, '{"model": {...}, "features": ...}')
        model = cls(DTNetConfig.from_json(values["model"], folder / CONFIG))
        load_into(model, read_weights(folder / WEIGHTS), folder / WEIGHTS)
        model.feature_settings = values.get("features")
        if (folder / VOCABULARY).is_file():
            model.vocabulary = Vocabulary.load(folder / VOCABULARY)
            model._check_vocabulary(folder / VOCABULARY)
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path, *, replace: bool = False) -> None:
        """Write config.json, model.safetensors and, where there is one, vocabulary.json: whole or not at all.

        Args:
            folder: of the model.
            replace: an existing folder, and all that is in it.

        Raises:
            UserError: the folder exists (and `replace` is false) or cannot be written; a vocabulary of another size.
        """
        self._check_vocabulary("save_pretrained")
        with atomic_directory(folder, replace=replace) as target:
            atomic_write_json(target / CONFIG, {"model": self.config.to_json(), "features": self.feature_settings})
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
            save_file(state, target / WEIGHTS, metadata={"format": "pt"})
            if self.vocabulary is not None:
                self.vocabulary.save(target / VOCABULARY)

    def _check_vocabulary(self, where: str | Path) -> None:
        if self.vocabulary is not None and len(self.vocabulary) != self.config.vocabulary_size:
            expected = f"{self.config.vocabulary_size}, as the model has"
            raise UserError(f"a vocabulary of {len(self.vocabulary)} words", where, expected)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the accelerators as well.
        torch.default_generator.manual_seed(seed)
        yield
