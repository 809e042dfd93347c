"""The local region density: region counts per unit of window volume."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxregions.windows import Window

__all__ = ["log_density"]


def log_density(regions: Any, windows: Window, *, count: str = "activation") -> np.ndarray:
    """log rho = log N - log volume(W), natural logarithm, per window.

    Volumes are k-dimensional and in input space: prod_j 2 r_j, for slices times sqrt(det B'B).
    Bounds on N give the same bounds on log rho.

    Args:
      regions: counts or bounds N >= 1, shape (...,) or broadcastable to the windows' leading axes;
        or what ``count_regions`` returned.
      windows: (...,) windows.
      count: of the latter, "activation" or "affine" regions.

    Raises:
      ValueError: a count below 1 (affine regions that were not counted too), shapes that do not
        broadcast.

    Source: README, "The mathematics", density.
    """
    if count not in ("activation", "affine"):
        raise ValueError(f"count: expected 'activation' or 'affine', received {count!r}")
    if hasattr(regions, "activation_regions"):
        name, regions = f"{count}_regions", getattr(regions, f"{count}_regions")
        if regions is None:
            raise ValueError(f"regions: expected {name}, received None: count_regions(affine=True)")
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
