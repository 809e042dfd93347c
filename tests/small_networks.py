"""Small networks as plain lists of layers, which jax and the oracles both read."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

import jaxregions as jr

ACTIVATIONS = {
    None: lambda z: z,
    "relu": jax.nn.relu,
    "leaky": lambda z: jax.nn.leaky_relu(z, 0.25),
    "hard_tanh": jax.nn.hard_tanh,
}


def network(layers):
    """The function of layers (W, b, how), ``how`` as in ``oracles.window_cells``."""

    def f(x):
        for weights, bias, how in layers:
            x = jnp.asarray(weights, x.dtype) @ x + jnp.asarray(bias, x.dtype)
            x = x.reshape(-1, how).max(axis=1) if isinstance(how, int) else ACTIVATIONS[how](x)
        return x

    return f


def traced(layers):
    return jr.trace(network(layers), np.zeros(np.shape(layers[0][0])[1]))


def integer_layers(seed, sizes, hows):
    """Weights in -2..2 and biases in -1..1: parallel, equal, concurrent and dead units abound."""
    rng = np.random.default_rng(seed)
    layers = []
    for n_in, n_out, how in zip(sizes[:-1], sizes[1:], hows, strict=True):
        rows = n_out * how if isinstance(how, int) else n_out
        weights, bias = rng.integers(-2, 3, (rows, n_in)), rng.integers(-1, 2, rows)
        layers.append((weights.astype(float), bias.astype(float), how))
    return layers


def gaussian_layers(seed, sizes, how="relu"):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(m, n)), 0.3 * rng.normal(size=m), how if i < len(sizes) - 2 else None)
        for i, (n, m) in enumerate(pairwise(sizes))
    ]


def recipe(sizes, seed):
    """He weights, biases of deviation 0.1, ReLU after every layer."""
    rng = np.random.default_rng(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        weights = rng.normal(size=(n_out, n_in)) * np.sqrt(2 / n_in)
        layers.append((weights, rng.normal(size=n_out) * 0.1, "relu"))
    return layers


def integer_windows(seed, count, d, k):
    """Windows in integer slices of d inputs: their corners and sides often lie on lines."""
    rng = np.random.default_rng(seed)
    basis = np.zeros((count, d, k))
    for one in basis:
        while np.linalg.matrix_rank(one) < k:
            one[:] = rng.integers(-2, 3, (d, k))
    center, radius = rng.integers(-2, 3, (count, d)) / 2, rng.integers(1, 5, (count, k)) / 2
    return jr.Window(center, radius, basis=basis)
