"""The centroid, the first layer's closed-form hyperplanes, and the twin without BatchNorm."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import (
    LINEN,
    NNX,
    Mlp,
    NnxMlp,
    OneLayer,
    assert_close,
    batch_of,
    linen_variables,
    nnx_model,
    rows,
    widen,
)
from flax import linen as nn
from flax import nnx

from jaxregions.activations import hard_tanh, identity, relu
from jaxregions.batchnorm import batch_hyperplanes, centroid, condition, without_batchnorm
from jaxregions.hyperplanes import refines
from jaxregions.windows import Window


@pytest.fixture
def layer():
    """kernel (5, 4), batch (9, 5) far from the origin, gamma, beta."""
    rng = np.random.default_rng(7)
    kernel, batch = rng.normal(size=(5, 4)), rng.normal(size=(9, 5)) + 20.0
    return kernel, batch, rng.normal(size=4), rng.normal(size=4)


# centroid


def test_centroid_is_the_rounded_exact_mean():
    batch = batch_of(13, 2, 3, offset=0.1) * 10.0 ** np.arange(13)[:, None, None]
    exact = sum(np.vectorize(Fraction, otypes=[object])(x) for x in batch)
    sums = np.vectorize(float, otypes=[float])(exact)
    np.testing.assert_array_equal(centroid(batch), sums / 13)


def test_centroid_does_not_depend_on_the_order_of_the_rows():
    batch = batch_of(1000, 3) * np.logspace(0, 12, 1000)[:, None]
    shuffled = np.random.default_rng(1).permutation(batch)
    np.testing.assert_array_equal(centroid(batch), centroid(shuffled))


def test_centroid_of_float32_rows_is_float64():
    batch = np.float32([[0.1], [0.2]])
    (value,) = centroid(batch)
    assert value.dtype == np.float64
    assert value == (float(batch[0, 0]) + float(batch[1, 0])) / 2


def test_centroid_of_a_traced_batch_is_traced():
    batch = np.float32(batch_of(5, 3))
    np.testing.assert_allclose(jax.jit(centroid)(batch), batch.mean(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((0, 3)), r"received \(0, 3\)"),
        ([[1.0, np.nan]], "NaN"),
        ([[np.inf, 1.0]], "finite"),
        ([[1e308], [1e308]], "overflow"),
        (None, "NaN|real numbers"),
    ],
)
def test_centroid_rejects(batch, message):
    with pytest.raises(ValueError, match=message):
        centroid(batch)


# batch_hyperplanes


def batchnorm_output(x, kernel, batch, gamma, beta, epsilon):
    """flax's BatchNorm at rows x, with the statistics that its train mode has on the batch."""
    with jax.enable_x64(True):
        model = nn.BatchNorm(epsilon=epsilon, momentum=0.0, use_fast_variance=False)
        stats = {"batch_stats": {"mean": jnp.zeros(len(gamma)), "var": jnp.ones(len(gamma))}}
        params = {"scale": jnp.asarray(gamma), "bias": jnp.asarray(beta)}
        z = jnp.asarray(batch @ kernel + 3.0)
        _, state = model.apply({"params": params, **stats}, z, False, mutable=["batch_stats"])
        return np.asarray(model.apply({"params": params, **state}, x @ kernel + 3.0, True))


@pytest.mark.parametrize("activation", [relu, hard_tanh])
def test_batchnorm_equals_the_breakpoint_on_the_switching_hyperplane(layer, activation):
    kernel, batch, gamma, beta = layer
    planes = batch_hyperplanes(
        kernel, batch, gamma=gamma, beta=beta, activation=activation, epsilon=1e-3
    ).switching
    normal = planes.normal[:, None]  # (n, 1, d)
    tangent = np.random.default_rng(0).normal(size=(4, len(activation.breakpoints), 5))
    squared = (normal**2).sum(-1, keepdims=True)
    tangent -= normal * (tangent * normal).sum(-1, keepdims=True) / squared
    points = planes.point + planes.offset[..., None] * normal / squared + tangent
    y = batchnorm_output(points.reshape(-1, 5), kernel, batch, gamma, beta, 1e-3)
    values = y.reshape(4, -1, 4)[np.arange(4), :, np.arange(4)]
    np.testing.assert_allclose(values, np.tile(activation.breakpoints, (4, 1)), atol=1e-12)


def test_std_is_the_biased_batch_deviation(layer):
    kernel, batch, _, _ = layer
    std = batch_hyperplanes(kernel, batch, epsilon=0.5).std
    np.testing.assert_allclose(std, np.sqrt((batch @ kernel).var(0) + 0.5), rtol=1e-12)


