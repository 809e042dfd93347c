"""How much the partition jitters with the mini-batch that BatchNorm is conditioned on."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import ModifyScopeVariableError

from jaxregions._progress import watching
from jaxregions._records import is_traced
from jaxregions.batchnorm import condition
from jaxregions.batchnorm.first_layer import as_batch, centroid
from jaxregions.batchnorm.nnx import call
from jaxregions.depth import critical_scales
from jaxregions.regions import Status, count_regions
from jaxregions.tracing import CPAFunction, trace
from jaxregions.windows import Window, require_window

__all__ = ["BatchDependence", "PartitionShift", "Spread", "batch_dependence"]

_FLOATS = 1 << 23  # numbers in the working set of the mini-batches that are conditioned together
_DIRECTIONS = 32  # that a norm of gradients takes in one step


class Spread(NamedTuple):
    """A quantity over the mini-batches of S sizes.

    samples: (S, num_batches, ...).
    mean, std: (S, ...); std with divisor num_batches - 1.
    """

    samples: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class PartitionShift(NamedTuple):
    """A partition, against the one conditioned on the whole data set.

    displacement: (n,) how far each of the n first-stage hyperplanes has moved: the change of its
        signed Euclidean distance from the data's centroid. Behind one BatchNorm, where hyperplanes
        move in parallel, that is the distance between the two. 0 for one that is in neither.
    hits: int64 (...,), first-stage units that refine each window.
    changed: (...,) in [0, 1], Jaccard distance 1 - |A n B| / |A u B| between the set of these units
        and that of the whole data set; 0 where both are empty.
    regions: int64 (...,), exact activation regions of the whole network; None if not asked for.
    """

    displacement: Any
    hits: Any
    changed: Any
    regions: Any = None


class BatchDependence(NamedTuple):
    """What ``batch_dependence`` measures.

    batch_sizes: (S,) int64.
    centroid: Spread (S,), Euclidean distance of a mini-batch's centroid from the data's.
    windows_changed: Spread (S,), share of the windows that are refined by another set of
        first-stage units than with the whole data set.
    batches: Spreads of each field of PartitionShift, with the mini-batches' own statistics.
    full: the whole data set as one batch; displacement and changed are 0.
    running: the model with its running statistics; None where it has none.
    """

    batch_sizes: np.ndarray
    centroid: Spread
    windows_changed: Spread
    batches: PartitionShift
    full: PartitionShift
    running: PartitionShift | None


def batch_dependence(
    key: jax.Array,
    model: Any,
    variables: Mapping[str, Any] | None,
    data: Any,
    windows: Window,
    *args: Any,
    batch_sizes: Sequence[int],
    num_batches: int,
    count: bool = False,
    method: Callable | str | None = None,
    rngs: Any = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> BatchDependence:
    """The distribution of hyperplanes, hits and region counts over mini-batches of a data set.

    Mini-batch i of size N holds the first N rows of a random permutation of the data that depends
    on the key and on i only. So it is drawn without replacement, the sizes are nested (common
    random numbers), and neither num_batches nor the other sizes change it. With M rows of biased
    covariance Sigma and mean p, its centroid p_B and the reference hyperplane of a first-layer unit
    with weights w move by

        E |p_B - p|^2 = (tr Sigma / N) (M - N) / (M - 1),      |w . (p_B - p)| / |w|_2.

    Hits follow the window criterion in float64, not certified. Regions are exact.

    Args:
      key: a jax random key.
      model, variables, args, kwargs, method, rngs: as in ``condition``. They ask for inference
        (such as train=False): so called, the model uses its running statistics.
      data: (M, *input_shape).
      windows: (...,) windows, flat centres.
      batch_sizes: S sizes N, 2 <= N <= M.
      num_batches: mini-batches of each size, at least 2.
      count: count regions too, k = 1 or 2; a ``count_regions`` of all windows per mini-batch.
      progress: draw a bar; default: on a terminal, for calls that last.

    Raises:
      ValueError: data or windows of wrong shapes, tracers, sizes or a number of batches out of
        range, ``count`` with k > 2, an affine model, arguments that ask for training, and what
        ``condition`` raises.
      NotPiecewiseAffineError: the model is not piecewise affine.

    Source: MATHEMATICS.md, recentring.
    """
    data, sizes = _checked(variables, data, windows, batch_sizes, num_batches, count)
    state, conditioned, inference = _functions(model, variables, args, kwargs, method, rngs)
    shape, center = data.shape[1:], centroid(data)
    net = trace(conditioned(state, data), np.zeros(shape))
    if not net.stages:
        raise ValueError("model: expected one with switching values, received an affine one")
    wide = jax.tree.map(lambda v: np.asarray(v, np.float64), windows)

    def look(f):
        return _first_stage(trace(f, jnp.zeros(shape)), wide, center)

    @jax.jit
    def on_batches(state, data, rows, whole):
        return jax.vmap(lambda row: _shift(look(conditioned(state, data[row])), whole))(rows)

    with jax.enable_x64(True):
        whole = jax.jit(lambda s, d: look(conditioned(s, d)))(state, data)
        full, running = jax.device_get(_shift(whole, whole)), None
        if inference is not None:
            seen = jax.jit(lambda s, w: _shift(look(inference(s)), w))(state, whole)
            running = jax.device_get(seen)
    if count:
        full = full._replace(regions=_regions(net, windows, shape))
    if count and running is not None and inference is not None:
        running = running._replace(regions=_regions(inference(state), windows, shape))

    orders, moved = _orders(key, num_batches, len(data)), data - center
    width = data[0].size + sum(stage.size for stage in net.stages)
    away, shifts = [], []
    with watching(len(sizes) * num_batches, progress, of="mini-batches") as watch:
        for size in sizes:
            together = _FLOATS // (width * (size + math.prod(windows.batch_shape)))
            for rows in orders[:, :size].reshape(-1, _divisor(num_batches, together), size):
                with jax.enable_x64(True):
                    shift = jax.device_get(on_batches(state, data, rows, whole))
                if count:
                    regions = []
                    for row in rows:
                        regions.append(_regions(conditioned(state, data[row]), windows, shape))
                        watch(len(away) + len(regions))
                    shift = shift._replace(regions=np.stack(regions))
                shifts.append(shift)
                away.extend(np.linalg.norm(moved[row].mean(axis=0)) for row in rows)
                watch(len(away))

    def spread(*blocks):
        samples = np.concatenate(blocks)
        samples = samples.reshape(len(sizes), num_batches, *samples.shape[1:])
        return Spread(samples, samples.mean(axis=1), samples.std(axis=1, ddof=1))

    batches = jax.tree.map(spread, *shifts)
    other = batches.changed.samples.reshape(len(away), -1) > 0
    return BatchDependence(
        np.asarray(sizes), spread(away), spread(other.mean(axis=1)), batches, full, running
    )


def _first_stage(net: CPAFunction, windows: Window, point: Any) -> tuple[Any, Any]:
    """Signed distances of the point to the first stage's hyperplanes, and which units refine."""
    flat, values = point.ravel(), lambda x: net.switching_values(x.reshape(point.shape))[0]
    at_point, slopes_along = jax.linearize(values, flat)
    steps = -(-flat.size // _DIRECTIONS)

    def add(total, axes):
        # An axis beyond the last gives a direction of 0.
        slopes = jax.vmap(slopes_along)(jax.nn.one_hot(axes, flat.size, dtype=flat.dtype))
        return total + (slopes**2).sum(axis=0), None

    axes = jnp.arange(steps * _DIRECTIONS).reshape(steps, _DIRECTIONS)
    norm = jnp.sqrt(jax.lax.scan(add, jnp.zeros_like(at_point), axes)[0])
    distance = jnp.where(norm > 0, at_point / jnp.where(norm > 0, norm, 1.0), jnp.inf)
    return distance, critical_scales(net, windows).scales[0] < 1


def _shift(seen: tuple[Any, Any], whole: tuple[Any, Any]) -> PartitionShift:
    (distance, hit), (before, hit_before) = seen, whole
    absent = jnp.isinf(distance) & jnp.isinf(before)
    displacement = jnp.where(absent, 0.0, abs(distance - jnp.where(absent, 0.0, before)))
    union = (hit | hit_before).sum(axis=-1)
    common = (hit & hit_before).sum(axis=-1)
    changed = jnp.where(union > 0, 1 - common / jnp.maximum(union, 1), 0.0)
    return PartitionShift(displacement, hit.sum(axis=-1), changed)


Maker = Callable[..., Callable[[Any], Any]]


def _functions(model, variables, args, kwargs, method, rngs) -> tuple[Any, Maker, Maker | None]:
    """The model's state, and two ways from (traced copies of) it to a function of one example.

    conditioned(state, batch): with batch statistics. inference(state): with running statistics,
    None if the model has none.
    """
    is_nnx = isinstance(model, nnx.Module)
    graph: Any = None
    state: Any = variables
    if is_nnx:
        graph, state = nnx.split(model)

    def conditioned(state, batch):
        own, variables = (nnx.merge(graph, state), None) if is_nnx else (model, state)
        return condition(own, variables, batch, *args, method=method, rngs=rngs, **kwargs)

    def run(state, x):
        if not is_nnx:
            return model.apply(state, x, *args, method=method, rngs=rngs, **kwargs)
        own = nnx.merge(graph, state)
        own.eval()
        return call(own, method, x, *args, **kwargs)

    def inference(state):
        def f(x):
            # As in ``condition``: the stored numbers, in the precision of x.
            own = jax.tree.map(lambda leaf: _like(leaf, x), state)
            try:
                return jax.tree.map(lambda leaf: leaf[0], run(own, x[None]))
            except ModifyScopeVariableError as error:
                raise ValueError(
                    "args: expected arguments that ask for inference (such as train=False), "
                    "received ones that update the running statistics"
                ) from error

        return f

    if is_nnx:
        if variables is not None or rngs is not None:
            raise ValueError("expected variables=None and rngs=None, an nnx model holds its own")
        return state, conditioned, inference if nnx.state(model, nnx.BatchStat) else None
    has_running = isinstance(model, linen.Module) and "batch_stats" in (variables or ())
    return state, conditioned, inference if has_running else None


def _like(leaf: Any, x: Any) -> Any:
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(x.dtype) if floating else leaf


def _regions(f: Any, windows: Window, shape: tuple[int, ...]) -> np.ndarray:
    counts = count_regions(f, windows, input_shape=shape, progress=False)
    if (counts.status == Status.INTERRUPTED).any():
        raise KeyboardInterrupt
    return counts.activation_regions


def _orders(key: jax.Array, num_batches: int, size: int) -> np.ndarray:
    """(num_batches, size) permutations."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(num_batches))
    return np.asarray(jax.vmap(lambda k: jax.random.permutation(k, size))(keys))


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``, or 1."""
    return max(i for i in range(1, number + 1) if number % i == 0 and (i <= most or i == 1))


def _checked(
    variables: Any, data: Any, windows: Any, batch_sizes: Any, num_batches: Any, count: bool
) -> tuple[np.ndarray, list[int]]:
    require_window(windows)
    if is_traced(variables, data, windows):
        raise ValueError("expected known numbers, received tracers; call it outside jit")
    data = as_batch(data, "data")
    if data.ndim < 2 or len(data) < 2:
        raise ValueError(f"data: expected shape (M, ...) with M >= 2, received {data.shape}")
    if windows.input_dimension != data[0].size:
        raise ValueError(
            f"windows: expected centres of {data[0].size} entries for data of shape {data.shape}, "
            f"received {windows.input_dimension}"
        )
    if not math.prod(windows.batch_shape):
        raise ValueError("windows: expected at least one, received none")
    if count and windows.dimension > 2:
        raise ValueError(
            f"count: expected False for windows of dimension k > 2, received k = "
            f"{windows.dimension}; take slices (Window(basis=))"
        )
    sizes = [_integer(size, "batch_sizes", 2) for size in np.ravel(batch_sizes)]
    if not sizes or max(sizes) > len(data):
        raise ValueError(f"batch_sizes: expected 2 .. {len(data)}, received {batch_sizes}")
    _integer(num_batches, "num_batches", 2)
    return data, sizes


def _integer(value: Any, name: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}: expected integers, received {value!r}") from error
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, received {number}")
    return number
