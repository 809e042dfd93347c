"""Certified signs of a stage's switching values at many vertices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.engines.points import Ledger, U, Vertices, lift, values
from jaxregions.tracing import CPAFunction, bounded_values, prepare

__all__ = ["Signs", "evaluate", "evaluated_rows", "one_bits"]

ROWS = (64, 512, 4096)  # points in one jitted step; few sizes, few compilations
UNDECIDED = 2


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

    def dense(self) -> np.ndarray:
        """(V, n) the signs as int8."""
        size = self.values.shape[1]
        one, other = (
            np.unpackbits(bits.view(np.uint8), axis=1, count=size, bitorder="little")
            for bits in (self.positive, self.negative)
        )
        return one.astype(np.int8) - other.astype(np.int8)


def _point_signs(prepared: Any, x: Any, error: Any, stage: int) -> tuple[Any, Any, Any, Any]:
    value, bound = bounded_values(prepared, x, error, stage)
    sign = jnp.where(value > bound, 1, jnp.where(value < -bound, -1, UNDECIDED))
    sign = jnp.where((value == 0) & (bound == 0), 0, sign).astype(jnp.int8)
    return value, jnp.max(bound, initial=0.0), sign, jnp.any((sign == 0) | (sign == UNDECIDED))


def _rows_signs(net: CPAFunction, prepared: Any, x: Any, error: Any, stage: int):
    x = x.reshape(-1, *net.input_shape)
    return jax.vmap(lambda p, e: _point_signs(prepared, p, e, stage))(x, error)


def evaluated_rows(count: int) -> list[int]:
    """Sizes of the steps that cover ``count`` rows, most rows first."""
    sizes = []
    for size in ROWS[::-1]:
        sizes += [size] * (count // size)
        count %= size
    return sizes + [ROWS[0]] * (count > 0)


def evaluate(ledger: Ledger, ids: np.ndarray, stage: int) -> Signs:
    """Values and exact signs of the stage at these vertices; undecided signs in rationals."""
    net, vertices = ledger.net, Vertices(*(column[ids] for column in ledger.vertices))
    count, entries = len(ids), net.stages[stage].size
    step = net.jitted(_rows_signs, static=(3,))
    value, sign = np.empty((count, entries)), np.empty((count, entries), np.int8)
    error, odd = np.empty(count), np.empty(count, bool)
    pending, start = [], 0
    with jax.enable_x64(True):
        prepared = prepare(net)
        for rows in evaluated_rows(count):
            stop = min(start + rows, count)
            part = Vertices(*(column[start:stop] for column in vertices))
            x, e = lift(ledger.windows, part)
            if stop - start < rows:
                x = np.concatenate([x, np.zeros((rows - len(x), x.shape[1]))])
                e = np.concatenate([e, np.zeros(rows - len(e))])
            pending.append((start, stop, step(prepared, x, e, stage)))
            start = stop
        for start, stop, out in pending:
            for target, part in zip((value, error, sign, odd), out, strict=True):
                target[start:stop] = np.asarray(part)[: stop - start]
    ledger.decisions += count * entries
    for row in np.flatnonzero(odd):
        undecided = sign[row] == UNDECIDED
        if undecided.any():
            known = values(ledger, int(ids[row]), stage)
            ledger.settled_exactly += int(undecided.sum())
            sign[row] = [(v > 0) - (v < 0) for v in known]
            value[row] = [float(v) if isinstance(v, int) else _float(v) for v in known]
            error[row] = 2 * U * np.abs(value[row]).max(initial=np.finfo(float).tiny)
    rows = np.flatnonzero(odd)
    at, entry = np.nonzero(sign[rows] == 0)
    return Signs(ids, value, error, _packed(sign > 0), _packed(sign < 0), rows[at], entry)


def _float(value: Any) -> float:
    """A rational rounded to within a few units in the last place."""
    numerator, denominator = (
        (value.numerator, value.denominator) if hasattr(value, "numerator") else (value.p, value.q)
    )
    return int(numerator) / int(denominator)


def _packed(bits: np.ndarray) -> np.ndarray:
    """(V, n) bool -> (V, words) uint64, bit i % 64 of word i // 64."""
    words = -(-bits.shape[1] // 64)
    out = np.zeros((len(bits), words * 8), np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    out[:, : packed.shape[1]] = packed
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
