"""Blocks of one-layer samples: measured on the devices, what floats leave open on the host."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.hyperplanes import Hyperplanes
from jaxregions.refinement.planes import Sample, measure_again, measure_exactly
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

FEW = 64  # open (sample, window) pairs of a block are settled in rational arithmetic at once
MANY, PAIRS = 64, 8  # measured together in float64, and in rational arithmetic


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
    """The counts of one twin with the open (sample, window) pairs decided.

    Many of them in float64 first, on the device, which takes seconds to compile; a few, and what is
    open then, in rational arithmetic on the host.
    """
    counts, left = Counts(*map(np.array, _counts(sample))), np.argwhere(pairs)
    exact = job.plan.regions == "exact"
    if job.windows.dimension <= 2 and exact and len(left) > FEW:
        measure = partial(measure_again, simple=job.plan.generic)
        left = _decided(job, planes, counts, left, point, measure, MANY)
    _decided(job, planes, counts, left, point, measure_exactly, PAIRS)
    return counts


def _decided(job: Job, planes: Hyperplanes, counts: Counts, left, point, measure, size: int):
    """Fills in what ``measure`` decides of the pairs ``left``, ``size`` at a time; the others."""
    open_pairs = []
    for start in range(0, len(left), size):
        asked = left[start : start + size]
        draws, which = asked[np.minimum(np.arange(size), len(asked) - 1)].T  # one compiled size
        windows = job.windows[which]
        if point is not None:
            windows = moved(windows, job.given.points[point[draws]])
        with jax.enable_x64(True):
            own = jax.tree.map(lambda a, d=draws: np.asarray(jnp.take(a, d, axis=0)), planes)
            known = jax.tree.map(np.asarray, measure(own, windows))
        known = Sample(*(v[: len(asked)] for v in known))
        draws, which = asked[known.decided].T
        hits, lower, upper = (v[known.decided] for v in known[:3])
        counts.hits[draws, which, 0] = hits
        counts.lower[draws, which], counts.upper[draws, which] = lower, upper
        open_pairs.append(asked[~known.decided])
    return np.concatenate(open_pairs) if open_pairs else left


def _counts(sample: Sample) -> Counts:
    return Counts(sample.hits[..., None], sample.lower, sample.upper)
