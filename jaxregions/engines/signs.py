"""Certified signs of a stage's switching values at many vertices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions import exact
from jaxregions.engines.points import Ledger, U, values
from jaxregions.engines.steps import AHEAD, ROWS, begun, in_steps, lifted, pinned
from jaxregions.tracing import bounded_values, compiled, is_slot, largest_bound, prepare

__all__ = [
    "Signs",
    "close",
    "evaluate",
    "evaluating",
    "float_signs",
    "one_bits",
    "packed",
    "patterns",
    "rows_patterns",
    "settled",
]

UNDECIDED = 2
FEW = 16  # undecided vertices that are not worth compiling for


class Signs(NamedTuple):
    """One stage at some vertices.

    ids: (V,) the vertices. values: (V, n) float64. error: (V,) bound on every value's error.
    positive, negative: (V, words) uint64, one bit a switching value, both exact.
    zero_row, zero_entry: (Z,) the exact zeros.
    """

    ids: np.ndarray
    values: np.ndarray
    error: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    zero_row: np.ndarray
    zero_entry: np.ndarray

    def at(self, row: np.ndarray, entry: np.ndarray) -> np.ndarray:
        """values[row, entry], for which NumPy needs twice as long."""
        return self.values.ravel().take(row * self.values.shape[1] + entry)


def _sign(value: Any, bound: Any) -> Any:
    sign = jnp.where(value > bound, 1, jnp.where(value < -bound, -1, UNDECIDED))
    return jnp.where((value == 0) & (bound == 0), 0, sign).astype(jnp.int8)


def _rows_signs(prepared: Any, x: Any, error: Any, vanishing: Any, stage: int, tight: bool):
    """Values, NaN where their signs are not certain, and a bound on all their errors."""

    def one(point, e, pins):
        (value, bound), largest = largest_bound(prepared, point, e, stage, pins, tight)
        sure = (abs(value) > bound) | ((value == 0) & (bound == 0))
        return jnp.where(sure, value, jnp.nan), largest

    return jax.vmap(one)(x.reshape(-1, *prepared.net.input_shape), error, vanishing)


def _with_bits(value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, ...]:
    return value, error, packed(value > 0), packed(value < 0)


def rows_patterns(prepared: Any, x: Any, error: Any, stages: int):
    def one(point, e):
        return [_sign(*bounded_values(prepared, point, e, s)) for s in range(stages)]

    return jax.vmap(one)(x.reshape(-1, *prepared.net.input_shape), error)


def evaluate(ledger: Ledger, ids: np.ndarray, stage: int) -> Signs:
    """Values and exact signs of the stage at these vertices.

    With bounds from norms alone, what is undecided with tighter ones, and what still is in
    rationals.
    """
    return evaluating(ledger, ids, stage)()


def evaluating(ledger: Ledger, ids: np.ndarray, stage: int, early: int = 0) -> Callable[[], Signs]:
    """``evaluate``, running from now on for so many bytes of values; calling it gives the signs."""
    net, count = ledger.net, len(ids)
    compares = any(is_slot(g.right) for g in net.stages[stage].groups)
    vertices = ledger.vertices.rows(ids)

    def inputs(vertices, part):
        point = lifted(ledger, vertices, part)
        return (*point, pinned(ledger, vertices, part)) if compares else point

    prepared = prepare(net)
    step = compiled(_rows_signs, prepared.structure, static=(4, 5))

    def run(x, error, vanishing=None, tight=False):
        with jax.enable_x64(True):
            return step(prepared, x, error, vanishing, stage, tight)

    def tighter(rows):
        some = partial(inputs, vertices.rows(rows))
        return in_steps(partial(run, tight=True), len(rows), some, _with_bits, ledger.pause)

    ahead = early // (8 * ROWS[1] * max(net.stages[stage].size, 1))
    every = partial(inputs, vertices)
    collected = begun(run, count, every, _with_bits, ledger.pause, max(ahead, AHEAD))

    def signs():
        found = collected()
        value, _, *bits = found
        rows = _uncertain(value, *bits)
        rows = rows[np.isnan(value[rows]).any(axis=1)]
        if len(rows) > FEW:
            for column, better in zip(found, tighter(rows), strict=True):
                column[rows] = better
        return _settled(ledger, ids, stage, *found)

    return signs


def close(ledger: Ledger, signs: Signs) -> bool:
    """Whether float64 may not know all signs at the middle of some vertices though it does at them.

    Of n vertices on one side of a line at most all but one lie on it, so the mean of their values
    is at least an n-th of the largest. Asks whether values are 0 or 64 times the largest error at
    points that are known exactly, as middles are: the corners of the window.
    """
    exact_ones = ledger.vertices.error.take(signs.ids) == 0
    limit = 64 * signs.error[exact_ones].max(initial=0.0)
    parts = np.array_split(signs.values, 1 + len(signs.values) // ROWS[1])
    near = sum(np.count_nonzero(np.abs(values) < limit) for values in parts)
    return int(near) > len(signs.zero_row)


def float_signs(ledger: Ledger, u: np.ndarray, stage: int) -> np.ndarray:
    """(F, n) int8 the certain signs of the stage at points u of the ledger's window, else
    UNDECIDED."""
    prepared, at = prepare(ledger.net), ledger.vertices.rows(np.zeros(len(u), np.int64))
    at = at._replace(u=u, error=np.zeros(len(u)))
    step = compiled(_rows_signs, prepared.structure, static=(4, 5))

    def run(x, error):
        with jax.enable_x64(True):
            return step(prepared, x, error, None, stage, True)

    (found,) = in_steps(
        run,
        len(u),
        lambda part: lifted(ledger, at, part),
        lambda value, _: (np.where(np.isnan(value), UNDECIDED, np.sign(value)).astype(np.int8),),
        ledger.pause,
    )
    return found


def _uncertain(value: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The rows in which values are exactly zero or of unknown sign."""
    certain = np.bitwise_count(positive | negative).sum(axis=1, dtype=np.int64)
    return np.flatnonzero(certain < value.shape[1])


