"""The generator's properties: views together and alone, both forms of the enhancer, edits, precision, rows."""

import pytest
import torch
from e3_facenet_fixtures import TINY, TINY_D, make_generator

from e3_facenet.camera import five_views, gaussian_poses, poses
from e3_facenet.discriminator import Discriminator
from e3_facenet.evidence.claims import folding
from e3_facenet.evidence.official_style import render_views
from e3_facenet.nerf import Random, image_rows, positional_encoding


@pytest.fixture(scope="module")
def generator():
    return make_generator()


@pytest.fixture(scope="module")
def inputs():
    draw = torch.Generator().manual_seed(3)
    ws = torch.randn(2, TINY.num_ws, TINY.w_dim, generator=draw)
    tokens, z_bg = torch.randn(2, 20, TINY.token_dim, generator=draw), torch.randn(2, TINY.bg_dim, generator=draw)
    return ws, tokens, z_bg


@torch.no_grad()
def test_views_together_equal_views_alone(generator, inputs):
    """Fails if views share rows, a style code, or each other's pixels in the enhancer.

    1e-3: the 2^9 pi of the positional encoding magnifies the last bit of a differently shaped product.
    """
    ws, tokens, z_bg = inputs
    pose = five_views()
    together = generator(ws, tokens, pose.repeat(2, 1, 1), z_bg.repeat_interleave(5, dim=0)).image
    for face in range(2):
        for view in range(5):
            alone = generator(ws[face, None], tokens[face, None], pose[view, None], z_bg[face, None]).image
            torch.testing.assert_close(together[5 * face + view], alone[0], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_official_way_gives_the_same_pictures(generator, inputs):
    """Fails if the fast path's folded gains, blur, or in-place steps change the function."""
    ws, tokens, z_bg = inputs
    theirs = render_views(generator, ws[:1], tokens[:1], five_views()[:2], z_bg[:1])
    ours = generator(ws[:1], tokens[:1], five_views()[:2], z_bg[:1].expand(2, -1)).image
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_folded_enhancer_is_the_same_function_with_the_same_gradients():
    """Fails if a value, the output's bias or a key is folded wrongly; both with queries folded in and not."""
    outcome = folding()
    assert outcome.passed, outcome.value


def test_path_length_gradients_exist_through_both_forms(inputs):
    """Fails if attention has no second derivative: SDPA's math form and the folded one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    generator, (_, tokens, _) = make_generator(), inputs
    enhancer = generator.enhancers["16"]
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    for folded in (False, True):
        with sdpa_kernel(SDPBackend.MATH):
            (first,) = torch.autograd.grad(enhancer(x, tokens[:1], folded).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), enhancer.to_k.weight)
        assert float(second.norm()) > 0


@torch.no_grad()
def test_no_map_of_pixels_by_tokens_is_kept_whole(monkeypatch, inputs):
    """Fails if scores of all pixels are made at once: a chunk holds 16 pixels here."""
    import e3_facenet.enhancer as module

    monkeypatch.setattr(module, "CHUNK", 16)
    sizes, plain = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: sizes.append(x.numel()) or plain(x, dim))
    enhancer = make_generator().enhancers["32"]
    x = torch.randn(1, 16, 16, 16)
    found = enhancer(x, inputs[1][:1])
    assert len(sizes) == 16 and max(sizes) == 16 * 2 * 20
    monkeypatch.setattr(module, "CHUNK", 4096)
    torch.testing.assert_close(found, enhancer(x, inputs[1][:1]))


@torch.no_grad()
def test_an_edit_of_strength_zero_changes_no_bit_and_none_changes_the_field(generator, inputs):
    """Fails if the mixture runs where one text is meant, or the edit reaches the radiance field."""
    ws, tokens, z_bg = inputs
    pose = five_views()
    background = z_bg[:1].expand(5, -1)
    made = generator(ws[:1], tokens[:1], pose, background)
    same = generator(ws[:1], tokens[1:], pose, background, tokens[:1], kept=1.0)
    assert torch.equal(made.image, same.image)
    edited = generator(ws[:1], tokens[1:], pose, background, tokens[:1], kept=0.3)
    assert not torch.equal(made.image, edited.image)
    assert torch.equal(made.depth, edited.depth) and torch.equal(made.rgb, edited.rgb)


@torch.no_grad()
def test_every_view_has_its_own_offset(generator, inputs):
    """Fails if dw is computed once for all cameras: it depends on what the camera sees."""
    ws, tokens, z_bg = inputs
    offsets = generator(ws[:1], tokens[:1], five_views(), z_bg[:1].expand(5, -1)).offsets[0]
    assert not torch.allclose(offsets[0], offsets[4])


@torch.no_grad()
def test_half_precision_of_the_blocks_stays_near(inputs):
    """Fails if positions or the enhancer leave float32: relative L2 below 2e-2."""
    generator, (ws, tokens, z_bg) = make_generator(), inputs
    full = generator(ws, tokens, poses([0.1, 0.2]), z_bg).image
    generator.use_dtype(torch.bfloat16)
    half = generator(ws, tokens, poses([0.1, 0.2]), z_bg).image
    assert half.dtype == torch.float32
    assert float((half - full).norm() / full.norm()) < 2e-2


def test_positions_are_encoded_in_float32():
    """Fails if a bf16 position is multiplied by 2^9 pi before it is widened."""
    assert positional_encoding(torch.rand(4, 3).bfloat16()).dtype == torch.float32


def test_rows_are_the_most_square():
    assert image_rows(1024) == (32, 32) and image_rows(1280) == (32, 40) and image_rows(80) == (8, 10)


def test_gradients_reach_the_style_code_through_the_field_in_evaluation_mode(generator, inputs):
    """Fails if rendering in evaluation mode cuts the graph, as the official forward does: inversion needs it."""
    ws = inputs[0][:1].clone().requires_grad_()
    generator(ws, inputs[1][:1], poses([0.0]), inputs[2][:1]).rgb.square().sum().backward()
    assert ws.grad is not None and float(ws.grad[:, : TINY.fg_ws].norm()) > 0


@torch.no_grad()
def test_a_fresh_progressive_state_samples_more_and_is_loaded(generator, inputs):
    """Fails if the buffer alpha is ignored: a fresh model takes 20 coarse samples."""
    other = make_generator()
    other.alpha.fill_(-1.0)
    made = other(inputs[0], inputs[1], poses([0.0, 0.1]), inputs[2])
    assert made.volume.depths.shape[-1] == 20 + TINY.ray_samples
    usual = generator(inputs[0], inputs[1], poses([0.0, 0.1]), inputs[2])
    assert usual.volume.depths.shape[-1] == 2 * TINY.ray_samples


def test_inputs_and_global_randomness_are_left_alone(inputs):
    """Fails if an input is modified in place or torch's generator moves."""
    generator, before = make_generator(), [part.clone() for part in inputs]
    state = torch.random.get_rng_state()
    draws = Random(torch.Generator().manual_seed(0))
    generator.train()(inputs[0], inputs[1], gaussian_poses(torch.zeros(2, 2), TINY), inputs[2], draws=draws)
    with torch.no_grad():
        generator.eval()(inputs[0], inputs[1], poses([0.0, 0.2]), inputs[2])
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


def test_the_same_seed_gives_the_same_bits(inputs):
    one, two = (make_generator()(inputs[0], inputs[1], poses([0.0, 0.2]), inputs[2]).image for _ in range(2))
    assert torch.equal(one, two)


def test_the_text_is_not_differentiated_by_the_discriminator():
    """Fails if D's matching head sends gradients into the text."""
    t = torch.randn(2, 32, requires_grad=True)
    real, match = Discriminator(TINY_D)(torch.randn(2, 3, 32, 32), t)
    (real.sum() + match.sum()).backward()
    assert t.grad is None
