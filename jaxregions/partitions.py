"""The cells of one window: geometry, patterns, affine maps, adjacency, level sets."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxregions._interrupts import interruptible
from jaxregions._progress import watching
from jaxregions._records import build, record
from jaxregions.engines import merging
from jaxregions.engines.affine import same_maps
from jaxregions.engines.facets import Facets, facets
from jaxregions.engines.flips import face_signs, unpacked
from jaxregions.engines.frontier import ENGINES, Limits, Status
from jaxregions.engines.leaves import leaves, stage_tables, witnesses
from jaxregions.engines.maps import Generation, affine_maps
from jaxregions.engines.points import Ledger, corners, numbered
from jaxregions.engines.polytopes import Polytopes, polytopes, unshaped
from jaxregions.engines.records import Cells, hits, sign_bits
from jaxregions.engines.search import Stopped
from jaxregions.engines.signs import patterns
from jaxregions.engines.slopes import agreeing_maps
from jaxregions.regions import prepared
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = ["Partition", "StageTable", "level_set", "partition", "to_dict", "to_networkx"]


class StageTable(NamedTuple):
    """What one stage did: its parents are the cells after the stage before.

    parents, regions: number of cells before and after. hits: units whose piece changes inside the
    window. cut_parent, cut_unit: (C,) which unit cuts which parent; a unit with several
    breakpoints comes once per breakpoint. children: (parents,) cells that each falls into.
    parent: (regions,) the parent of every cell.
    """

    parents: int
    regions: int
    hits: int
    cut_parent: np.ndarray
    cut_unit: np.ndarray
    children: np.ndarray
    parent: np.ndarray


class Labels(NamedTuple):
    """Labels of the cells, and the stages' tables that go with them."""

    region: np.ndarray
    affine_region: np.ndarray
    tables: tuple[StageTable, ...]


@record
class Partition:
    """The exact partition of one window of dimension k, from ``jr.partition``.

    Coordinates are slice coordinates u relative to the window's centre; ``window.points(u)`` are
    the input points (center + u without a basis). F cells, V vertices, G facets, S stages, m
    outputs (flattened).

    window: the window.
    vertices: (V, k) float64; vertex_error: (V,) bound on their distance, per coordinate, from the
      exact ones. k >= 3 in a degenerate position: by Qhull, every cell with its own, none where
      Qhull gives up; the bounds hold if it names the right constraints. k >= 7: none.
    start, corner: (F + 1,), (H,) cell f has the vertices corner[start[f]:start[f + 1]],
      counter-clockwise for k = 2.
    witness: (F, k) a point inside each cell; witness_inside: (F,) whether that is proven for the
      float64 numbers (thinner cells are decided at an exact rational point).
    volume: (F,) lengths, areas, volumes in input space; NaN for k >= 7 and where Qhull gives up.
    patterns: per stage (F, size) int8, the sign of every switching value on the cell: -1, 1, or 0
      where it vanishes on the whole cell.
    slope, intercept: (F, m, k), (F, m): f = slope u + intercept on the cell, float64.
    region, affine_region: (F,) labels of the activation and the affine region of each cell.
    left, right: (G,) the cells on both sides of each facet; facet: (G, k) its vertices for k = 1
      and 2, (G, 0) above, where they are those that both cells have in common.
    facet_stage, facet_unit: (G,) a unit that switches there.
    tables: per stage a ``StageTable``.
    activation_regions, affine_regions: the counts; a lower bound and -1 if not COMPLETE.
    certified: all cells were found, proven. Otherwise (k >= 3, cells too thin for floats) some are
      missing, the number of activation regions is a lower bound, affine regions are not labelled.
    status: why it ended, a ``Status``; if not COMPLETE, the cells of the stages that were finished,
      and for k >= 3 no facets, vertices and volumes that there was no time for.
    decisions, settled_exactly: float64 decisions, and how many were made again in rationals.
    """

    window: Window
    vertices: np.ndarray
    vertex_error: np.ndarray
    start: np.ndarray
    corner: np.ndarray
    witness: np.ndarray
    witness_inside: np.ndarray
    volume: np.ndarray
    patterns: tuple[np.ndarray, ...]
    slope: np.ndarray
    intercept: np.ndarray
    region: np.ndarray
    affine_region: np.ndarray
    left: np.ndarray
    right: np.ndarray
    facet: np.ndarray
    facet_stage: np.ndarray
    facet_unit: np.ndarray
    tables: tuple[StageTable, ...]
    activation_regions: int
    affine_regions: int
    certified: bool
    status: Status
    decisions: int
    settled_exactly: int

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """``jr.plotting.plot_partition(self, ax, **options)``; needs matplotlib."""
        plotting = importlib.import_module("jaxregions.plotting")  # a room above this one
        return plotting.plot_partition(self, ax, **options)