def _settled(ledger, ids, stage, value, error, positive, negative) -> Signs:
    """What is not certain made in rationals."""
    ledger.decisions += value.size
    rows = _uncertain(value, positive, negative)
    if not len(rows):
        return Signs(ids, value, error, positive, negative, rows, rows)
    sign = np.sign(value[rows])  # NaN: undecided
    undecided = np.isnan(sign).sum(axis=1)
    ledger.settled_exactly += int(undecided.sum())
    for i in np.flatnonzero(undecided).tolist():
        ledger.pause()
        row, known = rows[i], values(ledger, int(ids[rows[i]]), stage)
        sign[i] = [(v > 0) - (v < 0) for v in known]
        value[row] = [exact.rounded(v) for v in known]
        error[row] = 2 * U * np.abs(value[row]).max(initial=np.finfo(float).tiny)
    positive[rows], negative[rows] = packed(sign > 0), packed(sign < 0)
    at, entry = np.nonzero(sign == 0)
    return Signs(ids, value, error, positive, negative, rows[at], entry)


def patterns(
    inner: Ledger, stages: int, exactly: Callable[[int], np.ndarray] | None = None
) -> list[np.ndarray]:
    """Per stage, of the first ``stages``, the exact signs (V, size) int8 at every vertex.

    exactly: row -> (k,) the exact vertex, asked where needed; None: the ledger knows it.
    """
    net, every = inner.net, inner.vertices
    with jax.enable_x64(True):
        prepared = prepare(net)
        step = compiled(rows_patterns, prepared.structure, static=(3,))

        def rows(x, error):
            return step(prepared, x, error, stages)

        found = in_steps(
            rows, every.size, lambda part: lifted(inner, every, part), pause=inner.pause
        )
    return settled(inner, found, exactly)


def settled(
    inner: Ledger, found: list[np.ndarray], exactly: Callable[[int], np.ndarray] | None = None
) -> list[np.ndarray]:
    """The signs of ``rows_patterns`` per stage, the undecided ones made in rationals."""
    for stage, sign in enumerate(found):
        inner.decisions += sign.size
        for row in np.flatnonzero((sign == UNDECIDED).any(axis=1)).tolist():
            inner.pause()
            inner.settled_exactly += int((sign[row] == UNDECIDED).sum())
            if exactly is not None and row not in inner.points:
                inner.points[row] = exactly(row)
            sign[row] = [(v > 0) - (v < 0) for v in values(inner, row, stage)]
    return found


def packed(bits: np.ndarray) -> np.ndarray:
    """(V, n) bool -> (V, words) uint64, bit i % 64 of word i // 64."""
    words = -(-bits.shape[1] // 64)
    out = np.zeros((len(bits), words * 8), np.uint8)
    some = np.packbits(bits, axis=1, bitorder="little")
    out[:, : some.shape[1]] = some
    return out.view("<u8")


def one_bits(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, position) of every set bit of (R, words) uint64, in no particular order."""
    flat = np.flatnonzero(words)
    left, row, column = words.ravel()[flat], flat // words.shape[1], flat % words.shape[1] * 64
    rows, positions = [], []
    while len(left):
        low = left & (~left + np.uint64(1))
        rows.append(row)
        positions.append(column + np.bitwise_count(low - np.uint64(1)).astype(np.int64))
        left = left ^ low
        more = np.flatnonzero(left)
        left, row, column = left[more], row[more], column[more]
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(rows), np.concatenate(positions)