def test_offsets_are_exactly_zero_at_initialisation(layer):
    kernel, batch, _, _ = layer
    planes = batch_hyperplanes(kernel, batch)
    np.testing.assert_array_equal(planes.switching.offset, np.zeros((4, 1)))
    np.testing.assert_array_equal(planes.switching.point, centroid(batch))


def test_beta_on_a_breakpoint_gives_a_positive_zero(layer):
    kernel, batch, _, _ = layer
    planes = batch_hyperplanes(kernel, batch, gamma=-2.0, beta=-1.0, activation=hard_tanh)
    assert (planes.switching.offset[:, 0] == 0).all()
    assert not np.signbit(planes.switching.offset[:, 0]).any()
    assert (planes.switching.offset[:, 1] < 0).all()


def test_units_without_a_hyperplane(layer):
    kernel, batch, _, _ = layer
    kernel = kernel * [1.0, 0.0, 1.0, 1.0]
    planes = batch_hyperplanes(kernel, batch, gamma=[0.0, 1.0, 1e-320, 1.0], beta=1.0)
    assert (np.isposinf(planes.switching.offset[:, 0]) == [True, True, True, False]).all()
    assert (np.isposinf(planes.reference.offset[:, 0]) == [False, True, False, False]).all()


def test_a_batch_constant_unit_keeps_its_hyperplane(layer):
    kernel, batch, _, _ = layer
    batch[:, 0] = 0.1
    kernel[1:, 2] = 0.0
    planes = batch_hyperplanes(kernel, batch, beta=1.0, epsilon=1e-4)
    np.testing.assert_allclose(planes.std[2], 1e-2, rtol=1e-12)
    np.testing.assert_allclose(planes.switching.offset[2, 0], -1e-2, rtol=1e-12)


def test_an_activation_without_breakpoints_has_no_offsets(layer):
    kernel, batch, _, _ = layer
    planes = batch_hyperplanes(kernel, batch, activation=identity)
    assert planes.switching.offset.shape == (4, 0)


def test_refines_is_the_criterion_on_the_switching_hyperplanes(layer):
    kernel, batch, gamma, beta = layer
    planes = batch_hyperplanes(kernel, batch, gamma=gamma, beta=beta)
    windows = Window(batch[:3], 0.4)
    expected = refines(planes.switching, windows)
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(planes.refines(windows), expected)


def test_batch_hyperplanes_under_jit(layer):
    kernel, batch, gamma, beta = layer
    expected = batch_hyperplanes(kernel, batch, gamma=gamma, beta=beta)
    with jax.enable_x64(True):
        traced = jax.jit(lambda *a: batch_hyperplanes(a[0], a[1], gamma=a[2], beta=a[3]))(*layer)
        np.testing.assert_allclose(traced.switching.offset, expected.switching.offset, rtol=1e-12)
        np.testing.assert_allclose(traced.switching.point, expected.switching.point, rtol=1e-14)


def test_batch_hyperplanes_under_vmap_over_kernels(layer):
    kernel, batch, gamma, beta = layer
    kernels = np.stack([kernel, -2.0 * kernel, kernel + 1.0])

    def offsets(kernel):
        return batch_hyperplanes(kernel, batch, gamma=gamma, beta=beta).switching.offset

    with jax.enable_x64(True):
        actual = np.asarray(jax.vmap(offsets)(jnp.asarray(kernels)))
    assert_close(actual, np.stack([offsets(k) for k in kernels]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": np.ones(5)}, r"kernel \(in, out\)"),
        ({"kernel": np.ones((3, 4))}, r"received \(3, 4\) and \(9, 5\)"),
        ({"kernel": np.full((5, 4), np.nan)}, "kernel: .*NaN"),
        ({"kernel": "w"}, "kernel: expected numbers, received str"),
        ({"batch": np.ones((1, 5))}, "batch of one example"),
        ({"gamma": np.ones(3)}, r"gamma: .* received \(3,\)"),
        ({"beta": np.inf}, "beta: expected finite"),
        ({"activation": "relu"}, "activation: expected a PiecewiseLinear, received str"),
        ({"epsilon": -1e-5}, "epsilon: .* received -1e-05"),
        ({"batch": np.full((9, 5), 0.1), "epsilon": 0.0}, "unit 0, which is constant"),
    ],
)
def test_batch_hyperplanes_rejects(layer, change, message):
    given = {"kernel": layer[0], "batch": layer[1]} | change
    with pytest.raises(ValueError, match=message):
        batch_hyperplanes(**given)


def test_a_hidden_dependence_is_found_when_epsilon_is_zero():
    x = batch_of(6)
    batch, kernel = np.stack([x, 3.0 * x], 1), np.array([[3.0], [-1.0]])
    exact = {3 * Fraction(a) - Fraction(b) for a, b in batch}
    batch[:, 1] = [float(3 * Fraction(a)) for a in np.round(x * 1024) / 1024]
    batch[:, 0] = np.round(x * 1024) / 1024
    assert len(exact) > 1  # 3 x rounds, so only the second batch is dependent
    with pytest.raises(ValueError, match="unit 0, which is constant"):
        batch_hyperplanes(kernel, batch, epsilon=0.0)


