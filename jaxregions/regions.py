"""The front door: exact region counts and partitions of any traced function in any window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from jaxregions._interrupts import interruptible
from jaxregions._progress import watching
from jaxregions._records import build, is_traced, record, require_finite
from jaxregions.engines import cells, frontier, merging, vertices
from jaxregions.engines.affine import same_maps
from jaxregions.engines.certificates import Certificate, region_points
from jaxregions.engines.contests import merged_regions
from jaxregions.engines.draws import regions_drawn
from jaxregions.engines.estimates import DESCENTS, TreeEstimate, estimate_cells
from jaxregions.engines.frontier import ENGINES, Limits, Status, Tally
from jaxregions.engines.signs import patterns
from jaxregions.engines.unions import count_unions
from jaxregions.tracing import CPAFunction, trace
from jaxregions.windows import Window, require_window

__all__ = [
    "RegionCounts",
    "Status",
    "TreeEstimate",
    "count_regions",
    "estimate_regions",
    "prepared",
]

NAMES = {1: "segments", 2: "planar", 3: "vertices", 4: "vertices", 5: "vertices", 6: "vertices"}
ANY = "cells"  # of windows of any dimension
_POINTS, _MANY_POINTS = 1 << 14, 1 << 24  # drawn for a lower bound, with a time limit until
_DRAWING = 0.1  # of it is over


@record
class RegionCounts:
    """Exact counts per window (...,), from ``count_regions``.

    activation_regions: non-empty full-dimensional cells of equal activation pattern. Where
      ``status`` is not COMPLETE: a proven lower bound.
    affine_regions: maximal connected open sets on which f is affine; None unless asked for, and
      -1 where ``status`` is not COMPLETE.
    hits: (..., S) units of each stage whose piece changes across some facet inside the window; -1
      where the stage was not reached, and for k >= 3 in a stage with maxima over many candidates
      unless affine regions are asked for.
    by_stage: (..., S) cells after each stage, 0 where not reached. In a function with maxima over
      many candidates the rounds of a maximum are stages, and cells that differ in the order of
      losers only are one region in the end.
    certified: every decision behind the numbers was proven in float64 or made in rationals. True
      wherever ``status`` is COMPLETE; by "cells" False for counts that were stopped, whose
      ``activation_regions`` is a proven lower bound all the same.
    status: why the count ended, a ``Status``.
    decisions, settled_exactly: of all windows together: float64 decisions, and how many of them
      were too close and were made again in rationals. By "cells": linear programs in place of the
      former.
    certificate: for ``jr.verify``, of all windows, flattened, or the path of its file; None unless
      asked for.
    """

    activation_regions: np.ndarray
    affine_regions: np.ndarray | None
    hits: np.ndarray
    by_stage: np.ndarray
    certified: np.ndarray
    status: np.ndarray
    decisions: int
    settled_exactly: int
    certificate: Certificate | Path | None


def count_regions(
    f: Callable[[Any], Any],
    windows: Window,
    *,
    input_shape: tuple[int, ...] | None = None,
    affine: bool = False,
    engine: str | None = None,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    certificate: bool | str | Path = False,
    progress: bool | None = None,
) -> RegionCounts:
    """How many regions f has in each open window, exactly, all windows in one pass.

    Counts are certified: float64 with rigorous error bounds on every sign, ties and what is too
    close decided in rational arithmetic on the stored numbers. Parameters, batch and windows are
    taken as exact; a BatchNorm conditioned on a batch subtracts its exact mean.

    Args:
      f: a JAX function of one array, or the result of ``jr.trace`` (traced once, counted often).
      windows: (...,) windows of any dimension k: boxes or slices.
      input_shape: of f's input; default (d,). A traced function knows its own.
      affine: count affine regions too; for k >= 3 by "cells", which then keeps all of them.
      engine: "segments" (k = 1), "planar" (k = 2), "vertices" (k = 3 to 6) or "cells" (any k).
        Default: by dimension; windows too degenerate or too large for "vertices" go to "cells".
      max_regions: stop refining a window that has more regions than this.
      max_seconds: stop refining after this time.
      certificate: record what ``jr.verify`` checks, by "cells"; a path: to this file, in pieces,
        within bounded memory. With maxima over many candidates it proves the number of cells of
        equal signs.
      progress: draw a bar; default: on a terminal, for calls that last.

    Returns:
      RegionCounts; Ctrl-C ends the call with what is finished, the rest with INTERRUPTED.

    Raises:
      NotPiecewiseAffineError: f is not continuous piecewise affine.
      ValueError: windows of another dimension, a traced window or function (under jit), limits
        that are not positive; affine regions from "vertices" or with a certificate.

    Source: MATHEMATICS.md, exact partitions.
    """
    net, limits = prepared(f, windows, input_shape, engine, max_regions, max_seconds)
    flat = windows.reshape(-1)
    count = len(flat.center)
    engine = _choice(windows.dimension, engine, affine, certificate)
    wanted = Path(certificate) if isinstance(certificate, str) else certificate
    if engine not in (NAMES[k] for k in ENGINES):
        with interruptible() as halt, watching(count, progress) as watch:
            limits = limits._replace(halt=halt)
            if affine:
                found = _by_unions(net, flat, limits, watch)
            elif engine == ANY or merging.has_contests(net):
                found = _by_cells(net, flat, limits, wanted, watch)
            else:
                found = _by_vertices(net, flat, limits, watch)
        return _shaped(found, windows.batch_shape)
    affine_counts = np.full(count, -1) if affine else None
    merged = np.zeros(count, np.int64)
    module = ENGINES[windows.dimension]
    contests = merging.has_contests(net)

    def finish(ledger, mesh, first, part: Tally):
        faces = module.cells(ledger, mesh, module.middles(ledger, mesh))
        inner = merging.witnesses(ledger, faces)
        same = np.zeros(len(faces.left), bool)
        here = np.unique(faces.window)
        if contests:
            signs = patterns(inner, len(net.stages))
            changes, hits = merging.contest_changes(net, faces, signs, len(part.status))
            same = ~changes
            part.hits[here] = hits[here]
        region = merging.joined(faces, same)
        merged[first + here] = merging.per_window(faces, region)
        if affine_counts is not None:
            one = merging.joined(faces, same_maps(ledger, inner, faces, same))
            affine_counts[first + here] = merging.per_window(faces, one)
        ledger.decisions += inner.decisions
        ledger.settled_exactly += inner.settled_exactly

    last = finish if affine or contests else None
    with interruptible() as halt, watching(count, progress) as watch:
        limits = limits._replace(halt=halt)
        tally = frontier.explore(net, flat, limits=limits, finish=last, watch=watch)
    done = tally.status == Status.COMPLETE
    regions = np.where(done & (merged > 0), merged, tally.bound)
    if contests:  # cells of unfinished windows may still merge
        regions = np.where(done, regions, 1)
    return _shaped(
        build(
            RegionCounts,
            activation_regions=regions,
            affine_regions=affine_counts,
            hits=tally.hits,
            by_stage=tally.by_stage,
            certified=np.ones(count, bool),
            status=tally.status.astype(np.int8),
            decisions=int(tally.decisions[0]),
            settled_exactly=int(tally.decisions[1]),
            certificate=None,
        ),
        windows.batch_shape,
    )


def estimate_regions(
    f: Callable[[Any], Any],
    window: Window,
    *,
    input_shape: tuple[int, ...] | None = None,
    descents: int = DESCENTS,
    seed: int = 0,
    max_seconds: float | None = None,
    at_least: float = 1.0,
) -> TreeEstimate | None:
    """A statistical estimate, not a count, of the activation regions of f in one window.

    Random descents in the sign tree, a sample of its nodes kept at each level: unbiased, with a 95%
    interval, for windows with too many regions to count. It begins at a proven lower bound or
    above: ``at_least``, or the number of regions that hold one of some random points.

    Args:
      f, input_shape: as for ``count_regions``.
      window: one window of any dimension.
      descents: how many. seed: of the descents. max_seconds: the more, the narrower the interval.
      at_least: a lower bound that is known already.

    Returns:
      TreeEstimate, or None where the time did not suffice for a first one.

    Raises:
      ValueError: as ``count_regions``; several windows, fewer than 2 descents, maxima over many
        candidates.

    Source: D. Knuth, "Estimating the efficiency of backtrack programs" (1975);
    MATHEMATICS.md, exact partitions.
    """
    net, limits = prepared(f, window, input_shape, None, None, max_seconds)
    if window.batch_shape != ():
        raise ValueError(f"window: expected one window, received leading axes {window.batch_shape}")
    if not isinstance(descents, Integral) or descents < 2:
        raise ValueError(f"descents: expected a whole number >= 2, received {descents!r}")
    if merging.has_contests(net):
        raise ValueError("f: expected no maximum over many candidates, received one")
    now = time.monotonic()
    soon = now + _DRAWING * (limits.deadline - now)
    points = _POINTS if max_seconds is None else _MANY_POINTS
    drawn = regions_drawn(net, window, points=points, seed=seed, deadline=soon)
    left = limits.deadline - time.monotonic()
    return estimate_cells(
        net, window, descents=descents, seed=seed, max_seconds=left, proven=max(at_least, drawn)
    )


def _shaped(flat: RegionCounts, shape: tuple[int, ...]) -> RegionCounts:
    """The same counts, (W, ...), with the windows' leading axes."""
    values = {
        name: np.reshape(v, (*shape, *v.shape[1:])) if isinstance(v, np.ndarray) else v
        for name, v in vars(flat).items()
    }
    return build(RegionCounts, **values)


