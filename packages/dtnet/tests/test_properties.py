"""What must hold for any weights and inputs (batches, caches, precision, memory)."""

import math

import pytest
import torch
from dtnet_models import tiny_features, tiny_model, tiny_tokens
from torch.utils._python_dispatch import TorchDispatchMode

from dtnet.beam import beam_search
from dtnet.config import CHANNEL_CELLS, SPATIAL_CELLS
from dtnet.router import Paths


def test_a_batch_is_its_images_one_by_one():
    """Fails if a cell, a router or the search mixes images."""
    model = tiny_model()
    features, tokens = tiny_features(model, 4), tiny_tokens(model, 4)
    whole, found = model(features, tokens), beam_search(model, features, 3, 8, 3)
    for image in range(4):
        alone = slice(image, image + 1)
        torch.testing.assert_close(model(features[alone], tokens[alone]), whole[alone], atol=1e-4, rtol=0)
        assert torch.equal(beam_search(model, features[alone], 3, 8, 3).tokens, found.tokens[alone])


def test_captions_of_any_padded_length_have_the_same_log_probs():
    """Fails if a word sees what follows it, or the padding."""
    model = tiny_model()
    features, tokens = tiny_features(model), tiny_tokens(model)
    longer = torch.cat((tokens, torch.full((3, 4), model.config.pad_id)), dim=1)
    whole = model(features, longer)
    torch.testing.assert_close(whole[:, :7], model(features, tokens), atol=1e-5, rtol=0)
    for length in range(1, 6):
        torch.testing.assert_close(whole[:, :length], model(features, tokens[:, :length]), atol=1e-4, rtol=0)
    torch.testing.assert_close(whole[:, 7:], torch.full_like(whole[:, 7:], -math.log(23)))


@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_the_softmax_written_out(padded):
    """Fails if the geometry is not a logarithm in the logits, or the scale is another."""
    model = tiny_model()
    x = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(3))
    padding = (torch.arange(16) > torch.tensor([[15], [11], [7]])) if padded else None
    block = model.encoder.layers[0].spatial["gmc"].attention
    bias = model.encoder.geometry_bias(padding)
    gate = model.encoder.geometry_gate().clamp(min=1e-6)[None]
    if padding is not None:
        gate = gate * ~padding[:, None, None]
    q = block.q(x).view(3, 16, 2, 8).transpose(1, 2)
    k, v = block.project(x)
    # exp(logits + ln g) = g exp(logits)
    weights = gate * (q @ k.transpose(2, 3) / math.sqrt(8)).exp()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    expected = block.o((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block.multi_head(x, k, v, bias), expected, atol=1e-4, rtol=0)


def test_what_is_padding_does_not_matter():
    """Fails if a padded feature reaches a cell, or the decoder looks at it."""
    model = tiny_model()
    features, tokens = tiny_features(model), tiny_tokens(model)
    padding = torch.zeros(3, 16, dtype=torch.bool)
    padding[1, 10:] = True
    other = features.clone()
    other[1, 10:] = 7.0
    log_probs = model(features, tokens, padding=padding)
    assert torch.equal(log_probs, model(other, tokens, padding=padding))
    assert not torch.allclose(log_probs[1], model(features, tokens)[1], atol=1e-3)
    torch.testing.assert_close(log_probs[0], model(features, tokens)[0], atol=1e-5, rtol=0)
    found = beam_search(model, features, 3, 6, padding=padding)
    assert torch.equal(found.tokens, beam_search(model, other, 3, 6, padding=padding).tokens)
    # The decoder's own mask, apart from the encoder's: memory of padding is not looked at.
    encoded = model.encode(features, padding)
    memory = encoded.memory.clone()
    memory[1, 10:] += 5
    assert torch.equal(model.decoder(tokens, memory, encoded.mask), model.decoder(tokens, encoded.memory, encoded.mask))


def test_inputs_are_not_modified():
    model = tiny_model().train()
    features, tokens = tiny_features(model), tiny_tokens(model)
    padding = torch.zeros(3, 16, dtype=torch.bool)
    before = [x.clone() for x in (features, tokens, padding)]
    model(features, tokens, padding=padding).sum().backward()
    encoded = model.encode(features, padding)
    paths = Paths(*(part.detach().clone() for part in encoded.paths))
    model.encode(features, override_paths=paths, hard="top1")
    beam_search(model, features, 3, 6, padding=padding, early_stop=True)
    assert all(torch.equal(x, y) for x, y in zip((features, tokens, padding), before, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(paths, encoded.paths, strict=True))


def test_same_seed_same_bits():
    model, again = tiny_model(4), tiny_model(4)
    features, tokens = tiny_features(model), tiny_tokens(model)
    assert torch.equal(model(features, tokens), again(features, tokens))
    assert torch.equal(model(features, tokens), model(features, tokens))
    assert not torch.equal(model(features, tokens), tiny_model(5)(features, tokens))


@pytest.mark.parametrize("routing", ["joint", "uniform", "spatial", "channel"])
def test_path_weights_sum_to_1(routing):
    """In every layer, over the spatial and over the channel cells. Fails without the softmax."""
    model = tiny_model(routing=routing)
    paths = model.encode(tiny_features(model, 5)).paths
    for part, cells in zip(paths, (SPATIAL_CELLS, CHANNEL_CELLS), strict=True):
        assert part.shape == (5, 2, len(cells))
        assert (part >= 0).all()
        torch.testing.assert_close(part.sum(-1), torch.ones(5, 2))
    varied = paths.spatial.std(0).max() > 1e-3
    assert bool(varied) == (routing != "uniform")


def test_bf16_is_close():
    """Most captions' first words are the same, and log-probabilities within what 8 bits of mantissa give."""
    model = tiny_model()
    features, tokens = tiny_features(model), tiny_tokens(model)
    full = model(features, tokens)
    half = tiny_model().bfloat16()
    assert half(features, tokens).dtype == torch.float32
    difference = (half(features, tokens) - full).abs()
    assert 0 < difference.mean() < 0.2
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(features, tokens)
        found = beam_search(model, features, 3, 6)
    assert (mixed - full).abs().mean() < 0.2
    assert found.tokens.shape == (3, 1, 6)


def test_no_attention_map_is_ever_in_memory():
    """Of a batch of B images no tensor has B x n x n entries. Fails with a softmax written out."""
    model = tiny_model(grid=6, d_v=8)  # keys wider or narrower than values leave the fast kernel
    features, tokens = tiny_features(model, 8), tiny_tokens(model, 8)

    class Shapes(TorchDispatchMode):
        maps: tuple = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.shape[-2:] == (36, 36) and len(tensor) == 8:
                    self.maps += (func,)
            return result

    with torch.no_grad(), Shapes() as seen:
        model(features, tokens)
        beam_search(model, features, 3, 6)
    assert not seen.maps
    block = model.encoder.layers[0].spatial["gmc"].attention
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad(), Shapes() as seen:
        block(torch.randn(8, 36, 32))
    assert seen.maps, "the test would see one"
