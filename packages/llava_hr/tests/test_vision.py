"""The vision tower's rules, one by one (sheet section 3)."""

import math

import pytest
import timm
import torch
from llava_hr_fixtures import AttentionMaps, tiny_config, tiny_images
from torch import nn

from llava_hr.configuration import HIGH_RES_ENCODERS, LlavaHrConfig, LlavaHrVisionConfig
from llava_hr.evaluation.gates import GateReport, gate_report
from llava_hr.vision import FinalAlign, LlavaHrVisionTower, MRAdapter, to_grid
from tenfold import UserError


def tiny_tower(seed=0, trained=True, **fields):
    torch.manual_seed(seed)
    config = tiny_config().vision_config.to_dict() | fields
    tower = LlavaHrVisionTower(LlavaHrVisionConfig(**config)).eval()
    if trained:
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return tower


@pytest.mark.parametrize(
    ("size", "low", "tokens"), [(384, 336, 576), (768, 336, 576), (1024, 448, 1024), (1536, 672, 2304)]
)
def test_sizes_of_the_published_models(size, low, tokens):
    """Table of section 3.1. Fails if the low-resolution size or its floor changes."""
    config = LlavaHrConfig.named("7b", image_size=size)
    assert config.vision_config.low_size(size) == low
    assert config.num_image_tokens == config.vision_config.num_tokens == tokens


@pytest.mark.parametrize(("name", "encoder"), [("7b", "convnext_large_mlp"), ("x-13b", "convnext_xxlarge")])
def test_the_trunk_is_timms_own_architecture(name, encoder):
    """Weights and every epsilon (1e-6 and 1e-5). Fails if a size or an epsilon of the table differs from timm's."""
    with torch.device("meta"):
        ours = LlavaHrVisionTower(LlavaHrConfig.named(name).vision_config).convnext
        theirs = timm.create_model(encoder, pretrained=False)
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    eps = {key: module.eps for key, module in theirs.named_modules() if isinstance(module, nn.LayerNorm)}
    own = {key: module.eps for key, module in ours.named_modules() if isinstance(module, nn.LayerNorm)}
    assert own == {key: value for key, value in eps.items() if not key.startswith("head.")}
    assert set(own.values()) == {HIGH_RES_ENCODERS[encoder]["high_res_eps"]}


def test_fewer_cells_are_interpolated_with_aligned_corners():
    """Fails with ``align_corners=False``, and if rows and columns are exchanged."""
    features = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    tokens = to_grid(features, (3, 5))[0, :, 0].view(3, 5)
    expected = torch.linspace(0, 2, 3)[:, None] + torch.linspace(0, 1, 5)
    torch.testing.assert_close(tokens, expected)


def test_more_cells_are_averaged_over_windows():
    """Fails if pooling is replaced by interpolation."""
    features = torch.arange(32.0).view(1, 1, 4, 8)
    tokens = to_grid(features, (2, 2))
    torch.testing.assert_close(tokens[0, :, 0], torch.tensor([5.5, 9.5, 21.5, 25.5]))


def test_an_equal_grid_is_only_flattened_row_by_row():
    features = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_grid(features, (4, 5))[1, 7], features[1, :, 1, 2])


def test_grids_are_interpolated_in_float32():
    """Fails if a bfloat16 map is interpolated in bfloat16."""
    features = torch.randn(1, 4, 3, 3, dtype=torch.bfloat16)
    exact = to_grid(features.float(), (6, 6)).bfloat16()
    assert torch.equal(to_grid(features, (6, 6)), exact)


def test_a_new_adapter_is_the_identity():
    """Fails if a projection does not start at zero: values exactly equal, gradients only in the two projections."""
    adapter = MRAdapter(8, 6)
    low, high = torch.randn(2, 9, 8, requires_grad=True), torch.randn(2, 6, 3, 3, requires_grad=True)
    fused, gate = adapter(low, high, (3, 3))
    assert torch.equal(fused, low) and gate.shape == (2, 1)
    (fused * torch.randn(2, 9, 8)).sum().backward()
    moved = {name for name, parameter in adapter.named_parameters() if parameter.grad.abs().sum() > 0}
    assert moved == {f"{branch}_proj.{kind}" for branch in ("slow", "fast") for kind in ("weight", "bias")}
    assert high.grad.abs().sum() == 0


