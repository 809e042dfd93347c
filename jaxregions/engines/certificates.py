"""Certificates of counts: what is needed to check a count without searching again.

A certificate is a forest. Cells of stage s (every window is one of stage 0) carry a witness point
and a decision tree over the switching values of that stage; its leaves are cells of stage s + 1,
those of the last stage are the regions. A step of a tree either splits a node by the sign of one
switching value, or says that only one sign occurs there and names the proof.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ABOVE",
    "ALONE",
    "BELOW",
    "LEAF",
    "OPEN",
    "SPLIT",
    "ZERO",
    "Certificate",
    "Recorder",
    "load_certificate",
    "save_certificate",
]

SPLIT, ABOVE, BELOW, ZERO, LEAF, OPEN = range(6)
ALONE = -1  # a proof that needs nothing but the sign it refutes


class Certificate(NamedTuple):
    """Arrays of numbers; ``save_certificate`` writes them as they are.

    window, parent, stage: (C,) of each cell; a window itself has stage 0 and parent -1.
    witness: (C, k) slice coordinates, relative to the window's centre, of a point of the cell.
    step: (C, k) witness + step_j e_j also lies in the closed cell, so that values there give the
      affine maps of the next stage; NaN for regions.
    tree: (C,) the first step of each cell's decision tree, -1 for regions.
    kind, entry, proof, following, other: (T,) the steps. SPLIT: ``following`` is the step where the
      switching value is positive, ``other`` where it is negative. ABOVE, BELOW: it is positive
      (negative) on the whole node; the proof refutes the other sign; -1: by itself. ZERO: it
      vanishes on the whole cell. LEAF: ``entry`` is the cell of the next stage. OPEN: one side was
      neither found nor refuted.
    clause: (P + 1,) where each proof begins in the next four.
    clause_stage, clause_entry, clause_sign: (L,) signs that cannot hold together in the window.
    weight: (L,) their Farkas multipliers.
    exact_proof, exact_weight: (E,), (E,) proofs whose multipliers are no floats, and these as
      decimal integers separated by spaces.
    """

    window: np.ndarray
    parent: np.ndarray
    stage: np.ndarray
    witness: np.ndarray
    step: np.ndarray
    tree: np.ndarray
    kind: np.ndarray
    entry: np.ndarray
    proof: np.ndarray
    following: np.ndarray
    other: np.ndarray
    clause: np.ndarray
    clause_stage: np.ndarray
    clause_entry: np.ndarray
    clause_sign: np.ndarray
    weight: np.ndarray
    exact_proof: np.ndarray
    exact_weight: np.ndarray


def save_certificate(path: str | Path, certificate: Certificate) -> None:
    """Writes one compressed .npz file."""
    np.savez_compressed(path, **certificate._asdict())


def load_certificate(path: str | Path) -> Certificate:
    """What ``save_certificate`` wrote.

    Raises:
      ValueError: another file.
    """
    with np.load(path, allow_pickle=False) as file:
        if set(file.files) != set(Certificate._fields):
            raise ValueError(f"path: expected a certificate, received a file of {file.files}")
        return Certificate(**{name: file[name] for name in Certificate._fields})


@dataclasses.dataclass
class Recorder:
    """Collects a certificate while the search goes on, in parts.

    cells: parts of (window, parent, stage, witness, step). steps: of (kind, entry, proof).
    links: of (step, branch, next step); step -1 - c: the tree of cell c begins there. clauses:
    sizes, literals and weights. Counters: how many there are already.
    """

    cells: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    steps: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    links: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    clauses: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    exact: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    cell_count: int = 0
    step_count: int = 0
    clause_count: int = 0

    def add_cells(
        self, window: Any, parent: Any, stage: int, witness: np.ndarray, step: np.ndarray
    ) -> np.ndarray:
        """The numbers of new cells."""
        size = len(witness)
        window, parent, level = (np.broadcast_to(v, size) for v in (window, parent, stage))
        self.cells.append((window, parent, level, witness, step))
        self.cell_count += size
        return np.arange(self.cell_count - size, self.cell_count)

    def follow(self, step: np.ndarray, branch: np.ndarray, kind, entry, proof) -> np.ndarray:
        """The numbers of new steps, each linked to from an earlier one."""
        size = len(step)
        self.steps.append(tuple(np.broadcast_to(v, size) for v in (kind, entry, proof)))
        self.step_count += size
        made = np.arange(self.step_count - size, self.step_count)
        self.links.append((step, branch, made))
        return made

    def chain(
        self, cells: np.ndarray, owner: np.ndarray, kind, entry, proof
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps at the beginning of trees, ``owner`` ascending into ``cells``; where each ends."""
        last = -1 - cells
        made = self.step_count + np.arange(len(owner))
        first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
        before = np.where(first, last[owner], made - 1)
        self.follow(before, np.zeros(len(owner), np.int64), kind, entry, proof)
        last[owner] = made  # the last of each owner stays
        return last, np.zeros(len(cells), np.int64)

    def add_clauses(self, size: np.ndarray, names: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The numbers of new proofs; names (L, 3): stage, entry, sign of their rows."""
        self.clauses.append((size, names, weight))
        self.clause_count += len(size)
        return np.arange(self.clause_count - len(size), self.clause_count)

    def exact_clause(self, names: list[tuple[int, int, int]], weight: list[int]) -> int:
        """The number of a new proof with whole multipliers."""
        self.exact.append((self.clause_count, " ".join(map(str, weight))))
        rows = np.array(names, np.int64)
        return int(self.add_clauses(np.array([len(rows)]), rows, np.full(len(rows), np.nan))[0])

    def certificate(self, dimension: int) -> Certificate:
        """Everything recorded so far."""
        empty = np.zeros((0, dimension))
        cells = _joined(self.cells, (0, 0, 0, empty, empty))
        kind, entry, proof = _joined(self.steps, (0, 0, 0))
        step, branch, made = _joined(self.links, (0, 0, 0))
        tree = np.full(self.cell_count, -1)
        following, other = np.full((2, self.step_count), -1)
        start = step < 0
        tree[-1 - step[start]] = made[start]
        for target, mask in ((following, ~start & (branch == 0)), (other, ~start & (branch == 1))):
            target[step[mask]] = made[mask]
        size, names, weight = _joined(self.clauses, (0, np.zeros((0, 3), np.int64), empty[:, 0]))
        proofs, written = zip(*self.exact, strict=True) if self.exact else ((), ())
        start = np.append(0, np.cumsum(size))
        exact = np.array(proofs, np.int64), np.array(written, np.str_)
        columns = [*cells, tree, kind, entry, proof, following, other, start, *names.T, weight]
        return Certificate._make([*columns, *exact])


def _joined(parts: list[tuple[np.ndarray, ...]], empty: tuple) -> list[np.ndarray]:
    """Column by column; whole numbers where ``empty`` has 0."""
    none = tuple(np.zeros(0, np.int64) if isinstance(e, int) else e for e in empty)
    return [np.concatenate(column) for column in zip(none, *parts, strict=True)]
