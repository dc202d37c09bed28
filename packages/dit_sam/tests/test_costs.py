"""Closed formulas against torch's own counter on real modules (D8)."""

import pytest
import torch
from dit_sam_tiny import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from dit_sam.config import DITConfig
from dit_sam.costs import decoder_macs, encoder_macs, map_bytes, text_macs, used_parameters
from dit_sam.evidence.official_style import released_encoder
from dit_sam.model import DITSam, mask_loss


def counted(work):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def full():
    """L-DIT on ViT-B at full size, without memory, one block deep (all blocks are alike)."""
    config = DITConfig(depth=1)
    with torch.device("meta"):
        return DITSam(config).eval()


def test_encoder_flops_are_those_of_the_module(full):
    """Fails if a term of the formula is missing: linear layers, scores, relative positions, patches, neck, text."""
    with torch.device("meta"):
        image, text = torch.empty(1, 3, 512, 512), torch.empty(1, 20, 768)
    flops = counted(lambda: released_encoder(full.image_encoder, full.image_encoder.patches(image), text))
    # Here attention is computed with text queries, whose output is projected as well.
    assert flops == 2 * encoder_macs(full.config)


def test_decoder_and_text_flops_are_those_of_the_module(full):
    """Fails if a layer of the decoder or of BERT is not counted. The hyper-networks of unused masks are not run here."""
    config = full.config
    with torch.device("meta"):
        embedding, prompts = torch.empty(1, 256, 32, 32), torch.empty(1, 20, 768)
        ids = torch.zeros(1, 20, dtype=torch.long)
    width, masks = config.prompt_width, config.mask_outputs
    unused = masks * (2 * width * width + width * width // 8) + masks * (width // 8) * 16 * 1024
    flops = counted(lambda: full.decode(embedding, full.text_proj(prompts)))
    # One product with the random matrix of positions, 2 x 128 a cell, is no term of the table.
    positions = 1024 * 2 * 128
    assert flops == 2 * (decoder_macs(config) - unused + positions)
    assert counted(lambda: full.text_encoder(ids, ids + 1)) == 2 * text_macs(config)


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
