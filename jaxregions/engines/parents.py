"""Which windows lie in one cell of the earlier stages, what refines the others, and the cell of a
point; exactly.

While no earlier stage refines a window, the switching values z of the next are affine on it. With
its centre c and its directions b_j

    z takes both signs in the open window  iff  |z(c)| < sum_j |z(c + r_j b_j) - z(c)|,

so k + 1 evaluations decide, with rigorous bounds or in rationals, and no derivative is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxregions import exact
from jaxregions.engines.enclosures import enclosed_values
from jaxregions.engines.points import CORNER, Frame, Ledger, Vertices, frame_of, input_point
from jaxregions.engines.signs import rows_patterns, settled
from jaxregions.engines.steps import ROWS
from jaxregions.tracing import CPAFunction, bounded_values, compiled, exact_values, prepare
from jaxregions.windows import Window

__all__ = ["Refined", "point_signs", "refined_by", "vanishing"]

_BYTES = 1 << 27  # of one step's largest arrays
_TINY = np.finfo(np.float64).tiny


class Refined(NamedTuple):
    """first: (W,) the first stage that refines each window, -1: none does. window, unit: (P,) the
    units of that stage that do. settled: (W,) False: the deadline came before all decisions.
    decisions, settled_exactly: how many, and how many in rationals."""

    first: np.ndarray
    window: np.ndarray
    unit: np.ndarray
    settled: np.ndarray
    decisions: int
    settled_exactly: int


def refined_by(
    net: CPAFunction,
    windows: Window,
    stages: int,
    *,
    deadline: float = math.inf,
    watch: Callable[[int], None] = lambda _: None,
) -> Refined:
    """Which of the first ``stages`` stages refines each window.

    Args:
      windows: one leading axis.
      deadline: a ``time.monotonic()``; decisions in rationals that are not made then are not made.
      watch: called with the number of windows and stages that are done.
    """
    frame, count = frame_of(windows), len(windows.center)
    first, proven = np.full(count, -1), np.ones(count, bool)
    left, pairs, tally = np.arange(count), [np.zeros((0, 2), np.int64)], np.zeros(2, np.int64)
    for stage in range(stages):
        layer = net.stages[stage]
        together = max(1, _BYTES // (64 * max(layer.size, 1)))
        for start in range(0, len(left), together):
            some = left[start : start + together]
            cut, sure = _cuts(net, windows, frame, some, stage)
            tally += cut.size, (~sure).sum()
            for row in np.flatnonzero(~sure.all(axis=1)).tolist():
                found = _exact_cuts(net, windows, int(some[row]), stage, deadline)
                if found is None:
                    proven[some[row]] = False
                else:
                    cut[row] = np.where(sure[row], cut[row], found)
            row, entry = np.nonzero(cut & (sure | proven[some][:, None]))
            pairs.append(np.stack([some[row], layer.unit[entry]], axis=1))
            first[some[cut.any(axis=1) | ~proven[some]]] = stage
            watch(stage * count + start + len(some))
        left = left[first[left] < 0]
    window, unit = np.unique(np.concatenate(pairs), axis=0).T
    return Refined(first, window, unit, proven, int(tally[0]), int(tally[1]))


def _cuts(
    net: CPAFunction, windows: Window, frame: Frame, some: np.ndarray, stage: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, size) whether each switching value takes both signs in these windows, and (n, size)
    whether that is certain."""
    radius, k = np.asarray(windows.radii(), np.float64)[some], windows.dimension
    center, loose = enclosed_values(net, frame, some, np.zeros((len(some), k)), stage)
    reach, slack = np.zeros(center.shape), np.zeros(center.shape)
    for row, axis in _in_parts(len(some), k, net.stages[stage].size):
        u = np.zeros((len(row), k))
        u[np.arange(len(row)), axis] = radius[row, axis]
        z, bound = enclosed_values(net, frame, some[row], u, stage)
        new = np.flatnonzero(np.diff(row, prepend=-1))
        with np.errstate(all="ignore"):
            reach[row[new]] += np.add.reduceat(np.abs(z - center[row]), new)
            slack[row[new]] += np.add.reduceat(bound + loose[row], new)
    relative = exact.gamma(2 * k + 16, np.float64)
    with np.errstate(all="ignore"):  # what is not finite is not certain
        margin = reach - np.abs(center)
        error = (loose + slack + relative * (reach + np.abs(center))) * (1 + relative) + _TINY
        nothing = (center == 0) & (loose == 0) & (reach == 0) & (slack == 0)
        return margin > 0, (np.abs(margin) > error) | nothing


