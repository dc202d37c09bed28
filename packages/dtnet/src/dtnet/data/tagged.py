"""Mini features in which a choice of path can pay: half of the scenes carry a tag, and are to be read otherwise.

A tagged scene's grid rows are permuted, and its colours have changed places: red stands where green is elsewhere,
green where blue is, blue where red is. Gates over positions scale what is there, so that the local and the axial cell
pass the wrong colours on; attention and projection can put them right. The same shades mean one word or another: which
one, the tag alone says.

The tag is an offset, up on even channels and down on odd ones in a tagged scene, the other way round elsewhere, under
noise that is several times as large. A single position leaves it in doubt; the mean over all positions does not.
"""

from __future__ import annotations

import numpy as np

from tenfold.runs import sample_rng

# Row r of a tagged scene shows what row ROWS[r] shows elsewhere.
ROWS = (3, 6, 2, 5, 0, 4, 1)
OFFSET, NOISE = 0.02, 0.15
# Beside epochs, which key the streams of augmentation and order: no stream meets another.
_STREAM = 1 << 63


def is_tagged(seed: int, image_id: int) -> bool:
    """Whether a scene of the world `seed` carries the tag: every second one, by chance."""
    return bool(sample_rng(seed, _STREAM, image_id).random() < 0.5)


def tag_features(features: np.ndarray, seed: int, image_id: int) -> np.ndarray:
    """What the world `seed` makes of a scene's features.

    Args:
        features: float32 `[49, 24]`, as `dtnet.features.MiniFeatures` gives them.

    Returns:
        float32 `[49, 24]`: rows and colours moved where the scene is tagged, the offset and noise everywhere.
    """
    rng = sample_rng(seed, _STREAM, image_id)
    tagged = rng.random() < 0.5
    grid, channels = len(ROWS), features.shape[-1]
    if tagged:
        rows = features.reshape(grid, grid, channels)[list(ROWS)]
        features = np.roll(rows.reshape(grid**2, channels // 3, 3), 1, axis=-1).reshape(grid**2, channels)
    offset = np.where(np.arange(channels) % 2 == 0, OFFSET, -OFFSET) * (1 if tagged else -1)
    return (features + offset + NOISE * rng.standard_normal(features.shape)).astype(np.float32)