def test_nearly_constant_units_are_kept_when_epsilon_is_zero():
    batch = np.array([[1.0], [1.0], [1.0 + 2.0**-52]])
    np.testing.assert_allclose(
        batch_hyperplanes([[1.0]], batch, epsilon=0.0).std, [2.0**-52 * np.sqrt(2) / 3], rtol=0.5
    )


# without_batchnorm


@pytest.mark.parametrize(("model", "shape"), LINEN)
def test_twin_initialises_the_same_variables(model, shape):
    x = jnp.ones((2, *shape))
    twin = without_batchnorm(model)
    init = jax.jit(lambda key: [m.init(key, x, train=False) for m in (model, twin)])
    expected, actual = init(jax.random.key(3, impl="rbg"))  # compiles faster than the default
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def plain_mlp(params, x):
    """Mlp with gamma z + beta in NumPy."""
    params = jax.tree.map(np.float64, params)
    for i in range(2):
        dense, bn = params[f"Dense_{i}"], params[f"BatchNorm_{i}"]
        z = (x @ dense["kernel"] + dense["bias"]) * bn["scale"] + bn["bias"]
        x = np.maximum(z, 0.0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]


@pytest.mark.parametrize("train", [False, True])
def test_twin_is_affine_where_batchnorm_was(train):
    batch = batch_of(6, 4)
    variables = linen_variables(Mlp(), batch, train=False)
    with jax.enable_x64(True):
        twin = jax.jit(lambda v, x: without_batchnorm(Mlp()).apply(v, x, train=train))
        y = twin({"params": widen(variables["params"])}, jnp.asarray(batch))
    assert_close(np.asarray(y), plain_mlp(variables["params"], batch))


def test_twin_without_scale_and_bias_is_the_identity():
    model, x = OneLayer(nn.FrozenDict(use_scale=False, use_bias=False)), jnp.ones((2, 3))
    np.testing.assert_array_equal(without_batchnorm(model).apply({}, x), x)


def test_twin_returns_mutable_batch_stats_unchanged():
    x = jnp.ones((2, 4))
    variables = linen_variables(Mlp(), x, train=False)
    _, state = without_batchnorm(Mlp()).apply(variables, x, train=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_twin_apply_takes_mutable_without_batch_stats():
    x = jnp.ones((2, 4))
    params = {"params": linen_variables(Mlp(), x, train=False)["params"]}
    y, _ = without_batchnorm(Mlp()).apply(params, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, without_batchnorm(Mlp()).apply(params, x, train=False))


def test_conditioning_the_twin_changes_nothing():
    batch = batch_of(6, 4)
    variables = linen_variables(Mlp(), batch, train=False)
    f = condition(without_batchnorm(Mlp()), variables, batch, train=False)
    assert_close(rows(f, batch), plain_mlp(variables["params"], batch))


@pytest.mark.parametrize(("kind", "shape"), NNX)
def test_nnx_twin_has_the_same_state(kind, shape):
    model = nnx_model(kind)
    expected, actual = nnx.state(model), nnx.state(without_batchnorm(model))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), actual["bn"], expected["bn"])


def test_nnx_twin_is_affine_where_batchnorm_was():
    model, batch = nnx_model(NnxMlp), batch_of(6, 4)
    a, b, bn = (
        jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(m)))
        for m in (model.a, model.b, model.bn)
    )
    z = (batch @ a["kernel"] + a["bias"]) * bn["scale"] + bn["bias"]
    expected = np.maximum(z, 0.0) @ b["kernel"] + b["bias"]
    assert_close(rows(condition(without_batchnorm(model), None, batch), batch), expected)


def test_nnx_twin_leaves_the_model_alone():
    model = nnx_model(NnxMlp)
    twin = without_batchnorm(model)
    twin.bn.scale[...] = jnp.zeros(6)
    assert type(model.bn) is nnx.BatchNorm
    assert (model.bn.scale[...] != 0).all()


def test_nnx_twin_trains():
    model = without_batchnorm(nnx_model(NnxMlp))
    model.eval()
    x = jnp.ones((3, 4))
    gradient = nnx.jit(nnx.grad(lambda m: (m(x) ** 2).sum()))(model)
    assert float(abs(gradient["bn"]["scale"][...]).max()) > 0


@pytest.mark.parametrize("model", [3, Mlp, None])
def test_without_batchnorm_rejects(model):
    with pytest.raises(ValueError, match=r"expected a flax.linen or flax.nnx module, received"):
        without_batchnorm(model)