def partition(
    f: Callable[[Any], Any],
    window: Window,
    *,
    input_shape: tuple[int, ...] | None = None,
    affine: bool = True,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
) -> Partition:
    """The cells of f in one open window, exactly.

    Args:
      f, input_shape, max_regions, max_seconds, progress: as in ``count_regions``.
      window: one window of any dimension k; for k <= 6 with vertices and volumes.
      affine: label affine regions too; otherwise their labels are -1.

    Returns:
      Partition; Ctrl-C and limits end the search with the stages that are finished.

    Raises:
      NotPiecewiseAffineError, ValueError: as ``count_regions``; several windows.

    Source: MATHEMATICS.md, exact partitions.
    """
    net, limits = prepared(f, window, input_shape, None, max_regions, max_seconds)
    if window.batch_shape != ():
        raise ValueError(f"window: expected one window, received leading axes {window.batch_shape}")
    with interruptible() as halt, watching(1, progress) as watch:
        limits = limits._replace(halt=halt)
        if window.dimension in ENGINES:
            return _stage_by_stage(net, window, limits, affine, watch)
        return _cell_by_cell(net, window, limits, affine, watch)


Watch = Callable[[int, int], None]


def _stage_by_stage(
    net: CPAFunction, window: Window, limits: Limits, affine: bool, watch: Watch
) -> Partition:
    """Dimension 1 and 2: the subdivision is refined."""
    windows = window.reshape(1)
    engine = ENGINES[window.dimension]
    ledger = Ledger(net, windows, corners(windows))
    done: tuple[Any, list[StageTable], list[np.ndarray]] = engine.begin(1), [], []
    family = [Generation(np.zeros((1, window.dimension)), np.zeros(1, np.int64))]
    status = Status.COMPLETE
    try:
        for stage, layer in enumerate(net.stages):
            mesh, tables, signs = done
            status = _stop(limits, mesh.faces)
            if status != Status.COMPLETE:
                break
            new, cuts = engine.refined(ledger, mesh, stage)
            found = int(hits(sign_bits(cuts, 1), layer.unit)[0])
            cut = cuts.cut_cell, layer.unit[cuts.cut_entry], cuts.children
            table = StageTable(mesh.faces, new.faces, found, *cut, new.parent)
            if window.dimension == 2:
                signs = [*signs, unpacked(*face_signs(new, cuts), layer.size)]
            family.append(Generation(engine.middles(ledger, new), new.parent))
            done = new, [*tables, table], signs
            watch(0, new.faces)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    mesh, tables, signs = done
    cells = engine.cells(ledger, mesh)
    inner = merging.witnesses(ledger, cells)
    signs = _inherited(signs, tables) or patterns(inner, len(tables))
    labels = _labels(net, cells, signs, tables, status, affine, partial(same_maps, ledger, inner))
    used = np.zeros(ledger.vertices.size, bool)
    used[cells.corner] = True
    number, used = np.cumsum(used) - 1, np.flatnonzero(used)
    corner, u = number[cells.corner], ledger.vertices.u.take(used, axis=0)
    size = _sizes(u, cells.start, corner)
    shape = Polytopes(u, ledger.vertices.error[used], cells.start, corner, size)
    counted = ledger.decisions + inner.decisions, ledger.settled_exactly + inner.settled_exactly
    cells = cells._replace(facet=number[cells.facet])
    made = signs, *_maps(inner, family[: len(tables) + 1], status)
    return _assembled(net, window, cells, shape, made, labels, status, None, True, counted)


def _stop(limits: Limits, faces: int) -> Status:
    if limits.halt is not None and limits.halt.is_set():
        return Status.INTERRUPTED
    if time.monotonic() > limits.deadline:
        return Status.MAX_SECONDS
    over = limits.regions is not None and faces > limits.regions
    return Status.MAX_REGIONS if over else Status.COMPLETE


