"""Conditioned functions under jax's transformations: marks, precision, tracing; and bad input."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import (
    Mlp,
    OneLayer,
    assert_close,
    batch_of,
    linen_variables,
    marks_of,
    rows,
    train_rows,
    widen,
)
from flax import linen as nn

from jaxregions.batchnorm import condition


@pytest.fixture(scope="module")
def mlp():
    batch = batch_of(7, 4)
    return Mlp(), linen_variables(Mlp(), batch, train=False), batch


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        lambda f: lambda x: 2.0 * f(x) - 1.0,
        lambda f: lambda x: jax.vmap(f)(jnp.stack([x, -x])),
        lambda f: lambda x: jax.jit(jax.vmap(jax.jit(f)))(x[None]),
        jax.jacfwd,
    ],
)
def test_marks_survive_wrapping(mlp, wrap):
    model, variables, batch = mlp
    f = condition(model, variables, batch, train=False)
    found = marks_of(jax.make_jaxpr(wrap(f))(np.float32(batch[0])).jaxpr)
    assert len(found["enter_batch"]) == 1
    assert len(found["subtract_batch_mean"]) == 2
    (token,) = {e.params["token"] for e in found["enter_batch"]}
    assert {e.params["token"] for e in found["subtract_batch_mean"]} == {token}


def test_each_call_of_f_has_its_own_token(mlp):
    model, variables, batch = mlp
    f = condition(model, variables, batch, train=False)
    found = marks_of(jax.make_jaxpr(lambda x: f(x) - f(-x))(np.float32(batch[0])).jaxpr)
    assert len({e.params["token"] for e in found["enter_batch"]}) == 2


def test_the_marked_batch_and_axes():
    model, batch = OneLayer(nn.FrozenDict(axis=1)), batch_of(5, 3, 4)
    with jax.enable_x64(True):
        f = condition(model, linen_variables(model, batch), batch)
        closed = jax.make_jaxpr(f)(jnp.asarray(batch[0]))
    found = marks_of(closed.jaxpr)
    constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    np.testing.assert_array_equal(constants[found["enter_batch"][0].invars[1]], batch)
    assert found["subtract_batch_mean"][0].params["axes"] == (-3, -1)


def test_float32_runs_in_float32_without_warnings(mlp):
    model, variables, batch = mlp
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f = condition(model, variables, batch, train=False)
        y = f(np.float32(batch[0]))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, rows(f, batch)[0], rtol=1e-4, atol=1e-5)


def test_statistics_stay_float64_whatever_mode_they_were_made_in(mlp):
    model, variables, batch = mlp
    plain = condition(model, variables, batch, train=False)
    with jax.enable_x64(True):
        wide = condition(model, variables, batch, train=False)
    np.testing.assert_array_equal(rows(plain, batch), rows(wide, batch))
    assert rows(plain, batch).dtype == np.float64


@pytest.mark.slow
def test_conditioning_inside_jit_on_constants_is_still_float64(mlp):
    model, variables, batch = mlp
    with jax.enable_x64(True):
        inside = jax.jit(lambda x: condition(model, variables, batch, train=False)(x))(batch[0])
    expected = rows(condition(model, variables, batch, train=False), batch)[0]
    assert_close(np.asarray(inside), expected)


def test_traced_variables_and_batch_under_jit(mlp):
    model, variables, batch = mlp
    expected = train_rows(model, variables, batch, train=True)[2]
    with jax.enable_x64(True):
        traced = jax.jit(lambda v, b, x: condition(model, v, b, train=False)(x))
        actual = np.asarray(traced(widen(variables), jnp.asarray(batch), jnp.asarray(batch[2])))
    assert_close(actual, expected)


def test_vmap_over_a_stack_of_batches(mlp):
    model, variables, _ = mlp
    stack = np.stack([batch_of(7, 4, seed=s, offset=s) for s in range(3)])
    expected = np.stack([train_rows(model, variables, b, train=True)[0] for b in stack])
    with jax.enable_x64(True):
        wide = widen(variables)
        conditioned = jax.vmap(lambda b: condition(model, wide, b, train=False)(b[0]))
        actual = jax.jit(conditioned)(jnp.asarray(stack))
    assert_close(np.asarray(actual), expected)


def test_gradient_over_variables_and_batch(mlp):
    model, variables, batch = mlp

    def conditioned(params, batch):
        f = condition(model, {"params": params}, batch, train=False)
        return (jax.vmap(f)(batch) ** 2).sum()

    def direct(params, batch):
        full = {"params": params, "batch_stats": stats}
        return (model.apply(full, batch, train=True, mutable=["batch_stats"])[0] ** 2).sum()

    with jax.enable_x64(True):
        params, stats = widen(variables["params"]), widen(variables["batch_stats"])
        actual = jax.jit(jax.grad(conditioned, (0, 1)))(params, jnp.asarray(batch))
        expected = jax.jit(jax.grad(direct, (0, 1)))(params, jnp.asarray(batch))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), actual, expected
        )


def test_jacobian_holds_the_statistics_fixed():
    model, batch = OneLayer(nn.FrozenDict()), batch_of(6, 4)
    params = linen_variables(model, batch)["params"]["BatchNorm_0"]
    with jax.enable_x64(True):
        jacobian = jax.jacrev(condition(model, {"params": {"BatchNorm_0": params}}, batch))(
            batch[0]
        )
    expected = np.diag(np.float64(params["scale"]) / np.sqrt(batch.var(0) + 1e-5))
    assert_close(np.asarray(jacobian), expected)


def test_a_model_without_batchnorm_takes_one_example_and_has_no_marks():
    model, batch = nn.Dense(3), batch_of(1, 4)
    f = condition(model, linen_variables(model, batch), batch)
    assert marks_of(jax.make_jaxpr(f)(np.float32(batch[0])).jaxpr)["enter_batch"] == []


def test_output_trees_lose_their_batch_axis():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.BatchNorm(use_running_average=False)(x)
            return {"y": y, "pair": (y, 2.0 * y)}

    batch = batch_of(6, 4)
    y = condition(Model(), linen_variables(Model(), batch), batch)(batch[0])
    assert jax.tree.map(jnp.shape, y) == {"y": (4,), "pair": ((4,), (4,))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "model: expected a flax model .* received int"),
        ({"model": Mlp}, "received the class Mlp"),
        ({"variables": None}, "variables: expected the mapping .* received NoneType"),
        (
            {"variables": {"params": {"Dense_0": {"kernel": np.full((4, 6), np.nan)}}}},
            "kernel.*NaN",
        ),
        ({"batch": batch_of(1, 4)}, "at least two examples .* batch of 1"),
        ({"batch": np.zeros((0, 4))}, r"N >= 1 examples, received \(0, 4\)"),
        ({"batch": 1.0}, r"received \(\)"),
        ({"batch": "abc"}, "batch: expected real numbers, received str"),
        ({"batch": np.full((5, 4), np.inf)}, "batch: expected finite"),
    ],
)
def test_condition_rejects(mlp, change, message):
    model, variables, batch = mlp
    given = {"model": model, "variables": variables, "batch": batch} | change
    with pytest.raises(ValueError, match=message):
        condition(given["model"], given["variables"], given["batch"], train=False)


def test_f_rejects_another_shape(mlp):
    model, variables, batch = mlp
    with pytest.raises(ValueError, match=r"example of shape \(4,\), received \(7, 4\)"):
        condition(model, variables, batch, train=False)(batch)
