"""Norms of the linear steps of a program, rounded up."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np

from jaxregions.exact import gamma
from jaxregions.tracing.error_rules import LinearNorms
from jaxregions.tracing.tracked import FLOOR, TINY, U, norm2
from jaxregions.tracing.walk import Step, is_slot

__all__ = ["linear_norms"]

_SQUARINGS = 6  # the norm of a power of W'W bounds that of W up to n^(1 / 256)
_MOST_SQUARED = 1024  # columns
_FEW = 6  # 2 / pi * 6 is about 4, where Gaussian rows have |w|_1 of about 2 |w|_2


def linear_norms(step: Step) -> LinearNorms:
    (weights,) = (np.asarray(o) for o in step.inputs if not is_slot(o))
    contracted, batched = _dimensions(step)
    plain = bool(contracted) and not batched
    rows, columns = _sums_of_product(step, contracted) if plain else _sums(step)
    size, nonzero = abs(weights), weights != 0
    floored = np.where(nonzero, np.maximum(size, FLOOR), 0.0)
    terms = int(rows(nonzero.astype(float)).max(initial=0))
    slack = 1 + gamma(terms + 64, np.float64)
    row = rows(np.where(nonzero, np.maximum(size, TINY), 0.0)) * slack
    length = np.sqrt(rows(floored**2)) * slack
    frobenius = float(norm2(length, np)) * slack
    bound = frobenius
    width = math.prod(weights.shape[a] for a in contracted)
    kept = math.prod(weights.shape) // max(1, width)
    if plain:
        matrix = np.moveaxis(weights, contracted, range(len(contracted)))
        bound = min(bound, _largest_singular_value(matrix.reshape(width, kept)))
    column = columns(floored).max(initial=0)
    columns_slack = 1 + gamma(row.size + 64, np.float64)
    schur = math.sqrt(row.max(initial=0)) * math.sqrt(column) * columns_slack
    operator = min(bound, schur) * slack
    if width > _FEW:  # |w|_1 is well above |w|_2; by shape alone, since it decides what is compiled
        row = None
    longest = float(length.max(initial=0))
    return LinearNorms(row, length, longest, operator, frobenius, float(terms))


Sums = Callable[[np.ndarray], np.ndarray]


def _dimensions(step: Step) -> tuple[tuple[int, ...], bool]:
    """The axes of the weights that a dot_general sums over, and whether others go along."""
    if step.eqn is None or step.name != "dot_general":
        return (), False
    contracted, batch = step.eqn.params["dimension_numbers"]
    return contracted[1 - _place(step)], any(batch)


def _place(step: Step) -> int:
    return next(i for i, o in enumerate(step.inputs) if is_slot(o))


def _sums(step: Step) -> tuple[Sums, Sums]:
    """Sums of entries in place of the weights: along the rows of the linear map, in the shape of
    its output, and along its columns, in that of its input."""
    at = _place(step)
    ones = np.ones(step.inputs[at].shape)

    def applied(values, entries):
        return step.function(*((values, entries) if at == 0 else (entries, values)))[0]

    def columns(entries):
        out, transposed = jax.vjp(lambda v: applied(v, entries), ones)
        return np.asarray(transposed(np.ones(out.shape))[0])

    return lambda entries: np.asarray(applied(ones, entries)), columns


def _sums_of_product(step: Step, contracted: tuple[int, ...]) -> tuple[Sums, Sums]:
    """The same of a product of matrices, without a program for every shape; the sums along columns
    are those of one column each."""
    at = _place(step)
    (own, other), _ = step.eqn.params["dimension_numbers"]  # type: ignore[union-attr]
    summed, slot = (own, other)[at], step.inputs[at]
    beside = tuple(n for axis, n in enumerate(slot.shape) if axis not in summed)

    def rows(entries):
        sums = np.asarray(entries.sum(contracted))
        if at == 0:
            return np.broadcast_to(sums, (*beside, *sums.shape))
        every = sums.reshape((*sums.shape, *(1 for _ in beside)))
        return np.broadcast_to(every, (*sums.shape, *beside))

    def columns(entries):
        return entries.sum(tuple(a for a in range(entries.ndim) if a not in contracted))

    return rows, columns


def _largest_singular_value(matrix: np.ndarray) -> float:
    """An upper bound on ||W||_2: W'W is squared repeatedly, every rounding error added.

    ||A||_2^2 = ||A^2||_2 for symmetric A, and fl(A^2) is within gamma_n ||A||_F^2 of A^2.
    """
    if not matrix.size or not np.isfinite(matrix).all() or not matrix.any():
        return math.inf if matrix.size and not np.isfinite(matrix).all() else 0.0
    if min(matrix.shape) > _MOST_SQUARED:
        return math.inf
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    unit = 2.0 ** math.frexp(float(abs(matrix).max()))[1]
    found = unit * math.sqrt(_spectral(matrix / unit, _SQUARINGS)) * (1 + 8 * U)
    return max(found, TINY)  # below it rounding errors are not relative


def _spectral(factor: np.ndarray, squarings: int) -> float:
    """A bound on ||F'F||_2, entries of F at most 1 or so."""
    terms = factor.size + 64
    fro = float(np.sum(factor * factor)) * (1 + gamma(terms, np.float64)) + TINY
    off = gamma(len(factor) + 64, np.float64) * fro * (1 + 8 * U) + TINY
    product = factor.T @ factor
    product = (product + product.T) / 2
    if squarings == 0:
        return (
            math.sqrt(float(np.sum(product * product))) * (1 + gamma(terms, np.float64)) + off
        ) * (1 + 8 * U)
    unit = 2.0 ** math.frexp(float(abs(product).max()))[1]
    inner = unit * math.sqrt(_spectral(product / unit, squarings - 1)) * (1 + 8 * U)
    return (inner + off) * (1 + 8 * U)
