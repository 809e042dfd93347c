"""What is measured: the windows, fixed by the seed, and the numbers of one model in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxregions.activations import PiecewiseLinear
from jaxregions.arrangements import count_arrangement, region_bracket
from jaxregions.batchnorm import batch_hyperplanes, centroid, condition
from jaxregions.datasets import Dataset
from jaxregions.density import log_density
from jaxregions.hyperplanes import Hyperplanes, dense_hyperplanes
from jaxregions.study.config import StudyConfig
from jaxregions.windows import Window
from jaxregions.zoo import MLP

__all__ = ["KINDS", "Scene", "distinct_hits", "first_layer", "measure", "pieces", "scene"]

KINDS = ("data", "control")
PARALLEL = 1e-10  # 1 - |cosine| below this counts as parallel; far above its rounding error


class Scene(NamedTuple):
    """Where a study looks; W windows of each kind (data, control).

    batch: (N, d), the mini-batch that BatchNorm is conditioned on.
    centers: (2, W, d).
    bases: (2, W, d, q), orthonormal columns, q = min(d, 3); the first k span a slice.
    distances: (2, W), Euclidean, of the centres from the batch centroid.
    picture: the 2-d window through three held-out points.
    points: (3, d), those points.
    labels: (3,), their classes.
    """

    batch: np.ndarray
    centers: np.ndarray
    bases: np.ndarray
    distances: np.ndarray
    picture: Window
    points: np.ndarray
    labels: np.ndarray

    def slices(self, dimension: int, radius: float) -> Window:
        """The windows of this dimension around all centres: whole boxes where it is d."""
        if dimension == self.centers.shape[-1]:
            return Window(self.centers, radius)
        return Window(self.centers, radius, self.bases[..., :dimension])


def scene(config: StudyConfig, data: Dataset) -> Scene:
    """The mini-batch, centres, slices and picture of a study, from its seed.

    Data centres are held-out examples. A control's coordinates are drawn independently, each from
    the training data's values of that coordinate: the same marginals, no correlations.

    Raises:
      ValueError: more windows than held-out examples, a batch larger than the training data, data
        of one dimension, no three held-out points off one line.
    """
    x, held_out = np.asarray(data.x_train, np.float64), np.asarray(data.x_test, np.float64)
    if config.windows > len(held_out):
        raise ValueError(
            f"windows: expected at most {len(held_out)}, the held-out examples of {data.name}, "
            f"received {config.windows}"
        )
    if config.batch_size > len(x):
        raise ValueError(
            f"batch_size: expected at most {len(x)}, the training examples of {data.name}, "
            f"received {config.batch_size}"
        )
    if x.shape[1] < 2:
        raise ValueError(f"dataset: expected inputs of dimension >= 2, received {x.shape[1]}")
    # One stream per part, so that changing one option leaves the other parts as they were.
    streams = iter(np.random.default_rng([config.seed, 20_000 + i]) for i in range(5))
    batch = x[next(streams).permutation(len(x))[: config.batch_size]]
    near = held_out[next(streams).permutation(len(held_out))[: config.windows]]
    rng = next(streams)
    far = np.stack([rng.choice(column, config.windows) for column in x.T], axis=1)
    centers = np.stack([near, far])
    d = x.shape[1]
    normal = next(streams).normal(size=(2, config.windows, d, min(d, 3)))
    bases = np.linalg.qr(normal)[0]
    distances = np.linalg.norm(centers - centroid(batch), axis=-1)
    picture, points, labels = _picture(held_out, data.y_test, next(streams))
    return Scene(batch, centers, bases, distances, picture, points, labels)


def _picture(x: np.ndarray, y: np.ndarray, rng: np.random.Generator):
    """A window through one held-out point of each of three classes (of fewer, if there are)."""
    order = rng.permutation(len(x))
    firsts = np.array([order[y[order] == label][0] for label in np.unique(y)[:3]])
    rest = order[~np.isin(order, firsts)]
    for extra in (rest[i : i + 3 - len(firsts)] for i in range(min(50, len(rest)))):
        chosen = np.concatenate([firsts, extra]).astype(int)
        try:
            return Window.through(*x[chosen], margin=1.25), x[chosen], y[chosen]
        except ValueError:
            continue
    raise ValueError("dataset: expected three held-out points off one line, found none")


def first_layer(
    model: MLP, variables: Any, batch: np.ndarray, activation: PiecewiseLinear
) -> Hyperplanes:
    """The switching hyperplanes of layer 1, given the batch where the model has BatchNorm."""
    params = variables["params"]
    kernel = np.asarray(params["dense_0"]["kernel"], np.float64)
    if model.norm == "none":
        bias = np.asarray(params["dense_0"]["bias"], np.float64)
        return dense_hyperplanes(kernel, bias, activation=activation)
    gamma, beta = (np.asarray(params["norm_0"][n], np.float64) for n in ("scale", "bias"))
    return batch_hyperplanes(
        kernel,
        batch,
        gamma=gamma,
        beta=beta,
        activation=activation,
        epsilon=model.epsilon,
    ).switching


def pieces(config: StudyConfig, d: int) -> int:
    """Steps of one checkpoint: the calls of ``advance`` in ``measure``, and the whole network."""
    deeper = len(config.widths) > 1
    return 1 + len(config.radii) + deeper + len(config.slice_radii) * len(_dimensions(config, d))


def measure(
    config: StudyConfig,
    place: Scene,
    model: MLP,
    variables: Any,
    planes: Hyperplanes,
    advance: Callable[[], None],
) -> dict[str, np.ndarray]:
    """The raw numbers of one model at one checkpoint, one per window.

    Returns:
      hits, at_least: (radii, 2, W) int64, refining hyperplanes of layer 1 in the full-dimensional
        window, and the proven lower bound on its regions.
      log10_at_most: (radii, 2, W), log10 of the proven upper bound.
      regions_k, log_density_k: (slice radii, 2, W), for each slice dimension k: exact regions of
        layer 1, and log (regions / volume).
      deep_hits, deep_inside: (radii, 2, W, layers - 1), for layers 2, 3, ...: units that refine the
        window, and whether the window lies wholly in one parent region, which is what makes that
        number meaningful.
    """
    d = place.centers.shape[-1]
    found: dict[str, list] = {name: [] for name in ("hits", "at_least", "log10_at_most")}
    for radius in config.radii:
        hit = np.asarray(planes.refines(Window(place.centers, radius)))
        hits = hit.sum((-2, -1))
        found["hits"].append(hits)
        found["at_least"].append(1 + distinct_hits(planes, hit))
        found["log10_at_most"].append(np.log10(region_bracket(hits, d)[1]))
        advance()
    for k in _dimensions(config, d):
        found[f"regions_{k}"], found[f"log_density_{k}"] = [], []
        for radius in config.slice_radii:
            windows = place.slices(k, radius)
            regions = count_arrangement(planes, windows).regions
            found[f"regions_{k}"].append(regions)
            found[f"log_density_{k}"].append(log_density(regions, windows))
            advance()
    if len(config.widths) > 1:
        found |= _deeper_layers(config, place, model, variables, advance)
    return {name: np.stack(values) for name, values in found.items()}


def _dimensions(config: StudyConfig, d: int) -> tuple[int, ...]:
    return tuple(k for k in config.slice_dimensions if k <= d)


def distinct_hits(planes: Hyperplanes, hit: np.ndarray) -> np.ndarray:
    """A lower bound on the number of distinct hyperplanes among the hits (..., n, K): (...,).

    Hyperplanes of one unit are distinct, and so are those of units that are not parallel. Of a
    group of (nearly) parallel units only the one with most hits counts.
    """
    norms = np.linalg.norm(planes.normal, axis=-1, keepdims=True)
    unit = planes.normal / np.where(norms == 0, 1.0, norms)
    parallel = abs(unit @ unit.T) > 1 - PARALLEL
    np.fill_diagonal(parallel, True)
    per_unit = hit.sum(-1)
    if parallel.sum() == len(parallel):
        return per_unit.sum(-1)
    # Transitive closure: groups are connected components.
    group, last = parallel.argmax(1), None
    while last is None or (group != last).any():
        last, group = group, np.where(parallel, group, len(group)).min(1)
    return np.sum([per_unit[..., group == g].max(-1) for g in np.unique(group)], axis=0)


def _deeper_layers(config, place, model, variables, advance) -> dict[str, list]:
    from jaxregions.depth import stage_hits
    from jaxregions.tracing import trace

    net = trace(condition(model, variables, place.batch, train=False), place.batch[0])
    # All radii in one call: it compiles once per call.
    radii = np.array(config.radii)[:, None, None]
    centers = np.broadcast_to(place.centers, (len(radii), *place.centers.shape))
    found = stage_hits(net, Window(centers, np.broadcast_to(radii, centers.shape[:-1])))
    advance()
    return {
        "deep_hits": list(found.hits[..., 1:]),
        "deep_inside": list(found.in_parent[..., 1:]),
    }
