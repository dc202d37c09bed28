"""The towers that the miniature compares."""

import pytest
import torch

from llava_hr.data.mini_world import scene
from llava_hr.evidence import variants
from llava_hr.miniature import model as mini
from llava_hr.miniature.encoders import pixels
from tenfold import UserError


@pytest.fixture(scope="module")
def images():
    return pixels([scene(1, number) for number in range(2)])


@pytest.fixture(scope="module")
def models():
    return {variant: variants.build(variant, 0).eval() for variant in variants.VARIANTS}


@torch.inference_mode()
def test_equal_visual_tokens_but_for_the_double_vit(models, images):
    """Fails if a variant feeds the language model more tokens than the comparison says."""
    for variant, model in models.items():
        tokens = 144 if variant == variants.VIT_DOUBLE else 36
        assert model.encode_images(images).shape == (2, tokens, mini.WIDTH)
        assert model.model.vision_tower.num_tokens == tokens


@torch.inference_mode()
def test_before_training_mra_equals_final_alignment_alone(models, images):
    """Fails if an adapter starts as anything but the identity, or two variants of a seed start from other weights."""
    with_adapters, without = (models[name].encode_images(images) for name in (variants.MRA, variants.ALIGN))
    assert torch.equal(with_adapters, without)
    adapter = models[variants.MRA].model.vision_tower.adapters[0]
    adapter.slow_proj.bias.fill_(1.0)
    assert not torch.equal(models[variants.MRA].encode_images(images), without)
    adapter.slow_proj.bias.zero_()


def test_low_to_high_also_starts_as_final_alignment_alone(models, images):
    """Fails if what the ViT writes into the ConvNeXt is not zero at first, or the ViT still gets features."""
    with torch.inference_mode():
        lhs, rhs = (models[name].encode_images(images) for name in (variants.LOW_TO_HIGH, variants.ALIGN))
    torch.testing.assert_close(lhs, rhs, atol=1e-5, rtol=1e-5)
    tower = models[variants.LOW_TO_HIGH].model.vision_tower
    assert [adapter.fast_conv.in_channels for adapter in tower.adapters] == [16, 32, 48]


def test_low_to_high_writes_the_vit_into_the_convnext(models, images):
    """Fails if the adapters of (e) do not reach the ConvNeXt's map."""
    tower = variants.build(variants.LOW_TO_HIGH, 0).model.vision_tower
    with torch.no_grad():
        before = tower(images)
        tower.adapters[0].slow_proj.weight.normal_(generator=torch.Generator().manual_seed(0))
        after, gates = tower(images, output_gates=True)
    assert not torch.allclose(before, after) and gates.shape == (2, 3)


def test_one_pathway_has_no_trace_of_the_other(models):
    vit, convnext = (models[name].model.vision_tower for name in (variants.VIT, variants.CONVNEXT))
    assert {name.split(".")[0] for name, _ in vit.named_parameters()} == {"vit"}
    assert {name.split(".")[0] for name, _ in convnext.named_parameters()} == {"convnext"}


def test_variants_of_a_seed_share_what_they_have_in_common(models):
    """Fails if the projector, an encoder or the language model differs before training; another seed draws anew."""
    states = {name: model.state_dict() for name, model in models.items()}
    for name, tensor in states[variants.MRA].items():
        if ".adapters." in name:
            continue
        for variant, state in states.items():
            own = name in state and not (variant == variants.VIT_DOUBLE and ".vit." in name)
            assert not own or torch.equal(state[name], tensor), (variant, name)
    other = variants.build(variants.MRA, 1).state_dict()
    assert not torch.equal(other["model.multi_modal_projector.linear_1.weight"],
                           states[variants.MRA]["model.multi_modal_projector.linear_1.weight"])  # fmt: skip
    assert torch.equal(other["lm_head.weight"], states[variants.MRA]["lm_head.weight"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    variants.build(variants.VIT, 3)
    assert torch.equal(torch.rand(1), expected)


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="unknown variant: resampler"):
        variants.config("resampler")
