"""The parent region of a point, what a stage sees of its input there, windows inside one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions import exact
from jaxregions._progress import watching
from jaxregions._records import as_array, require_finite
from jaxregions.depth import critical_scales, require_traced
from jaxregions.engines.parents import point_signs, refined_by, vanishing
from jaxregions.engines.points import input_point
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.regions import prepared
from jaxregions.tracing import CPAFunction, exact_representation, representation
from jaxregions.windows import Window

__all__ = [
    "Embedding",
    "ParentRegion",
    "ParentWindows",
    "embedding",
    "in_parent_region",
    "parent_region",
]


class ParentRegion(NamedTuple):
    """The cell of equal signs of all stages before one, around the point x; d = x.size.

        {y : sign_i z_i(y) > 0 for every switching value z_i of an earlier stage}

    pattern: per earlier stage (size,) int8, the signs, certified; 0 where the value vanishes on
      the whole cell.
    planes: per earlier stage the ``Hyperplanes`` of its switching values, affine on the cell:
      z(y) = normal (y - point) - offset. float64; empty unless asked for.
    slope, value: (m, d), (m,): h(y) = slope (y - x) + value is what enters the stage
      (``embedding``). float64; None unless asked for.
    """

    pattern: tuple[np.ndarray, ...]
    planes: tuple[Hyperplanes, ...]
    slope: np.ndarray | None
    value: np.ndarray | None


class ParentWindows(NamedTuple):
    """Per window (...,), from ``in_parent_region``.

    inside: the whole open window lies in one parent region.
    first: the first stage that refines it, -1: none before the one asked for.
    cut_window, cut_unit: (P,) the units of stage ``first`` that refine each window, by its number
      in the flattened ones; ascending.
    certified: False only where ``max_seconds`` ended the call: then ``first`` is the stage that was
      not decided, of whose units only those proven are named, and ``inside`` is False.
    decisions, settled_exactly: of all windows together: float64 decisions, and how many of them
      were too close and were made again in rationals.
    """

    inside: np.ndarray
    first: np.ndarray
    cut_window: np.ndarray
    cut_unit: np.ndarray
    certified: np.ndarray
    decisions: int
    settled_exactly: int


class Embedding(NamedTuple):
    """How a stage sees its input in one parent region, from ``embedding``.

    singular_values: (min(m, k),) of A or A B, descending, float64.
    smallest: the k-th; 0 if there are fewer. condition: the first over the k-th; inf where that is
      0. Both float64.
    rank: exact if ``certified``; otherwise the number of singular values above
      max(m, k) eps times the first.
    dimension: k. The stage's input is an affine embedding of the region iff rank = k.
    certified: the rank is that of the exact map.
    """

    singular_values: np.ndarray
    smallest: float
    condition: float
    rank: int
    dimension: int
    certified: bool


def parent_region(net: CPAFunction, x: Any, *, stage: int, maps: bool = True) -> ParentRegion:
    """The activation cell of the stages before ``stage`` that contains x.

    Signs are certified: float64 with rigorous bounds, else rationals. Rounds of a maximum over many
    candidates are stages, and so the order of losers counts here.

    Args:
      net: from ``jr.trace``, of known numbers.
      x: (*input_shape), an interior point.
      stage: 0 .. number of stages; the last for the region of the whole function.
      maps: False: signs only, for networks whose Jacobians do not fit in memory.

    Raises:
      ValueError: a point on a switching hyperplane (names its units), of another shape or not
        finite; a stage that does not exist; a function over tracers.

    Source: MATHEMATICS.md, transfer through depth.
    """
    flat = _point(net, x, stage)
    pattern = _pattern(net, flat, stage)
    if not maps:
        return ParentRegion(pattern, (), None, None)
    with jax.enable_x64(True):
        found = net.jitted(_linearised, static=(1,))(flat, stage)
        *stages, (value, slope) = (tuple(map(np.asarray, pair)) for pair in found)
    planes = tuple(Hyperplanes(normal, flat, -z[:, None]) for z, normal in stages)
    return ParentRegion(pattern, planes, slope, value)


def in_parent_region(
    net: CPAFunction,
    windows: Window,
    *,
    stage: int,
    max_seconds: float | None = None,
    progress: bool | None = None,
) -> ParentWindows:
    """Whether each open window lies in one parent region of a stage, exactly.

    It does iff no switching hyperplane of an earlier stage refines it. Stage by stage: as long as
    none did, the next switching values z are affine on the window, with centre c, directions b_j

        z refines it  iff  |z(c)| < sum_j r_j |slope of z along b_j|,

    and the first stage that refines the window ends the claim. A tangency refines nothing, nor does
    a value that vanishes on the whole window. Decided in float64 with rigorous bounds from
    k + 1 evaluations a window and stage, ties and what is too close in rationals: certified.
    Rounds of a maximum over many candidates are stages: a window in which only the order of losers
    changes is refined.

    Args:
      net: from ``jr.trace``, of known numbers.
      windows: (...,) boxes or slices of any dimension.
      stage: 0 .. number of stages; the last asks whether the window is one region of equal signs.
      max_seconds: make no decision in rationals after this time; of tens of layers each takes
        k + 1 evaluations of seconds. The windows that need one are not certified.
      progress: draw a bar; default: on a terminal, for calls that last.

    Raises:
      ValueError: windows of another input dimension, a stage that does not exist, tracers, a limit
        that is not positive.

    Source: MATHEMATICS.md, transfer through depth.
    """
    _require_stage(net, stage)
    net, limits = prepared(net, windows, None, None, None, max_seconds)
    flat, shape = windows.reshape(-1), windows.batch_shape
    with watching(stage * len(flat.center), progress, of="windows and stages") as watch:
        found = refined_by(net, flat, stage, deadline=limits.deadline, watch=watch)
    return ParentWindows(
        (found.first < 0).reshape(shape),
        found.first.reshape(shape),
        found.window,
        found.unit,
        found.settled.reshape(shape),
        found.decisions,
        found.settled_exactly,
    )


def embedding(
    net: CPAFunction, x: Any, *, stage: int, basis: Any = None, certify: bool = False
) -> Embedding:
    """Whether a stage sees all directions of the parent region of x, and how well.

    On the parent region h(y) = A y + a, with h what the nonlinear operations of earlier stages hand
    to this one: the last activations in an MLP, and all of them where several enter it separately
    (a skip connection); x itself for the first stage, A = I. The singular values are those of A,
    in a slice of A B. A is a float64 Jacobian at x; its exact rank comes from k + 1 evaluations
    in rationals.

    Args:
      net: from ``jr.trace``, of known numbers.
      x: (*input_shape), an interior point of its parent region.
      stage: 0 .. number of stages; the last for what enters the outputs.
      basis: None, or (d, k): the slice x + B u.
      certify: the exact rank: seconds to minutes where k is hundreds.

    Raises:
      ValueError: as ``parent_region``; a basis of another shape, or of dependent columns.

    Source: MATHEMATICS.md, transfer through depth.
    """
    flat = _point(net, x, stage)
    window = Window(flat[None], 1.0, basis)
    _pattern(net, flat, stage)
    with jax.enable_x64(True):
        along = np.eye(flat.size) if basis is None else np.asarray(window.basis, np.float64)
        slope = np.asarray(net.jitted(_slopes, static=(2,))(flat, along, stage))
    values = np.linalg.svd(slope, compute_uv=False)
    k = along.shape[1]
    largest, smallest = (float(values[i]) if len(values) > i else 0.0 for i in (0, k - 1))
    rank = int((values > max(slope.shape) * np.finfo(np.float64).eps * largest).sum())
    if certify:
        rank = _exact_rank(net, window, stage)
    condition = largest / smallest if smallest else math.inf
    return Embedding(values, smallest, condition, rank, k, certify)


def _require_stage(net: CPAFunction, stage: int) -> None:
    require_traced(net)
    if not 0 <= stage <= len(net.stages):
        raise ValueError(f"stage: expected 0 to {len(net.stages)}, received {stage}")


def _point(net: CPAFunction, x: Any, stage: int) -> np.ndarray:
    """x flattened, after everything that can be wrong was looked at."""
    _require_stage(net, stage)
    if np.shape(x) != net.input_shape:
        raise ValueError(f"x: expected shape {net.input_shape}, received {np.shape(x)}")
    x = as_array(x, "x")
    require_finite(x, "x")
    prepared(net, Window(x.reshape(-1), 1.0), None, None, None, None)
    return np.asarray(x, np.float64).ravel()


def _pattern(net: CPAFunction, flat: np.ndarray, stage: int) -> tuple[np.ndarray, ...]:
    """The signs of the stages before, at an interior point of the cell."""
    signs = point_signs(net, flat, stage)
    for level, sign in enumerate(signs):
        if (sign == 0).any():
            on = (sign == 0) & ~vanishing(net, flat, signs, level)
            if on.any():
                units = np.unique(net.stages[level].unit[on]).tolist()
                raise ValueError(
                    "x: expected an interior point of its parent region, received one on the "
                    f"switching hyperplanes of units {units} of stage {level}"
                )
    return tuple(signs)


def _linearised(net: CPAFunction, flat: Any, stage: int) -> list[tuple[Any, Any]]:
    """(values, Jacobian) of the earlier stages' switching values, and of what enters the stage."""

    def all_values(point):
        x = point.reshape(net.input_shape)
        return *net.switching_values(x)[:stage], representation(net, x, stage)

    value, slope = all_values(flat), jax.jacfwd(all_values)(flat)
    return list(zip(value, slope, strict=True))


def _slopes(net: CPAFunction, flat: Any, along: Any, stage: int) -> Any:
    """(m, k) A B."""

    def values(u):
        return representation(net, (flat + along @ u).reshape(net.input_shape), stage)

    zero = 0 * along[0]
    wide = values(zero).size > len(zero)
    return (jax.jacfwd if wide else jax.jacrev)(values)(zero)


def _exact_rank(net: CPAFunction, window: Window, stage: int) -> int:
    """The rank of the representation's map, from exact values at the ends of a small window."""
    limit = critical_scales(net, window).limit
    scale = float(limit[0, stage]) if stage < len(net.stages) else 1.0
    scale = 2.0 ** math.floor(math.log2(scale)) if 0 < scale < math.inf else 1.0
    while refined_by(net, Window(window.center, scale, window.basis), stage).first[0] >= 0:
        scale /= 2

    def at(u):
        x = input_point(window, 0, u).reshape(net.input_shape)
        return exact_representation(net, x, stage)

    ends = exact.rationals(scale * np.eye(window.dimension))
    center = at(0 * ends[0])
    return exact.rank(np.stack([at(end) - center for end in ends]))
