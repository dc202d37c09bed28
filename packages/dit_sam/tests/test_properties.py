"""What holds for any weights: batches, ways of attention, kept sentences, precision, memory, inputs left alone (D6,
D9).
"""

import pytest
import torch
from dit_sam_tiny import VARIANTS, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel

from dit_sam.attention import attend, by_rows, folded, relative_positions
from dit_sam.evidence.official_style import released_encoder
from dit_sam.model import mask_loss
from dit_sam.text_encoder import TextEncoder

SENTENCES = ["the leftmost red circle", "the square", "the top blue object"]


def inputs(model, batch=3):
    generator = torch.Generator().manual_seed(1)
    encoded = model.vocabulary.encode((SENTENCES * 3)[:batch], model.config.text_length)
    return torch.randn(batch, 3, 48, 48, generator=generator), encoded.ids, encoded.mask


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_its_rows(variant):
    """Fails if rows of a batch mix, as in SAM's decoder, which repeats embeddings for every prompt."""
    model = tiny_model(variant)
    image, ids, mask = inputs(model)
    with torch.no_grad():
        together = model(image, ids, mask)
        for row in range(3):
            alone = model(image[row : row + 1], ids[row : row + 1], mask[row : row + 1])
            assert torch.allclose(together.logits[row], alone.logits[0], atol=1e-4)


@pytest.mark.parametrize("grid", [(6, 6), (5, 7)])
@pytest.mark.parametrize("text_queries", [True, False])
def test_both_ways_of_attention_are_the_formula(grid, text_queries):
    """Fails if a bias is transposed, scaled, or reaches text."""
    h, w, text, d = *grid, 4, 8
    q, k, v = (torch.randn(2, 3, text + h * w, d) for _ in range(3))
    rel_h, rel_w = relative_positions(torch.randn(9, d), h), relative_positions(torch.randn(9, d), w)
    scores = q @ k.mT * d**-0.5
    cells = q[:, :, text:].unflatten(2, grid)
    bias = (
        torch.einsum("bnijd,ikd->bnijk", cells, rel_h)[..., None]
        + torch.einsum("bnijd,jld->bnijl", cells, rel_w)[..., None, :]
    )
    scores[:, :, text:, text:] += bias.flatten(4, 5).flatten(2, 3)
    expected = scores.softmax(-1) @ v
    queries = q if text_queries else q[:, :, text:]
    expected = expected if text_queries else expected[:, :, text:]
    for way in (by_rows, folded):
        assert torch.allclose(way(queries, k, v, rel_h, rel_w, grid, text_queries), expected, atol=1e-5)
    beside, (k, v) = (k[:, :, :text], v[:, :, :text]), (k[:, :, text:], v[:, :, text:])
    for grad in (False, True):  # `by_rows` and `folded`
        with torch.set_grad_enabled(grad):
            apart = attend(q[:, :, text:], k, v, rel_h, rel_w, grid, False, beside)
        assert torch.allclose(apart, expected[:, :, -h * w :], atol=1e-5)


def test_a_table_of_the_right_size_is_taken_as_it_is():
    """Fails if tables were stretched where none needs to be; 127 rows become 63 as F.interpolate does it."""
    table = torch.randn(127, 64)
    native = relative_positions(table, 64)
    assert torch.equal(native[5, 3], table[2 + 63])
    stretched = torch.nn.functional.interpolate(table.T[None], size=63, mode="linear")[0].T
    assert torch.equal(relative_positions(table, 32)[5, 3], stretched[2 + 31])


@pytest.mark.parametrize("variant", ["layer_wise", "token_layer_wise"])
def test_dropping_text_queries_changes_nothing(variant):
    """Fails if an output in the text slots were read where text is keys and values alone."""
    model = tiny_model(variant, text_length=20, text_positions=20)
    image, ids, mask = inputs(model)
    with torch.no_grad():
        text = model.encode_text(ids, mask)
        patches = model.image_encoder.patches(image)
        fast = model.image_encoder.encode(patches, text.features)
        full = model.image_encoder.encode(patches, text.features, trace=lambda *_: None)
        kept = model.image_encoder.encode(patches, None, text.keys)
    assert torch.allclose(fast, full, atol=1e-4)
    assert torch.equal(fast, kept)


def test_the_released_way_of_the_bench_is_the_same_model():
    """Fails if the bench compared with another computation."""
    model = tiny_model()
    image, ids, mask = inputs(model)
    with torch.no_grad():
        text = model.encode_text(ids, mask)
        patches = model.image_encoder.patches(image)
        slow = released_encoder(model.image_encoder, patches, text.features)
        assert torch.allclose(slow, model.image_encoder.encode(patches, text.features), atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_with_a_batch_of_one(variant):
    """Fails if slots were overwritten in place: autograd refuses that for one row, as the released code shows."""
    model = tiny_model(variant).train()
    image, ids, mask = inputs(model, batch=1)
    mask_loss(model(image, ids, mask).logits, torch.zeros(1, 1, 48, 48)).backward()
    if variant != "default":
        assert all(weight.grad is not None for name, weight in model.named_parameters() if "text_path" in name)


@pytest.mark.parametrize("variant", ["layer_wise", "e2e"])
def test_bfloat16_is_near_float32(variant):
    """Fails if relative positions or the neck lost their numbers in bfloat16."""
    model = tiny_model(variant)
    image, ids, mask = inputs(model)
    with torch.no_grad():
        exact = model(image, ids, mask).logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(image, ids, mask).logits
    assert (rough.float() - exact).norm() / exact.norm() < 2e-2


def test_inputs_stay_as_they_are_and_runs_repeat():
    """Fails if a tensor that a caller owns were changed, or a rerun differed in a bit."""
    model = tiny_model("e2e")
    image, ids, mask = inputs(model)
    before = [one.clone() for one in (image, ids, mask)]
    with torch.no_grad():
        first, second = model(image, ids, mask).logits, model(image, ids, mask).logits
    assert torch.equal(first, second)
    assert all(torch.equal(one, other) for one, other in zip(before, (image, ids, mask), strict=True))


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result


@pytest.mark.parametrize("gradients", [False, True])
def test_no_map_of_all_pairs_is_made(gradients):
    """Fails if the encoder made a map of [heads, tokens, tokens]; at 384 pixels with patches of 8 that is 2.1 M a
    head.
    """
    model = tiny_model(native_size=384, input_size=384)
    tokens = (384 // 8) ** 2 + model.config.text_length
    patches = torch.randn(1, 48, 48, 32)
    encoded = model.vocabulary.encode(SENTENCES[:1], model.config.text_length)
    with torch.set_grad_enabled(gradients):
        features = model.encode_text(encoded.ids, encoded.mask).features
        with Largest() as largest:
            model.image_encoder.encode(patches, features)
    assert largest.numbers < model.config.heads * tokens * tokens / 2


def test_bert_is_transformers_bert():
    """Fails if a norm, the mask or GELU differed from BERT's; the output is that of the first layer."""
    config = tiny_model().config.changed(text_depth=3, text_width=32, words=40)
    own = TextEncoder(config).eval()
    theirs = BertModel(
        BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=config.text_heads,
            intermediate_size=config.text_mlp,
            max_position_embeddings=config.text_positions,
        )
    ).eval()
    missing, unexpected = theirs.load_state_dict(own.state_dict(), strict=False)
    assert not unexpected and all("position_ids" in name or "token_type_ids" in name for name in missing)
    ids = torch.randint(4, 40, (2, 8))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    with torch.no_grad():
        hidden = theirs(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
        assert torch.allclose(own(ids, mask), hidden, atol=1e-5)