Watch = Callable[[int, int], None]


def _by_vertices(net: CPAFunction, flat: Window, limits: Limits, watch: Watch) -> RegionCounts:
    """Counts without cells; what is too degenerate for that with them."""
    found = vertices.count(net, flat, limits=limits, watch=lambda cells: watch(0, cells))
    counts = build(
        RegionCounts,
        activation_regions=found.bound,
        affine_regions=None,
        hits=found.hits,
        by_stage=found.by_stage,
        certified=np.ones(len(found.bound), bool),
        status=found.status.astype(np.int8),
        decisions=int(found.decisions[0]),
        settled_exactly=int(found.decisions[1]),
        certificate=None,
    )
    left = np.flatnonzero(np.isin(found.status, vertices.BEYOND))
    if not len(left):
        return counts
    rest = _by_cells(net, flat[left], limits, False, watch)
    values, bound = dict(vars(counts)), found.bound[left]
    known = found.by_stage[left], found.hits[left]
    for name in ("activation_regions", "hits", "by_stage", "certified", "status"):
        values[name][left] = getattr(rest, name)
    values["activation_regions"][left] = np.maximum(bound, rest.activation_regions)
    short = rest.status != Status.COMPLETE  # of these "vertices" knows the first stages
    for name, before in zip(("by_stage", "hits"), known, strict=True):
        values[name][left[short]] = before[short]
    for name in ("decisions", "settled_exactly"):
        values[name] += getattr(rest, name)
    return build(RegionCounts, **values)


