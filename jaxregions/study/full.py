"""Exact regions of the whole network in full-dimensional windows, against the radius."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxregions.regions import Status, count_regions
from jaxregions.study.config import StudyConfig
from jaxregions.study.measure import KINDS, Scene
from jaxregions.tracing import CPAFunction
from jaxregions.windows import Window

__all__ = [
    "FULL",
    "MOST",
    "Quartiles",
    "count",
    "full_epochs",
    "full_windows",
    "has_full",
    "quartiles",
]

FULL = "full_"  # prefix of a checkpoint's numbers
MOST = 500  # regions in a window; beyond, the count ends with a lower bound
SHARE = 4  # of the windows, every 4th


def has_full(config: StudyConfig, d: int) -> bool:
    """Whether these windows are not the slices themselves."""
    return d > max(2, *config.slice_dimensions)


def full_epochs(config: StudyConfig) -> tuple[int, ...]:
    """The checkpoints that are counted: the first and the last."""
    return tuple(dict.fromkeys((0, config.epochs)))


def count(
    config: StudyConfig, place: Scene, net: CPAFunction, advance: Callable[[], None]
) -> dict[str, np.ndarray]:
    """Exact counts in the boxes around some of the centres, F of each kind; L hidden layers.

    A window with more than ``MOST`` regions has more than that at every larger radius too, where it
    is not counted again. Where these are most windows of both kinds, nothing is counted any more.

    Args:
      advance: called after each radius.

    Returns:
      full_regions: (radii, 2, F) regions of all layers; where not exact, a proven lower bound.
      full_exact: (radii, 2, F) counted to the end, and certified.
    """
    centers = place.centers[:, : full_windows(config)]
    shape = centers.shape[:2]
    flat = centers.reshape(-1, centers.shape[-1])
    bound, going = np.ones(len(flat), np.int64), np.ones(len(flat), bool)
    regions, exact = [], []
    for radius in config.radii:
        at = np.flatnonzero(going)
        if 2 * len(at) >= len(flat):
            windows = Window(flat[at], radius)
            found = count_regions(net, windows, max_regions=MOST, progress=False)
            if (found.status == Status.INTERRUPTED).any():
                raise KeyboardInterrupt
            bound[at] = np.maximum(bound[at], found.activation_regions)
            going[at] = found.certified & (found.status == Status.COMPLETE)
        else:
            going[:] = False
        regions.append(bound.reshape(shape).copy())
        exact.append(going.reshape(shape).copy())
        advance()
    return {f"{FULL}regions": np.stack(regions), f"{FULL}exact": np.stack(exact)}


def full_windows(config: StudyConfig) -> int:
    """F, how many windows of each kind are counted."""
    return max(2, config.windows // SHARE)


class Quartiles(NamedTuple):
    """Per radius, over windows: quartiles of the regions, NaN where the count ended before."""

    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray


def quartiles(raw: Mapping[str, np.ndarray], kind: str) -> Quartiles:
    """Quartiles over the windows of a kind, known also where less than half were not counted.

    What was not counted to the end is above all that was, so that it moves no quartile below.
    """
    j = KINDS.index(kind)
    values = np.where(raw[f"{FULL}exact"][:, j], raw[f"{FULL}regions"][:, j], np.inf)
    # An order statistic itself, not a mean with an unknown neighbour.
    found = np.quantile(values, (0.25, 0.5, 0.75), axis=1, method="inverted_cdf")
    return Quartiles(*np.where(np.isinf(found), np.nan, found))
