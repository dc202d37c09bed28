"""Rows that lose different numbers of tokens, and the ragged KV cache that results."""

import pytest
import torch

from tenfold import UserError
from tenfold.hosts.ragged import (
    RaggedCache,
    cache_length,
    cache_name,
    counts_on,
    kv_cache,
    layer_mask,
    put,
    read_prompt,
    take,
    take_positions,
)

# Row 0: padding, text, three visual, two text. Row 1: two visual among five text, nothing padded.
VISUAL = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
LEFT = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
CPU = torch.device("cpu")


def test_a_prompt_is_counted_without_its_padding():
    reading = read_prompt(VISUAL, LEFT)
    tokens = reading.tokens
    assert (tokens.num_real, tokens.num_visual, tokens.first_visual) == ((6, 7), (3, 2), (1, 1))
    assert not tokens.pad_end and tokens.padded and tokens.width == 7
    assert tokens.first_row == 1  # row 1's first visual token
    assert torch.equal(reading.real, LEFT.bool()) and reading.past_real is None
    assert tokens.text.tolist()[0] == [False] * 5 + [True] * 2


def test_a_prompt_without_image_has_no_tokens_to_drop():
    assert read_prompt(torch.zeros_like(VISUAL), LEFT).tokens is None


def test_visual_placeholders_in_the_padding_do_not_count():
    visual = VISUAL.clone()
    visual[0, 0] = True
    assert read_prompt(visual, LEFT).tokens.num_visual == (3, 2)


def test_a_row_that_ends_in_its_image_is_refused_by_its_number():
    visual = VISUAL.clone()
    visual[1, 3:] = True
    with pytest.raises(UserError, match="row 1 of the batch"):
        read_prompt(visual, LEFT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_survivors_stay_in_order_and_padding_stays_on_its_side(side):
    """Fails if the sort is not stable, or shorter rows are padded on the other side than the prompt."""
    visual, mask = (VISUAL, LEFT) if side == "left" else (VISUAL.roll(-1, 1), LEFT.flip(1))
    tokens = read_prompt(visual, mask).tokens
    removed = torch.zeros_like(visual)
    first = 2 if side == "left" else 1
    removed[0, first] = removed[0, first + 2] = True  # two of row 0's three, none of row 1's
    kept, select = tokens.without(removed, (2, 0))
    assert kept.num_real == (4, 7)
    assert kept.num_visual == (1, 2) and kept.width == 7
    own = kept.index[0][kept.real[0]].tolist()
    assert own == sorted(own) and not set(own) & {first, first + 2}
    padding = (~kept.real[0]).nonzero().flatten().tolist()
    assert padding == ([0, 1, 2] if side == "left" else [4, 5, 6])
    assert torch.equal(take(torch.arange(7.0)[None, :, None], select)[0, :, 0].long(), kept.index[0])


def test_rows_that_lose_as_many_get_narrower():
    tokens = read_prompt(VISUAL, None).tokens
    removed = VISUAL.clone()
    removed[0, 4] = False
    kept, select = tokens.without(removed, (2, 2))
    assert kept.width == 5 and not kept.padded and select.shape == (2, 5)
    assert kept.prompt_visual == (3, 2) and kept.num_visual == (1, 0)


def test_gathering_takes_states_shared_by_all_rows_too():
    select = torch.tensor([[0, 2], [1, 3]])
    rotation = torch.arange(8.0).view(1, 4, 2)
    assert take(rotation, select).tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    three = torch.arange(4).expand(3, 1, 4)  # Qwen2-VL's sections
    assert take_positions(three, select).tolist() == [[[0, 2], [1, 3]]] * 3


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_are_taken_and_put_back_each_in_its_own_sequence(batch):
    """Fails if a row of the batch is given another's tokens; the gradient reaches what was taken, and what was not."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(batch, 5, 2, generator=generator, requires_grad=True)
    select = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(batch)])
    taken = take(states, select)
    expected = torch.stack([states[row, select[row]] for row in range(batch)])
    assert torch.equal(taken, expected)
    back = put(states, select, 2 * taken)
    doubled = torch.zeros(batch, 5, dtype=torch.bool).scatter(1, select, True)[..., None]
    assert torch.equal(back, torch.where(doubled, 2 * states, states))
    back.sum().backward()
    assert torch.equal(states.grad, 1.0 + doubled.expand_as(states))


def test_a_cache_grows_by_what_a_pass_brings_and_remembers_padding():
    ragged = RaggedCache(owner=0, lengths=[0, 0], real=[None, None], pruned=[False, False])
    assert ragged.extend(1, None, (2, 3), pruned=False) is None
    padded = torch.tensor([[True], [False]])
    seen = ragged.extend(1, padded, (2, 1), pruned=True)
    assert seen.tolist() == [[True] * 4, [True, True, True, False]]
    assert ragged.lengths == [0, 4] and ragged.pruned == [False, True]
    with pytest.raises(UserError, match="3 rows"):
        ragged.extend(1, None, (3, 1), pruned=False)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_layers_mask_is_causal_and_hides_padding(implementation):
    real = torch.tensor([[False, True, True, True]])
    mask = layer_mask(implementation, 2, 4, real, dtype=torch.float32, device=CPU)
    seen = mask if implementation == "sdpa" else mask == 0
    assert seen[0, 0].tolist() == [[False, True, True, False], [False, True, True, True]]


def test_a_padding_query_sees_itself():
    """Fails if a softmax runs over nothing: NaN."""
    real = torch.tensor([[False, True]])
    assert layer_mask("sdpa", 2, 2, real, dtype=torch.float32, device=CPU)[0, 0, 0].tolist() == [True, False]


def test_no_mask_is_built_where_the_fast_causal_path_says_the_same():
    assert layer_mask("sdpa", 4, 4, None, dtype=torch.float32, device=CPU) is None
    assert layer_mask("eager", 1, 4, None, dtype=torch.float32, device=CPU) is None
    assert layer_mask("sdpa", 2, 4, None, dtype=torch.float32, device=CPU) is not None


def test_counts_are_whole_numbers():
    assert counts_on((3, 3), CPU).tolist() == [3, 3] and counts_on((1, 2), CPU).dtype == torch.int64


def test_the_cache_is_found_under_the_name_of_any_release():
    """`cache` from transformers 5.24 on. Fails if a module knows one of both."""
    cache = object()
    assert kv_cache({"cache": cache}) is cache and kv_cache({"past_key_values": cache}) is cache
    assert kv_cache({"cache": None, "past_key_values": None}) is None and kv_cache({}) is None

    def old(self, hidden_states, past_key_values=None): ...

    def new(self, hidden_states, cache=None, **kwargs): ...

    assert (cache_name(old), cache_name(new)) == ("past_key_values", "cache")
    assert cache_length(None, 0) == 0
