"""Switching values in the windows, their rows on cells, and what combinations of rows prove."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions import exact
from jaxregions.tracing import CPAFunction, bounded_values, compiled, exact_values, prepare

__all__ = ["Cell", "Refutation", "Values", "spanning"]

_POINTS = 256  # evaluated together
_NUMBERS = 1 << 21  # in points held at once
_TINY = np.finfo(np.float64).tiny


@dataclasses.dataclass(eq=False)
class Cell:
    """A cell before its ``stage``.

    above: its ancestors, by their stage. witness, step: (k,). signs: of the stage before, on the
    cell. rows, exact: of its own stage, made when they are needed. split: it has children. spans:
    witness and steps in rationals, if floats are too coarse for them.
    """

    number: int
    window: int
    stage: int
    above: tuple[Cell, ...]
    witness: np.ndarray
    step: np.ndarray
    signs: np.ndarray
    rows: tuple[np.ndarray, ...] | None = None
    exact: tuple[np.ndarray, np.ndarray] | None = None
    split: bool = False
    spans: tuple[np.ndarray, np.ndarray] | None = None

    def before(self, stage: int) -> Cell:
        """The cell before that stage in which it lies."""
        return self if stage == self.stage else self.above[stage]

    def at(self, axis: int) -> np.ndarray:
        """One of the points that span it."""
        u = self.witness.copy()
        u[axis] += self.step[axis]
        return u


class Refutation(NamedTuple):
    """clause: (stage, entry, sign) of what cannot hold together, with multipliers: floats, or
    Python integers if ``whole``. claim: what is shown by it."""

    cell: Cell
    clause: list[tuple[int, int, int]]
    weight: list[Any]
    whole: bool
    claim: str


def spanning(cells: list[Cell]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The points that span some cells, a few axes (b,) at a time: (n, b, k)."""
    u, step = (np.stack([getattr(cell, n) for cell in cells]) for n in ("witness", "step"))
    k = u.shape[1]
    together = max(1, _NUMBERS // (len(cells) * k))
    for low in range(0, k, together):
        axes = np.arange(low, min(k, low + together))
        at = np.repeat(u[:, None], len(axes), axis=1)
        at[:, np.arange(len(axes)), axes] += step[:, axes]
        yield axes, at


class Values:
    """What is known of a function in its windows: everything from its values at points."""

    def __init__(self, net: CPAFunction, window: Any):
        flat = window.reshape(-1)
        self.net, self.sizes = net, [s.size for s in net.stages]
        self.radius = np.array(flat.radii(), np.float64)
        count = len(self.radius)
        shift = np.zeros(self.radius.shape) if flat.shift is None else np.asarray(flat.shift)
        origin = flat.center if flat.anchor is None else flat.anchor
        basis = np.eye(self.radius.shape[1]) if flat.basis is None else flat.basis
        self.origin, self.shift = np.asarray(origin, np.float64), shift
        self.basis = np.broadcast_to(basis, (count, *np.shape(basis)[-2:]))

    def evaluated(self, cells: list[Cell], u: np.ndarray, stage: int):
        """Values of a stage and bounds on their errors, (n, size) each."""
        size, k = self.sizes[stage], u.shape[1]
        values, bounds = np.zeros((len(u), size)), np.zeros((len(u), size))
        window = np.array([cell.window for cell in cells])
        with jax.enable_x64(True):
            prepared = prepare(self.net)
            run = compiled(_bounded, prepared.structure, static=(3,))
            for start in range(0, len(u), _POINTS):
                # The last part is filled up, so that one shape is compiled.
                part = np.minimum(start + np.arange(_POINTS), len(u) - 1)
                w, moved = window[part], self.shift[window[part]] + u[part]
                x = self.origin[w] + np.einsum("ndk,nk->nd", self.basis[w], moved)
                extent = np.abs(self.shift[w]) + np.abs(u[part])
                extent = np.abs(self.origin[w]) + np.einsum(
                    "ndk,nk->nd", abs(self.basis[w]), extent
                )
                error = 2 * exact.gamma(k + 4, np.float64) * extent.max(axis=1) + _TINY
                found = run(prepared, x, error, stage)
                values[part], bounds[part] = found
        return values, bounds

    def exact_values(self, window: int, u: np.ndarray, stage: int) -> np.ndarray:
        """Of a stage at a rational point (k,)."""
        moved = exact.rationals(self.shift[window]) + u
        x = exact.rationals(self.origin[window]) + exact.rationals(self.basis[window]) @ moved
        return exact_values(self.net, x.reshape(self.net.input_shape), stage)

    # Rows ----------------------------------------------------------------------------------------

    def need_rows(self, cells: Iterable[Cell]) -> None:
        """z = slope . u + value on every cell, how far that can be off in the window, and whether
        it is certainly zero."""
        new = list(dict.fromkeys(cell for cell in cells if cell.rows is None))
        for cell in new:
            if cell.spans is not None:  # floats say nothing
                z = np.zeros(self.sizes[cell.stage])
                cell.rows = np.zeros((len(z), len(cell.witness))), z, z + np.inf, z > 0
        new = [cell for cell in new if cell.rows is None]
        for stage in {cell.stage for cell in new}:
            some = [cell for cell in new if cell.stage == stage]
            u, radius = np.stack([s.witness for s in some]), self.radius[[s.window for s in some]]
            first, loose = self.evaluated(some, u, stage)
            slope, off = np.zeros((2, *first.shape, u.shape[1]))
            zero = (first == 0) & (loose == 0)
            base, slack = first[:, :, None], loose[:, :, None]
            for axes, at in spanning(some):
                each = [cell for cell in some for _ in axes]
                pair = self.evaluated(each, at.reshape(-1, u.shape[1]), stage)
                shape = len(some), len(axes), first.shape[1]
                values, bound = (np.swapaxes(v.reshape(shape), 1, 2) for v in pair)
                length = (at[:, np.arange(len(axes)), axes] - u[:, axes])[:, None]
                slope[..., axes] = (values - base) / length
                rounding = exact.gamma(4, np.float64) * (np.abs(values) + np.abs(base))
                with np.errstate(over="ignore"):  # an infinite bound proves nothing
                    off[..., axes] = (bound + slack + rounding) / np.abs(length) + _TINY
                zero &= ((values == 0) & (bound == 0)).all(axis=2)
            value = first - (slope * u[:, None]).sum(axis=-1)
            reach = (radius + np.abs(u))[:, None]
            extent = np.abs(first) + ((np.abs(slope) + off) * reach).sum(axis=-1)
            relative = exact.gamma(8 * u.shape[1] + 32, np.float64)
            error = (loose + (off * reach).sum(axis=-1) + relative * extent) * (1 + relative)
            for cell, *rows in zip(some, slope, value, error, zero, strict=True):
                cell.rows = tuple(row.copy() for row in rows)

    def exact_rows(self, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
        if cell.exact is None:
            start, ends = self._exact_points(cell)
            first = self.exact_values(cell.window, start, cell.stage)
            slope = np.empty((len(first), len(start)), object)
            for axis, at in enumerate(ends):
                end = self.exact_values(cell.window, at, cell.stage)
                slope[:, axis] = (end - first) / (at[axis] - start[axis])
            cell.exact = slope, first - slope @ start
        return cell.exact

    def _exact_points(self, cell: Cell) -> tuple[np.ndarray, list[np.ndarray]]:
        """The witness and the points at a step from it, in rationals."""
        if cell.spans is None:
            axes = range(len(cell.witness))
            return exact.rationals(cell.witness), [exact.rationals(cell.at(a)) for a in axes]
        start, step = cell.spans
        return start, [start + step * (np.arange(len(step)) == axis) for axis in range(len(step))]

    def float_proofs(self, proofs: list[Refutation]) -> np.ndarray:
        """(n,) whether sum y_i sigma_i z_i <= 0 in the whole window is certain in float64."""
        named = [(r.cell.before(stage), e, s) for r in proofs for stage, e, s in r.clause]
        self.need_rows(cell for cell, _, _ in named)
        rows = [(cell.rows, e) for cell, e, _ in named if cell.rows is not None]
        slope, value, error = (np.array([own[i][e] for own, e in rows]) for i in range(3))
        sign = np.array([s for _, _, s in named])
        y = np.concatenate([r.weight for r in proofs])
        length = np.array([len(r.clause) for r in proofs])
        first = np.cumsum(length) - length
        radius = self.radius[[r.cell.window for r in proofs]]
        reach = np.abs(value) + (np.abs(slope) * np.repeat(radius, length, axis=0)).sum(axis=1)
        relative = exact.gamma(2 * int(length.max()) + 2 * radius.shape[1] + 16, np.float64)
        with np.errstate(all="ignore"):
            sums = np.add.reduceat((y * sign)[:, None] * slope, first, axis=0)
            level = np.add.reduceat(y * sign * value, first)
            size, off = np.add.reduceat(y * reach, first), np.add.reduceat(y * error, first)
            slack = (off + relative * size) * (1 + relative) + _TINY
            return level + (np.abs(sums) * radius).sum(axis=1) + slack <= 0

    def exact_proof(self, proof: Refutation) -> bool:
        """The same, exactly."""
        cell = proof.cell
        slope = exact.rationals(np.zeros(self.radius.shape[1]))
        value = exact.rational(0.0)
        for (stage, entry, sign), y in zip(proof.clause, proof.weight, strict=True):
            slopes, values = self.exact_rows(cell.before(stage))
            factor = sign * (y if isinstance(y, int) else exact.rational(y))
            slope, value = slope + slopes[entry] * factor, value + values[entry] * factor
        radius = exact.rationals(self.radius[cell.window])
        return value + sum(abs(s) * r for s, r in zip(slope, radius, strict=True)) <= 0


def _bounded(prepared: Any, x: Any, error: Any, stage: int):
    def one(point, e):
        return tuple(bounded_values(prepared, point, e, stage))

    return jax.vmap(one)(x.reshape(-1, *prepared.net.input_shape), error)
