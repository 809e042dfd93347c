"""The front door: exact region counts and partitions of any traced function in any window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxregions._progress import watching
from jaxregions._records import build, is_traced, record, require_finite
from jaxregions.engines import frontier, merging, vertices
from jaxregions.engines.affine import same_maps
from jaxregions.engines.frontier import ENGINES, Limits, Status, Tally
from jaxregions.engines.signs import patterns
from jaxregions.tracing import CPAFunction, trace
from jaxregions.windows import Window

__all__ = ["RegionCounts", "Status", "count_regions", "prepared"]

NAMES = {1: "segments", 2: "planar", 3: "vertices", 4: "vertices", 5: "vertices", 6: "vertices"}


@record
class RegionCounts:
    """Exact counts per window (...,), from ``count_regions``.

    activation_regions: non-empty full-dimensional cells of equal activation pattern. Where
      ``status`` is not COMPLETE: a proven lower bound.
    affine_regions: maximal connected open sets on which f is affine; None unless asked for, and
      -1 where ``status`` is not COMPLETE.
    hits: (..., S) units of each stage whose piece changes across some facet inside the window; -1
      where the stage was not reached.
    by_stage: (..., S) cells after each stage, 0 where not reached. In a function with maxima over
      many candidates the rounds of a maximum are stages, and cells that differ in the order of
      losers only are one region in the end.
    certified: every decision behind the numbers was proven in float64 or made in rationals.
    status: why the count ended, a ``Status``.
    decisions, settled_exactly: of all windows together: float64 decisions, and how many of them
      were too close and were made again in rationals.
    """

    activation_regions: np.ndarray
    affine_regions: np.ndarray | None
    hits: np.ndarray
    by_stage: np.ndarray
    certified: np.ndarray
    status: np.ndarray
    decisions: int
    settled_exactly: int


def count_regions(
    f: Callable[[Any], Any],
    windows: Window,
    *,
    input_shape: tuple[int, ...] | None = None,
    affine: bool = False,
    engine: str | None = None,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
) -> RegionCounts:
    """How many regions f has in each open window, exactly, all windows in one pass.

    Counts are certified: float64 with rigorous error bounds on every sign, ties and what is too
    close decided in rational arithmetic on the stored numbers. Parameters, batch and windows are
    taken as exact; a BatchNorm conditioned on a batch subtracts its exact mean.

    Args:
      f: a JAX function of one array, or the result of ``jr.trace`` (traced once, counted often).
      windows: (...,) windows of dimension k = 1 to 6: slices, or inputs of that size.
      input_shape: of f's input; default (d,). A traced function knows its own.
      affine: count affine regions too; k = 1, 2.
      engine: "segments" (k = 1), "planar" (k = 2) or "vertices" (k >= 3); default: by dimension.
      max_regions: stop refining a window that has more regions than this.
      max_seconds: stop refining after this time.
      progress: draw a bar; default: on a terminal, for calls that last.

    Returns:
      RegionCounts; Ctrl-C ends the call with what is finished, the rest with INTERRUPTED.

    Raises:
      NotPiecewiseAffineError: f is not continuous piecewise affine.
      ValueError: windows of another dimension, a traced window or function (under jit), limits
        that are not positive; for k >= 3 affine regions, or a function with a maximum over many
        candidates (an axis, a pooling window), which are counted for k = 1, 2 only.

    Source: README, "The mathematics", exact partitions.
    """
    net, limits = prepared(f, windows, input_shape, engine, max_regions, max_seconds)
    if windows.dimension not in ENGINES:
        return _by_vertices(net, windows, limits, affine, progress)
    flat = windows.reshape(-1)
    count = len(flat.center)
    affine_counts = np.full(count, -1) if affine else None
    merged = np.zeros(count, np.int64)
    module = ENGINES[windows.dimension]
    contests = merging.has_contests(net)

    def finish(ledger, mesh, first, part: Tally):
        cells = module.cells(ledger, mesh)
        inner = merging.witnesses(ledger, cells)
        same = np.zeros(len(cells.left), bool)
        here = np.unique(cells.window)
        if contests:
            signs = patterns(inner, len(net.stages))
            changes, hits = merging.contest_changes(net, cells, signs, len(part.status))
            same = ~changes
            part.hits[here] = hits[here]
        region = merging.joined(cells, same)
        merged[first + here] = merging.per_window(cells, region)
        if affine_counts is not None:
            one = merging.joined(cells, same_maps(ledger, inner, cells, same))
            affine_counts[first + here] = merging.per_window(cells, one)
        ledger.decisions += inner.decisions
        ledger.settled_exactly += inner.settled_exactly

    wanted = finish if affine or contests else None
    with watching(count, progress) as watch:
        tally = frontier.explore(net, flat, limits=limits, finish=wanted, watch=watch)
    done = tally.status == Status.COMPLETE
    regions = np.where(done & (merged > 0), merged, tally.bound)
    if contests:  # cells of unfinished windows may still merge
        regions = np.where(done, regions, 1)
    shape, stages = windows.batch_shape, len(net.stages)
    return build(
        RegionCounts,
        activation_regions=regions.reshape(shape),
        affine_regions=None if affine_counts is None else affine_counts.reshape(shape),
        hits=tally.hits.reshape(*shape, stages),
        by_stage=tally.by_stage.reshape(*shape, stages),
        certified=np.ones(shape, bool),
        status=tally.status.astype(np.int8).reshape(shape),
        decisions=int(tally.decisions[0]),
        settled_exactly=int(tally.decisions[1]),
    )


def _by_vertices(
    net: CPAFunction, windows: Window, limits: Limits, affine: bool, progress: bool | None
) -> RegionCounts:
    """k >= 3: counts without cells."""
    for asked, what in (
        (affine, "affine=True"),
        (merging.has_contests(net), "a maximum over many"),
    ):
        if asked:
            raise ValueError(
                f"windows: expected dimension 1 or 2 with {what}, received {windows.dimension}"
            )
    flat, shape = windows.reshape(-1), windows.batch_shape
    with watching(len(flat.center), progress) as watch:
        found = vertices.count(
            net,
            flat,
            max_regions=limits.regions,
            deadline=limits.deadline,
            watch=lambda cells: watch(0, cells),
        )
    stages = len(net.stages)
    return build(
        RegionCounts,
        activation_regions=found.bound.reshape(shape),
        affine_regions=None,
        hits=found.hits.reshape(*shape, stages),
        by_stage=found.by_stage.reshape(*shape, stages),
        certified=np.ones(shape, bool),
        status=found.status.astype(np.int8).reshape(shape),
        decisions=int(found.decisions[0]),
        settled_exactly=int(found.decisions[1]),
    )


def prepared(
    f: Any,
    windows: Any,
    input_shape: tuple[int, ...] | None,
    engine: str | None,
    max_regions: int | None,
    max_seconds: float | None,
    most: int = max(NAMES),
) -> tuple[CPAFunction, Limits]:
    """The traced function and the limits, after everything that can be wrong was looked at.

    most: dimension of the windows.
    """
    if not isinstance(windows, Window):
        raise ValueError(f"windows: expected a jr.Window, received {type(windows).__name__}")
    _require_engine(windows, engine, most)
    for name in ("center", "radius", "basis"):
        value = getattr(windows, name)
        if value is not None:
            _require_known(value, f"windows.{name}")
    limits = _limits(max_regions, max_seconds)
    return _traced(f, windows, input_shape), limits


def _require_engine(windows: Window, engine: str | None, most: int) -> None:
    k = windows.dimension
    if not 1 <= k <= most:
        raise ValueError(
            f"windows: expected dimension 1 to {most}, received {k}; take a slice: Window(basis=)"
        )
    if engine is not None and engine != NAMES[k]:
        raise ValueError(
            f"engine: expected {NAMES[k]!r} for windows of dimension {k}, received {engine!r}"
        )


def _limits(max_regions: int | None, max_seconds: float | None) -> Limits:
    for name, value in (("max_regions", max_regions), ("max_seconds", max_seconds)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected > 0 or None, received {value}")
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    return Limits(max_regions, deadline)


def _traced(f: Any, windows: Window, input_shape: tuple[int, ...] | None) -> CPAFunction:
    """f traced on inputs of the windows' size."""
    d = windows.input_dimension
    if not isinstance(f, CPAFunction):
        if not callable(f):
            raise ValueError(f"f: expected a function of one array, received {type(f).__name__}")
        shape = (d,) if input_shape is None else tuple(input_shape)
        if math.prod(shape) != d:
            raise ValueError(f"input_shape: expected {d} entries in all, received {shape}")
        f = trace(f, np.zeros(shape))
    elif input_shape is not None and tuple(input_shape) != f.input_shape:
        raise ValueError(f"input_shape: expected {f.input_shape}, received {tuple(input_shape)}")
    if math.prod(f.input_shape) != d:
        raise ValueError(
            f"windows: expected centres of {math.prod(f.input_shape)} entries for an input of "
            f"shape {f.input_shape}, received {d}"
        )
    if f.is_traced:
        raise ValueError(
            "f: expected known parameters, received tracers; the exact engines run outside jit"
        )
    return f


def _require_known(value: Any, name: str) -> None:
    if is_traced(value):
        raise ValueError(
            f"{name}: expected known numbers, received a tracer; the exact engines run outside jit"
        )
    require_finite(value, name)
