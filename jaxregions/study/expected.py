"""Expected regions of layer 1 against the distance from the batch centroid, three ways."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxregions import theory
from jaxregions.arrangements import count_arrangement
from jaxregions.batchnorm import centroid
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.refinement import Estimate, RefinementEstimate, expected_refinement
from jaxregions.study.config import StudyConfig, activation_named
from jaxregions.study.measure import Scene
from jaxregions.study.story import epochs, number
from jaxregions.study.table import BATCH, DIFFERENCE, MODELS, NONE
from jaxregions.windows import Window
from jaxregions.zoo import MLP

__all__ = ["Expected", "expected", "regions", "rows", "sentence"]

POINTS, LINE = 8, 65  # distances of the estimates, and of the closed form's line
SAMPLES, QUICK_SAMPLES = 1000, 500
BEYOND = 1.25  # the ray ends at this multiple of the largest distance of a data window
STREAM = 30_000  # of the random key, apart from the scene's


class Expected(NamedTuple):
    """2-d windows along the ray from the batch centroid through the first data centre.

    radius: of the windows, in input units.
    distance: (T,) Euclidean, of the estimates' windows from the centroid; the first is 0.
    line: (L,) distances of the closed form and of the counts, all of ``distance`` among them.
    closed: per model E[N] at ``line``, at initialisation; None where no closed form holds.
    estimate: Monte Carlo at ``distance``, over weights at initialisation.
    counts: exact regions (L,) of layer 1 of a network at a checkpoint, by (model, epoch).
    """

    radius: float
    distance: np.ndarray
    line: np.ndarray
    closed: dict[str, np.ndarray] | None
    estimate: RefinementEstimate
    counts: dict[tuple[str, int], np.ndarray]


def expected(
    config: StudyConfig,
    place: Scene,
    model: MLP,
    planes: dict[tuple[str, int], Hyperplanes],
) -> Expected:
    """E[N] at initialisation by closed form and by Monte Carlo, and the networks' exact counts.

    Args:
      model: the one with BatchNorm.
      planes: layer 1 by (model, epoch).
    """
    end = BEYOND * float(place.distances[0].max())
    distance = np.linspace(0.0, end, POINTS)
    line = np.union1d(np.linspace(0.0, end, LINE), distance)
    radius = config.slice_radii[-1]
    windows = _along(place, line, radius)
    estimate = expected_refinement(
        jax.random.fold_in(jax.random.key(config.seed), STREAM),
        model,
        place.batch,
        windows[np.searchsorted(line, distance)],
        QUICK_SAMPLES if config.quick else SAMPLES,
        stages="first",
        kwargs={"train": False},
        progress=False,
    )
    counts = {
        label: np.asarray(count_arrangement(found, windows).regions)
        for label, found in planes.items()
    }
    return Expected(radius, distance, line, _closed(config, place, windows), estimate, counts)


def _along(place: Scene, distance: np.ndarray, radius: float) -> Window:
    """(T,) windows, the first centred at the batch centroid, which lies in it exactly."""
    middle = centroid(place.batch)
    step = place.centers[0, 0] - middle
    centers = middle + distance[:, None] * (step / np.linalg.norm(step))
    if centers.shape[1] == 2:
        return Window(centers, radius)
    basis = place.bases[0, 0, :, :2]
    return Window(centers, radius, basis, anchor=centers)


def _closed(config: StudyConfig, place: Scene, windows: Window) -> dict[str, np.ndarray] | None:
    """Per model; None unless the activation's one breakpoint is 0: beta is 0 at initialisation."""
    if tuple(activation_named(config.activation).breakpoints) != (0.0,):
        return None
    layer: dict[str, Any] = {
        "num_units": config.widths[0],
        "weight_std": math.sqrt(2 / place.batch.shape[1]),  # He
        "bias_std": config.bias_std,
    }
    middle = {BATCH: centroid(place.batch), NONE: None}
    return {
        model: np.asarray(theory.expected_regions(windows, **layer, center=middle[model]))
        for model in MODELS
    }


def regions(found: Expected) -> dict[str, Estimate]:
    """Expected regions per model, and of their difference; exact counts, so they are there."""
    estimate = found.estimate
    sides = (estimate.batch_norm, estimate.no_batch_norm, estimate.difference)
    pairs = zip((*MODELS, DIFFERENCE), sides, strict=True)
    return {name: cast(Estimate, side.regions) for name, side in pairs}


def rows(found: Expected) -> list[dict[str, Any]]:
    """One per model and distance of the estimates; regions, and None where nothing is known."""
    at = np.searchsorted(found.line, found.distance)
    out = []
    for model in MODELS:
        mean = regions(found)[model]
        for i, j in enumerate(at.tolist()):
            row = {"model": model, "distance": float(found.distance[i]), "radius": found.radius}
            row["closed_form"] = None if found.closed is None else float(found.closed[model][j])
            names = ("mean", "standard_error", "low", "high")
            row |= {f"monte_carlo_{n}": float(getattr(mean, n)[i]) for n in names}
            row["samples"] = found.estimate.num_samples
            for (name, epoch), counts in found.counts.items():
                if name == model:
                    row[f"network_epoch_{epoch}"] = int(counts[j])
            out.append(row)
    return out


def largest_z(found: Expected) -> float:
    """max |estimate - closed form| / standard error, where the standard error is not 0."""
    at = np.searchsorted(found.line, found.distance)
    closed = found.closed or {}
    z = [0.0]
    for model in MODELS:
        mean = regions(found)[model]
        gap, error = abs(mean.mean - closed[model][at]), mean.standard_error
        z += (gap[error > 0] / error[error > 0]).tolist()
    return max(z)


def sentence(config: StudyConfig, found: Expected) -> str:
    """What the figure shows."""
    difference = regions(found)[DIFFERENCE]
    claims = [
        f"BN is expected to have {word} regions at {_places(found, where)}"
        for word, where in (("more", difference.low > 0), ("fewer", difference.high < 0))
        if where.any()
    ]
    if ((difference.low <= 0) & (difference.high >= 0)).any():
        claims.append(f"{'elsewhere ' if claims else ''}no difference is resolved at 95%")
    known = (
        "no closed form holds for this activation"
        if found.closed is None
        else f"the estimates are within {largest_z(found):.1f} standard errors of the closed form"
    )
    return (
        f"Layer 1 in 2-d windows of radius {number(found.radius)} along the ray from the batch "
        "centroid through one held-out example: at initialisation, over "
        f"{found.estimate.num_samples} draws of the weights, {'; '.join(claims)}; {known}; on the "
        f"right one pair of networks, after {epochs(config.epochs)}, so no statistic."
    )


def _places(found: Expected, where: np.ndarray) -> str:
    if where.all():
        return "all distances"
    return f"distance {', '.join(number(t) for t in found.distance[where].tolist())}"
