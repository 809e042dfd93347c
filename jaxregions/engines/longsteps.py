"""Many margin programs of many variables at once, by the dual simplex method with long steps.

    max t  subject to  slope_i . v + value_i - t - s_i = 0,  s_i >= 0,  |v_j| <= 1,  t <= 1.

A basis has one variable a row: R x R numbers whatever the dimension, so a pivot costs O(R k). The
others are at a bound: v_j = -1 or 1, s_i = 0, t = 1. Multipliers y >= 0 of the rows prove

    t <= max(0, 1 - sum y) + sum_i y_i value_i + |y slope|_1;

a step along an edge of the dual goes on past the zeros of (y slope)_j, whose v_j change their
bound, to the smallest bound on t. A basis stays valid when rows are added: that is how programs
are started from one another. Answers are proposals: what they prove is for the caller to check.

Source: I. Maros, A generalized dual phase-2 simplex algorithm (2003); J. Forrest and D. Goldfarb,
Steepest-edge simplex algorithms for linear programming (1992).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxregions.engines.margins import Margins

__all__ = ["FAR", "Bases", "solve_wide"]

_CLEAR = 2.0**-40  # smaller bounds are followed to the end
_SLACK = 2.0**-42  # violations that rounding explains
_PIVOT = 2.0**-30
FAR = 2.0**10  # a bound on t that holds by itself
_ENTRIES = 1 << 18  # of rows in one pass


class Bases(NamedTuple):
    """Where programs are started from, and where they ended.

    basic (T, R): v_j is j, t is k, s_i is k + 1 + i. bound (T, k): int8, the bound of v_j; 0:
    basic. inverse (T, R, R): of the columns of the basic variables, without the rows of those s_i
    that are the i-th, which are made when they are needed.
    """

    basic: np.ndarray
    bound: np.ndarray
    inverse: np.ndarray

    def rows(self, index: Any) -> Bases:
        return Bases(*(column[index] for column in self))

    @staticmethod
    def first(count: int, rows: int, k: int) -> Bases:
        """t and all v_j at a bound, so that no row holds."""
        basic, bound = np.tile(k + 1 + np.arange(rows), (count, 1)), np.ones((count, k), np.int8)
        return Bases(basic, bound, np.tile(-np.eye(rows), (count, 1, 1)))

    def of_width(self, rows: int) -> Bases:
        """The same with more rows, or fewer; these hold with room to spare and come last."""
        now, first = self.basic.shape[1], self.bound.shape[1] + 1
        if rows <= now:
            return Bases(self.basic[:, :rows], self.bound, self.inverse[:, :rows, :rows])
        wider = Bases.first(len(self.basic), rows, first - 1)
        wider.basic[:, :now], wider.inverse[:, :now, :now] = self.basic, self.inverse
        return wider._replace(bound=self.bound)

    def refreshed(self, slope: np.ndarray) -> Bases:
        """With inverses made anew; of rows slope (T, R, k)."""
        count, rows, k = slope.shape
        matrix = np.tile(-np.eye(rows), (count, 1, 1))
        t, place = np.nonzero(self.basic != k + 1 + np.arange(rows))
        matrix[t, :, place] = _columns(slope, t, self.basic[t, place])
        try:
            return self._replace(inverse=np.linalg.inv(matrix))
        except np.linalg.LinAlgError:
            return Bases.first(count, rows, k)


def _columns(slope: np.ndarray, program: np.ndarray, variable: np.ndarray) -> np.ndarray:
    """(N, R) the columns of variables: slope_j of v_j, -1 of t, -e_i of s_i."""
    k = slope.shape[2]
    out = np.full((len(program), slope.shape[1]), -1.0)
    own, other = variable < k, np.flatnonzero(variable > k)
    out[own] = slope[program[own], :, variable[own]]
    out[other] = 0.0
    out[other, variable[other] - k - 1] = -1.0
    return out


def solve_wide(slope: np.ndarray, value: np.ndarray, start: Bases) -> tuple[Margins, Bases]:
    """The programs with rows slope (T, R, k), value (T, R), of length about 1, and their bases."""
    count, rows, k = slope.shape
    out = Margins(
        np.zeros(count), np.zeros((count, k)), np.zeros((count, rows)), np.zeros(count, bool)
    )
    bases = Bases(*(column.copy() for column in start))
    step = max(1, _ENTRIES // (rows * k))
    with np.errstate(all="ignore"):
        for begin in range(0, count, step):
            part = slice(begin, begin + step)
            _solve(slope[part], value[part], *(c[part] for c in (*out, *bases)))
    return out, bases


def _complete(slope: np.ndarray, basic: np.ndarray, inverse: np.ndarray) -> None:
    """Makes the rows of those s_i that are the i-th: of [[B, 0], [r, -1]] it is [r B^-1, -1]."""
    rows, k = slope.shape[1:]
    own = basic == k + 1 + np.arange(rows)
    t, place = np.nonzero(basic <= k)
    cross = np.zeros(inverse.shape)
    cross[t, :, place] = _columns(slope, t, basic[t, place])
    made = np.matmul(cross, inverse) - np.eye(rows)
    inverse[own] = made[own]


def _solve(slope, value, margin, point, weight, solved, out_basic, out_bound, out_inverse) -> None:
    count, rows, k = slope.shape
    basic: Any = out_basic.copy()
    v, inverse = out_bound.astype(np.float64), out_inverse.copy()
    _complete(slope, basic, inverse)
    at: Any = np.arange(count)  # programs, and their places among those that are left
    here: Any = at
    done: Any = np.zeros(count, bool)
    y, free, slack = np.zeros((count, rows)), np.ones((count, 1)), np.ones((count, rows))
    owner, place = np.nonzero(basic == k)
    y[owner], free[owner] = -inverse[owner, place], 0.0  # free: 1 where t is at its bound
    owner, place = np.nonzero(basic > k)
    slack[owner, basic[owner, place] - k - 1] = 0.0  # 1 where s_i is at its bound
    d = np.matmul(y[:, None], slope)[:, 0]
    v = np.where((v == 0) | (d == 0), v, np.sign(d))
    for _ in range(20 + 8 * (rows + 8)):
        level = np.matmul(slope, v[:, :, None])[:, :, 0] + value - free * FAR
        x = -np.matmul(inverse, level[:, :, None])[:, :, 0]
        over = np.where(basic < k, np.abs(x) - 1, np.where(basic > k, -x, -1.0))
        size = np.einsum("tij,tij->ti", inverse, inverse)
        leaves: Any = np.argmax(np.where(over > _SLACK, over * over / size, -1.0), axis=1)
        worst = over[here, leaves]
        t = np.where(free[:, 0] > 0, FAR, (x * (basic == k)).sum(axis=1))
        ends = ~done & ((t < -_CLEAR) | ~(worst > _SLACK))
        if ends.any():
            now = np.flatnonzero(ends)
            home, found = at[now], v[now]
            margin[home], solved[home], weight[home] = t[now], True, np.maximum(y[now], 0.0)
            out_basic[home], out_bound[home], out_inverse[home] = basic[now], found, inverse[now]
            owner, place = np.nonzero(basic[now] < k)
            found[owner, basic[now[owner], place]] = x[now[owner], place]
            point[home] = np.clip(found, -1.0, 1.0)
            done |= ends
            left = np.flatnonzero(~done)
            if not len(left):
                return
            if len(left) < 0.6 * len(done):
                at, done, slope, value, basic = (c[left] for c in (at, done, slope, value, basic))
                v, inverse, y, d = (c[left] for c in (v, inverse, y, d))
                free, slack, x, leaves, worst = (c[left] for c in (free, slack, x, leaves, worst))
                here = np.arange(len(at))
        variable = basic[here, leaves]
        sign = np.where((variable < k) & (x[here, leaves] > 0), 1.0, -1.0)
        edge = inverse[here, leaves] * sign[:, None]
        share = np.matmul(edge[:, None], slope)[:, 0]
        down, rest = np.empty((2, len(at), k + 1 + rows))
        np.multiply(-v, share, out=down[:, :k])
        down[:, k] = edge.sum(axis=1) * free[:, 0]
        np.multiply(-slack, edge, out=down[:, k + 1 :])
        np.multiply(v, d, out=rest[:, :k])
        rest[:, k], rest[:, k + 1 :] = 1 - y.sum(axis=1), y
        ratio = np.where(down > _PIVOT, np.maximum(rest, 0.0) / down, np.inf)
        order = np.argsort(ratio, axis=1)
        down[:, k:] = np.inf  # where a step ends
        down[:, :k] *= 2.0
        drop = np.cumsum(np.take_along_axis(down, order, axis=1), axis=1)
        last = np.argmin(drop < worst[:, None], axis=1)
        enters = order[here, last]
        length = ratio[here, enters]
        stuck = ~np.isfinite(length)
        if stuck.any():
            done |= stuck
            if done.all():
                return
            length[stuck] = 0.0
        length = length[:, None]
        y = y + length * edge
        d = d + length * share
        v = np.where(ratio[:, :k] < length, -v, v)
        column = _columns(slope, here, enters)
        change = np.matmul(inverse, column[:, :, None])[:, :, 0]
        edge = inverse[here, leaves] / change[here, leaves][:, None]
        change[here, leaves] -= 1.0
        inverse -= np.matmul(change[:, :, None], edge[:, None, :])
        own, other = np.flatnonzero(enters < k), np.flatnonzero(enters > k)
        v[own, enters[own]] = d[own, enters[own]] = 0.0
        free[enters == k] = 0.0
        slack[other, enters[other] - k - 1] = y[other, enters[other] - k - 1] = 0.0
        own, other = np.flatnonzero(variable < k), np.flatnonzero(variable > k)
        v[own, variable[own]] = sign[own]
        slack[other, variable[other] - k - 1] = 1.0
        basic[here, leaves] = enters
