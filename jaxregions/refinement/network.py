"""Whole networks, one sample after the other: exact counts of all stages on the host."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxregions.refinement import samplers
from jaxregions.refinement.programs import (
    Counts,
    Job,
    contributions,
    draws_of,
    moved,
    summary,
    valid,
)
from jaxregions.refinement.samplers import Draw
from jaxregions.refinement.statistics import Moments
from jaxregions.regions import Status, count_regions

__all__ = ["collect", "launch", "measure_network"]


def measure_network(job: Job, draw: Draw) -> tuple[Counts, Counts]:
    """Hits per stage and exact activation regions of the model and of its twin in every window.

    Args:
      draw: one concrete sample.
    """
    plan, given, windows = job.plan, job.given, job.windows
    batch = given.data if draw.rows is None else given.data[np.asarray(draw.rows)]
    if draw.point is not None:
        windows = moved(windows, given.points[int(draw.point)])
    pair = []
    for f in samplers.twins(plan.own, plan.call, samplers.widened(draw.variables, np), batch):
        found = count_regions(f, windows, input_shape=plan.shape, progress=False)
        if (found.status == Status.INTERRUPTED).any():  # a lower bound is no sample
            raise KeyboardInterrupt
        regions = found.activation_regions.astype(np.float64)
        pair.append(Counts(found.hits, regions, regions))
    return pair[0], pair[1]


def launch(job: Job, numbers: np.ndarray) -> tuple[np.ndarray, Any]:
    """Draws the parameters of these blocks."""
    return numbers, draws_of(job, numbers)


def collect(job: Job, work: tuple[np.ndarray, Any]) -> Moments:
    """The moments of the blocks, sample by sample."""
    numbers, draws = work
    asked = valid(job, numbers)
    shape = len(asked), len(job.log_volume)
    shapes = (*shape, job.stages), shape, shape
    pair = tuple(Counts(*map(np.ones, shapes)) for _ in range(2))
    for i in np.flatnonzero(asked):
        one = measure_network(job, jax.tree.map(lambda v, i=i: v[i], draws))
        for whole, value in zip(jax.tree.leaves(pair), jax.tree.leaves(one), strict=True):
            whole[i] = value
    values = contributions(job, pair, np.zeros(len(asked), np.int32))
    return summary(job, numbers, values)
