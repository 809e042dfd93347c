"""Norms of the linear steps of a program, rounded up."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.exact import gamma
from jaxregions.tracing.error_rules import FLOOR, TINY, LinearNorms, U, norm2
from jaxregions.tracing.walk import Step, is_slot

__all__ = ["linear_norms"]

_SQUARINGS = 6  # the norm of a power of W'W bounds that of W up to n^(1 / 256)
_MOST_SQUARED = 1024  # columns
_FEW = 6  # 2 / pi * 6 is about 4, where Gaussian rows have |w|_1 of about 2 |w|_2


def linear_norms(step: Step) -> LinearNorms:
    (weights,) = (np.asarray(o) for o in step.inputs if not is_slot(o))
    (slot,) = (o for o in step.inputs if is_slot(o))
    at = next(i for i, o in enumerate(step.inputs) if is_slot(o))
    ones = np.ones(slot.shape)

    def applied(values, entries):
        return step.function(*((values, entries) if at == 0 else (entries, values)))[0]

    @jax.jit  # one program a layer
    def sums(nonzero, size, floored, squares):
        along_rows = [applied(ones, entries) for entries in (nonzero, size, squares)]
        _, transposed = jax.vjp(lambda v: applied(v, floored), ones)
        return *along_rows, *transposed(jnp.ones_like(along_rows[0]))

    size, nonzero = abs(weights), weights != 0
    least, floored = (np.where(nonzero, np.maximum(size, m), 0.0) for m in (TINY, FLOOR))
    found = sums(nonzero.astype(float), least, floored, floored**2)
    terms, row, squares, columns = map(np.asarray, found)
    terms = int(terms.max(initial=0))
    slack = 1 + gamma(terms + 64, np.float64)
    row, length = row * slack, np.sqrt(squares) * slack
    frobenius = float(norm2(length)) * slack
    bound = frobenius
    params = {} if step.eqn is None else step.eqn.params
    contracted = params["dimension_numbers"][0][1 - at] if step.name == "dot_general" else ()
    width = math.prod(weights.shape[a] for a in contracted)
    if contracted and not any(params["dimension_numbers"][1]):
        matrix = np.moveaxis(weights, contracted, range(len(contracted)))
        bound = min(bound, _largest_singular_value(matrix.reshape(width, -1)))
    columns_slack = 1 + gamma(row.size + 64, np.float64)
    schur = math.sqrt(row.max(initial=0)) * math.sqrt(columns.max(initial=0)) * columns_slack
    operator = min(bound, schur) * slack
    if width > _FEW:  # |w|_1 is well above |w|_2; by shape alone, since it decides what is compiled
        row = None
    return LinearNorms(row, length, operator, frobenius, float(terms))


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
    return unit * math.sqrt(_spectral(matrix / unit, _SQUARINGS)) * (1 + 8 * U)


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
