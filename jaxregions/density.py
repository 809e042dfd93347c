"""The local region density: region counts per unit of window volume."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxregions.windows import Window

__all__ = ["log_density"]


def log_density(regions: Any, windows: Window) -> np.ndarray:
    """log rho = log N - log volume(W), natural logarithm, per window.

    Volumes are k-dimensional and in input space: prod_j 2 r_j, for slices times sqrt(det B'B).
    Bounds on N give the same bounds on log rho.

    Args:
      regions: counts or bounds N >= 1, shape (...,) or broadcastable to the windows' leading axes.
      windows: (...,) windows.

    Raises:
      ValueError: a count below 1, shapes that do not broadcast.

    Source: README, "The mathematics", density.
    """
    regions = np.asarray(regions, np.float64)
    if not (regions >= 1).all():
        raise ValueError(f"regions: expected counts >= 1, received {np.min(regions)}")
    try:
        shape = np.broadcast_shapes(regions.shape, windows.batch_shape)
    except ValueError as error:
        raise ValueError(
            f"regions: expected a shape that fits {windows.batch_shape}, received {regions.shape}"
        ) from error
    return np.broadcast_to(np.log(regions) - np.asarray(windows.log_volume()), shape)
