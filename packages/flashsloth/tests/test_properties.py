"""What must hold whatever the weights are (sheet sections 3.4 to 3.8, part two A4 to A8)."""

import pytest
import torch
from flashsloth_fixtures import (
    COLON,
    END,
    MIXED,
    QUERY,
    USER,
    AttentionMaps,
    batched,
    runs_of,
    tiny_config,
    tiny_images,
    tiny_inputs,
    tiny_model,
    turn,
    words,
)

from flashsloth.configuration import HD_VIEWS
from flashsloth.embq import EmbeddedQuery
from flashsloth.looking import KeptImages
from flashsloth.pooling import SpatialAttentionPooling, average_pooling
from tenfold import UserError

CLOSE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def model():
    """Shared by tests that leave it as it is."""
    return tiny_model()


def logits(model, rows):
    """The last position's logits of each row, alone."""
    return torch.cat([model(**row).logits[:, -1] for row in rows])


@pytest.mark.parametrize("views", [1, HD_VIEWS])
@torch.no_grad()
def test_batch_equals_single(views):
    """Rows with one, no and two images, padded on either side. Fails if padding reaches a question, or patches of one
    row another (seen: the patch mask left out; images counted over the batch)."""
    model = tiny_model(config=tiny_config(views=views))
    rows = tiny_inputs(model, MIXED)
    single = logits(model, rows)
    assert torch.allclose(model(**batched(rows)).logits[:, -1], single, **CLOSE)
    right = batched(rows, "right")
    last = right["attention_mask"].sum(dim=1) - 1
    assert torch.allclose(model(**right).logits[torch.arange(len(rows)), last], single, **CLOSE)


@torch.no_grad()
def test_generated_batch_equals_single(model):
    """Fails if padding is forgotten while decoding, as the official code does."""
    rows = tiny_inputs(model, MIXED)
    made = model.generate(**batched(rows), max_new_tokens=6, do_sample=False)[:, -6:]
    alone = torch.cat([model.generate(**row, max_new_tokens=6, do_sample=False)[:, -6:] for row in rows])
    assert torch.equal(made, alone)


@torch.no_grad()
def test_cached_decoding_equals_recomputation(model):
    """Fails if EmbQ's effect is not in the cache, or runs again while decoding."""
    row = tiny_inputs(model)[0]
    ids = row["input_ids"]
    runs, handle = runs_of(model.model.embq)
    cached = model.generate(**row, max_new_tokens=6, do_sample=False)
    assert len(runs) == 1
    again = model.generate(**row, max_new_tokens=6, do_sample=False, use_cache=False)
    handle.remove()
    assert torch.equal(cached, again) and len(runs) == 7
    output = model(**row, use_cache=True)
    for _ in range(3):
        ids = torch.cat([ids, output.logits[:, -1:].argmax(dim=-1)], dim=1)
        output = model(input_ids=ids[:, -1:], past_key_values=output.past_key_values, use_cache=True)
        whole = model(input_ids=ids, pixel_values=row["pixel_values"]).logits[:, -1]
        assert torch.allclose(output.logits[:, -1], whole, **CLOSE)


@torch.no_grad()
def test_sdpa_equals_eager(model):
    """Fails if one of the attentions gets another mask."""
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    batch = batched(tiny_inputs(model, MIXED))
    real = batch["attention_mask"].bool()
    assert torch.allclose(model(**batch).logits[real], eager(**batch).logits[real], **CLOSE)


@torch.no_grad()
def test_bfloat16_follows_float32(model):
    """Relative L2 of the logits below 2e-2; greedy tokens equal where float32's margin is above 0.1."""
    half = tiny_model().bfloat16()
    batch = batched(tiny_inputs(model, MIXED))
    real = batch["attention_mask"].bool()
    full, low = model(**batch).logits[real], half(**batch).logits[real].float()
    assert ((full - low).norm() / full.norm()).item() < 2e-2
    best = full.topk(2).values
    sure = best[:, 0] - best[:, 1] > 0.1
    assert sure.any() and torch.equal(full.argmax(-1)[sure], low.argmax(-1)[sure])


@torch.no_grad()
def test_the_same_bits_again_and_inputs_as_they_were(model):
    """Fails if a run draws random numbers, or writes into what it is given."""
    batch = batched(tiny_inputs(model, MIXED))
    before = {name: value.clone() for name, value in batch.items()}
    state = torch.random.get_rng_state()
    first, second = model(**batch).logits, model(**batch).logits
    assert torch.equal(first, second) and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(batch[name], value) for name, value in before.items())


