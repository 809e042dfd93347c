"""Functions of one structure share compiled code, and nothing else."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import initial_variables

import jaxregions as jr
from jaxregions import zoo
from jaxregions.engines import signs
from jaxregions.tracing import bounded_outputs, bounded_values, bounds, compiled, prepare
from jaxregions.tracing.structure import Structure


def mlp(seed, slope=0.0, sizes=(3, 5, 4), scale=1.0):
    rng = np.random.default_rng(seed)
    layers = [
        (scale * rng.normal(size=(b, a)), rng.normal(size=b)) for a, b in itertools.pairwise(sizes)
    ]

    def f(x):
        for w, b in layers:
            z = w @ x + b
            x = jnp.where(z > 0, z, slope * z) if slope else jax.nn.relu(z)
        return x

    return jr.trace(f, np.zeros(sizes[0]))


def batchnorm(seed):
    batch = np.random.default_rng(seed).normal(size=(16, 4))
    model = zoo.MLP(widths=(6, 5))
    variables = initial_variables(model, batch)
    return jr.trace(jr.condition(model, variables, batch, train=False), batch[0])


def test_parameters_do_not_count():
    assert Structure(mlp(0)) == Structure(mlp(1))
    assert Structure(batchnorm(0)) == Structure(batchnorm(1))


DIFFERENT = {
    "width": lambda: mlp(0, sizes=(3, 6, 4)),
    "depth": lambda: mlp(0, sizes=(3, 5, 4, 4)),
    "activation": lambda: mlp(0, slope=0.1),
    "constant output": lambda: jr.trace(lambda x: (x @ np.ones(3), np.ones(2)), np.zeros(3)),
    "other constant output": lambda: jr.trace(lambda x: (x @ np.ones(3), np.zeros(2)), np.zeros(3)),
    "maximum over rows": lambda: jr.trace(
        lambda x: jnp.max(jnp.reshape(jnp.tile(x, 2), (2, 3)), axis=0), np.zeros(3)
    ),
    "maximum over columns": lambda: jr.trace(
        lambda x: jnp.max(jnp.reshape(jnp.tile(x, 2), (2, 3)), axis=1), np.zeros(3)
    ),
    "cumulative sum": lambda: jr.trace(lambda x: jax.nn.relu(jnp.cumsum(x)), np.zeros(3)),
    "reversed cumulative sum": lambda: jr.trace(
        lambda x: jax.nn.relu(jax.lax.cumsum(x, reverse=True)), np.zeros(3)
    ),
}


def test_everything_else_counts():
    found = [Structure(mlp(0)), *(Structure(make()) for make in DIFFERENT.values())]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("make", [mlp, pytest.param(batchnorm, marks=pytest.mark.slow)])
def test_shared_code_uses_the_parameters_at_hand(make):
    nets = [make(seed) for seed in range(3)]
    size = nets[0].input_shape[0]
    points = np.random.default_rng(5).normal(size=(7, size))

    def values(prepared, x):
        pair = bounded_values(prepared, x, 0.0, 1)
        output = bounded_outputs(prepared, x, 0.0)
        return pair.values, output[0].values

    with jax.enable_x64(True):
        for net in nets:
            prepared = prepare(net)
            step = compiled(values, prepared.structure)
            for x in points:
                found, output = step(prepared, x)
                chex.assert_trees_all_close(found, net.switching_values(x)[1], rtol=1e-12)
                chex.assert_trees_all_close(output, jnp.ravel(net(x)), rtol=1e-12)


def test_many_parameters_compile_once(monkeypatch):
    signature = chex.assert_max_traces(signs._rows_signs, n=2)  # one per stage
    monkeypatch.setattr(signs, "_rows_signs", signature)
    window = jr.Window(np.zeros(3), 0.5, basis=np.eye(3)[:, :2])
    counts = [int(jr.count_regions(mlp(seed), window).activation_regions) for seed in range(4)]
    assert len(set(counts)) > 1


def test_errors_of_batch_means_compile_once(monkeypatch):
    once = chex.assert_max_traces(bounds._mean_errors, n=1)
    monkeypatch.setattr(bounds, "_mean_errors", once)
    rows = [np.concatenate([np.ravel(e) for e in mean_errors(batchnorm(s))]) for s in range(4)]
    assert [len(r) for r in rows] == [11] * 4
    assert len({r.tobytes() for r in rows}) == 4


def mean_errors(net):
    """What ``prepare`` found, per step that subtracts a batch mean."""
    pairs = zip(net.program.steps, prepare(net).extras, strict=True)
    return [extra for step, extra in pairs if step.name == "subtract_batch_mean"]
