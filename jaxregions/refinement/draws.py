"""Many draws of one layer at once: what is asked for every draw, and what is found."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions.windows import Window

__all__ = ["Batch", "Sample"]


class Sample(NamedTuple):
    """What the hyperplanes of one draw do to every window; arrays (W,).

    hits: (unit, breakpoint) hyperplanes that refine the open window, int32.
    lower, upper: bracket of the number of regions of the layer, float; equal for k <= 2.
    decided: every decision behind them is proven; elsewhere the numbers are only likely.
    """

    hits: Any
    lower: Any
    upper: Any
    decided: Any


class Batch(NamedTuple):
    """Arguments (planes, windows) of many draws, flattened; those that move have a leading axis."""

    arrays: list[Any]
    moving: tuple[bool, ...]
    tree: Any

    @staticmethod
    def of(arguments: tuple[Any, Window]) -> Batch:
        """(planes, windows) of which all arrays have a leading axis, but a basis need not."""
        (arrays, tree), basis = jax.tree.flatten(arguments), arguments[1].basis
        moving = (not (a is basis and a.ndim == 2) for a in arrays)
        return Batch(arrays, tuple(moving), tree)

    @property
    def planes(self) -> tuple[Any, Any, Any]:
        """Normals, points and offsets; with a leading axis or without."""
        return jax.tree.unflatten(self.tree, self.arrays)[0]

    @property
    def windows(self) -> Window:
        """The windows; arrays with a leading axis or without."""
        return jax.tree.unflatten(self.tree, self.arrays)[1]

    @property
    def units(self) -> np.ndarray:
        """Of every flattened hyperplane, NumPy (m,)."""
        units, breakpoints = self.planes[2].shape[-2:]
        return np.arange(units * breakpoints) // breakpoints

    def with_moving(self, function: Any) -> Batch:
        """The same with other arrays where there is a leading axis."""
        pairs = zip(self.arrays, self.moving, strict=True)
        return self._replace(arrays=[function(a) if m else a for a, m in pairs])

    def each(self, function: Any, *more: Any) -> Any:
        """function(*more, planes, windows) of every draw."""
        axes = [0] * len(more), [0 if m else None for m in self.moving]

        def one(more, arrays):
            return function(*more, *jax.tree.unflatten(self.tree, arrays))

        return jax.vmap(one, in_axes=axes)(list(more), self.arrays)

    def some(self, draws: Any, windows: Any) -> Batch:
        """These draws (s,), each with windows of its own (s, M)."""

        def one(window, arrays):
            planes, every = jax.tree.unflatten(self.tree, arrays)
            return jax.tree.leaves((planes, every[window]))

        chosen = self.with_moving(lambda a: a.at[draws].get(mode="clip"))
        axes = 0, [0 if m else None for m in self.moving]
        arrays = jax.vmap(one, in_axes=axes)(windows, chosen.arrays)
        return self._replace(arrays=arrays, moving=(True,) * len(arrays))
