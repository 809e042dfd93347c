"""Figures with matplotlib: every function draws on ``ax`` (None: a new one) and returns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxregions.hyperplanes import Hyperplanes
from jaxregions.windows import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLUE", "ORANGE", "YELLOW", "plot_arrangement", "plot_series"]

# From Okabe and Ito's palette, told apart with every kind of colour vision.
BLUE, ORANGE, YELLOW = "#0072B2", "#D55E00", "#F0E442"


def plot_series(
    x: Any,
    mean: Any,
    low: Any = None,
    high: Any = None,
    *,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """A line through means, with a band from low to high; NaN leaves a gap.

    Args:
      x, mean: (n,).
      low, high: None, or (n,) the band.
      style: of the line, as in matplotlib's ``plot`` (color, linestyle, marker, label, ...).

    Raises:
      ValueError: lengths that do not fit.
    """
    given = {"x": x, "mean": mean, "low": low, "high": high}
    arrays = {name: np.asarray(v, np.float64) for name, v in given.items() if v is not None}
    if len({a.shape for a in arrays.values()}) != 1 or arrays["x"].ndim != 1:
        shapes = {name: a.shape for name, a in arrays.items()}
        raise ValueError(f"expected x, mean, low and high of one shape (n,), received {shapes}")
    if (low is None) != (high is None):
        raise ValueError("expected low and high together, received one of them")
    ax = _axes(ax)
    (line,) = ax.plot(arrays["x"], arrays["mean"], **style)
    if low is not None:
        band = {"color": line.get_color(), "alpha": 0.18, "linewidth": 0}
        ax.fill_between(arrays["x"], arrays["low"], arrays["high"], **band)
    return ax


def plot_arrangement(
    planes: Hyperplanes,
    window: Window,
    ax: Axes | None = None,
    points: Any = None,
    *,
    labels: Sequence[str] = (),
    centroid: Any = None,
    color: str = BLUE,
) -> Axes:
    """The lines {B'w_i . u + w_i . (c - p) - o_ik = 0} in a 2-d window, in its coordinates u.

    Args:
      planes: hyperplanes in the window's input space, without leading axes.
      window: one window of dimension 2 (a slice, or whole for d = 2).
      points: None or (m, d): marked where they project orthogonally to the slice.
      labels: their names for the legend.
      centroid: None or (d,): marked by a cross where it projects to.
      color: of the lines.

    Raises:
      ValueError: a window of another dimension or a batch of windows, shapes that do not fit.
    """
    if window.dimension != 2 or window.batch_shape:
        raise ValueError(
            "window: expected one of dimension 2, received dimension "
            f"{window.dimension} and leading axes {window.batch_shape}"
        )
    normal, offset = np.asarray(planes.normal), np.asarray(planes.offset)
    if normal.ndim != 2 or normal.shape[1] != window.input_dimension:
        raise ValueError(
            f"planes: expected normals (n, {window.input_dimension}), received {normal.shape}"
        )
    basis = np.eye(2) if window.basis is None else np.asarray(window.basis)
    center = np.asarray(window.center)
    radii = np.asarray(window.radii())
    slope = np.repeat(normal @ basis, offset.shape[1], axis=0)
    value = (normal @ (center - np.asarray(planes.point)))[:, None] - offset
    ax = _axes(ax)
    from matplotlib.collections import LineCollection

    segments = _clipped(slope, value.ravel(), radii)
    ax.add_collection(LineCollection(list(segments), colors=color, linewidths=0.6, alpha=0.8))
    for i, point in enumerate(_projected(points, center, basis)):
        name = labels[i] if i < len(labels) else None
        style = {"color": YELLOW, "markeredgecolor": "black", "markersize": 8, "zorder": 3}
        ax.plot(*point, "ovsD^"[i % 5], label=name, **style)
    if centroid is not None:
        ((x, y),) = _projected(centroid, center, basis)
        style = {"color": "black", "markersize": 11, "markeredgewidth": 2.5, "zorder": 4}
        ax.plot(x, y, "x", label="batch centroid, projected", **style)
    ax.set_xlim(-radii[0], radii[0])
    ax.set_ylim(-radii[1], radii[1])
    ax.set_aspect("equal")
    ax.set_xlabel("$u_1$ (input units)")
    ax.set_ylabel("$u_2$ (input units)")
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots()[1]


def _projected(points: Any, center: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Slice coordinates of the orthogonal projections: (m, 2)."""
    if points is None:
        return np.zeros((0, 2))
    points = np.atleast_2d(np.asarray(points, np.float64))
    if points.ndim != 2 or points.shape[1] != len(center):
        raise ValueError(f"points: expected shape (m, {len(center)}), received {points.shape}")
    return np.linalg.lstsq(basis, (points - center).T, rcond=None)[0].T


def _clipped(slope: np.ndarray, value: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The parts of the lines slope . u + value = 0 inside the box |u_j| < radii_j: (m, 2, 2)."""
    slope = slope * radii  # now the box is |v_j| < 1, u = radii v
    squares = (slope**2).sum(1)
    lines = np.isfinite(value) & (squares > 0)
    slope, value, squares = slope[lines], value[lines], squares[lines]
    foot = -slope * (value / squares)[:, None]
    direction = slope[:, ::-1] * [-1.0, 1.0]
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = np.stack([(-1 - foot) / direction, (1 - foot) / direction])
    parallel = direction == 0
    enter = np.where(parallel, -np.inf, sides.min(0)).max(1)
    leave = np.where(parallel, np.inf, sides.max(0)).min(1)
    inside = (enter < leave) & (~parallel | (abs(foot) < 1)).all(1)
    ends = np.stack([enter, leave], axis=1)[inside]
    return (foot[inside, None] + ends[..., None] * direction[inside, None]) * radii
