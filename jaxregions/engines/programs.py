"""Margin programs: the largest common margin of rows in the unit box, by HiGHS, warm.

    max t  subject to  a_i . v + b_i >= t  for every active row i,  |v_j| <= 1,  t <= 1.

An answer is a proposal: t > 0 comes with a point, t <= 0 with multipliers y >= 0, sum y = 1, and
what either proves is for the caller to check.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog


def _solver() -> Any:
    """HiGHS: highspy's, or the same that scipy carries privately, or None."""
    for name in ("highspy._core", "scipy.optimize._highspy._core"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


_highs = _solver()

__all__ = ["Answer", "MarginProgram", "backend"]

_OPTIONS = (("output_flag", False), ("presolve", "off"), ("solver", "simplex"), ("threads", 1))


class Answer(NamedTuple):
    """t, v (k,) and the multipliers (rows,) of all rows, zero for the inactive."""

    margin: float
    point: np.ndarray
    weight: np.ndarray


def backend() -> str:
    """Which solver proposes: 'highspy', the HiGHS of 'scipy', or 'linprog' (slower)."""
    if _highs is None:
        return "linprog"
    return "highspy" if _highs.__name__.startswith("highspy") else "scipy"


class MarginProgram:
    """One family of rows, kept with its last basis between solves that differ in active rows.

    slope: (M, k). value: (M,).
    """

    def __init__(self, slope: np.ndarray, value: np.ndarray):
        self.slope, self.value = slope, value
        self.active: set[int] = set()
        self.solver = None if _highs is None else _loaded(slope)
        self.solved = 0

    def solve(self, active: list[int]) -> Answer | None:
        """The answer for these rows; None if the solver gave up."""
        self.solved += 1
        if self.solver is None:
            return self._cold(active)
        wanted = set(active)
        for row in self.active - wanted:
            self.solver.changeRowBounds(row, -np.inf, np.inf)
        for row in wanted - self.active:
            self.solver.changeRowBounds(row, -self.value[row], np.inf)
        self.active = wanted
        self.solver.run()
        if self.solver.getModelStatus() != _highs.HighsModelStatus.kOptimal:
            self.solver.clearSolver()
            self.solver.run()
            if self.solver.getModelStatus() != _highs.HighsModelStatus.kOptimal:
                return None
        solution = self.solver.getSolution()
        *point, margin = solution.col_value
        weight = np.zeros(len(self.value))
        weight[active] = np.maximum(np.array(solution.row_dual)[active], 0.0)
        return Answer(margin, np.array(point), weight)

    def _cold(self, active: list[int]) -> Answer | None:
        rows, k = self.slope[active], self.slope.shape[1]
        found = linprog(
            [*np.zeros(k), -1.0],
            A_ub=np.concatenate([-rows, np.ones((len(rows), 1))], axis=1),
            b_ub=self.value[active],
            bounds=[(-1, 1)] * k + [(None, 1)],
            method="highs-ds",
        )
        if found.status != 0:
            return None
        weight = np.zeros(len(self.value))
        weight[active] = np.maximum(-found.ineqlin.marginals, 0.0)
        return Answer(found.x[-1], found.x[:-1], weight)


def _loaded(slope: np.ndarray) -> Any:
    count, k = slope.shape
    solver, model = _highs._Highs(), _highs.HighsLp()
    for name, value in _OPTIONS:
        solver.setOptionValue(name, value)
    model.num_col_, model.num_row_ = k + 1, count
    model.col_cost_ = np.append(np.zeros(k), -1.0)
    model.col_lower_ = np.append(-np.ones(k), -np.inf)
    model.col_upper_ = np.ones(k + 1)
    model.row_lower_, model.row_upper_ = np.full(count, -np.inf), np.full(count, np.inf)
    matrix = model.a_matrix_
    matrix.format_ = _highs.MatrixFormat.kRowwise
    matrix.start_ = np.arange(count + 1) * (k + 1)
    matrix.index_ = np.tile(np.arange(k + 1), count)
    matrix.value_ = np.concatenate([slope, -np.ones((count, 1))], axis=1).ravel()
    solver.passModel(model)
    return solver