def _in_parts(rows: int, k: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (row, axis), row after row, a bounded number at a time."""
    step = max(1, _BYTES // (32 * ROWS[0] * (size + k))) * ROWS[0]
    for start in range(0, rows * k, step):
        yield np.divmod(np.arange(start, min(start + step, rows * k)), k)


def _exact_cuts(
    net: CPAFunction, windows: Window, window: int, stage: int, deadline: float
) -> np.ndarray | None:
    """(size,) whether each switching value takes both signs in one window; None: no time."""

    def at(u):
        point = input_point(windows, window, u).reshape(net.input_shape)
        return exact_values(net, point, stage)

    radius = exact.rationals(windows.radii()[window])
    u = radius * 0
    center, reach = at(u), 0
    for axis, r in enumerate(radius):
        if time.monotonic() > deadline:
            return None
        moved = u.copy()
        moved[axis] = r
        reach = reach + abs(at(moved) - center)
    return np.less(abs(center), reach).astype(bool)


# One point ---------------------------------------------------------------------------------------


def point_signs(net: CPAFunction, x: np.ndarray, stages: int) -> list[np.ndarray]:
    """Per stage, of the first ``stages``, the exact signs (size,) int8 at the point x (d,)."""
    if not stages:
        return []
    with jax.enable_x64(True):
        prepared = prepare(net)
        run = compiled(rows_patterns, prepared.structure, static=(3,))
        found = [np.array(s) for s in run(prepared, x[None], np.zeros(1), stages)]
    return [sign[0] for sign in settled(_at(net, x), found)]


def vanishing(net: CPAFunction, x: np.ndarray, signs: list[np.ndarray], stage: int) -> np.ndarray:
    """(size,) which switching values of a stage vanish on the whole cell of x.

    Args:
      signs: at x, of the stages up to this one; those before it of an interior point of the cell.
    """
    zero = signs[stage] == 0
    ball = 2.0**-40 * max(1.0, float(np.abs(x).max()))
    with jax.enable_x64(True):
        prepared = prepare(net)
        run = compiled(_ball, prepared.structure, static=(3,))
        value, bound = map(np.asarray, run(prepared, x, ball, stage))
    known = zero & (value == 0) & (bound == 0)  # in a ball around x, hence on its cell
    ledger, axis = _at(net, x), 0
    while (zero & ~known).any() and axis < len(x):
        zero &= known | (_beside(ledger, signs, stage, axis) == 0)
        axis += 1
    return zero


def _beside(ledger: Ledger, signs: list[np.ndarray], stage: int, axis: int) -> np.ndarray:
    """The exact values of a stage at a point of the closed cell, from x along one axis."""
    net, step = ledger.net, exact.rationals(np.eye(ledger.windows.dimension)[axis])
    while True:
        step = step / 16
        x = input_point(ledger.windows, 0, step).reshape(net.input_shape)
        if all(_agree(exact_values(net, x, s), signs[s]) for s in range(stage)):
            return exact_values(net, x, stage)


def _agree(z: np.ndarray, sign: np.ndarray) -> bool:
    """Whether values lie on the closed sides with these signs."""
    return all(v == 0 if s == 0 else v * s >= 0 for v, s in zip(z, sign.tolist(), strict=True))


def _at(net: CPAFunction, x: np.ndarray) -> Ledger:
    """A ledger whose only vertex is the point x, exactly."""
    none = np.full(1, CORNER)
    zero = np.zeros((1, len(x)))
    vertex = Vertices(zero, np.zeros(1), np.zeros(1, np.int64), none, none, none, none, none)
    return Ledger(net, Window(x[None], 1.0), vertex)


def _ball(prepared, x, error, stage: int):
    return tuple(bounded_values(prepared, x.reshape(prepared.net.input_shape), error, stage))
