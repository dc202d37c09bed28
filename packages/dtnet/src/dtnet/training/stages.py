"""The two stages of the training (section 5 of the sheet).

    xe    mean negative log-likelihood of the next word of a caption; a batch is 50 (image, caption) pairs
    scst  self-critical: 5 beams of each of 20 images, rewarded by CIDEr-D; the baseline is the mean of an image's beams

Batch b of epoch e is a function of (seed, stage, e, b): its images, its augmentation, the dropout in it. No state of a
random generator is carried from step to step, so a killed training goes on bit for bit, and ranks can share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dtnet.beam import beam_search
from dtnet.data.caption_data import CaptionData, SwappedFeatures
from dtnet.data.datasets import ImageDataset, Images, PairDataset, Pairs, collate_images, collate_pairs
from dtnet.model import DTNet
from dtnet.training.augment import augment
from dtnet.training.data_parallel import summed
from dtnet.training.plan import StagePlan
from dtnet.training.schedule import STAGES
from dtnet.training.schedule import Stage as StageName
from dtnet.training.settings import ScstSettings, TrainSettings
from dtnet.vocabulary import BOS, EOS, PAD, SPECIAL, TOKENISERS, Vocabulary
from tenfold import UserError
from tenfold.metrics.captions.cider import CiderD
from tenfold.metrics.captions.ptb import PtbTable, PtbTokeniser
from tenfold.runs import sample_rng
from tenfold.runs.ranks import Ranks

END = SPECIAL[EOS]  # in rewards that count the end of a caption as a word

Batch = TypeVar("Batch", Pairs, Images)

# What a random stream is for; part of its key, so that no two streams meet.
_PURPOSES = ("order", "augmentation", "dropout")


def stream(seed: int, purpose: str, stage: StageName, epoch: int, batch: int = 0, rank: int = 0) -> np.random.Generator:
    """The generator of one purpose in one batch; ranks draw different augmentation and dropout."""
    key = _PURPOSES.index(purpose) << 48 | STAGES.index(stage) << 40 | epoch
    return sample_rng(seed, key, rank << 40 | batch)


class Stage(Generic[Batch]):
    """What both stages share: the order of the data, the features of a batch, the optimiser.

    Args:
        plan: what is to be done.
        dataset, collate: the items, and how some become a batch.
        training: settings of the whole training.
        seed: of the run.
        ranks: this process among its peers.

    Raises:
        UserError: a batch with fewer items than there are ranks.
    """

    def __init__(
        self,
        plan: StagePlan,
        dataset: Dataset[Any],
        collate: Callable[[Sequence[Any]], Batch],
        training: TrainSettings,
        seed: int,
        ranks: Ranks,
    ) -> None:
        last = plan.items - (plan.steps - 1) * plan.size
        if min(plan.size, last) < ranks.world:
            few = min(plan.size, last)
            raise UserError(f"a batch of {few} over {ranks.world} ranks", f"stage {plan.name}", "an item for each rank")
        self.plan, self.training, self.seed, self.ranks = plan, training, seed, ranks
        self.dataset = dataset
        self.collate: Callable[[Sequence[Any]], Batch] = collate

    def optimizer(self, model: nn.Module) -> torch.optim.Adam:
        """A fresh Adam over what is trained; the positions of words (a frozen table) are not."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=self.plan.rate(0, 0), betas=self.plan.settings.betas, eps=1e-8, fused=True)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's share of the epoch's batches from number `first` on."""
        shares = self.shares(epoch, first)
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=shares,  # type: ignore[arg-type]
                collate_fn=self.collate,
                num_workers=self.training.data.workers,
                pin_memory=self.ranks.device.type == "cuda",
            )
        )

    def shares(self, epoch: int, first: int = 0) -> list[Sequence[int]]:
        """The numbers of the items in these batches."""
        order = stream(self.seed, "order", self.plan.name, epoch).permutation(self.plan.items).tolist()
        size = self.plan.size
        return [self.ranks.share(order[n * size : (n + 1) * size]) for n in range(first, self.plan.steps)]

    def features(self, batch: Batch, epoch: int, number: int) -> Tensor:
        """The batch's features on the device, augmented: `[batch, grid * grid, d_in]`."""
        features = batch.features.to(self.ranks.device, non_blocking=True)
        if not self.training.augment:
            return features
        rng: Any = stream(self.seed, "augmentation", self.plan.name, epoch, number, self.ranks.rank)
        return augment(features, rng)

    def loss(self, model: DTNet, batch: Batch, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's part of the batch's loss, and parts of what is logged: both are summed over the ranks."""
        raise NotImplementedError


class CrossEntropy(Stage[Pairs]):
    """Stage "xe": predict each word of a caption from the words before it.

    Raises:
        UserError: a caption with more words than the decoder has positions.
    """

    def __init__(self, plan: StagePlan, training: TrainSettings, data: CaptionData, seed: int, ranks: Ranks) -> None:
        tokenise = TOKENISERS[training.data.tokens]
        pairs = PairDataset(_features(training, data, seed), data.captions, data.vocabulary, "train", tokenise)
        longest = int(pairs.ends.diff().max()) - 1
        if longest > training.model.max_len:
            raise UserError(f"a caption of {longest} words", data.files["captions"], "model.max_len at least that")
        super().__init__(plan, pairs, collate_pairs, training, seed, ranks)

    def loss(self, model: DTNet, batch: Pairs, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over all words and ends of the whole batch; `<pad>` does not count."""
        ids = batch.ids.to(self.ranks.device, non_blocking=True)
        negative = negative_log_likelihood(model(features, ids[:, :-1]), ids)
        return negative / summed(self.ranks, (ids[:, 1:] != PAD).sum()), {}


def negative_log_likelihood(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Of all words and ends of captions, in nats, summed; `<pad>` does not count.

    Args:
        log_probs: of the word after each word but the last one `[batch, length - 1, words]`.
        ids: int64 `[batch, length]`, `<bos>` words `<eos>`, then `<pad>`.
    """
    return F.nll_loss(log_probs.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD, reduction="sum")


class SelfCritical(Stage[Images]):
    """Stage "scst": make the better half of an image's beams more likely than the worse.

    Captions become words by a table (`PtbTable`): no Java runs while it trains.
    """

    def __init__(self, plan: StagePlan, training: TrainSettings, data: CaptionData, seed: int, ranks: Ranks) -> None:
        images = ImageDataset(_features(training, data, seed), data.captions, "train")
        super().__init__(plan, images, collate_images, training, seed, ranks)
        self.settings = training.scst
        self.vocabulary: Vocabulary = data.vocabulary
        self.words, self.references = _reward_words(self.settings, data)
        if self.settings.eos:
            self.references = {image: [[*words, END] for words in said] for image, said in self.references.items()}
        self.cider = CiderD.from_captions(self.references.values(), self.settings.frequencies)

    def rewards(self, tokens: Tensor, image_ids: Sequence[int]) -> Tensor:
        """CIDEr-D of every beam.

        Args:
            tokens: `[batch, beams, max_len]` ids.
            image_ids: of the batch.

        Returns:
            float32 `[batch, beams]`.
        """
        beams = tokens.shape[1]
        captions = self.vocabulary.decode_all(tokens.flatten(0, 1).cpu(), collapse=False)
        references = [self.references[image_id] for image_id in image_ids for _ in range(beams)]
        words = self.words(captions)
        if self.settings.eos:
            ended = (tokens.flatten(0, 1) == EOS).any(dim=1).tolist()
            words = [[*one, END] if end else one for one, end in zip(words, ended, strict=True)]
        _, scores = self.cider.score(words, references)
        return torch.tensor(scores, dtype=torch.float32, device=tokens.device).view(-1, beams)

    def loss(self, model: DTNet, batch: Images, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over images and beams of -(1/max_len) sum_t log p_t (reward - baseline)."""
        captions = search if self.settings.log_probs == "beam" else search_then_score
        tokens, log_probs = captions(model, features, self.settings.beams, self.settings.max_len)
        rewards = self.rewards(tokens, batch.image_ids)
        images = torch.tensor(len(features), device=features.device)
        share = images / summed(self.ranks, images)
        return scst_loss(log_probs, rewards) * share, {"reward": rewards.mean() * share}


def search(model: DTNet, features: Tensor, beams: int, max_len: int) -> tuple[Tensor, Tensor]:
    """The beam search itself, with gradients.

    Returns:
        Ids and log-probabilities, `[batch, beams, max_len]` each; 0 after ``<eos>``.
    """
    found = beam_search(model, features, beam_size=beams, max_len=max_len, out_size=beams, early_stop=True)
    return found.tokens, found.log_probs


def search_then_score(model: DTNet, features: Tensor, beams: int, max_len: int) -> tuple[Tensor, Tensor]:
    """The beam search without gradients, then one pass over the captions that it found; returns what `search` does.

    Without dropout, and with BatchNorm's statistics given, both give the same log-probabilities; with dropout the pass
    draws other masks than the search did.
    """
    with torch.no_grad():
        tokens, _ = search(model, features, beams, max_len)
    captions = tokens.flatten(0, 1)  # [batch * beams, max_len]
    ended = (captions == EOS).cumsum(1) > 0
    counts = ~ended | ((captions == EOS) & (ended.cumsum(1) == 1))  # the words, and the first <eos>
    inputs = torch.cat([torch.full_like(captions[:, :1], BOS), captions[:, :-1].masked_fill(ended[:, :-1], PAD)], dim=1)
    encoded = model.encode(features)
    memory = encoded.memory.repeat_interleave(beams, dim=0)
    log_probs = model.decoder(inputs, memory).gather(2, captions[..., None]).squeeze(2)
    return tokens, (log_probs * counts).view_as(tokens)


def _reward_words(
    settings: ScstSettings, data: CaptionData
) -> tuple[Callable[[list[str]], list[list[str]]], dict[int, list[list[str]]]]:
    """How generated captions become words, and the words of each training image's references."""
    references = data.captions.references("train")
    if settings.tokens == "whitespace":
        split = TOKENISERS["whitespace"]
        return lambda captions: [split(caption) for caption in captions], {
            image_id: [split(caption) for caption in captions] for image_id, captions in references.items()
        }
    with PtbTokeniser() as tokenise:
        table = PtbTable.of(data.vocabulary.words, tokenise)
        flat = iter(tokenise([caption for captions in references.values() for caption in captions]))
        return table, {image_id: [next(flat) for _ in captions] for image_id, captions in references.items()}


def _features(training: TrainSettings, data: CaptionData, seed: int) -> Any:
    if training.blind:
        return SwappedFeatures(data.features, data.captions.images("train"), seed)
    return data.features


def scst_loss(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """``mean over images and beams of -(1/T) sum_t log p_t * (r - mean over beams of r)``.

    T is the length of the search, 20, not that of the caption: what follows ``<eos>`` counts with log-probability 0.

    Args:
        log_probs: of every word of every caption `[batch, beams, T]`, 0 after ``<eos>``, with gradients.
        rewards: of every caption `[batch, beams]`, without gradients.

    Returns:
        The loss, a scalar.
    """
    advantage = rewards - rewards.mean(dim=1, keepdim=True)
    return -(log_probs.mean(dim=-1) * advantage.to(log_probs)).mean()
