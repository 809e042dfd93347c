"""The trees of a certificate and the points of its cells, read in runs of steps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxregions import exact
from jaxregions.tracing import CPAFunction
from jaxregions.verification.values import Cell, Refutation, Values, spanning

__all__ = ["Failure", "Forest", "require"]

_SPLIT, _ABOVE, _BELOW, _ZERO, _LEAF = range(5)  # steps of a tree
_UNKNOWN = 2  # a sign that the tree has not settled yet
_RUN = 1 << 12  # steps that are checked together, at most
_NUMBERS = 1 << 18  # about so many numbers each in their rows
_COLUMNS: tuple[tuple[str, type], ...] = (  # of a certificate, and what they hold
    ("window parent stage", np.signedinteger),
    ("witness step", np.float64),
    ("kind entry proof before branch", np.signedinteger),
    ("clause", np.signedinteger),
    ("clause_stage clause_entry clause_sign", np.signedinteger),
    ("weight", np.float64),
    ("exact_proof", np.signedinteger),
    ("exact_weight", np.str_),
    ("exact_cell", np.signedinteger),
    ("exact_point", np.str_),
)


class Failure(Exception):
    """The first thing that does not hold."""


def require(holds: Any, message: str) -> None:
    if not holds:
        raise Failure(message)


def _whole(text: str) -> list[int]:
    """Whole numbers >= 0 in hexadecimal digits, with spaces between."""
    words = text.split()
    require(words and set("".join(words)) <= set("0123456789abcdef"), "exact_weight: not numbers")
    return [int(word, 16) for word in words]


_RATIONAL = re.compile(r"(-?[0-9a-f]+)/([0-9a-f]*[1-9a-f][0-9a-f]*)")


def _rationals(text: str, count: int) -> np.ndarray:
    """So many rationals, numerators and denominators in hexadecimal digits."""
    found = [_RATIONAL.fullmatch(word) for word in text.split()]
    out = [exact.quotient(int(m[1], 16), int(m[2], 16)) for m in found if m]
    require(len(out) == len(found) == count, "exact_point: not a rational for each number")
    return np.array(out, object)


class Forest:
    """What has been read of a certificate.

    ends: where a tree goes on, by 2 before + branch: the cell, and the signs known there. open: of
    each window, how many; -1 before its root. regions: cells without children. cells, steps,
    proofs: how many were in earlier pieces.
    """

    def __init__(self, net: CPAFunction, window: Any):
        self.values, self.sizes = Values(net, window), [s.size for s in net.stages]
        self.radius = self.values.radius
        count = len(self.radius)
        self.ends: dict[int, tuple[Cell, np.ndarray]] = {}
        self.open, self.regions = [-1] * count, [0] * count
        self.cells = self.steps = self.proofs = 0

    def grow(self, piece: Any) -> None:
        """Reads one piece."""
        c = piece
        exactly = self._shapes(c)
        self.points = dict(zip(c.exact_cell.tolist(), c.exact_point.tolist(), strict=True))
        reached = np.zeros(len(c.window), bool)
        for i in np.flatnonzero(c.parent < 0).tolist():
            require(0 <= c.window[i] < len(self.open), "a root of no window")
            require(self.open[c.window[i]] < 0, "two roots of one window")
            self.open[c.window[i]] = 0
            self._points([self._new(c, i, (), np.zeros(0, np.int8), reached)])
        columns = c.kind, c.entry, c.proof, c.before, c.branch
        run = min(_RUN, max(1, _NUMBERS // self.radius.shape[1]))
        for low in range(0, len(c.kind), run):
            part = zip(*(column[low : low + run].tolist() for column in columns), strict=True)
            self._run(c, self.steps + low, part, exactly, reached)
        require(reached.all(), f"{int((~reached).sum())} cells are leaves of no tree")
        self.cells += len(c.window)
        self.steps += len(c.kind)
        self.proofs += len(c.clause) - 1

    # The forest ----------------------------------------------------------------------------------

    def _shapes(self, c: Any) -> dict[int, list[int]]:
        """Arrays that fit together; the whole multipliers of proofs that have such."""
        first = ("window", "kind", "weight", "clause", "exact_proof", "exact_cell")
        columns: Any = [getattr(c, name, None) for name in first]
        cells, *sizes = (np.size(column) for column in columns)
        step, literal, clause, proof, point = ((size,) for size in sizes)
        wide = cells, self.radius.shape[1]
        shapes = ((cells,), wide, step, clause, literal, literal, *2 * [proof], *2 * [point])
        for (names, kind), shape in zip(_COLUMNS, shapes, strict=True):
            for name in names.split():
                column: Any = getattr(c, name, None)
                fits = isinstance(column, np.ndarray) and np.issubdtype(column.dtype, kind)
                require(fits, f"{name}: not an array of {kind.__name__}")
                require(column.shape == shape, f"{name}: not of shape {shape}")
        ordered = len(c.clause) > 0 and (np.diff(c.clause) >= 0).all()
        require(ordered and c.clause[0] == 0 and c.clause[-1] == len(c.weight), "clause: disorder")
        require(((c.clause_stage >= 0) & (c.clause_stage < len(self.sizes))).all(), "no stage")
        sizes = np.array([*self.sizes, 0])
        require((c.clause_entry >= 0).all(), "clause_entry: out of range")
        require((c.clause_entry < sizes[c.clause_stage]).all(), "clause_entry: out of range")
        require(np.isin(c.clause_sign, (-1, 1)).all(), "clause_sign: not a sign")
        whole = [_whole(text) for text in c.exact_weight.tolist()]
        return dict(zip(c.exact_proof.tolist(), whole, strict=True))

    def _new(self, c: Any, i: int, above: tuple, signs: np.ndarray, reached: np.ndarray) -> Cell:
        """Cell i of the piece, which is reached now."""
        reached[i] = True
        number, window, stage = self.cells + i, int(c.window[i]), len(above)
        require(c.stage[i] == stage, f"cell {number}: of another stage")
        cell = Cell(number, window, stage, above, c.witness[i].copy(), c.step[i].copy(), signs)
        if number in self.points:
            k = len(cell.witness)
            numbers = _rationals(self.points[number], 2 * k)
            cell.spans = numbers[:k], numbers[k:]
        self.regions[window] += 1
        if above and not above[-1].split:
            above[-1].split = True
            self.regions[window] -= 1
        if stage < len(self.sizes):
            self._end(-1 - number, 0, cell, np.full(self.sizes[stage], _UNKNOWN, np.int8))
        return cell

    def _end(self, before: int, branch: int, cell: Cell, signs: np.ndarray) -> None:
        self.ends[2 * before + branch] = cell, signs
        self.open[cell.window] += 1

    def _run(self, c: Any, first: int, steps: Iterable, exactly: dict, reached) -> None:
        """Follows the trees, and then checks what was met."""
        new: list[Cell] = []
        zeros: list[tuple[Cell, int]] = []
        refuted: list[Refutation] = []
        for step, (kind, entry, proof, before, branch) in enumerate(steps, first):
            end = self.ends.pop(2 * before + branch, None) if branch in (0, 1) else None
            if end is None:
                raise Failure(f"step {step}: nothing that it could follow is open")
            cell, signs = end
            self.open[cell.window] -= 1
            where = f"cell {cell.number}"
            if kind == _LEAF:
                i = entry - self.cells
                require((signs != _UNKNOWN).all(), f"{where}: a leaf with unknown signs")
                own = 0 <= i < len(reached) and not reached[i] and c.parent[i] == cell.number
                require(own and c.window[i] == cell.window, f"{where}: a leaf that is not its own")
                new.append(self._new(c, i, (*cell.above, cell), signs, reached))
                continue
            require(0 <= entry < len(signs), f"{where}: no switching value {entry}")
            require(signs[entry] == _UNKNOWN, f"{where}: {entry} is decided twice")
            require(kind in (_SPLIT, _ABOVE, _BELOW, _ZERO), f"{where}: {entry} is left open")
            if kind == _SPLIT:
                negative = signs.copy()
                negative[entry] = -1
                self._end(step, 1, cell, negative)
            elif kind == _ZERO:
                zeros.append((cell, entry))
            else:
                sign = -1 if kind == _ABOVE else 1
                refuted.append(self._refutation(c, cell, signs, entry, sign, proof, exactly))
            signs[entry] = {_SPLIT: 1, _ABOVE: 1, _BELOW: -1, _ZERO: 0}[kind]
            self._end(step, 0, cell, signs)
        self._points(new)
        self._zeros(zeros)
        self._proofs(refuted)

    def _refutation(self, c, cell: Cell, signs, entry: int, sign: int, proof: int, exactly):
        """A proof that assumes what is known at the node; -1: the refuted sign alone."""
        claim = f"cell {cell.number}: proof {proof} of sign {sign} of {entry}"
        if proof == -1:
            return Refutation(cell, [(cell.stage, entry, sign)], [1.0], False, claim)
        own = proof - self.proofs
        require(0 <= own < len(c.clause) - 1, f"{claim}: out of range")
        part = slice(c.clause[own], c.clause[own + 1])
        columns = (c.clause_stage, c.clause_entry, c.clause_sign)
        clause = list(zip(*(column[part].tolist() for column in columns), strict=True))
        for stage, e, s in clause:
            if stage == cell.stage:
                fine = signs[e] == s or (e, s) == (entry, sign)
            else:
                fine = stage < cell.stage and cell.before(stage + 1).signs[e] == s
            require(fine, f"{claim} assumes what is not known there")
        whole = exactly.get(proof)
        weight = c.weight[part].tolist() if whole is None else whole
        require(len(weight) == len(clause), f"{claim}: too few multipliers")
        positive = all(w >= 0 for w in weight) and any(w > 0 for w in weight)
        finite = whole is not None or np.isfinite(weight).all()
        require(positive and finite, f"{claim}: multipliers not >= 0, or all zero")
        return Refutation(cell, clause, weight, whole is not None, claim)

    # Points --------------------------------------------------------------------------------------

    def _points(self, cells: list[Cell]) -> None:
        """Witnesses have the signs of their cells, and the steps from them stay inside."""
        for cell in cells:
            if cell.spans is not None:
                self._exact_points(cell, *cell.spans)
        cells = [cell for cell in cells if cell.spans is None]
        for stage in {cell.stage for cell in cells}:
            some = [cell for cell in cells if cell.stage == stage]
            radius = self.radius[[cell.window for cell in some]]
            u, step = (np.stack([getattr(cell, n) for cell in some]) for n in ("witness", "step"))
            require(np.isfinite(u).all(), "witness: not finite")
            require((np.abs(u) < radius).all(), "a witness outside its window")
            self._check(some, u, closed=False)
            if stage == len(self.sizes):
                continue
            require(np.isfinite(step).all(), "step: not finite")
            for axes, at in spanning(some):
                require((np.abs(at) <= radius[:, None]).all(), "a step out of a window")
                moved = at[:, np.arange(len(axes)), axes] != u[:, axes]
                require(moved.all(), "a step that floats do not see")
                each = [cell for cell in some for _ in axes]
                self._check(each, at.reshape(-1, u.shape[1]), closed=True)

    def _require_signs(self, cell: Cell, stage: int, found, claimed, where: str, *, closed) -> None:
        wrong = found != claimed
        if closed:
            wrong &= found != 0
        require(
            not wrong.any(),
            f"cell {cell.number}: switching value {int(np.argmax(wrong))} of stage {stage} has "
            f"another sign at {where} than the cell is said to have",
        )

    def _exact_points(self, cell: Cell, witness: np.ndarray, step: np.ndarray) -> None:
        """The same in rationals."""
        radius, name = exact.rationals(self.radius[cell.window]), f"cell {cell.number}"
        inside = all(abs(x) < r for x, r in zip(witness, radius, strict=True))
        require(inside, "a witness outside its window")
        self._exact_check(cell, witness, "the witness", closed=False)
        for axis, length in enumerate(step):
            at = witness.copy()
            at[axis] = at[axis] + length
            require(abs(at[axis]) <= radius[axis], "a step out of a window")
            require(length != 0, f"{name}: a step of length 0")
            self._exact_check(cell, at, "a point at a step from the witness", closed=True)

    def _exact_check(self, cell: Cell, u: np.ndarray, where: str, *, closed: bool) -> None:
        for stage in range(cell.stage):
            claimed = cell.before(stage + 1).signs
            values = self.values.exact_values(cell.window, u, stage)
            found = np.array([(v > 0) - (v < 0) for v in values], np.int8)
            self._require_signs(cell, stage, found, claimed, where, closed=closed)

    def _check(self, cells: list[Cell], u: np.ndarray, *, closed: bool) -> None:
        """Cells of one stage, at points u (n, k): the signs that they are said to have."""
        for stage in range(cells[0].stage):
            claimed = np.stack([cell.before(stage + 1).signs for cell in cells])
            values, bound = self.values.evaluated(cells, u, stage)
            found = (values > bound).astype(np.int8) - (values < -bound).astype(np.int8)
            sure = (np.abs(values) > bound) | ((values == 0) & (bound == 0))
            for row in np.flatnonzero(~sure.all(axis=1) | (found != claimed).any(axis=1)).tolist():
                if not sure[row].all():
                    exactly = self.values.exact_values(
                        cells[row].window, exact.rationals(u[row]), stage
                    )
                    found[row] = [(v > 0) - (v < 0) for v in exactly]
                where = "a point at a step from the witness" if closed else "the witness"
                self._require_signs(
                    cells[row], stage, found[row], claimed[row], where, closed=closed
                )

    def _zeros(self, zeros: list[tuple[Cell, int]]) -> None:
        """Values said to vanish on a cell vanish at k + 1 points that span it."""
        self.values.need_rows(cell for cell, _ in zeros)
        for cell, entry in zeros:
            assert cell.rows is not None
            if not cell.rows[3][entry]:
                slope, value = self.values.exact_rows(cell)
                gone = value[entry] == 0 and all(s == 0 for s in slope[entry])
                require(gone, f"cell {cell.number}: value {entry} is said to vanish")

    # Proofs --------------------------------------------------------------------------------------

    def _proofs(self, refuted: list[Refutation]) -> None:
        """Every refutation, in floats with rigorous bounds, else in rationals."""
        floats = [r for r in refuted if not r.whole]
        left = [r for r in refuted if r.whole]
        if floats:
            sure = self.values.float_proofs(floats)
            left += [r for r, holds in zip(floats, sure.tolist(), strict=True) if not holds]
        for one in left:
            require(self.values.exact_proof(one), f"{one.claim} does not refute it")
