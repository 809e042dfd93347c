"""Which affine maps agree because no change of pieces reaches the outputs: against rationals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import initial_variables
from flax import linen as nn
from small_networks import integer_layers, integer_windows, network

import jaxregions as jr
from jaxregions.engines import affine

RNG = np.random.default_rng(0)
W1, B1 = RNG.normal(size=(8, 2)), 0.3 * RNG.normal(size=8)
W2, B2 = RNG.normal(size=(6, 8)), 0.3 * RNG.normal(size=6) - 0.5
W3 = RNG.normal(size=(1, 6))
PLANE = jr.Window(np.zeros((2, 2)), 2.0)


def hidden(x):
    return jax.nn.relu(W1 @ x + B1)


def masked(x):
    return W3 * np.array([0, 0, 0, 1, 1, 1]) @ jax.nn.relu(W2 @ hidden(x) + B2)


def dead(x):
    return W3 @ jax.nn.relu(W2 @ hidden(x) - 3)


def straight(x):
    """Slopes of 1 below zero too, for some units: no bend there."""
    z = W2 @ hidden(x) + B2
    return W3 @ jnp.where(z > 0, z, np.array([0, 1, 0.5, 1, 0, 1]) * z)


def pooled(x):
    """Candidates that lose, ties of dead ones, a residual path, a weight of zero."""
    h = jnp.minimum(jnp.abs(W1 @ x + B1), 1.0)
    z = jax.nn.relu(W2 @ h - 1)
    z = nn.max_pool(z[None, :, None], (3,), strides=(1,), padding="SAME").ravel()
    return jnp.stack([z[1] + x[0], 0 * z[0] + z[4]])


def normed(x):
    batch = np.random.default_rng(1).normal(size=(16, 2))
    model = nn.Sequential(
        [nn.Dense(8), nn.BatchNorm(False), nn.relu, nn.Dense(3), nn.BatchNorm(False), nn.relu]
    )
    f = jr.condition(model, initial_variables(model, batch), batch)
    return f(x)[0]


def integers(seed, *hows):
    return network(integer_layers(seed, (3, 5, 4, 3), hows)), integer_windows(seed, 3, 3, 2)


SLOW = pytest.mark.slow
CASES = {
    "masked": pytest.param(masked, PLANE, marks=SLOW),
    "dead": pytest.param(dead, PLANE, marks=SLOW),
    "straight": (straight, PLANE),
    "pooled": pytest.param(pooled, PLANE, marks=SLOW),
    "normed": pytest.param(normed, PLANE, marks=SLOW),
    "integers, relu": pytest.param(*integers(1, "relu", "relu", None), marks=SLOW),
    "integers, leaky": pytest.param(*integers(3, "leaky", "relu", "relu"), marks=SLOW),
    "integers, maxout": pytest.param(*integers(3, 3, "relu", None), marks=SLOW),
    "integers, hard_tanh and maxout": pytest.param(
        *integers(3, "hard_tanh", 2, "relu"), marks=SLOW
    ),
}


@pytest.mark.parametrize(("f", "windows"), CASES.values(), ids=CASES.keys())
def test_what_no_change_reaches_is_one_affine_region_in_rationals(f, windows, monkeypatch):
    net = jr.trace(f, np.zeros(windows.center.shape[-1]))
    monkeypatch.setattr(affine, "FEW", -1)
    fast = jr.count_regions(net, windows, affine=True)
    monkeypatch.setattr(affine, "FEW", 1 << 60)
    slow = jr.count_regions(net, windows, affine=True)
    assert (fast.affine_regions == slow.affine_regions).all()
    assert (fast.affine_regions < fast.activation_regions).any()
    assert fast.settled_exactly < slow.settled_exactly


@pytest.mark.parametrize(("weight", "regions"), [(0.0, 1), (5e-324, 2)])
def test_a_weight_that_devices_read_as_zero_is_not_zero(weight, regions, monkeypatch):
    monkeypatch.setattr(affine, "FEW", -1)
    layers = [(np.ones((1, 1)), np.zeros(1), "relu"), (np.full((1, 1), weight), np.zeros(1), None)]
    counts = jr.count_regions(network(layers), jr.Window(np.zeros(1), 1.0), affine=True)
    assert counts.affine_regions == regions
