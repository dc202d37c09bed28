"""What a prompt costs (sheet section 9, D8)."""

import pytest

from flashsloth.configuration import FlashSlothConfig
from flashsloth.costs import Sizes, cache_bytes, counted, decode_bytes, embq, length, prefill


@pytest.mark.parametrize(
    ("views", "tokens", "parts", "total", "plain", "ratio", "language_ratio"),
    [
        (1, (134, 773), (0.642, 0.007, 0.715), 1.364, 4.945, 0.276, 0.167),
        (5, (458, 3689), (3.209, 0.035, 2.494), 5.738, 27.27, 0.210, 0.104),
    ],
)
def test_the_table_of_the_sheet(views, tokens, parts, total, plain, ratio, language_ratio):
    """Question of 7 tokens, in TFLOPs. Fails if a term of a formula is left out."""
    config = FlashSlothConfig(views=views)
    ours, uncompressed = Sizes.of(config), Sizes.of(config, compressed=False)
    assert (length(ours, 7), length(uncompressed, 7)) == tokens
    cost, full = prefill(ours, 7), prefill(uncompressed, 7)
    small = cost.sap + cost.projector + cost.embq
    assert tuple(round(one / 1e12, 3) for one in (cost.vision, small, cost.language)) == parts
    assert cost.total / 1e12 == pytest.approx(total, abs=5e-4)
    assert full.total / 1e12 == pytest.approx(plain, abs=5e-3)
    assert cost.total / full.total == pytest.approx(ratio, abs=5e-4)
    assert cost.language / full.language == pytest.approx(language_ratio, abs=5e-4)


@pytest.mark.parametrize("views", [1, 5])
def test_formulas_equal_the_counter(views):
    """Torch's FLOP counter on the real modules, full size, on the meta device."""
    config = FlashSlothConfig(views=views)
    for compressed in (True, False):
        assert counted(config, 7, compressed) == prefill(Sizes.of(config, compressed), 7)


def test_bytes_and_the_saving_behind_the_attention():
    """320 KiB a token; projecting values behind the attention saves three quarters of them up to three rounds."""
    sizes = Sizes.of(FlashSlothConfig())
    assert cache_bytes(sizes) == 320 * 1024
    assert round(134 * cache_bytes(sizes) / 2**20, 1) == 41.9
    assert embq(sizes, 10) / 1e9 == pytest.approx(3.54, abs=0.01)
    saved = embq(sizes, 7) - embq(sizes, 7, late_values=True)
    values = 2 * 729 * 1152**2
    assert 0.73 < saved / values < 0.76
    assert decode_bytes(sizes, 1) - decode_bytes(sizes, 0) == cache_bytes(sizes)
