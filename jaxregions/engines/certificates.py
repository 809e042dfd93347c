"""Certificates of counts: what is needed to check a count without searching again.

A certificate is a forest. Cells of stage s (every window is one of stage 0) carry a witness point
and a decision tree over the switching values of that stage; its leaves are cells of stage s + 1,
those of the last stage are the regions. A step of a tree either splits a node by the sign of one
switching value, or says that only one sign occurs there and names the proof.

Every step names the one that it follows, so a certificate can be written down, and read, while it
grows: a file holds it in pieces whose numbers go on from piece to piece. What a piece speaks of is
in it or, cells and steps, in one before. A file that ends early is a certificate with open ends.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxregions import exact

__all__ = [
    "ABOVE",
    "ALONE",
    "BELOW",
    "LEAF",
    "SPLIT",
    "ZERO",
    "Certificate",
    "Recorder",
    "load_certificate",
    "region_points",
    "save_certificate",
]

SPLIT, ABOVE, BELOW, ZERO, LEAF = range(5)
ALONE = -1  # a proof that needs nothing but the sign it refutes
_MAGIC = b"jaxregions certificate 3\n"
_LENGTH = 8  # bytes, little-endian, before each piece, which is a compressed .npz
_PIECE = 1 << 24  # bytes of arrays, before they are compressed


class Certificate(NamedTuple):
    """Arrays of numbers.

    window, parent, stage: (C,) of each cell; a window itself has stage 0 and parent -1.
    witness: (C, k) slice coordinates, relative to the window's centre, of a point of the cell.
    step: (C, k) witness + step_j e_j also lies in the closed cell, so that values there give the
      affine maps of the next stage; NaN for regions.
    kind, entry, proof: (T,) the steps. SPLIT: by the sign of switching value ``entry``. ABOVE,
      BELOW: it is positive (negative) on the whole node; the proof refutes the other sign; -1: by
      itself. ZERO: it vanishes on the whole cell. LEAF: ``entry`` is the cell of the next stage.
    before, branch: (T,) the step that each follows, -1 - c: it begins the tree of cell c; and 1 on
      the negative side of a split, else 0.
    clause: (P + 1,) where each proof begins in the next four.
    clause_stage, clause_entry, clause_sign: (L,) signs that cannot hold together in the window.
    weight: (L,) their Farkas multipliers.
    exact_proof, exact_weight: (E,), (E,) proofs whose multipliers are no floats, and these as
      hexadecimal integers separated by spaces.
    exact_cell, exact_point: (X,), (X,) cells whose witness or steps are no floats (those above are
      near), and these, coordinates and then steps, as hexadecimal "numerator/denominator".
    """

    window: np.ndarray
    parent: np.ndarray
    stage: np.ndarray
    witness: np.ndarray
    step: np.ndarray
    kind: np.ndarray
    entry: np.ndarray
    proof: np.ndarray
    before: np.ndarray
    branch: np.ndarray
    clause: np.ndarray
    clause_stage: np.ndarray
    clause_entry: np.ndarray
    clause_sign: np.ndarray
    weight: np.ndarray
    exact_proof: np.ndarray
    exact_weight: np.ndarray
    exact_cell: np.ndarray
    exact_point: np.ndarray


def save_certificate(path: str | Path, certificate: Certificate) -> None:
    """Writes one file, of one piece."""
    _begin(Path(path))
    _append(Path(path), certificate)


def load_certificate(path: str | Path) -> Certificate:
    """All of what was written to a file, by ``save_certificate`` or ``count_regions``.

    Raises:
      ValueError: another file.
    """
    pieces = list(_pieces(Path(path)))
    if not pieces:
        raise ValueError(f"path: expected a certificate, received an empty one: {path}")
    columns = {n: np.concatenate([getattr(p, n) for p in pieces]) for n in Certificate._fields}
    size = np.concatenate([np.diff(p.clause) for p in pieces])
    return Certificate(**columns | {"clause": np.append(0, np.cumsum(size))})


def region_points(
    certificate: Certificate | Path, stages: int
) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
    """(N,) windows and (N, k) witnesses of the regions, the cells after ``stages`` stages; and by
    row those that are no floats, in rationals."""
    pieces = _pieces(certificate) if isinstance(certificate, Path) else [certificate]
    windows, witnesses, exactly, cells, rows = [], [], {}, 0, 0
    for piece in pieces:
        last = piece.stage == stages
        windows.append(piece.window[last])
        witnesses.append(piece.witness[last])
        place = rows + np.cumsum(last) - 1
        for cell, text in zip(piece.exact_cell.tolist(), piece.exact_point.tolist(), strict=True):
            if last[cell - cells]:
                exactly[int(place[cell - cells])] = _read(text)[: piece.witness.shape[1]]
        cells, rows = cells + len(last), rows + len(windows[-1])
    return np.concatenate(windows), np.concatenate(witnesses), exactly


def _read(text: str) -> np.ndarray:
    """Rationals as they are written in ``exact_point``."""
    pairs = (map(partial(int, base=16), word.split("/")) for word in text.split())
    return np.array([exact.quotient(p, q) for p, q in pairs], object)


def _written(numbers: Iterable[Any]) -> str:
    return " ".join(f"{p:x}/{q:x}" for p, q in map(exact.key, numbers))


def _begin(path: Path) -> None:
    path.write_bytes(_MAGIC)


def _append(path: Path, piece: Certificate) -> None:
    buffer = io.BytesIO()
    columns: dict[str, Any] = {n: _narrow(v) for n, v in piece._asdict().items()}
    np.savez_compressed(buffer, **columns)
    with path.open("ab") as file:
        file.write(len(buffer.getbuffer()).to_bytes(_LENGTH, "little"))
        file.write(buffer.getbuffer())


def _pieces(path: Path) -> Iterator[Certificate]:
    """Piece by piece, as far as they were written."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"path: expected a certificate, received another file: {path}")
        while len(head := file.read(_LENGTH)) == _LENGTH:
            length = int.from_bytes(head, "little")
            if length > path.stat().st_size - file.tell():
                return
            content = io.BytesIO(file.read(length))
            try:
                with np.load(content, allow_pickle=False) as arrays:
                    piece = Certificate(**{n: _wide(arrays[n]) for n in Certificate._fields})
            except Exception as error:  # damage has no end of kinds
                raise ValueError(f"path: expected a certificate, {path} is damaged") from error
            yield piece


