"""Exact regions of the whole network in 2-d slices: counts, and pictures over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from jaxregions.batchnorm import centroid, condition
from jaxregions.density import log_density
from jaxregions.partitions import Partition, partition
from jaxregions.regions import Status, count_regions
from jaxregions.study.config import StudyConfig
from jaxregions.study.measure import Scene
from jaxregions.tracing import CPAFunction, trace
from jaxregions.windows import Window
from jaxregions.zoo import MLP

__all__ = [
    "CENTROID",
    "PARAMETERS",
    "centroid_windows",
    "count",
    "picture",
    "picture_epochs",
    "picture_window",
    "stored_parameters",
    "traced",
]

CENTROID = "centroid"  # the third kind of window, beside data and control
PARAMETERS = "params/"  # prefix of a checkpoint's parameters
MOST_REGIONS = 1_000_000  # in a window; beyond, the count ends after the layer that passed it
PICTURE_REGIONS = 100_000
CENTROID_WINDOWS = 8  # at initialisation each costs a rational decision per pair of units
PICTURES = 3  # checkpoints in the small multiples


def traced(place: Scene, model: MLP, variables: Any) -> CPAFunction:
    """The network, given the batch, as staged switching values: stage l is hidden layer l + 1."""
    return trace(condition(model, variables, place.batch, train=False), place.batch[0])


def centroid_windows(place: Scene, radius: float) -> Window:
    """Slices centred at the batch centroid, which lies in them exactly: (C,).

    Their directions are those of the first data windows.
    """
    bases = place.bases[0, :CENTROID_WINDOWS, :, :2]
    middle = np.broadcast_to(centroid(place.batch), bases.shape[:2])
    return Window(middle, radius, bases, anchor=middle)


def count(
    config: StudyConfig, place: Scene, net: CPAFunction, affine: bool
) -> dict[str, np.ndarray]:
    """Exact counts in 2-d windows of all slice radii, all in one call; L hidden layers.

    Args:
      affine: count affine regions too, which needs the geometry of the last layer.

    Returns:
      network_regions, network_hits: (slice radii, 2, W, L) activation regions of layers 1, ..., l,
        and units of layer l that switch inside the window; near data and at the controls.
      network_affine: (slice radii, 2, W) affine regions, -1 where not counted.
      network_log_density: (slice radii, 2, W) log (regions / area).
      network_exact: (slice radii, 2, W) counted to the end, and certified.
      centroid_regions, ...: the same for slices through the centroid, (slice radii, C, ...).
    """
    groups = {
        "network": [place.slices(2, radius) for radius in config.slice_radii],
        CENTROID: [centroid_windows(place, radius) for radius in config.slice_radii],
    }
    every = [window for windows in groups.values() for window in windows]
    joined = _joined(every)
    found = count_regions(net, joined, affine=affine, max_regions=MOST_REGIONS, progress=False)
    if (found.status == Status.INTERRUPTED).any():
        raise KeyboardInterrupt
    values = {
        "regions": found.by_stage,
        "hits": found.hits,
        "affine": np.full(len(joined.center), -1) if not affine else found.affine_regions,
        "log_density": log_density(found.activation_regions, joined),
        "exact": found.certified & (found.status == Status.COMPLETE),
    }
    out, start = {}, 0
    for name, windows in groups.items():
        shape = (len(windows), *windows[0].batch_shape)
        stop = start + int(np.prod(shape))
        for quantity, value in values.items():
            part = np.asarray(value)[start:stop]
            out[f"{name}_{quantity}"] = part.reshape(*shape, *part.shape[1:])
        start = stop
    return out


def _joined(groups: list[Window]) -> Window:
    """All windows of 2-d windows in one flat batch."""
    d = groups[0].input_dimension
    parts = []
    for windows in groups:
        flat = windows.reshape(-1)
        basis = np.eye(d) if flat.basis is None else flat.basis
        parts.append((flat.center, flat.radii(), np.broadcast_to(basis, (*flat.center.shape, 2))))
    center, radii, basis = (np.concatenate(p) for p in zip(*parts, strict=True))
    # A centre is its own anchor: it lies in its slice exactly, the batch centroid too.
    return Window(center, radii, basis, anchor=center)


def picture_window(place: Scene) -> Window:
    """The slice through the batch centroid and two held-out points, which holds all three."""
    return Window.through(centroid(place.batch), *place.points[:2], margin=1.25)


def picture_epochs(config: StudyConfig) -> tuple[int, ...]:
    """Up to ``PICTURES`` checkpoints, spread over the schedule, the first and last included."""
    times = config.schedule
    chosen = np.linspace(0, len(times) - 1, min(PICTURES, len(times))).round().astype(int)
    return tuple(times[i] for i in chosen)


def picture(place: Scene, model: MLP, arrays: Mapping[str, np.ndarray]) -> Partition:
    """The partition of the picture's window by a stored checkpoint of the model."""
    net = traced(place, model, _variables(arrays))
    window = picture_window(place)
    return partition(net, window, max_regions=PICTURE_REGIONS, affine=False, progress=False)


def stored_parameters(variables: Any) -> dict[str, np.ndarray]:
    """The parameters as arrays, for a checkpoint."""
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {f"{PARAMETERS}{name}": np.asarray(value) for name, value in flat.items()}


def _variables(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    flat = {
        name.removeprefix(PARAMETERS): value
        for name, value in arrays.items()
        if name.startswith(PARAMETERS)
    }
    return {"params": traverse_util.unflatten_dict(flat, sep="/")}
