"""The first stage of any network as hyperplanes, also while its parameters are traced."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.hyperplanes import Hyperplanes
from jaxregions.tracing import CPAFunction, is_slot

__all__ = ["first_hyperplanes"]

MEAN = "subtract_batch_mean"


def first_hyperplanes(net: CPAFunction, centroid: Any) -> Hyperplanes:
    """The first stage's switching values z(x) = z(p) + J (x - p) as J_i (x - p) = -z_i(p).

    p is the centroid of the batch where a BatchNorm comes before the first nonlinearity, else the
    origin. The mean that BatchNorm subtracts from an affine z is z(p) (averaged over positions in
    a convolution), so z - mean is exactly 0 at p and the concurrency of the hyperplanes is kept.
    Breakpoints of one pre-activation are one family of parallels.

    Source: MATHEMATICS.md, recentring.
    """
    program = net.program
    point = np.zeros(net.input_shape)
    if any(step.name == MEAN and _affine(step.inputs[0]) for step in program.steps):
        point = centroid
    steps = [_about_centroid(step) if step.name == MEAN else step for step in program.steps]
    centred = dataclasses.replace(net, program=program._replace(steps=steps), _jitted={})
    value = centred.switching_values(jnp.asarray(point))[0]

    def switching(flat):
        return net.switching_values(flat.reshape(net.input_shape))[0]

    flat = jnp.ravel(jnp.asarray(point))
    wide = net.stages[0].size > flat.size
    normal = (jax.jacfwd if wide else jax.jacrev)(switching)(flat)
    family = _families(net)
    return Hyperplanes(normal[family[:, 0]], flat, -value[family])


def _affine(value: Any) -> bool:
    return is_slot(value) and value.depth == 0


def _about_centroid(step: Any) -> Any:
    """The step with the mean over the batch taken at its centroid; masks leave rows out."""
    if len(step.inputs) > 2:
        return step
    axes = step.eqn.params["axes"]
    return step._replace(function=lambda z, _: [z - z.mean(axes, keepdims=True)])


def _families(net: CPAFunction) -> np.ndarray:
    """(n, K) indices of the first stage's switching values: row i has one normal."""
    groups, first = net.stages[0].groups, 0
    rows: dict[int, list[np.ndarray]] = {}
    parallel = True
    for group in groups:
        size = int(np.prod(group.left.shape)) if group.rows is None else int(group.rows.sum())
        parallel &= group.rows is None and not is_slot(group.right)
        rows.setdefault(group.left.index, []).append(first + np.arange(size))
        first += size
    if not parallel or len({len(family) for family in rows.values()}) > 1:
        return np.arange(first)[:, None]
    return np.concatenate([np.stack(family, axis=1) for family in rows.values()])
