"""Stable Diffusion at full size, without weights: names, shapes, numbers, and which layers are hooked."""

import json
from pathlib import Path

from inst_diff_edit import attention, costs
from inst_diff_edit.evidence import claims

GOLDEN = Path(__file__).parent / "goldens" / "official_keys.json"


def test_names_shapes_and_numbers_are_those_of_the_release(monkeypatch):
    """Key by key. Fails if a width, a number of layers or of input channels differs, or an inner layer is hooked."""
    monkeypatch.delenv("TENFOLD_GOLDENS", raising=False)
    outcome = claims.official_keys()
    assert outcome.passed, outcome.detail
    golden = json.loads(GOLDEN.read_text())
    assert len(golden["keys"]) > 20 and len(golden["parameters"]) >= 6


def test_another_width_is_noticed(monkeypatch):
    """The check itself can fail."""
    monkeypatch.delenv("TENFOLD_GOLDENS", raising=False)
    monkeypatch.setitem(costs.UNET, "cross_attention_dim", 1024)
    outcome = claims.official_keys()
    assert not outcome.passed and "attn2.to_k.weight" in outcome.detail


def test_at_512_pixels_five_layers_are_used():
    """Of 16 with cross-attention, those with 16 x 16 positions; the middle block has none of them at any size."""
    recorder = attention.AttentionRecorder(costs.unet())
    recorder.expect(costs.LATENT_EDGE, costs.LATENT_EDGE)
    assert recorder.wants(16 * 16) and not recorder.wants(8 * 8) and not recorder.wants(32 * 32)
    assert len(recorder.layers) == 15 and not any(name.startswith("mid_block") for name in recorder.layers)
    golden = json.loads(GOLDEN.read_text())
    used = {name.removesuffix(".transformer_blocks.0.attn2") for name in recorder.layers}
    assert len(golden["used_layers"]) == 5 and set(golden["used_layers"]) <= used
