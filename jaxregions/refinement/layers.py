"""Blocks of one-layer samples: measured on the devices, what floats leave open on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions._records import build
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.refinement.planes import Sample, measure_exactly
from jaxregions.refinement.programs import (
    Counts,
    Job,
    contributions,
    counted,
    draws_of,
    moved,
    placed,
    summary,
    valid,
)
from jaxregions.refinement.statistics import Moments

__all__ = ["collect", "launch"]


class Work(NamedTuple):
    """Blocks under way; both twins' planes and samples. ``values`` are right where every decision
    is proven."""

    numbers: np.ndarray
    draws: Any
    planes: tuple[Hyperplanes, Hyperplanes]
    finite: Any
    samples: list[Sample]
    values: Any


def launch(job: Job, numbers: np.ndarray) -> Work:
    """Draws and measures these blocks; the devices work on after the call."""
    draws = draws_of(job, numbers)
    planes, finite = placed(job, draws)
    samples = [counted(job, one, draws) for one in planes]
    none = np.zeros(len(numbers) * job.plan.block, np.int32)
    values = contributions(job, tuple(map(_counts, samples)), none)
    return Work(numbers, draws, planes, finite, samples, values)


def collect(job: Job, work: Work) -> Moments:
    """The moments of the blocks, every open (sample, window) pair decided exactly.

    Raises:
      ValueError: a sample whose hyperplanes are not finite numbers.
    """
    asked = valid(job, work.numbers)
    finite = np.asarray(work.finite) | ~asked
    if not finite.all():
        number, place = divmod(int(np.argmin(finite)), job.plan.block)
        raise ValueError(
            "expected finite hyperplanes of every sample, received NaN or infinity in sample "
            f"{work.numbers[number] * job.plan.block + place}"
        )
    count = len(job.log_volume)
    pairs = [~np.asarray(s.decided)[:, :count] & asked[:, None] for s in work.samples]
    rechecked = pairs[0].sum(axis=1) + pairs[1].sum(axis=1)
    values = work.values
    if rechecked.any():
        point = None if work.draws.point is None else np.asarray(work.draws.point)
        both = zip(work.planes, work.samples, pairs, strict=True)
        settled = [_settled(job, *one, point) for one in both]
        values = contributions(job, tuple(settled), rechecked)
    return summary(job, work.numbers, values)


def _settled(
    job: Job, planes: Hyperplanes, sample: Sample, pairs: np.ndarray, point: Any
) -> Counts:
    """The counts of one twin with the open (sample, window) pairs decided on the host."""
    counts = Counts(*map(np.array, _counts(sample)))
    arrays = vars(jax.tree.map(np.asarray, planes))
    for row in np.flatnonzero(pairs.any(axis=1)):
        which = np.flatnonzero(pairs[row])
        windows = job.windows[which]
        if point is not None:
            windows = moved(windows, job.given.points[point[row]])
        own = build(Hyperplanes, **{name: v[row] for name, v in arrays.items()})
        known = measure_exactly(own, windows)
        counts.hits[row, which, 0] = known.hits
        counts.lower[row, which], counts.upper[row, which] = known.lower, known.upper
    return counts


def _counts(sample: Sample) -> Counts:
    return Counts(sample.hits[..., None], sample.lower, sample.upper)
