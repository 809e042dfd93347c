"""Figures with matplotlib: every function draws on ``ax`` (None: a new one) and returns it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxregions.hyperplanes import Hyperplanes
from jaxregions.partitions import Partition
from jaxregions.partitions.reading import map_blocks
from jaxregions.regions import Status
from jaxregions.windows import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLUE", "ORANGE", "YELLOW", "plot_arrangement", "plot_partition", "plot_series"]

# From Okabe and Ito's palette, told apart with every kind of colour vision.
BLUE, ORANGE, YELLOW = "#0072B2", "#D55E00", "#F0E442"
SKY, AMBER, GREEN, PURPLE = "#56B4E9", "#E69F00", "#009E73", "#CC79A7"
FACES = (SKY, YELLOW, PURPLE, GREEN, AMBER, BLUE)  # six colour any planar map, in our order
STAGES = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
MANY_CELLS = 20_000  # vector files of more cells are slow to open
OFF_SLICE = np.sqrt(np.finfo(np.float64).eps)  # relative distance; it decides a marker only


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


def plot_partition(
    part: Partition,
    ax: Axes | None = None,
    *,
    color: str = "region",
    output: int | None = None,
    points: Any = None,
    centroid: Any = None,
    boundary: Any = None,
    limits: tuple[float, float] | None = None,
    legend: bool = True,
    rasterized: bool | None = None,
) -> Axes:
    """The cells of a 2-d window, or f along a segment, in slice coordinates u.

    color:

    * "region": activation regions in up to six colours, neighbours always in different ones.
    * "slope": by the Frobenius norm of f's slope in orthonormal coordinates of the slice,
      |slope R^-1| with B = QR; the part of f's input gradient that lies in the slice.
    * "stage": faces blank, facets by the stage (in an MLP: the layer) of a unit that switches
      there.

    Facets inside one activation region are not drawn. A segment (k = 1) shows f itself, one line
    per output, its breakpoints marked.

    Args:
      part: from ``jr.partition``.
      output: index into the flattened outputs, for the slope and for a segment's lines; None: all.
      points: None or (m, d): marked at (B'B)^-1 B'(x - c), their orthogonal projection to the
        slice, where that is in the window; hollow where the point itself is off the slice.
      centroid: None or (d,): a cross, where it projects to.
      boundary: None, or the pieces of ``jr.level_set``: drawn thick.
      limits: (low, high) of the slope's colour scale; None: its range.
      legend: draw the legend (the scale, for "slope"); otherwise only label what is drawn.
      rasterized: draw the cells as pixels, in vector files too; None: beyond 20,000 cells.

    Raises:
      ValueError: another ``color``, an output that does not exist, the slope of an incomplete
        partition, shapes that do not fit.
    """
    _require_plottable(part, color, output)
    window, k = part.window, part.vertices.shape[1]
    pieces = np.zeros((0, k, k)) if boundary is None else np.asarray(boundary, np.float64)
    if pieces.ndim != 3 or pieces.shape[1:] != (k, k):
        raise ValueError(
            f"boundary: expected pieces (M, {k}, {k}) of jr.level_set, received {pieces.shape}"
        )
    center = np.asarray(window.center, np.float64)
    basis = np.eye(k) if window.basis is None else np.asarray(window.basis, np.float64)
    radii = np.asarray(window.radii())
    marks = _marks(points, center, basis, radii, "points")
    middle = _marks(centroid, center, basis, radii, "centroid")
    ax = _axes(ax)
    pixels = len(part.region) > MANY_CELLS if rasterized is None else rasterized
    draw = _cells if k == 2 else _graph
    scale = draw(ax, part, color, output, pixels)
    if scale is not None and limits is not None:
        scale.set_clim(*limits)
    if len(pieces):
        _boundary(ax, pieces)
    _mark(ax, *marks, "point", "o", markersize=6 if len(marks[0]) < 20 else 3.5)
    _mark(ax, *middle, "batch centroid", "X", markersize=11, markeredgecolor="white")
    _frame(ax, window, radii)
    if scale is not None and legend:
        ax.figure.colorbar(scale, ax=ax, fraction=0.046, pad=0.04, label=_slope_label(part, output))
    if legend and ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2, frameon=False, fontsize=9)
    return ax


def _require_plottable(part: Partition, color: str, output: int | None) -> None:
    if color not in ("region", "slope", "stage"):
        raise ValueError(f"color: expected 'region', 'slope' or 'stage', received {color!r}")
    if part.window.dimension > 2:
        raise ValueError(
            "part: expected a window of dimension 1 or 2, received "
            f"{part.window.dimension}; take a slice: Window(basis=)"
        )
    outputs = part.outputs
    if output is not None and not 0 <= output < outputs:
        raise ValueError(f"output: expected 0 to {outputs - 1} or None, received {output}")
    if part.status != Status.COMPLETE and (color == "slope" or part.vertices.shape[1] == 1):
        raise ValueError(f"expected a complete partition, received {Status(part.status).name}")


def _cells(ax: Axes, part: Partition, color: str, output: int | None, pixels: bool) -> Any:
    """Faces and facets of a 2-d partition; what a colour bar needs, if there is a scale."""
    from matplotlib.collections import LineCollection, PolyCollection

    border = part.region[part.left] != part.region[part.right]
    ends = part.vertices[part.facet[border]]
    # Thinner lines where there are more cells, so that faces stay visible.
    width = float(np.clip(30 / np.sqrt(len(part.region)), 0.15, 1.0))
    style = {"rasterized": pixels}
    if color == "stage":
        stage = part.facet_stage[border]
        for s, c in _stage_colors(part):
            lines = list(ends[stage == s])
            label = f"cut by stage {s + 1}"
            ax.add_collection(
                LineCollection(lines, colors=c, linewidths=width, label=label, **style)
            )
        return None
    shapes = np.split(part.vertices[part.corner], part.start[1:-1])
    # Edges in the face's colour hide the seams that antialiasing leaves between faces.
    faces = PolyCollection(shapes, edgecolors="face", linewidths=0.2, **style)
    ax.add_collection(faces)
    if color == "slope":
        faces.set(array=_slope_norms(part, output), cmap="viridis")
        return faces
    faces.set_facecolor(_region_colors(part).tolist())
    ax.add_collection(LineCollection(list(ends), colors="black", linewidths=width / 2, **style))
    return None


def _graph(ax: Axes, part: Partition, color: str, output: int | None, pixels: bool) -> Any:
    """f along a segment, and its breakpoints."""
    from matplotlib.collections import LineCollection

    u = part.vertices[part.corner].reshape(-1, 2)  # the two ends of every cell
    f = part.slope[..., 0, None] * u[:, None] + part.intercept[..., None]
    f = f if output is None else f[:, output : output + 1]
    outputs = f.shape[1]
    ends = np.stack(np.broadcast_arrays(u[:, None], f), axis=-1).reshape(-1, 2, 2)
    lines = LineCollection(list(ends), linewidths=1.5, rasterized=pixels)
    ax.add_collection(lines)
    border = part.region[part.left] != part.region[part.right]
    at, stage, left = (v[border] for v in (part.facet[:, 0], part.facet_stage, part.left))
    at = part.vertices[at, 0]
    value = part.slope[left, :, 0] * at[:, None] + part.intercept[left]
    value = value if output is None else value[:, output : output + 1]
    dots = {"linestyle": "", "marker": "o", "markersize": 3.5, "rasterized": pixels}
    if color == "stage":
        for s, c in _stage_colors(part):
            here = stage == s
            x = np.repeat(at[here], outputs)
            ax.plot(x, value[here].ravel(), color=c, label=f"cut by stage {s + 1}", **dots)
    else:
        ax.plot(np.repeat(at, outputs), value.ravel(), color="black", label="breakpoint", **dots)
    ax.set_ylim(*_padded(f))
    if color == "slope":
        lines.set(array=np.repeat(_slope_norms(part, output), outputs), cmap="viridis")
        return lines
    colors = _region_colors(part) if color == "region" else np.full((len(u), 3), 0.3)
    lines.set_color(np.repeat(colors, outputs, axis=0).tolist())
    return None


def _padded(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    gap = 0.05 * (high - low) or 1.0
    return low - gap, high + gap


def _stage_colors(part: Partition) -> list[tuple[int, Any]]:
    """The stages that cut something here, each with its colour."""
    stages = np.unique(part.facet_stage).tolist()
    if max(stages, default=0) < len(STAGES):
        return [(s, STAGES[s]) for s in stages]
    from matplotlib import colormaps

    return [(s, colormaps["cividis"](s / max(stages))) for s in stages]


def _slope_norms(part: Partition, output: int | None) -> np.ndarray:
    """(F,) Frobenius norms of the slopes in orthonormal coordinates of the slice."""
    wanted, norms = slice(None) if output is None else slice(output, output + 1), []
    for _, (slope, _) in map_blocks(part):
        slope = slope[:, wanted]
        if part.window.basis is not None:
            triangle = np.linalg.qr(np.asarray(part.window.basis, np.float64))[1]
            slope = slope @ np.linalg.inv(triangle)
        norms.append(np.linalg.norm(slope, axis=(1, 2)))
    return np.concatenate(norms)


def _slope_label(part: Partition, output: int | None) -> str:
    which = "f" if output is None or part.outputs == 1 else f"f_{{{output}}}"
    return f"slope of ${which}$ in the slice (norm, output per input unit)"


def _region_colors(part: Partition) -> np.ndarray:
    """(F,) a colour per cell: one per activation region, neighbours differ.

    Smallest-last greedy colouring: every planar map has a region of at most five neighbours.
    """
    sides = np.sort(np.stack([part.region[part.left], part.region[part.right]], axis=1), axis=1)
    neighbours: list[list[int]] = [[] for _ in range(int(part.region.max()) + 1)]
    for a, b in np.unique(sides[sides[:, 0] != sides[:, 1]], axis=0).tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    degree = [len(n) for n in neighbours]
    heap, order = [(d, i) for i, d in enumerate(degree)], []
    heapq.heapify(heap)
    gone = [False] * len(degree)
    while heap:
        _, i = heapq.heappop(heap)
        if gone[i]:
            continue  # an entry from when it had more neighbours
        gone[i] = True
        order.append(i)
        for j in neighbours[i]:
            if not gone[j]:
                degree[j] -= 1
                heapq.heappush(heap, (degree[j], j))
    chosen = [-1] * len(degree)
    for i in reversed(order):
        taken = {chosen[j] for j in neighbours[i]}
        chosen[i] = next(c for c in range(len(FACES)) if c not in taken)
    from matplotlib.colors import to_rgb

    tints = 0.3 + 0.7 * np.array([to_rgb(c) for c in FACES])  # marks stand out on pale faces
    return tints[chosen][part.region]


def _boundary(ax: Axes, pieces: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    name, style = "decision boundary", {"color": "black", "linewidth": 2.5}
    if pieces.shape[-1] == 1:
        for i, at in enumerate(pieces[:, 0, 0]):
            ax.axvline(at, linestyle=":", label=None if i else name, **style)
        return
    # A white rim keeps it visible on dark faces.
    lines = list(pieces)
    ax.add_collection(LineCollection(lines, colors="white", linewidths=4, zorder=2.5))
    ax.add_collection(LineCollection(lines, colors="black", linewidths=2, zorder=2.5, label=name))


def _marks(points: Any, center: np.ndarray, basis: np.ndarray, radii: np.ndarray, name: str):
    """Slice coordinates of the points that project into the window, and which are in the slice."""
    u = _projected(points, center, basis, name)
    given = center if points is None else np.atleast_2d(np.asarray(points, np.float64))
    away = np.linalg.norm(given - center - u @ basis.T, axis=-1)
    scale = np.linalg.norm(given, axis=-1) + np.linalg.norm(center)
    inside = (np.abs(u) <= radii).all(axis=1)
    return u[inside], (away <= OFF_SLICE * scale)[inside]


def _mark(ax: Axes, u: np.ndarray, on: np.ndarray, name: str, shape: str, **style: Any) -> None:
    flat = u.shape[1] == 1  # a segment: marked on its axis
    low = {"transform": ax.get_xaxis_transform(), "clip_on": False} if flat else {}
    cross = shape == "X"
    for chosen, label, face in (
        (~on, f"{name} off the slice, projected", "black" if cross else "none"),
        (on, f"{name} in the slice", "black" if cross else YELLOW),
    ):
        if chosen.any():
            x = u[chosen, 0]
            y = np.zeros(len(x)) if flat else u[chosen, 1]
            look = {"color": "black", "markerfacecolor": face, "zorder": 4 if cross else 3}
            ax.plot(x, y, linestyle="", marker=shape, label=label, **look, **style, **low)


def _frame(ax: Axes, window: Window, radii: np.ndarray) -> None:
    """Limits and labelled axes; equal aspect for pictures."""
    if window.basis is None:
        names = [f"$x_{j + 1} - c_{j + 1}$ (input units)" for j in range(len(radii))]
    else:
        length = np.linalg.norm(np.asarray(window.basis), axis=0)
        units = [
            "input units" if abs(n - 1) <= OFF_SLICE else f"{n:.3g} input units" for n in length
        ]
        names = [f"$u_{j + 1}$ ({unit} along basis vector {j + 1})" for j, unit in enumerate(units)]
    ax.set_xlim(-radii[0], radii[0])
    ax.set_xlabel(names[0])
    if len(radii) == 1:
        ax.set_ylabel("$f$")
        return
    ax.set_ylim(-radii[1], radii[1])
    ax.set_ylabel(names[1])
    ax.set_aspect("equal")


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots()[1]


def _projected(
    points: Any, center: np.ndarray, basis: np.ndarray, name: str = "points"
) -> np.ndarray:
    """Slice coordinates of the orthogonal projections: (m, k)."""
    if points is None:
        return np.zeros((0, basis.shape[1]))
    points = np.atleast_2d(np.asarray(points, np.float64))
    if points.ndim != 2 or points.shape[1] != len(center):
        raise ValueError(f"{name}: expected shape (m, {len(center)}), received {points.shape}")
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