def _cell_by_cell(
    net: CPAFunction, window: Window, limits: Limits, affine: bool, watch: Watch
) -> Partition:
    """Dimension 3 and above: the sign tree's leaves, and the facets between them."""
    windows = window.reshape(1)
    found = leaves(net, windows, limits=limits, watch=lambda cells: watch(0, cells))
    search, leaf = found.search, found.levels[-1]
    inner, step = witnesses(net, windows, leaf), np.array([c.step for c in leaf])
    status = Status.COMPLETE if search.going[0] else Status.MAX_REGIONS
    if search.status != Status.COMPLETE:
        status = search.status
    signs = patterns(inner, len(found.parents))
    tables = [StageTable(*rows) for rows in stage_tables(found, signs)]
    certified = not search.unsettled[0]
    between, shape = Facets.none(), unshaped(found)

    def labelled() -> Labels:
        def agree(_: Cells, same: np.ndarray) -> np.ndarray:
            return agreeing_maps(inner, step, between, same, search.require_time)

        wanted = affine and certified
        return _labels(net, between.cells(found), signs, tables, status, wanted, agree)

    points = [np.array([c.u for c in level]) for level in found.levels]
    parents = [np.zeros(len(points[0]), np.int64), *found.parents]
    family = list(map(Generation, points, parents))
    try:
        between = facets(found, signs)
        labels = labelled()
        maps = _maps(inner, family, status)
        shape = polytopes(found, signs)
    except Stopped:
        status = search.status
        labels, maps = labelled(), _maps(inner, family, status)
    made = signs, *maps
    exactly = inner.settled_exactly + search.settled_exactly
    counted = inner.decisions + search.programs, exactly
    bound = None if status == Status.COMPLETE else int(search.bound[0])
    cells = between.cells(found)
    return _assembled(net, window, cells, shape, made, labels, status, bound, certified, counted)


def _maps(inner: Ledger, family: list[Generation], status: Status) -> tuple[np.ndarray, np.ndarray]:
    """The cells' affine maps; NaN where there may be more to come."""
    if status == Status.COMPLETE:
        return affine_maps(inner, family)
    cells, k = family[-1].u.shape
    outputs = sum(math.prod(np.shape(o)) for o in inner.net.program.outputs)
    return np.full((cells, outputs, k), np.nan), np.full((cells, outputs), np.nan)


def _labels(net, cells, signs, tables, status, affine, agree) -> Labels:
    """Which cells are one activation and one affine region, as far as that is known.

    agree: (cells, known) -> (G,) whether the maps on both sides of each facet agree.
    """
    same, one = np.zeros(len(cells.left), bool), np.full(len(cells.window), -1)
    complete = status == Status.COMPLETE
    if complete and merging.has_contests(net):
        changes, found = merging.contest_changes(net, cells, signs, 1)
        same = ~changes
        tables = [t._replace(hits=int(h)) for t, h in zip(tables, found[0], strict=True)]
    if complete and affine:
        one = merging.joined(cells, agree(cells, same))
    return Labels(merging.joined(cells, same), one, tuple(tables))


def _assembled(
    net: CPAFunction,
    window: Window,
    cells: Cells,
    shape: Polytopes,
    made: tuple[list[np.ndarray], np.ndarray, np.ndarray],
    labels: Labels,
    status: Status,
    bound: int | None,
    certified: bool,
    counted: tuple[int, int],
) -> Partition:
    signs, slope, intercept = made
    complete, (region, one, tables) = status == Status.COMPLETE, labels
    regions = int(region.max()) + 1 if bound is None else bound
    if not complete and merging.has_contests(net):
        regions = 1
    scale = 1.0
    if window.basis is not None:
        basis = np.asarray(window.basis, np.float64)
        scale = np.sqrt(np.linalg.det(basis.T @ basis))
    return build(
        Partition,
        window=window,
        vertices=shape.vertices,
        vertex_error=shape.error,
        start=shape.start,
        corner=shape.corner,
        witness=cells.witness,
        witness_inside=cells.inside,
        volume=shape.size * scale,
        patterns=tuple(signs),
        slope=slope,
        intercept=intercept,
        region=region,
        affine_region=one,
        left=cells.left,
        right=cells.right,
        facet=cells.facet,
        facet_stage=cells.stage,
        facet_unit=_units(net, cells),
        tables=tables,
        activation_regions=regions,
        affine_regions=int(one.max()) + 1 if one[0] >= 0 else -1,
        certified=certified,
        status=status,
        decisions=counted[0],
        settled_exactly=counted[1],
    )


def _inherited(signs: list[np.ndarray], tables: list[StageTable]) -> list[np.ndarray]:
    """Per stage the signs on its cells, handed down to the last ones."""
    found, cell = [], slice(None)
    for sign, table in zip(signs[::-1], tables[::-1], strict=False):
        found.append(sign[cell])
        cell = table.parent[cell]
    return found[::-1]


def _units(net: CPAFunction, cells: Cells) -> np.ndarray:
    every = np.concatenate([np.zeros(0, np.int64), *(stage.unit for stage in net.stages)])
    return every[numbered(net, cells.stage, cells.entry)]


