"""A lower bound on the regions of a window that is too large to count: those with a random point.

At a point whose switching values are all proven to be positive or negative, a region has these
signs. Points at which one is zero or left open say nothing. Signs are compared by the sum of random
64-bit numbers, one for each positive value: different sums prove different signs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.engines.points import CORNER, Vertices, frame_of, lift
from jaxregions.engines.steps import in_steps
from jaxregions.tracing import CPAFunction, bounded_values, compiled, prepare
from jaxregions.windows import Window

__all__ = ["regions_drawn"]

_TOGETHER = 1 << 15


def _sums(prepared: Any, x: Any, error: Any, keys: Any, stages: int):
    def one(point, e):
        total, sure = jnp.zeros((), jnp.uint64), jnp.bool_(True)
        for stage in range(stages):
            value, bound = bounded_values(prepared, point, e, stage)
            total += jnp.sum(jnp.where(value > bound, keys[stage], jnp.uint64(0)))
            sure &= jnp.all(jnp.abs(value) > bound)
        return total, sure

    return jax.vmap(one)(x.reshape(-1, *prepared.net.input_shape), error)


def regions_drawn(
    net: CPAFunction,
    window: Window,
    *,
    points: int,
    seed: int = 0,
    deadline: float = math.inf,
) -> int:
    """A proven lower bound on the regions of one window: how many hold one of these points.

    Args:
      window: without leading axes.
      points: how many, uniform in the window; fewer where ``deadline`` passes before, or Ctrl-C.
    """
    found, fresh, waiting = np.zeros(0, np.uint64), [], 0
    try:
        for some in _drawn(net, window, points, seed, deadline):
            fresh, waiting = [*fresh, some], waiting + len(some)
            if waiting > len(found):
                found, fresh, waiting = np.unique(np.concatenate([found, *fresh])), [], 0
    except KeyboardInterrupt:
        pass
    return max(1, len(np.unique(np.concatenate([found, *fresh]))))


def _drawn(
    net: CPAFunction, window: Window, points: int, seed: int, deadline: float
) -> Iterator[np.ndarray]:
    """The sums at some of the points after the other, each once."""
    rng, flat = np.random.default_rng(seed), window.reshape(1)
    frame, radius = frame_of(flat), np.asarray(flat.radii(), np.float64)[0]
    keys = [rng.integers(0, 1 << 64, s.size, np.uint64) for s in net.stages]
    for start in range(0, points, _TOGETHER):
        if time.monotonic() > deadline:
            return
        count = min(_TOGETHER, points - start)
        u = rng.uniform(-1.0, 1.0, (count, len(radius))) * radius
        none = np.full(count, CORNER)
        every = Vertices(u, np.zeros(count), np.zeros(count, int), none, none, none, none, none)
        with jax.enable_x64(True):
            prepared = prepare(net)
            run = compiled(_sums, prepared.structure, static=(4,))
            total, sure = in_steps(
                lambda x, e, run=run, prepared=prepared: run(prepared, x, e, keys, len(keys)),
                count,
                lambda part, every=every: lift(frame, every.rows(part)),
            )
        yield np.unique(total[sure & (np.abs(u) < radius).all(axis=1)])
