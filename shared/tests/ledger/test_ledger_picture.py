"""The picture that a README opens with: small, in its place, replaced and never doubled."""

import io

import numpy as np
import pytest
from PIL import Image

from tenfold import UserError
from tenfold.ledger import Figure
from tenfold.ledger.picture import LIMIT, WIDTH, compact, with_picture


def test_a_picture_is_made_small(tmp_path):
    """Fails if size or bytes stay above their bound, or transparency turns black."""
    ramp = np.zeros((900, 2400, 4), np.uint8)
    ramp[:, :1200] = (200, 30, 30, 255)
    Image.fromarray(ramp).save(tmp_path / "large.png")
    written = compact(tmp_path / "large.png")
    with Image.open(io.BytesIO(written)) as small:
        assert small.size == (WIDTH, 450) and len(written) <= LIMIT
        assert small.convert("RGB").getpixel((WIDTH - 1, 0)) == (255, 255, 255)


def test_a_picture_that_stays_large_is_refused(tmp_path):
    noise = 32 * np.random.default_rng(0).integers(0, 8, (600, 600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with pytest.raises(UserError, match="stays above 150 KB"):
        compact(tmp_path / "noise.png")


def test_it_stands_below_the_title_once(tmp_path):
    figure = Figure(tmp_path / "x.png", "Beads [by size]\nover time.")
    text = with_picture("# Beads\n\nWords.\n", figure)
    assert text == "# Beads\n\n![Beads (by size) over time.](picture.png)\n\nWords.\n"
    assert with_picture(text, figure) == text