def _sizes(u: np.ndarray, start: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Length or area (shoelace) of every cell in slice coordinates."""
    if u.shape[1] == 1:
        return u[corner[1::2], 0] - u[corner[::2], 0]
    first = np.repeat(start[:-1], np.diff(start))
    follow = np.arange(1, len(corner) + 1)
    follow[start[1:] - 1] = start[:-1]
    x, y = (column.take(corner) for column in np.ascontiguousarray(u.T))
    x, y = x - x.take(first), y - y.take(first)
    return np.add.reduceat(x * y.take(follow) - y * x.take(follow), start[:-1]) / 2


def level_set(
    part: Partition, output: int = 0, *, minus: int | None = None, level: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Where {f_output - f_minus = level} runs through the cells; float64.

    With two logits and level 0 this is the decision boundary between two classes. Inside one cell
    of a 2-d window the set is a straight piece.

    Args:
      output, minus: indices into the flattened outputs; minus=None: f_output alone.

    Returns:
      pieces: (M, 2, 2) end points in slice coordinates; k = 1: (M, 1, 1) points.
      cell: (M,) the cell of each piece. A cell on which the function equals the level throughout
        has none.

    Raises:
      ValueError: an output that does not exist, an incomplete partition, a window of dimension 3
        and above (take a slice; ``slope`` and ``intercept`` hold the hyperplane of every cell).

    Source: MATHEMATICS.md, exact partitions.
    """
    if part.window.dimension > 2:
        raise ValueError(
            "part: expected a window of dimension 1 or 2, received "
            f"{part.window.dimension}; take a slice: Window(basis=)"
        )
    outputs = part.intercept.shape[1]
    for name, value in (("output", output), ("minus", minus)):
        if value is not None and not 0 <= value < outputs:
            raise ValueError(f"{name}: expected 0 to {outputs - 1}, received {value}")
    if part.status != Status.COMPLETE:
        raise ValueError(f"expected a complete partition, received {Status(part.status).name}")
    slope, shift = part.slope[:, output], part.intercept[:, output] - level
    if minus is not None:
        slope, shift = slope - part.slope[:, minus], shift - part.intercept[:, minus]
    cell = np.repeat(np.arange(len(shift)), np.diff(part.start))
    follow = np.arange(1, len(cell) + 1)
    follow[part.start[1:] - 1] = part.start[:-1]
    u = part.vertices[part.corner]
    value = np.einsum("hk,hk->h", slope[cell], u) + shift[cell]
    cross = np.flatnonzero((value >= 0) != (value[follow] >= 0))
    if u.shape[1] == 1:
        cross = cross[cross < follow[cross]]
    t = value[cross] / (value[cross] - value[follow[cross]])
    at = u[cross] + t[:, None] * (u[follow[cross]] - u[cross])
    if u.shape[1] == 1:
        return at[:, None], cell[cross]
    return at.reshape(-1, 2, 2), cell[cross[::2]]


def to_dict(part: Partition) -> dict[str, np.ndarray]:
    """The partition as plain arrays, ready for ``np.savez(path, **to_dict(part))``.

    Stage s's pattern is "pattern_s", its table "stage_s_children" and so on.

    Source: MATHEMATICS.md, exact partitions.
    """
    skip = ("window", "patterns", "tables")
    out = {n: np.asarray(v) for n, v in vars(part).items() if n not in skip}
    for name in ("center", "radius", "basis", "anchor", "shift"):
        if getattr(part.window, name) is not None:
            out[f"window_{name}"] = np.asarray(getattr(part.window, name))
    out |= {f"pattern_{s}": pattern for s, pattern in enumerate(part.patterns)}
    for s, table in enumerate(part.tables):
        out |= {f"stage_{s}_{name}": np.asarray(v) for name, v in table._asdict().items()}
    return out


def to_networkx(part: Partition) -> Any:
    """The dual graph: a node per cell (volume, region, affine_region), an edge per facet
    (stage, unit).

    Raises:
      ImportError: networkx is not installed.

    Source: MATHEMATICS.md, exact partitions.
    """
    try:
        import networkx
    except ImportError as error:
        raise ImportError("to_networkx needs networkx: pip install networkx") from error
    graph = networkx.Graph()
    columns = zip(
        part.volume.tolist(), part.region.tolist(), part.affine_region.tolist(), strict=True
    )
    for cell, (volume, region, affine) in enumerate(columns):
        graph.add_node(cell, volume=volume, region=region, affine_region=affine)
    facets = (part.left, part.right, part.facet_stage, part.facet_unit)
    for left, right, stage, unit in zip(*(f.tolist() for f in facets), strict=True):
        graph.add_edge(left, right, stage=stage, unit=unit)
    return graph