def _by_cells(
    net: CPAFunction, flat: Window, limits: Limits, certificate: bool | Path, watch: Watch
) -> RegionCounts:
    """Counts by the sign tree, maxima merged."""
    contests = merging.has_contests(net)
    found = cells.count_cells(
        net, flat, limits=limits, certificate=certificate or contests, watch=watch
    )
    regions, hits, record = found.regions, found.hits, found.certificate
    if contests and record is not None:
        points = region_points(record, len(net.stages))
        merged, whole = merged_regions(net, flat, *points, frontier.pausing(limits))
        late = found.certified & ~whole
        if late.any():
            found.status[late], found.certified[late] = frontier.stopped(limits), False
        regions = np.maximum(merged, 1)  # other maximisers are another region
        played = [any(g.contest is not None for g in s.groups) for s in net.stages]
        hits = np.where(played, -1, hits)
    return build(
        RegionCounts,
        activation_regions=regions,
        affine_regions=None,
        hits=hits,
        by_stage=found.by_stage,
        certified=found.certified,
        status=found.status.astype(np.int8),
        decisions=found.programs,
        settled_exactly=found.settled_exactly,
        certificate=record if certificate else None,
    )


def _by_unions(net: CPAFunction, flat: Window, limits: Limits, watch: Watch) -> RegionCounts:
    """Counts with affine regions, from the sign tree's cells and their facets."""
    found, affine = count_unions(net, flat, limits=limits, watch=watch)
    return build(
        RegionCounts,
        activation_regions=found.regions,
        affine_regions=affine,
        hits=found.hits,
        by_stage=found.by_stage,
        certified=found.certified,
        status=found.status.astype(np.int8),
        decisions=found.programs,
        settled_exactly=found.settled_exactly,
        certificate=None,
    )


