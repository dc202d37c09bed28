"""Numbers that are not finite stop where they appear."""

from __future__ import annotations

import math
from typing import Any

from tenfold.errors import UserError


def require_finite_loss(value: Any, stage: str, step: int) -> float:
    """A loss as a number.

    Args:
        value: a number, or a tensor of one (its value is waited for).
        stage: of the training. step: the optimiser step that it would lead to, counted from 1.

    Raises:
        UserError: NaN or infinity: the training ends here, before the weights take it up.
    """
    number = float(value.detach() if hasattr(value, "detach") else value)
    if not math.isfinite(number):
        raise UserError(
            f"the loss is not finite ({number})",
            f"{stage}, step {step}",
            "a lower learning rate, fp32, or data without such numbers; the last checkpoint before it is kept",
        )
    return number


def require_finite_values(values: Any, what: str, where: Any) -> None:
    """An array or a tensor holds numbers only.

    Raises:
        UserError: NaN or infinity in it.
    """
    import numpy as np

    array = np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise UserError(f"{what}: {count} of {array.size} numbers are not finite", where, "finite numbers")