@torch.no_grad()
def test_without_its_last_projection_embq_changes_nothing(model):
    """Bit for bit the hidden states that came in. Fails if EmbQ writes anywhere but through its residual."""
    off = tiny_model()
    off.model.embq.up_projector.weight.zero_()
    off.model.embq.up_projector.bias.zero_()
    batch = batched(tiny_inputs(model, MIXED))
    states = off(**batch, output_hidden_states=True).hidden_states
    layer = off.model.language_model.layers[0]
    came: list = []
    handle = layer.register_forward_hook(lambda _, args, output: came.append(output))
    off(**batch)
    handle.remove()
    assert torch.equal(states[1], came[0])
    assert not torch.allclose(model(**batch).logits, off(**batch).logits, **CLOSE)


@torch.no_grad()
def test_values_before_or_behind_the_attention_are_the_same():
    """A4: one to three rounds project behind it, four and more before it; with and without masked patches."""
    torch.manual_seed(0)
    embq = EmbeddedQuery(24, 16, 8, 4)
    read, patches = torch.randn(2, 6, 8), torch.randn(2, 36, 16)
    mask = torch.rand(2, 6, 36) < 0.7
    for allowed in (None, mask):
        behind, before = (embq.image_step(read, patches, allowed, rounds) for rounds in (3, 4))
        assert torch.allclose(behind, before, atol=1e-5)


@torch.no_grad()
def test_five_rounds_equal_one_at_a_time(model):
    """All rounds of a row in one attention, against a module call for each. Fails if rounds see each other."""
    generator = torch.Generator().manual_seed(3)
    queries, text = torch.randn(2, 5, 3, 32, generator=generator), torch.randn(2, 5, 7, 32, generator=generator)
    mask = torch.arange(7) < torch.randint(1, 8, (2, 5, 1), generator=generator)
    patches = torch.randn(2, 36, 16, generator=generator)
    embq = model.model.embq
    together = embq(queries, text * mask[..., None], mask, patches)
    for at in range(5):
        one = slice(at, at + 1)
        alone = embq(queries[:, one], text[:, one] * mask[:, one, :, None], mask[:, one], patches)
        assert torch.allclose(together[:, one], alone, atol=1e-5)


