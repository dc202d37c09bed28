"""Closed formulas against torch's own counter on real modules (D8)."""

import pytest
import torch
from dit_sam_tiny import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dit_sam.config import DITConfig
from dit_sam.costs import decoder_macs, encoder_macs, map_bytes, text_macs, used_parameters
from dit_sam.evidence.official_style import released_encoder
from dit_sam.model import DITSam, mask_loss


def counted(work):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def small():
    """A small L-DIT whose dimensions differ from each other, so that no term can stand for another."""
    config = DITConfig(
        **{"width": 48, "depth": 2, "heads": 4, "patch_size": 8, "native_size": 64, "window_size": 3},
        **{"global_blocks": (1,), "input_size": 56, "prompt_width": 32, "decoder_heads": 4, "decoder_mlp": 80},
        **{"mask_channels": 8, "iou_width": 24, "words": 50, "text_width": 48, "text_depth": 2, "text_heads": 3},
        **{"text_mlp": 100, "text_length": 10},
    )
    return DITSam(config).eval().requires_grad_(False)


def test_encoder_flops_are_those_of_the_module(small):
    """Fails if a term of the formula is missing: linear layers, scores, relative positions, patches, neck, text."""
    image, text = torch.zeros(1, 3, 56, 56), torch.zeros(1, 10, 48)
    flops = counted(lambda: released_encoder(small.image_encoder, small.image_encoder.patches(image), text))
    assert flops == 2 * encoder_macs(small.config)


def test_decoder_and_text_flops_are_those_of_the_module(small):
    """Fails if a layer of the decoder or of BERT is not counted. Hyper-networks of unused masks are not run here."""
    config, cells = small.config, 49
    embedding, text, ids = torch.zeros(1, 32, 7, 7), torch.zeros(1, 10, 48), torch.ones(1, 10, dtype=torch.long)
    width, masks = config.prompt_width, config.mask_outputs
    unused = masks * (2 * width * width + width * width // 8) + masks * (width // 8) * 16 * cells
    flops = counted(lambda: small.decode(embedding, small.text_proj(text)))
    # The product with the random matrix of positions is no term of the table.
    positions = cells * 2 * (width // 2)
    assert flops == 2 * (decoder_macs(config) - unused + positions)
    assert counted(lambda: small.text_encoder(ids, ids)) == 2 * text_macs(config)


def test_the_published_sizes():
    """Fails if a formula moved: the table of section 9."""
    config = DITConfig()
    assert round(encoder_macs(config) / 1e9, 2) == 110.92
    assert round(encoder_macs(config, 1024) / 1e9, 1) == 672.5
    assert round(map_bytes(config) / 1e6, 1) == 52.3
    assert used_parameters(config) == 131_386_496


def test_used_parameters_are_those_with_a_gradient():
    """Fails if a weight that reaches the mask is called unused, or the other way round."""
    from dit_sam.costs import is_used

    model = tiny_model(text_depth=3).train()
    encoded = model.vocabulary.encode(["the square"], model.config.text_length)
    mask_loss(model(torch.randn(1, 3, 48, 48), encoded.ids, encoded.mask).logits, torch.zeros(1, 1, 48, 48)).backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved == {name for name, _ in model.named_parameters() if is_used(name, model.config)}