def _choice(k: int, engine: str | None, affine: bool, certificate: bool | str | Path) -> str:
    """The engine, after everything that does not go together was looked at."""
    chosen = engine or (ANY if certificate else NAMES.get(k, ANY))
    if affine and not certificate and engine is None and k not in ENGINES:
        chosen = ANY
    if certificate and chosen != ANY:
        raise ValueError(f"engine: expected {ANY!r} with certificate=True, received {engine!r}")
    if affine and (certificate or chosen == "vertices"):
        raise ValueError(
            f"affine: expected engine=None or {ANY!r} in dimension {k}, and no certificate, "
            f"received engine={engine!r} and certificate={certificate}"
        )
    return chosen


def prepared(
    f: Any,
    windows: Any,
    input_shape: tuple[int, ...] | None,
    engine: str | None,
    max_regions: int | None,
    max_seconds: float | None,
) -> tuple[CPAFunction, Limits]:
    """The traced function and the limits, after everything that can be wrong was looked at."""
    require_window(windows)
    _require_engine(windows, engine)
    for name in ("center", "radius", "basis"):
        value = getattr(windows, name)
        if value is not None:
            _require_known(value, f"windows.{name}")
    limits = _limits(max_regions, max_seconds)
    return _traced(f, windows, input_shape), limits


def _require_engine(windows: Window, engine: str | None) -> None:
    k = windows.dimension
    own = {NAMES.get(k, ANY), ANY}
    if engine is not None and engine not in own:
        names = " or ".join(map(repr, sorted(own)))
        raise ValueError(
            f"engine: expected {names} for windows of dimension {k}, received {engine!r}"
        )


def _limits(max_regions: int | None, max_seconds: float | None) -> Limits:
    for name, value in (("max_regions", max_regions), ("max_seconds", max_seconds)):
        if value is not None and not (isinstance(value, Real) and value > 0):
            raise ValueError(f"{name}: expected a number > 0 or None, received {value!r}")
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    return Limits(max_regions, deadline)


def _traced(f: Any, windows: Window, input_shape: tuple[int, ...] | None) -> CPAFunction:
    """f traced on inputs of the windows' size."""
    d = windows.input_dimension
    if not isinstance(f, CPAFunction):
        if not callable(f):
            raise ValueError(f"f: expected a function of one array, received {type(f).__name__}")
        shape = (d,) if input_shape is None else input_shape
        if not isinstance(shape, Sequence):
            raise ValueError(f"input_shape: expected a tuple of lengths, received {shape!r}")
        shape = tuple(shape)
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