@torch.no_grad()
def test_a_second_turn_in_a_kept_cache(model):
    """The second question is read, with kept patches, as if all had been sent anew (part two A7). Fails if the first
    question's span is used, or patches are forgotten."""
    generator = torch.Generator().manual_seed(1)
    first = words(3, generator) + turn(model.config, 1, words(5, generator))
    second = [END, *turn(model.config, 0, words(6, generator))]
    pixels = tiny_images(1)
    runs, handle = runs_of(model.model.vision_tower)
    kept = model.generate(
        torch.tensor([first]), pixel_values=pixels, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    ids = torch.cat([kept.sequences, torch.tensor([second])], dim=1)
    anew = model.generate(ids, pixel_values=pixels, max_new_tokens=5, do_sample=False)
    for again in ({}, {"pixel_values": pixels}):
        cache = model.generate(
            torch.tensor([first]), pixel_values=pixels, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
        ).past_key_values
        assert isinstance(getattr(cache, KeptImages.NAME), KeptImages)
        runs.clear()
        gone_on = model.generate(ids, past_key_values=cache, max_new_tokens=5, do_sample=False, **again)
        assert torch.equal(gone_on, anew) and not runs
    handle.remove()
    # The second question is read by its own queries: with the first one's span, other logits come.
    end = first.index(QUERY)
    spans = torch.tensor([[[end - 5, end], [end - 5, end]]])
    own = model(input_ids=ids, pixel_values=pixels).logits[:, -1]
    assert not torch.allclose(
        model(input_ids=ids, pixel_values=pixels, question_spans=spans).logits[:, -1], own, **CLOSE
    )


@torch.no_grad()
def test_a_new_image_in_the_second_turn(model):
    """Given alone or with the first turn's. Fails if images of the past part are placed again."""
    generator = torch.Generator().manual_seed(2)
    first = words(3, generator) + turn(model.config, 1, words(5, generator))
    pixels = tiny_images(2)
    ids = torch.tensor([[*first, 11, END, *turn(model.config, 1, words(6, generator))]])
    whole = model(input_ids=ids, pixel_values=pixels).logits[:, -1]
    for given in (pixels, pixels[1:]):
        cache = model(input_ids=torch.tensor([first]), pixel_values=pixels[:1], use_cache=True).past_key_values
        made = model.generate(
            ids, pixel_values=given, past_key_values=cache, max_new_tokens=1, output_logits=True,
            return_dict_in_generate=True, do_sample=False,
        )  # fmt: skip
        assert torch.allclose(made.logits[0], whole, **CLOSE)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
@torch.no_grad()
def test_beams_and_several_answers(model, options):
    """Rows with different numbers of images. Fails if images are repeated entry by entry (row 2 has two)."""
    rows = tiny_inputs(model, MIXED)
    torch.manual_seed(0)
    options = options | {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    batch = model.generate(**batched(rows), **options)
    if "num_beams" in options:
        alone = [model.generate(**row, **options) for row in rows]
        assert torch.equal(batch.sequences[:, -4:], torch.cat([one.sequences[:, -4:] for one in alone]))
        scores = torch.cat([one.sequences_scores for one in alone])
        assert torch.allclose(batch.sequences_scores, scores, **CLOSE)
    assert len(batch.sequences) == len(rows) * options.get("num_return_sequences", 1)


@torch.no_grad()
def test_features_may_be_given(model):
    row = tiny_inputs(model)[0]
    features = model.encode_images(row.pop("pixel_values"))
    pixels = tiny_images(1)
    assert torch.equal(
        model.generate(**row, image_features=features, max_new_tokens=4, do_sample=False),
        model.generate(**row, pixel_values=pixels, max_new_tokens=4, do_sample=False),
    )


@torch.no_grad()
def test_no_map_of_the_whole_sequence(model):
    """Fails where scores of all tokens with all are made, or of all patches with all."""
    rows = tiny_inputs(model)
    tokens = rows[0]["input_ids"].shape[1]
    for length in (tokens, model.config.grid**2):
        with AttentionMaps(length) as maps:
            model(**rows[0])
        assert [name for name in maps.seen if "arange" not in name] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"assistant_model": object()}, "assistant_model"),
    ],
)
def test_refused_by_name_at_the_start(model, options, message):
    with pytest.raises(UserError, match=message):
        model.generate(**tiny_inputs(model)[0], **options)


def test_wrong_inputs_are_named(model):
    """Fails if placeholders without image, an image without placeholders, or half a query group pass."""
    row = tiny_inputs(model)[0]
    ids, pixels = row["input_ids"], row["pixel_values"]
    for wrong, message in (
        ({"input_ids": ids}, "placeholders"),
        ({"input_ids": ids, "pixel_values": torch.cat([pixels, pixels])}, "placeholders"),
        ({"input_ids": ids[:, :-2], "pixel_values": pixels}, "2 query tokens"),
        ({"input_ids": ids, "pixel_values": pixels[:, :, :-1]}, "pixel_values"),
        ({"input_ids": ids, "pixel_values": pixels, "image_features": model.encode_images(pixels)}, "twice"),
        ({}, "one of two"),
        ({"input_ids": ids, "pixel_values": pixels, "question_spans": torch.zeros(1, 0, 2)}, "0 question spans"),
    ):
        with pytest.raises(UserError, match=message):
            model(**wrong)


@torch.no_grad()
def test_the_question_is_what_is_read(model):
    """A span given by hand equals the template's; another one gives other logits."""
    row = tiny_inputs(model)[0]
    ids = row["input_ids"][0].tolist()
    end = ids.index(model.config.query_token_id)
    spans = torch.tensor([[[end - 5, end]]])
    plain = model(**row).logits
    assert torch.equal(model(**row, question_spans=spans).logits, plain)
    assert not torch.allclose(model(**row, question_spans=spans - 1).logits, plain, **CLOSE)
    assert ids[2:5] != [USER, COLON]


@torch.no_grad()
def test_sap_between_average_and_choice():
    """Even scores give the average, and one high score gives its patch; the grid's ragged edge weighs nothing."""
    sap = SpatialAttentionPooling(16, 3).eval()
    for parameter in sap.parameters():
        parameter.zero_()
    patches = torch.randn(2, 49, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sap(patches), average_pooling(patches, 3), atol=1e-6)
    weights = sap.weights(patches)
    assert weights.shape == (2, 9, 9) and torch.allclose(weights.sum(-1), torch.ones(2, 9))
    assert weights[0, 8].tolist() == [1.0] + [0.0] * 8  # the last block has one patch
