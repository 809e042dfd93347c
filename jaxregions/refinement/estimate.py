"""``expected_refinement``: how much random networks refine windows, with BatchNorm and without."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxregions._progress import watching
from jaxregions._records import build, record
from jaxregions.refinement import checks, streams
from jaxregions.refinement.blocks import blocks, layout
from jaxregions.refinement.statistics import Estimate, Moments, Tree, estimate
from jaxregions.windows import Window

__all__ = ["RefinementEstimate", "SamplingStatus", "TwinEstimates", "expected_refinement"]

LEAST = 1024  # samples before a target can be met: rare events need a chance to be seen


class SamplingStatus(enum.IntEnum):
    """Why the sampling ended: all samples asked for, the target was met, or Ctrl-C."""

    COMPLETE = 0
    TARGET_MET = 1
    INTERRUPTED = 2


@record
class TwinEstimates:
    """Expectations of one twin or of the paired difference, an ``Estimate`` each.

    hits: (..., S) per window and stage. One stage: switching hyperplanes that refine the window;
      whole networks: units whose piece changes inside it (the same number with one breakpoint).
    regions: (...,) activation regions of the open window; None where only bracketed.
    log_density: (...,) log regions - log volume.
    regions_lower, regions_upper, log_density_lower, log_density_upper: expectations of proven
      bounds 1 + m <= N <= sum_j C(m, j); None unless asked for in place of counts.
    pooled: the same of the mean over all windows, hits (S,) and the others (). The mean is taken
      sample by sample, so that the windows' correlation is in its error; None inside ``pooled``.
    """

    hits: Estimate
    regions: Estimate | None
    log_density: Estimate | None
    regions_lower: Estimate | None
    regions_upper: Estimate | None
    log_density_lower: Estimate | None
    log_density_upper: Estimate | None
    pooled: TwinEstimates | None


@record
class RefinementEstimate:
    """From ``expected_refinement``.

    batch_norm, no_batch_norm: of the model and of its twin without BatchNorm on the same samples.
    difference: batch_norm - no_batch_norm, paired sample by sample.
    num_samples: how many there are.
    exact: regions are exact counts; else bounds of them (see ``TwinEstimates``).
    certified: every hit and count was proven, for the float64 hyperplanes or networks drawn.
    rechecked: (twin, sample, window) triples of the first layer that a comparison with bounded
      errors left open, settled by finer bounds or in rational arithmetic.
    confidence: of the intervals.
    status: a ``SamplingStatus``.
    """

    batch_norm: TwinEstimates
    no_batch_norm: TwinEstimates
    difference: TwinEstimates
    num_samples: int
    exact: bool
    certified: bool
    rechecked: int
    confidence: float
    status: SamplingStatus


def expected_refinement(
    key: Any,
    model: Any,
    batch: Any,
    windows: Window,
    num_samples: int,
    *,
    mesh: Mesh | None = None,
    confidence: float = 0.95,
    target_standard_error: float | None = None,
    sampler: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    points: Any = None,
    stages: str = "all",
    regions: str = "auto",
    generic: bool = False,
    block_size: int | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> RefinementEstimate:
    """Expected hits, regions and log-density over random parameters, by Monte Carlo.

        E[N] ~ (1/n) sum_i N(theta_i),   theta_i drawn by the model's own initialisers,

    for the model conditioned on the batch and for its twin without BatchNorm, on the same
    theta_i (common random numbers), and for the difference of the two.

    Sample i has the key k = jax.random.fold_in(key, i): parameters ``model.init(k, x)``, rows of a
    mini-batch from fold_in(k, 1), a point from fold_in(k, 2), all drawn under jit in the caller's
    precision; the geometry is float64 and its decisions are proven (what floats leave
    open is settled in rational arithmetic). Networks with one stage are measured many at a time on
    the mesh's devices; of deeper ones every sample is counted on the host by ``count_regions``,
    the processes sharing the samples. Memory does not grow with num_samples.

    The same key gives the same bits whatever the mesh and the number of processes: blocks of
    samples are merged in one fixed binary tree whose leaves are the samples.

    Args:
      key: a jax random key.
      model: a linen module, or a function rngs -> nnx module; with a ``sampler`` also an nnx
        module.
      batch: (N, *input_shape) that BatchNorm is conditioned on; with ``batch_size`` the data.
      windows: (...,) windows in input space.
      num_samples: how many samples, at most.
      mesh: rows of devices (samples,) or (samples, windows), of this process or of all; None: one
        device. With several processes all call this function, and all get the same result.
      confidence: of the two-sided intervals, in (0, 1).
      target_standard_error: stop after the first block (not before 1024 samples) at which all
        standard errors of expected regions (of their bounds) are at most this: both twins, the
        difference, every window.
      sampler: key -> variables (linen: the mapping of collections; nnx: a state), in place of the
        initialisers; pure, it runs under jit and vmap.
      batch_size: every sample is conditioned on so many rows of ``batch``, drawn without
        replacement.
      points: (M, d); every sample adds one of them, drawn uniformly, to all windows' centres.
      stages: "all", or "first": hits and regions of the first stage alone, whatever follows it.
      regions: "exact" counts, for k = 3 on the host; "bracket": bounds that follow from the hits;
        "none": hits alone; "auto": "exact" for k = 1, 2, else "bracket".
      generic: take it as known that no two hyperplanes of the first layer coincide and no three
        meet in a point, but for offset exactly 0. So it is with probability one for dense layers
        whose weights have a density; up to twice as fast, and not ``certified``.
      block_size: samples measured together on one device, a power of two; default by memory.
      args, kwargs: passed to the model behind x, such as kwargs={"train": False}.
      progress: draw a bar; default: on a terminal, for calls that last.

    Returns:
      RefinementEstimate. With one sample standard errors are infinite. Ctrl-C ends the call with
      the finished blocks and INTERRUPTED (with several processes, or before the first block, it
      is raised).

    Raises:
      ValueError: what does not fit any of the above, before any sampling; samples that are not
        finite numbers.
      NotPiecewiseAffineError: a model that is not continuous piecewise affine.

    Source: MATHEMATICS.md, expected refinement.
    """
    checks.require_numbers(num_samples, confidence, target_standard_error, block_size)
    checks.require_names(stages, regions)
    checks.require_key(key)
    data, points = checks.known(batch, windows, batch_size, points)
    where = layout(mesh)
    stream = streams.open_stream(
        streams.Request(
            key=key,
            model=model,
            sampler=sampler,
            data=data,
            batch_size=batch_size,
            points=points,
            windows=windows,
            num_samples=num_samples,
            block_size=block_size,
            first=stages == "first",
            regions=regions,
            generic=generic,
            args=args,
            kwargs=dict(kwargs or {}),
        ),
        where,
    )
    tree, status, target = Tree(), SamplingStatus.COMPLETE, target_standard_error
    done = 0
    with watching(num_samples, progress, of="samples") as watch:
        try:
            for part in blocks(where, stream.count, stream.launch, stream.collect):
                tree.push(part)
                done = min(num_samples, done + stream.block)
                watch(done)
                enough = done >= min(LEAST, num_samples) and done < num_samples
                if target is not None and enough and _worst(tree.total(), stream) <= target:
                    status = SamplingStatus.TARGET_MET
                    break
        except KeyboardInterrupt:
            if done == 0 or len(where.rows) > 1:
                raise
            status = SamplingStatus.INTERRUPTED
    whole = tree.total()
    values = _named(estimate(whole, confidence), stream)
    twins = {
        name: _twin(side, values["pooled"][name], windows.batch_shape)
        for name, side in values["windows"].items()
    }
    return build(
        RefinementEstimate,
        **twins,
        num_samples=done,
        exact=stream.exact,
        certified=not generic or regions == "none",
        rechecked=round(float(values["rechecked"].mean) * done),
        confidence=confidence,
        status=status,
    )


def _twin(side: dict[str, Estimate], pooled: dict[str, Estimate], shape: Any) -> TwinEstimates:
    """The estimates by name, their windows in the shape they were given in."""
    per_window = jax.tree.map(lambda v: np.reshape(v, (*shape, *v.shape[1:])), side)
    blank = dict.fromkeys(field.name for field in dataclasses.fields(TwinEstimates))
    inner = build(TwinEstimates, **(blank | pooled))
    return build(TwinEstimates, **(blank | per_window | {"pooled": inner}))


def _named(whole: Estimate, stream: Any) -> Any:
    """The tree of Estimates behind the flat vectors of one."""
    leaves, structure = jax.tree.flatten(stream.shapes)
    ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])[:-1]
    parts = [np.split(v, ends) for v in (whole.mean, whole.standard_error, whole.low, whole.high)]
    return jax.tree.unflatten(
        structure,
        [
            Estimate(*(np.reshape(v, leaf.shape) for v in four))
            for leaf, *four in zip(leaves, *parts, strict=True)
        ],
    )


def _worst(part: Moments, stream: Any) -> float:
    """The largest standard error of expected regions, over twins, difference and windows."""
    named = _named(estimate(part, 0.5), stream)["windows"]
    return max(
        float(value.standard_error.max(initial=0))
        for side in named.values()
        for name, value in side.items()
        if name.startswith("regions")
    )
