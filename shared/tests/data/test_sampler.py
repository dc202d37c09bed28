"""Orders of an epoch: modalities apart, like lengths together, by seed and epoch alone, shared by ranks."""

import numpy as np
import pytest
import torch

from tenfold import UserError
from tenfold.data.sampler import EpochOrder, ModalityLengthSampler, modality_length_order


def lengths_of(images, texts, seed=0):
    random = np.random.default_rng(seed)
    lengths = np.concatenate([random.integers(1, 90, images), -random.integers(1, 90, texts)])
    return random.permutation(lengths).tolist()


@pytest.mark.parametrize(("images", "texts"), [(40, 20), (33, 7), (3, 2), (17, 0), (0, 9), (1, 1), (16, 16)])
@pytest.mark.parametrize(("batch", "ranks"), [(2, 4), (3, 1), (1, 1)])
def test_every_index_comes_once_and_megabatches_hold_one_modality(images, texts, batch, ranks):
    """Fails if an index is lost or doubled, or if modalities mix outside of what is left over."""
    lengths, size = lengths_of(images, texts), batch * ranks
    order = modality_length_order(lengths, batch, ranks, torch.Generator().manual_seed(3))
    assert sorted(order) == list(range(images + texts))
    megabatches = [order[at : at + size] for at in range(0, len(order), size)]
    mixed = [one for one in megabatches if len({lengths[index] > 0 for index in one}) == 2]
    assert len(mixed) <= 2 and all(one in (megabatches[0], megabatches[-1]) for one in mixed)
    for megabatch in megabatches:
        longest = max(megabatch, key=lambda index: lengths[index])
        if len(megabatch) == size and megabatch not in mixed and lengths[longest] > 0:
            assert lengths[megabatch[0]] == lengths[longest]


def test_the_order_depends_on_seed_and_epoch_alone():
    """Fails if it is drawn from torch's global generator, or if every epoch is the same."""
    lengths = lengths_of(30, 10)

    def order(seed, epoch):
        sampler = ModalityLengthSampler(lengths, 2, 2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(0)
    first = order(0, 0)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert order(0, 0) == first
    torch.set_rng_state(state)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_a_resumed_epoch_goes_on_where_it_was_left():
    """Fails if the rest of an epoch is drawn anew."""
    lengths = lengths_of(30, 10)
    for rank in (None, 1):
        whole = ModalityLengthSampler(lengths, 2, 2, seed=5, rank=rank)
        whole.set_epoch(3)
        rest = ModalityLengthSampler(lengths, 2, 2, seed=5, rank=rank)
        rest.set_epoch(3, start=7)
        assert list(rest) == list(whole)[7:] and len(rest) == len(whole) - 7


@pytest.mark.parametrize(("samples", "ranks"), [(40, 2), (41, 3), (5, 4), (1, 2)])
def test_ranks_share_an_epoch(samples, ranks):
    """Fails if ranks do unequal numbers of steps, see the same samples, or leave some out."""
    lengths = lengths_of(samples, 0)
    shares = [list(ModalityLengthSampler(lengths, 2, ranks, rank=rank)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(ModalityLengthSampler(lengths, 2, ranks, rank=0))
    seen = [index for share in shares for index in share]
    assert set(seen) == set(range(samples)) and len(seen) - samples < 2 * ranks
    order = list(ModalityLengthSampler(lengths, 2, ranks))
    rounds = [share[at : at + 2] for at in range(0, len(shares[0]), 2) for share in shares]
    assert [index for batch in rounds for index in batch][:samples] == order


def test_an_empty_order_is_refused():
    """Fails if a run over nothing ends well."""
    with pytest.raises(UserError, match="no samples"):
        ModalityLengthSampler([], 1)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epochs_order_may_stop_early_and_comes_again(grouped):
    """Fails if a run's epochs are alike, two seeds' are, or a part of an epoch is not the beginning of the whole."""
    lengths = lengths_of(9, 4)

    def order(count, seed=0, epoch=1):
        made = EpochOrder(13, count, seed, ModalityLengthSampler(lengths, 2, seed=seed) if grouped else None)
        made.set_epoch(epoch)
        assert len(made) == count
        return list(made)

    whole = order(13)
    assert sorted(whole) == list(range(13)) and order(5) == whole[:5]
    assert len({tuple(order(13, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
