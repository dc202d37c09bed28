"""One answer's picture: the image, what SAP weighed, where EmbQ looked."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image
from torch import Tensor


def draw(image: Image.Image, sap: Tensor, embq: Tensor, title: str) -> bytes:
    """A PNG of three panels.

    Args:
        sap, embq: ``[side, side]``, weights of patches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels: Any = figure.subplots(1, 3)
    side = 9 * sap.shape[0]
    shown = image.resize((side, side))
    for panel, heading, weights in zip(panels, ("image", "SAP", "EmbQ"), (None, sap, embq), strict=True):
        panel.imshow(shown)
        if weights is not None:
            extent = (0, side, side, 0)
            panel.imshow(weights.numpy(), extent=extent, alpha=0.65, cmap="inferno", interpolation="nearest")
        panel.set_title(heading, fontsize=10)
        panel.set_axis_off()
    figure.suptitle(title[:100], fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return stream.getvalue()
