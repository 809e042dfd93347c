"""Affine maps handed down from cell to cell, against automatic differentiation of the function."""

from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxregions as jr
from jaxregions.engines import maps
from jaxregions.tracing import levels_of

RNG = np.random.default_rng(0)
W = [RNG.normal(size=(5, 3)), RNG.normal(size=(5, 5)), RNG.normal(size=(4, 5))]
BASIS = RNG.normal(size=(3, 2))


def residual(x):
    """Values that skip stages, several breakpoints a unit, a maximum, outputs of every kind."""
    early = W[0] @ x + 0.1
    h = jax.nn.relu(early)
    h = early + jax.nn.hard_tanh(W[1] @ h)
    left, right = jnp.split(W[2] @ jnp.abs(h), 2)
    return jnp.maximum(left, right), jnp.ones(2), 2 * early[0] - x[1]


def assert_maps(f, window):
    part = jr.partition(f, window, affine=False)
    basis = np.asarray(window.basis)
    points = np.asarray(window.center) + part.witness @ basis.T

    def flat(x):
        return jnp.concatenate([jnp.ravel(v) for v in jax.tree.leaves(f(x))])

    with jax.enable_x64(True):
        jacobian = np.asarray(jax.jit(jax.vmap(jax.jacobian(flat)))(points))
        values = np.asarray(jax.jit(jax.vmap(flat))(points))
    chex.assert_trees_all_close(part.slope, jacobian @ basis, rtol=1e-11, atol=1e-11)
    found = (part.slope @ part.witness[..., None])[..., 0] + part.intercept
    chex.assert_trees_all_close(found, values, rtol=1e-11, atol=1e-11)
    return len(part.witness)


@pytest.mark.slow
@pytest.mark.parametrize("early", [0, maps.EARLY])
def test_maps_are_the_derivatives_at_the_witnesses(monkeypatch, early):
    monkeypatch.setattr(maps, "ROWS", (8, 16))  # parents in two blocks
    monkeypatch.setattr(maps, "EARLY", early)  # made when they are needed, or before
    assert assert_maps(residual, jr.Window(np.array([0.1, 0.2, -0.1]), 0.8, basis=BASIS)) > 64


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3])
def test_maps_of_other_dimensions(k):
    basis = np.eye(3)[:, :k] + 0.1
    assert assert_maps(residual, jr.Window(np.zeros(3), 0.5, basis=basis)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("f", [lambda x: x[:2], lambda x: jax.nn.relu(x) * 0.0 + 1.0])
def test_functions_that_need_no_step(f):
    assert_maps(f, jr.Window(np.zeros(3), 0.2, basis=BASIS))


def test_every_step_that_matters_runs_at_one_level():
    net = jr.trace(residual, np.zeros(3))
    levels = levels_of(net)
    assert len(levels) == len(net.stages) + 1
    steps = [i for level in levels for i in level.steps]
    assert len(set(steps)) == len(steps)
    assert sum(bool(level.steps) for level in levels) == 5
    for before, after in pairwise(levels):
        assert before.made == after.known