def _narrow(column: np.ndarray) -> np.ndarray:
    """Whole numbers in as few bytes as hold them."""
    if column.dtype.kind != "i" or not column.size:
        return column
    least, most = np.min_scalar_type(column.min()), np.min_scalar_type(-1 - abs(column.max()))
    return column.astype(np.promote_types(least, most))


def _wide(column: np.ndarray) -> np.ndarray:
    return column.astype(np.int64) if column.dtype.kind in "iu" else column


class Recorder:
    """Collects a certificate while the search goes on, in parts.

    path: write it there piece by piece, and keep nothing.
    cells: parts of (window, parent, stage, witness, step). steps: of (kind, entry, proof, before,
    branch). clauses: of sizes, literals and weights. known: numbers of exact proofs of this piece.
    Counters: how many there are already, in earlier pieces too.
    """

    def __init__(self, dimension: int, path: Path | None = None):
        self.dimension, self.path, self.size = dimension, path, 0
        self.cell_count = self.step_count = self.clause_count = 0
        self._forget()
        if path is not None:
            _begin(path)

    def _forget(self) -> None:
        self.cells: list[tuple[np.ndarray, ...]] = []
        self.steps: list[tuple[np.ndarray, ...]] = []
        self.clauses: list[tuple[np.ndarray, ...]] = []
        self.exact: list[tuple[int, str]] = []
        self.points: list[tuple[int, str]] = []
        self.known: dict[Any, int] = {}
        self.size = 0

    def add_cells(
        self,
        window: Any,
        parent: Any,
        stage: int,
        witness: np.ndarray,
        step: np.ndarray,
        spans: dict[int, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> np.ndarray:
        """The numbers of new cells; spans: by row, witnesses and steps that are no floats."""
        size = len(witness)
        window, parent, level = (np.broadcast_to(v, size) for v in (window, parent, stage))
        self.cells.append((window, parent, level, witness, step))
        self.size += 2 * witness.nbytes
        for row, span in (spans or {}).items():
            self.points.append((self.cell_count + row, _written(np.concatenate(span))))
            self.size += len(self.points[-1][1])
        self.cell_count += size
        return np.arange(self.cell_count - size, self.cell_count)

    def follow(self, before: np.ndarray, branch: np.ndarray, kind, entry, proof) -> np.ndarray:
        """The numbers of new steps, each of which follows an earlier one."""
        size = len(before)
        parts = tuple(np.broadcast_to(v, size) for v in (kind, entry, proof, before, branch))
        self.steps.append(parts)
        self.size += 40 * size
        self.step_count += size
        return np.arange(self.step_count - size, self.step_count)

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
        self.size += names.nbytes + weight.nbytes
        self.clause_count += len(size)
        return np.arange(self.clause_count - len(size), self.clause_count)

    def exact_clause(self, names: list[tuple[int, int, int]], weight: list[int]) -> int:
        """The number of a proof with whole multipliers, new if it is not in this piece."""
        key = tuple(names), tuple(weight)
        if key in self.known:
            return self.known[key]
        self.known[key] = self.clause_count
        self.exact.append((self.clause_count, " ".join(f"{int(w):x}" for w in weight)))
        rows = np.array(names, np.int64)
        return int(self.add_clauses(np.array([len(rows)]), rows, np.full(len(rows), np.nan))[0])

    def piece_done(self, least: int = _PIECE) -> None:
        """Between parts of the search: writes a piece, if it is to be written and large enough."""
        if self.path is not None and self.size >= least:
            _append(self.path, self._piece())
            self._forget()

    def certificate(self) -> Certificate | Path:
        """Everything recorded so far, or the file in which it is."""
        self.piece_done(1)
        return self._piece() if self.path is None else self.path

    def _piece(self) -> Certificate:
        empty = np.zeros((0, self.dimension))
        cells = _joined(self.cells, (0, 0, 0, empty, empty))
        steps = _joined(self.steps, (0, 0, 0, 0, 0))
        size, names, weight = _joined(self.clauses, (0, np.zeros((0, 3), np.int64), empty[:, 0]))
        start = np.append(0, np.cumsum(size))
        exactly = _columns(self.exact) + _columns(self.points)
        return Certificate._make([*cells, *steps, start, *names.T, weight, *exactly])


def _columns(texts: list[tuple[int, str]]) -> list[np.ndarray]:
    numbers, written = zip(*texts, strict=True) if texts else ((), ())
    return [np.array(numbers, np.int64), np.array(written, np.str_)]


def _joined(parts: list[tuple[np.ndarray, ...]], empty: tuple) -> list[np.ndarray]:
    """Column by column; whole numbers where ``empty`` has 0."""
    none = tuple(np.zeros(0, np.int64) if isinstance(e, int) else e for e in empty)
    return [np.concatenate(column) for column in zip(none, *parts, strict=True)]
