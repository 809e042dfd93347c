"""A certificate of a count, checked from scratch.

Nothing of the search is used: only the traced function's values, with rigorous bounds or exactly,
and linear algebra. What is checked, for every window:

1. Every tree of the certificate is complete: a node is split by the sign of a switching value into
   two, or one sign is refuted and the other known; at a leaf all signs of the stage are known.
   So the leaves of the last stage are all regions there can be, with different signs.
2. Every refutation: signs sigma_i of affine z_i and multipliers y_i >= 0 with
   sum_i y_i sigma_i z_i <= 0 everywhere in the window; so the signs cannot hold together (Farkas).
   All but the refuted one are known at the node.
3. Every region is there: its witness lies in the open window and has its signs, none of them zero
   unless the switching value vanishes on the whole cell.
4. The affine z_i are those of the cell: it is convex, z_i is affine on it, and z_i was evaluated at
   k + 1 points of the closed cell that span the window.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxregions import exact
from jaxregions.tracing import CPAFunction, bounded_values, compiled, exact_values, prepare

__all__ = ["verify"]

_SPLIT, _ABOVE, _BELOW, _ZERO, _LEAF = range(5)  # steps of a tree
_UNKNOWN = 2  # a sign that the tree has not settled yet
_POINTS = 256  # evaluated together
_TINY = np.finfo(np.float64).tiny


class _Failure(Exception):
    """The first thing that does not hold."""


def verify(net: CPAFunction, window: Any, certificate: Any) -> bool | str:
    """Whether a certificate proves the number of regions of a traced function in its windows.

    The number proven for window w is the count of cells of the last stage that belong to it,
    ``((certificate.stage == len(net.stages)) & (certificate.window == w)).sum()``.

    Args:
      net: from ``jr.trace``, of the function that was counted.
      window: the windows that were counted, flattened in order if there are leading axes.
      certificate: of ``count_cells`` or ``load_certificate``.

    Returns:
      True, or a description of the first thing that fails.

    Source: MATHEMATICS.md, exact partitions.
    """
    try:
        checked = _Checked(net, window, certificate)
        checked.shapes()
        checked.signs()
        checked.points()
        checked.proofs()
    except _Failure as failure:
        return str(failure)
    return True


def _require(holds: Any, message: str) -> None:
    if not holds:
        raise _Failure(message)


class _Checked:
    """The certificate ``c`` while it is checked.

    known: per stage t, (C, size): signs of stage t of every cell of stage t + 1.
    refuted: (cell, entry, sign, proof) of every refutation, whose other signs are known there.
    """

    def __init__(self, net: CPAFunction, window: Any, certificate: Any):
        flat = window.reshape(-1)
        self.net, self.c, self.sizes = net, certificate, [s.size for s in net.stages]
        self.radius = np.array(flat.radii(), np.float64)
        count = len(self.radius)
        shift = np.zeros(self.radius.shape) if flat.shift is None else np.asarray(flat.shift)
        origin = flat.center if flat.anchor is None else flat.anchor
        basis = np.eye(self.radius.shape[1]) if flat.basis is None else flat.basis
        self.origin, self.shift = np.asarray(origin, np.float64), shift
        self.basis = np.broadcast_to(basis, (count, *np.shape(basis)[-2:]))
        self.known: list[np.ndarray] = []
        self.steps: list[tuple[int, ...]] = []
        self.exact_weight: dict[int, list[int]] = {}
        self.refuted: list[tuple[int, int, int, int]] = []
        self.exact_row = lru_cache(maxsize=256)(self._exact_rows)

    # The forest ----------------------------------------------------------------------------------

    def shapes(self) -> None:
        """Arrays that fit together, one root a window, cells after their parents."""
        c, k, last = self.c, self.radius.shape[1], len(self.sizes)
        cells, steps, proofs = len(c.window), len(c.kind), len(c.clause) - 1
        for names, shape in (
            ("window parent stage", (cells,)),
            ("witness step", (cells, k)),
            ("tree", (cells,)),
            ("kind entry proof following other", (steps,)),
            ("clause_stage clause_entry clause_sign weight", (len(c.weight),)),
        ):
            for name in names.split():
                _require(getattr(c, name).shape == shape, f"{name}: not of shape {shape}")
        ordered = len(c.clause) > 0 and (np.diff(c.clause) >= 0).all()
        _require(ordered and c.clause[0] == 0 and c.clause[-1] == len(c.weight), "clause: disorder")
        _require(((c.stage >= 0) & (c.stage <= last)).all(), "stage: out of range")
        _require(((c.clause_stage >= 0) & (c.clause_stage < last)).all(), "clause_stage: no stage")
        sizes = np.array([*self.sizes, 0])
        _require((c.clause_entry >= 0).all(), "clause_entry: out of range")
        _require((c.clause_entry < sizes[c.clause_stage]).all(), "clause_entry: out of range")
        _require(np.isin(c.clause_sign, (-1, 1)).all(), "clause_sign: not a sign")
        _require(((c.proof >= -1) & (c.proof < proofs)).all(), "proof: out of range")
        root = c.parent < 0
        _require(
            np.array_equal(np.sort(c.window[root]), np.arange(len(self.radius))),
            "expected one root for each window",
        )
        _require((c.stage[root] == 0).all(), "a root of another stage than the first")
        _require((c.parent < np.arange(cells)).all(), "a cell before its parent")
        child = ~root
        _require((c.stage[child] == c.stage[c.parent[child]] + 1).all(), "a cell skips a stage")
        _require((c.window[child] == c.window[c.parent[child]]).all(), "a cell changes its window")
        for proof, text in zip(c.exact_proof.tolist(), c.exact_weight.tolist(), strict=True):
            _require(0 <= proof < proofs, "exact_proof: out of range")
            _require(text.replace(" ", "").isdigit(), "exact_weight: not whole numbers >= 0")
            self.exact_weight[proof] = [int(w) for w in text.split()]

    def signs(self) -> None:
        """Follows every tree, from the whole cell to its leaves."""
        c = self.c
        self.known = [np.full((len(c.window), size), _UNKNOWN, np.int8) for size in self.sizes]
        reached = c.parent < 0
        columns = (c.kind, c.entry, c.proof, c.following, c.other)
        self.steps = list(zip(*(column.tolist() for column in columns), strict=True))
        for cell in np.flatnonzero(c.stage < len(self.sizes)).tolist():
            self._tree(cell, int(c.tree[cell]), reached)
        _require(reached.all(), f"cell {int(np.argmin(reached))}: not a leaf of its parent's tree")

    def _tree(self, cell: int, first: int, reached: np.ndarray) -> None:
        stage = int(self.c.stage[cell])
        nodes = [(-1, first, np.full(self.sizes[stage], _UNKNOWN, np.int8))]
        while nodes:
            before, step, signs = nodes.pop()
            _require(before < step < len(self.c.kind), f"cell {cell}: its tree is not one")
            kind, entry, proof, following, other = self.steps[step]
            if kind == _LEAF:
                _require((signs != _UNKNOWN).all(), f"cell {cell}: a leaf with unknown signs")
                _require(0 <= entry < len(reached), f"cell {cell}: a leaf that is no cell")
                own = self.c.parent[entry] == cell and not reached[entry]
                _require(own, f"cell {entry}: a leaf of another tree, or twice")
                reached[entry] = True
                self.known[stage][entry] = signs
                continue
            _require(0 <= entry < len(signs), f"cell {cell}: no switching value {entry}")
            _require(signs[entry] == _UNKNOWN, f"cell {cell}: {entry} is decided twice")
            _require(kind in (_SPLIT, _ABOVE, _BELOW, _ZERO), f"cell {cell}: {entry} is left open")
            if kind == _SPLIT:
                negative = signs.copy()
                negative[entry] = -1
                nodes.append((step, other, negative))
            elif kind != _ZERO:
                refuted = -1 if kind == _ABOVE else 1
                self._assumes_what_is_known(cell, signs, entry, refuted, proof)
                self.refuted.append((cell, entry, refuted, proof))
            signs[entry] = {_SPLIT: 1, _ABOVE: 1, _BELOW: -1, _ZERO: 0}[kind]
            nodes.append((step, following, signs))

    def _clause(self, cell: int, entry: int, sign: int, proof: int) -> list[tuple[int, int, int]]:
        """(stage, entry, sign) of what a proof combines; proof -1: the refuted sign alone."""
        if proof < 0:
            return [(int(self.c.stage[cell]), entry, sign)]
        part = slice(self.c.clause[proof], self.c.clause[proof + 1])
        columns = (self.c.clause_stage, self.c.clause_entry, self.c.clause_sign)
        return list(zip(*(column[part].tolist() for column in columns), strict=True))

    def _ancestor(self, cell: int, stage: int) -> int:
        while self.c.stage[cell] > stage:
            cell = int(self.c.parent[cell])
        return cell

    def _assumes_what_is_known(self, cell, signs, entry: int, sign: int, proof: int) -> None:
        own = int(self.c.stage[cell])
        for stage, e, s in self._clause(cell, entry, sign, proof):
            if stage == own:
                fine = signs[e] == s or (e, s) == (entry, sign)
            else:
                fine = stage < own and self.known[stage][self._ancestor(cell, stage + 1), e] == s
            _require(fine, f"cell {cell}: the proof for {entry} assumes what is not known there")

    # Points --------------------------------------------------------------------------------------

    def points(self) -> None:
        """Witnesses have the signs of their cells, and the steps from them stay inside."""
        c, radius = self.c, self.radius[self.c.window]
        _require(np.isfinite(c.witness).all(), "witness: not finite")
        _require((np.abs(c.witness) < radius).all(), "a witness outside its window")
        inner = np.flatnonzero(c.stage < len(self.sizes))
        _require((c.step[inner] != 0).all() and np.isfinite(c.step[inner]).all(), "step: zero")
        for stage in range(len(self.sizes)):
            # Cells of later stages, at their witnesses: exactly the signs they are said to have.
            deep = np.flatnonzero(c.stage > stage)
            claimed = self._claimed(deep, stage)
            self._check(deep, c.witness[deep], stage, claimed, closed=False)
            deep = deep[c.stage[deep] < len(self.sizes)]
            for j in range(c.witness.shape[1]):
                at = self._stepped(deep, j)
                _require((np.abs(at) <= self.radius[c.window[deep]]).all(), "a step leaves")
                self._check(deep, at, stage, self._claimed(deep, stage), closed=True)
        for j in range(c.witness.shape[1]):
            at = self._stepped(inner, j)
            _require((np.abs(at) <= self.radius[c.window[inner]]).all(), "a step out of a window")
            _require((at[:, j] != c.witness[inner, j]).all(), "a step that floats do not see")

    def _stepped(self, cells: np.ndarray, axis: int) -> np.ndarray:
        at = self.c.witness[cells].copy()
        at[:, axis] += self.c.step[cells, axis]
        return at

    def _claimed(self, cells: np.ndarray, stage: int) -> np.ndarray:
        """(n, size) the signs of an earlier stage on these cells."""
        at = np.asarray(cells)
        while (up := self.c.stage[at] > stage + 1).any():
            at = np.where(up, self.c.parent[at], at)
        return self.known[stage][at]

    def _check(self, cells, u, stage: int, claimed: np.ndarray, *, closed: bool) -> None:
        values, bound = self._evaluated(self.c.window[cells], u, stage)
        found = (values > bound).astype(np.int8) - (values < -bound).astype(np.int8)
        sure = (np.abs(values) > bound) | ((values == 0) & (bound == 0))
        for row in np.flatnonzero(~sure.all(axis=1) | (found != claimed).any(axis=1)).tolist():
            if not sure[row].all():
                exactly = self._exact_values(int(self.c.window[cells[row]]), u[row], stage)
                found[row] = [(v > 0) - (v < 0) for v in exactly]
            wrong = found[row] != claimed[row]
            if closed:
                wrong &= found[row] != 0
            if wrong.any():
                where = "a point at a step from the witness" if closed else "the witness"
                _require(
                    False,
                    f"cell {cells[row]}: switching value {int(np.argmax(wrong))} of stage {stage} "
                    f"has another sign at {where} than the cell is said to have",
                )

    def _evaluated(self, window: np.ndarray, u: np.ndarray, stage: int):
        """Values of a stage and bounds on their errors, (n, size) each."""
        size, k = self.sizes[stage], u.shape[1]
        values, bounds = np.zeros((len(u), size)), np.zeros((len(u), size))
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

    def _exact_values(self, window: int, u: np.ndarray, stage: int) -> np.ndarray:
        moved = exact.rationals(self.shift[window]) + exact.rationals(u)
        x = exact.rationals(self.origin[window]) + exact.rationals(self.basis[window]) @ moved
        return exact_values(self.net, x.reshape(self.net.input_shape), stage)

    # Proofs --------------------------------------------------------------------------------------

    def proofs(self) -> None:
        """Every refutation, in floats with rigorous bounds, else in rationals."""
        c = self.c
        for stage in range(len(self.sizes)):
            cells = np.flatnonzero(c.stage == stage)
            self._zeros(cells, stage)
        rows = self._rows()
        for cell, entry, sign, proof in self.refuted:
            clause = self._clause(cell, entry, sign, proof)
            exactly = self.exact_weight.get(proof)
            weight = [1.0] if proof < 0 else c.weight[c.clause[proof] : c.clause[proof + 1]]
            if exactly is not None:
                _require(len(exactly) == len(clause), f"proof {proof}: too few multipliers")
                weight = exactly
            positive = all(w >= 0 for w in weight) and any(w > 0 for w in weight)
            finite = exactly is not None or np.isfinite(weight).all()
            _require(positive and finite, f"proof {proof}: multipliers not >= 0, or all zero")
            if exactly is None and self._float_proof(rows, cell, clause, np.asarray(weight)):
                continue
            _require(
                self._exact_proof(cell, clause, weight),
                f"cell {cell}: proof {proof} does not refute sign {sign} of {entry}",
            )

    def _zeros(self, cells: np.ndarray, stage: int) -> None:
        """Values said to vanish on a cell vanish at k + 1 points that span it."""
        children = np.flatnonzero(self.c.stage == stage + 1)
        zero = np.zeros((len(self.c.window), self.sizes[stage]), bool)
        np.logical_or.at(zero, self.c.parent[children], self.known[stage][children] == 0)
        some = cells[zero[cells].any(axis=1)]
        for j in range(-1, self.c.witness.shape[1] if len(some) else -1):
            at = self.c.witness[some] if j < 0 else self._stepped(some, j)
            values, bound = self._evaluated(self.c.window[some], at, stage)
            for row in np.flatnonzero((zero[some] & ((values != 0) | (bound != 0))).any(axis=1)):
                exactly = self._exact_values(int(self.c.window[some[row]]), at[row], stage)
                gone = all(v == 0 for v in exactly[zero[some[row]]])
                _require(gone, f"cell {some[row]}: a value said to vanish does not")

    def _rows(self) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """z = slope . u + value on every cell, and how far that can be off in the window."""
        c, k = self.c, self.c.witness.shape[1]
        out = {}
        for stage, size in enumerate(self.sizes):
            cells = np.flatnonzero(c.stage == stage)
            if not len(cells):
                continue
            first, loose = self._evaluated(c.window[cells], c.witness[cells], stage)
            slope, off = np.zeros((len(cells), size, k)), np.zeros((len(cells), size, k))
            for j in range(k):
                at = self._stepped(cells, j)
                values, bound = self._evaluated(c.window[cells], at, stage)
                length = (at[:, j] - c.witness[cells, j])[:, None]
                slope[..., j] = (values - first) / length
                rounding = exact.gamma(4, np.float64) * (np.abs(values) + np.abs(first))
                off[..., j] = (bound + loose + rounding) / np.abs(length) + _TINY
            u, radius = c.witness[cells][:, None], self.radius[c.window[cells]][:, None]
            value = first - (slope * u).sum(axis=-1)
            reach = radius + np.abs(u)
            extent = np.abs(first) + ((np.abs(slope) + off) * reach).sum(axis=-1)
            relative = exact.gamma(8 * k + 32, np.float64)
            error = (loose + (off * reach).sum(axis=-1) + relative * extent) * (1 + relative)
            out.update(zip(cells.tolist(), zip(slope, value, error, strict=True), strict=True))
        return out

    def _float_proof(self, rows, cell: int, clause, weight: np.ndarray) -> bool:
        """Whether sum y_i sigma_i z_i <= 0 in the whole window is certain in float64."""
        slopes, values, errors = [], [], []
        for stage, entry, sign in clause:
            slope, value, error = rows[self._ancestor(cell, stage)]
            slopes.append(sign * slope[entry])
            values.append(sign * value[entry])
            errors.append(error[entry])
        radius = self.radius[self.c.window[cell]]
        slope, value = weight @ np.array(slopes), weight @ np.array(values)
        size = weight @ (np.abs(values) + np.abs(slopes) @ radius)
        relative = exact.gamma(2 * len(clause) + 2 * len(radius) + 16, np.float64)
        slack = (weight @ np.array(errors) + relative * size) * (1 + relative) + _TINY
        return bool(value + np.abs(slope) @ radius + slack <= 0)

    def _exact_proof(self, cell: int, clause, weight) -> bool:
        """The same, exactly."""
        slope = exact.rationals(np.zeros(self.radius.shape[1]))
        value = exact.rational(0.0)
        for (stage, entry, sign), y in zip(clause, weight, strict=True):
            slopes, values = self.exact_row(self._ancestor(cell, stage))
            factor = sign * (y if isinstance(y, int) else exact.rational(y))
            slope, value = slope + slopes[entry] * factor, value + values[entry] * factor
        radius = exact.rationals(self.radius[self.c.window[cell]])
        return value + sum(abs(s) * r for s, r in zip(slope, radius, strict=True)) <= 0

    def _exact_rows(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        c, stage, window = self.c, int(self.c.stage[cell]), int(self.c.window[cell])
        first = self._exact_values(window, c.witness[cell], stage)
        slope = np.empty((len(first), c.witness.shape[1]), object)
        for j in range(c.witness.shape[1]):
            at = self._stepped(np.array([cell]), j)[0]
            length = exact.rational(at[j]) - exact.rational(c.witness[cell, j])
            slope[:, j] = (self._exact_values(window, at, stage) - first) / length
        return slope, first - slope @ exact.rationals(c.witness[cell])


def _bounded(prepared: Any, x: Any, error: Any, stage: int):
    def one(point, e):
        return tuple(bounded_values(prepared, point, e, stage))

    return jax.vmap(one)(x.reshape(-1, *prepared.net.input_shape), error)