def test_bounds_of_a_new_adapters_weights():
    """Xavier for both convolutions (0.0109 for the depthwise kernel at d = 1024), PyTorch's default for the gate."""
    adapter = MRAdapter(1024, 64)
    for weight, bound in {
        adapter.fast_conv.weight: math.sqrt(6 / (49 + 49 * 1024)),
        adapter.slow_conv.weight: math.sqrt(6 / 128),
        adapter.gate[0].weight: 1 / math.sqrt(2048),
        adapter.gate[0].bias: 1 / math.sqrt(2048),
        adapter.gate[2].weight: 1 / math.sqrt(512),
    }.items():
        assert 0.97 * bound < weight.abs().max() <= bound
    assert math.isclose(math.sqrt(6 / (49 + 49 * 1024)), 0.0109, abs_tol=5e-5)
    assert adapter.slow_conv.bias.abs().sum() == adapter.fast_conv.bias.abs().sum() == 0


def test_the_gate_is_one_number_per_image_of_the_pooled_branches():
    """By hand from the two branches. Fails with another gate function, order, pooled vector or a gate per channel."""
    torch.manual_seed(0)
    adapter = MRAdapter(8, 6)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    low, high = torch.randn(2, 9, 8), torch.randn(2, 6, 3, 3)
    fused, gate = adapter(low, high, (3, 3))
    assert gate.shape == (2, 1) and bool((gate.abs() < 0.9).all())
    image = low.transpose(1, 2).reshape(2, 8, 3, 3)
    residual = adapter.fast_proj(nn.functional.gelu(adapter.fast_conv(image)))
    y1 = (image + residual).flatten(2).transpose(1, 2)
    s = adapter.slow_proj(nn.functional.gelu(adapter.slow_conv(high))).flatten(2).transpose(1, 2)
    expected = torch.tanh(adapter.gate(torch.cat((y1, s), dim=2).mean(dim=1)))
    torch.testing.assert_close(gate, expected)
    torch.testing.assert_close(fused, y1 + expected[:, :, None] * s)


def test_the_map_is_aligned_after_the_convolutions():
    """Fails if it is enlarged before them: GELU and interpolation do not commute."""
    adapter = MRAdapter(8, 6)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    high = torch.randn(1, 6, 2, 2)
    small = adapter.slow_proj(nn.functional.gelu(adapter.slow_conv(high)))
    assert torch.equal(adapter.high_branch(high, (4, 4)), to_grid(small, (4, 4)))
    large = nn.functional.interpolate(high, size=(4, 4), mode="bilinear", align_corners=True)
    other = adapter.slow_proj(nn.functional.gelu(adapter.slow_conv(large))).flatten(2).transpose(1, 2)
    assert (other - adapter.high_branch(high, (4, 4))).abs().max() > 0.01


def test_new_adapters_leave_the_tower_as_it_was():
    """Fails if the adapters are not the identity at first: MRA at step 0 equals both encoders with final align."""
    with_adapters, without = tiny_tower(trained=False), tiny_tower(adapters=False)
    without.load_state_dict({k: v for k, v in with_adapters.state_dict().items() if "adapters" not in k})
    assert len(with_adapters.adapters) == 3 and len(without.adapters) == 0
    images = tiny_images(2)
    assert torch.equal(with_adapters(images), without(images))


