"""Lines and two-dimensional windows of one draw in coordinates in which the windows lie in a disc.

One scene for all windows of one plane: full-dimensional ones, or slices with a common anchor. A
slice of its own has a scene of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxregions._records import build
from jaxregions.refinement.finely import disc
from jaxregions.refinement.placed import Own, in_slice, power_above, size
from jaxregions.refinement.restricted import restricted
from jaxregions.windows import Window

__all__ = [
    "Point",
    "Scene",
    "at_point",
    "at_slices",
    "in_one_disc",
    "in_own_slices",
    "in_shared_slice",
    "share_plane",
]

U = 2.0**-53


class Point(NamedTuple):
    """The hyperplanes' point in the windows, as in ``Placed``."""

    radius: Any
    common: Any
    known: Any


class Scene(NamedTuple):
    """Of G planes with M windows each: the arguments of ``chords``, and the windows in the disc.

    slope (G, m, 2), value to zero (G, m), slack (G,), centre and radius (G, M, 2).
    """

    slope: Any
    value: Any
    slope_error: Any
    value_error: Any
    zero: Any
    slack: Any
    centre: Any
    radius: Any


def share_plane(windows: Window) -> bool:
    """Whether the windows are slices of one plane, exactly: one basis and one anchor for all."""
    anchor, basis = windows.anchor, windows.basis
    if anchor is None or basis is None or basis.ndim != 2:
        return False
    return len(anchor) > 1 and bool((np.asarray(anchor) == np.asarray(anchor)[0]).all())


def at_point(planes: tuple[Any, Any, Any], windows: Window) -> Point:
    """In full-dimensional windows."""
    common = planes[1] - windows.center
    return Point(windows.radii(), common, jnp.ones(common.shape[:1], np.int32))


def at_slices(planes: tuple[Any, Any, Any], windows: Window) -> Point:
    """In slices."""
    return Point(windows.radii(), *in_slice(windows, planes[1]))


def in_one_disc(own: Own, planes: tuple[Any, Any, Any], windows: Window) -> Scene:
    """Full-dimensional windows: around the hyperplanes' point, where all numbers are exact."""
    reach, *boxes = disc(windows.center - planes[1], windows.radii())
    nothing, slack = jnp.zeros(own.offset.shape), jnp.full((), 2 * U)
    lines = own.columns.T, -own.offset / reach, nothing, nothing, own.offset == 0, slack
    return Scene(*(a[None] for a in (*lines, *boxes)))


def in_shared_slice(own: Own, known: Any, planes: tuple[Any, Any, Any], windows: Window) -> Scene:
    """Slices of one plane: around their common anchor."""
    first = build(Window, **(vars(windows[:1]) | {"shift": None}))
    found = restricted(own, planes, first)
    reach, *boxes = disc(windows.shift, windows.radii())
    zero = (own.offset == 0) & (known[:1, None] > 0)
    lines = found.slope, found.value / reach, found.slope_error, found.value_error / reach
    return Scene(*lines, zero, jnp.zeros(1), *(a[None] for a in boxes))


def in_own_slices(own: Own, known: Any, planes: tuple[Any, Any, Any], windows: Window) -> Scene:
    """Any slices: each around its centre."""
    found, radius = restricted(own, planes, windows), windows.radii()
    reach = power_above(size(radius))[:, None]
    zero = (own.offset == 0) & (known[:, None] > 0)
    count, lines = found.value.shape
    return Scene(
        jnp.broadcast_to(found.slope, (count, lines, 2)),
        found.value / reach,
        jnp.broadcast_to(found.slope_error, (count, lines)),
        found.value_error / reach,
        zero,
        jnp.zeros(count),
        jnp.zeros((count, 1, 2)),
        (radius / reach)[:, None],
    )
