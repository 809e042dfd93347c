"""Many points through one jitted function: steps of few sizes, so that few are compiled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

import jax
import numpy as np

from jaxregions.engines.points import Ledger, Vertices, lift, numbered

__all__ = ["AHEAD", "EARLY", "ROWS", "begun", "in_steps", "lifted", "pinned"]

ROWS = (128, 1024)  # points in one step
AHEAD = 2  # steps that run while the next is prepared
EARLY = 64 << 20  # bytes of results that are made before they are asked for


def _sizes(count: int) -> list[int]:
    """Sizes of the steps that cover ``count`` points, the large ones first."""
    small, large = ROWS
    full, rest = divmod(count, large)
    if rest > large // 2:  # one padded step is faster than many small ones
        return [large] * (full + 1)
    return [large] * full + [small] * -(-rest // small)


def in_steps(
    function: Callable[..., Any],
    count: int,
    inputs: Callable[[slice], tuple[np.ndarray, ...]],
    finish: Callable[..., Any] = lambda *rows: rows,
    pause: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    """The outputs of function(*inputs), NumPy arrays of ``count`` rows.

    Args:
      function: jitted, all inputs and outputs (a tuple or list) with one row a point.
      inputs: the rows of a slice.
      finish: what is made of the outputs of a step, row by row, while they are at hand.
      pause: called before each step.
    """
    return begun(function, count, inputs, finish, pause)()


def begun(
    function: Callable[..., Any],
    count: int,
    inputs: Callable[[slice], tuple[np.ndarray, ...]],
    finish: Callable[..., Any],
    pause: Callable[[], None],
    ahead: int = AHEAD,
) -> Callable[[], list[np.ndarray]]:
    """``in_steps``, of which so many steps run from now on; calling it gives the outputs."""

    def dispatched():
        start = 0
        for size in _sizes(count):
            pause()
            part = slice(start, min(start + size, count))
            rows = inputs(part)
            if part.stop - start < size:
                rows = tuple(np.resize(r, (size, *r.shape[1:])) for r in rows)
            yield part, jax.tree.leaves(function(*rows))
            start = part.stop

    steps = dispatched()
    running = deque(islice(steps, ahead))

    def collected():
        out: list[np.ndarray] = []
        while running:
            running.extend(islice(steps, 1))
            part, outputs = running.popleft()
            results = finish(*map(np.asarray, outputs))
            if not out:
                out.extend(np.empty((count, *r.shape[1:]), r.dtype) for r in results)
            for target, result in zip(out, results, strict=True):
                target[part] = result[: part.stop - part.start]
        return out

    return collected


def lifted(ledger: Ledger, vertices: Vertices, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Input points of some vertices and the bounds on their errors."""
    return lift(ledger.frame, vertices.rows(part))


def pinned(ledger: Ledger, vertices: Vertices, part: slice) -> np.ndarray:
    """(V, 2) the switching values that are known to vanish at some vertices, -1: none."""
    own = numbered(ledger.net, vertices.stage[part], vertices.entry[part])
    return np.stack([own, vertices.line[part]], axis=1).astype(np.int32)