def test_adapters_stand_between_the_quarters_and_see_the_same_map():
    """After layers 2, 4, 6 of 8, all given H. Fails with other group boundaries, intermediate stages or a last norm."""
    low = tiny_config().vision_config.low_res_config.to_dict() | {"num_hidden_layers": 8}
    tower, calls, maps = tiny_tower(low_res_config=low), [], []
    for index, layer in enumerate(tower.vit.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    for index, adapter in enumerate(tower.adapters):
        adapter.register_forward_pre_hook(
            lambda _, inputs, index=index: (calls.append(f"adapter {index}"), maps.append(inputs[1]))[0]
        )
    last = []
    tower.vit.encoder.layers[-1].register_forward_hook(lambda *values: last.append(values[2]))
    tower.align.register_forward_pre_hook(lambda _, inputs: (maps.append(inputs[1]), last.append(inputs[0]))[0])
    images = tiny_images(1)
    tower(images)
    assert last[0] is last[1]  # no norm, and no layer left out
    assert calls == [0, 1, "adapter 0", 2, 3, "adapter 1", 4, 5, "adapter 2", 6, 7]
    assert len(maps) == 4 and all(torch.equal(seen, tower.convnext.forward_features(images)) for seen in maps)


def test_the_class_token_takes_no_part():
    """Fails if it is kept: outputs do not depend on it, and its gradient is exactly zero."""
    tower, images = tiny_tower(), tiny_images(1)
    features = tower(images)
    assert features.shape == (1, tower.num_tokens, tower.hidden_size)
    features.square().sum().backward()
    embeddings = tower.vit.embeddings
    assert torch.equal(embeddings.class_embedding.grad, torch.zeros(16))
    assert embeddings.position_embedding.weight.grad[0].abs().sum() == 0
    assert embeddings.position_embedding.weight.grad[1:].abs().sum() > 0
    with torch.no_grad():
        embeddings.class_embedding.add_(5)
    assert torch.equal(tower(images), features)


def test_positions_are_resampled_by_antialiased_bicubic():
    """3 cells to 2, by hand. Fails without anti-aliasing, with aligned corners or another kernel."""
    embeddings = tiny_tower().vit.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight.zero_()
        embeddings.position_embedding.weight[1 + 4] = 1  # the middle one of 3 x 3
        resampled = embeddings.positions((2, 2))[0, 1:, 0]

    def keys(x, a=-0.5):  # the cubic kernel that torch takes when it anti-aliases
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x < 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    # The first of two cells has its centre at 0.75 of the three, and the kernel is stretched by 1.5.
    weights = [keys((j + 0.5 - 0.75) / 1.5) for j in range(3)]
    torch.testing.assert_close(resampled, torch.full((4,), (weights[1] / sum(weights)) ** 2), atol=1e-5, rtol=1e-5)


def test_positions_follow_the_grid_and_the_weight():
    """Fails if an old grid, weight or dtype is reused, or if gradients are lost."""
    embeddings = tiny_tower().vit.embeddings
    with torch.no_grad():
        first = embeddings.positions((2, 2))
        assert embeddings.positions((4, 3)).shape == (1, 13, 16)
        assert torch.equal(embeddings.positions((3, 3)), embeddings.position_embedding.weight[None])
        embeddings.position_embedding.weight.mul_(2)
        torch.testing.assert_close(embeddings.positions((2, 2)), 2 * first)
        assert embeddings.bfloat16().positions((2, 2)).dtype == torch.bfloat16
    with torch.inference_mode():
        embeddings.positions((2, 2))
    assert embeddings.positions((2, 2)).requires_grad


def test_the_low_resolution_image_is_read_off_between_pixels():
    """Fails with ``align_corners=False`` or anti-aliasing: pixel j of the first row lies at 63 j / 27."""
    tower, images = tiny_tower(), tiny_images(1)
    low = tower.low_res_image(images)
    assert low.shape == (1, 3, 28, 28)
    place = torch.arange(28) * 63 / 27
    left = place.floor().long().clamp(max=62)
    row = torch.lerp(images[0, 0, 0, left], images[0, 0, 0, left + 1], place - left)
    torch.testing.assert_close(low[0, 0, 0], row, atol=1e-4, rtol=1e-4)
    half = images.bfloat16()
    assert torch.equal(tower.low_res_image(half), tower.low_res_image(half.float()).bfloat16())


def test_pixels_are_cast_to_the_weights():
    tower = tiny_tower().bfloat16()
    assert tower(tiny_images(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("side", [32, 64, 128])
def test_a_batch_equals_single_images_at_every_grid(side):
    """High grids of 1, 2 and 4 cells a side, low ones of 2, 2 and 4."""
    tower = tiny_tower(image_size=side)
    images = tiny_images(3, side=side)
    together, gates = tower(images, output_gates=True)
    alone = [tower(image[None], output_gates=True) for image in images]
    torch.testing.assert_close(together, torch.cat([features for features, _ in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gates, torch.cat([gate for _, gate in alone]), atol=1e-6, rtol=1e-5)
    assert gates.shape == (3, 3) and bool((gates.abs() < 1).all()) and gates.std(dim=0).min() > 0


def test_rectangular_images_make_rectangular_grids():
    tower = tiny_tower()
    assert tower(torch.randn(1, 3, 64, 128)).shape == (1, 2 * 4, 16)


def test_a_pooled_grid_runs():
    assert tiny_tower(image_size=128, high_res_stride=64)(tiny_images(1, side=128)).shape == (1, 4, 16)


def test_gates_are_reported_by_layer_and_image():
    """Fails if the report's layers, signs or means are off."""
    tower, images = tiny_tower(), tiny_images(2)
    report = gate_report(tower, images)
    gates = tower(images, output_gates=True)[1].detach()
    assert report.layers == (1, 2, 3) and torch.equal(report.gates, gates)
    assert report.by_layer[2] == pytest.approx(float(gates[:, 1].abs().mean()))
    assert report.by_image[1] == pytest.approx(float(gates[1].abs().mean()))
    assert tiny_tower(adapters=False)(images, output_gates=True)[1].shape == (2, 0)
    with pytest.raises(UserError, match="no gates to report"):
        gate_report(tiny_tower(adapters=False), images)


def test_no_attention_map_is_made():
    """Fails if the ViT runs eager attention, which the second half shows to be noticed."""
    tower = tiny_tower(image_size=224)  # 7 x 7 = 49 tokens
    images = tiny_images(1, side=224)
    for implementation, made in {"sdpa": False, "eager": True}.items():
        tower.vit.set_attn_implementation(implementation)
        with torch.no_grad(), AttentionMaps(49) as maps:
            tower(images)
        assert bool(maps.seen) is made


def test_recomputing_the_convnext_changes_no_gradient():
    """Fails if a block is skipped or the recomputation is not used (blocks run once more in the backward pass)."""
    tower, images, runs = tiny_tower().train(), tiny_images(1), []
    tower.convnext.stages[2].blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    gradients = []
    for checkpointing in (False, True):
        tower.gradient_checkpointing = checkpointing
        tower._gradient_checkpointing_func = lambda block, x: torch.utils.checkpoint.checkpoint(
            block, x, use_reentrant=False
        )
        tower.zero_grad()
        tower(images).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in tower.named_parameters()})
        assert len(runs) == (3 if checkpointing else 1)
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


def test_final_align_has_no_residual():
    """Fails if tokens are added or a norm is applied: with zero weights only the biases are left."""
    align = FinalAlign(8, 6)
    for name, parameter in align.named_parameters():
        nn.init.constant_(parameter, 0.5 if name.endswith("bias") else 0.0)
    assert torch.equal(align(torch.randn(2, 4, 8), torch.randn(2, 6, 1, 1), (2, 2)), torch.ones(2, 4, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 1000}, "a multiple of 32"),
        ({"image_size": 160}, "one a multiple of the other"),
        ({"num_groups": 3}, "do not split into groups"),
        ({"min_low_size": 30}, "a multiple of 14"),
        ({"high_res_name": "resnet50"}, "unknown high_res_name"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    low = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "patch_size": 14}
    sizes = {"image_size": 64, "min_low_size": 84, "low_res_config": low}
    with pytest.raises(UserError, match=message):
        LlavaHrVisionConfig(**sizes | fields)


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match="unknown model size"):
        LlavaHrConfig.named("70b")


def test_reported_gates_are_means_of_their_sizes():
    """Fails if gates of both signs cancel each other."""
    report = GateReport((1, 2), torch.tensor([[0.5, -0.2], [-0.5, 0.4]]))
    assert report.by_layer == pytest.approx({1: 0.5, 2: 0.3})
    assert report.by_image == pytest.approx([0.35, 0.45])
