"""Conditioning on a batch: values, against flax's own train-mode forward pass in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import (
    LINEN,
    NNX,
    Cnn,
    Mlp,
    NnxMlp,
    NnxResidual,
    OneLayer,
    assert_close,
    batch_of,
    linen_variables,
    marks_of,
    nnx_model,
    nnx_train_rows,
    rows,
    train_rows,
    widen,
)
from flax import linen as nn
from flax import nnx

from jaxregions.batchnorm import condition, without_batchnorm


@pytest.mark.parametrize(("model", "shape"), LINEN)
def test_linen_rows_equal_the_train_mode_forward_pass(model, shape):
    batch = batch_of(7, *shape)
    variables = linen_variables(model, batch, train=False)
    f = condition(model, variables, batch, train=False)
    assert_close(rows(f, batch), train_rows(model, variables, batch, train=True))


@pytest.mark.parametrize(("model", "shape"), LINEN)
def test_raw_biases_before_batchnorm_cancel(model, shape):
    batch = batch_of(7, *shape)
    variables = linen_variables(model, batch, train=False)

    before_batchnorm = {"Dense_0", "Dense_1", "Conv_0", "Conv_1", "stem", "inner"}

    def shifted(path, leaf):
        names = [p.key for p in path]
        if names[-1] == "bias" and names[-2] in before_batchnorm:
            signs = np.where(np.arange(leaf.size) % 2, -1.0, 1.0)
            return np.asarray(leaf, np.float64) + 1e3 * signs
        return leaf

    moved = jax.tree_util.tree_map_with_path(shifted, dict(variables["params"]))
    if isinstance(model, Cnn):
        moved["Dense_0"] = variables["params"]["Dense_0"]  # the head is behind the last BatchNorm
    expected = rows(condition(model, variables, batch, train=False), batch)
    actual = rows(condition(model, {"params": moved}, batch, train=False), batch)
    assert abs(actual - expected).max() <= 1e-12 * abs(expected).max()


@pytest.mark.parametrize("value", [7.5, np.nan])
def test_running_statistics_have_no_influence(value):
    batch = batch_of(6, 4)
    variables = linen_variables(Mlp(), batch, train=False)
    stats = jax.tree.map(lambda a: jnp.full_like(a, value), variables["batch_stats"])
    present = condition(Mlp(), variables | {"batch_stats": stats}, batch, train=False)
    absent = condition(Mlp(), {"params": variables["params"]}, batch, train=False)
    np.testing.assert_array_equal(rows(present, batch), rows(absent, batch))


def test_two_pass_variance_survives_a_large_mean_in_float32_data():
    batch = np.float32(batch_of(64, 3) * 0.05 + 1000)
    model = nn.BatchNorm(use_running_average=True)
    f = condition(model, linen_variables(model, batch[:, :3]), batch)
    exact = batch.astype(np.float64)
    params = linen_variables(model, batch)["params"]
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    expected = expected * np.float64(params["scale"]) + np.float64(params["bias"])
    assert_close(rows(f, exact), expected, 1e-11)


def test_dropout_is_off_while_batch_statistics_are_used():
    class Model(nn.Module):
        rate: float = 0.5

        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
            return nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))

    batch = batch_of(6, 4)
    variables = linen_variables(Model(), batch, False)
    f = condition(Model(), variables, batch, False)
    assert_close(rows(f, batch), train_rows(Model(rate=0.0), variables, batch, True))


@pytest.mark.parametrize("as_name", [True, False])
def test_method_and_arguments_are_passed_on(as_name):
    class Model(nn.Module):
        def setup(self):
            self.dense, self.bn = nn.Dense(5), nn.BatchNorm()

        def __call__(self, x):
            return self.features(x, 1.0, use_average=False)

        def features(self, x, scale, *, use_average):
            return scale * self.bn(self.dense(x), use_running_average=use_average)

    batch = batch_of(6, 4)
    variables = linen_variables(Model(), batch)
    method = "features" if as_name else Model.features
    f = condition(Model(), variables, batch, 3.0, method=method, use_average=True)
    assert_close(rows(f, batch), 3.0 * train_rows(Model(), variables, batch))


@pytest.mark.parametrize(
    ("options", "fold"),
    [
        ({}, False),
        ({}, True),
        ({"axis": 1}, False),
        ({"axis": (-1, 1)}, False),
        ({"axis": (1, 2, 3)}, False),
        ({"use_scale": False}, False),
        ({"use_bias": False}, False),
        ({"use_scale": False, "use_bias": False, "epsilon": 0.25}, True),
    ],
)
def test_batchnorm_options(options, fold):
    model, batch = OneLayer(nn.FrozenDict(options), fold), batch_of(5, 3, 2, 4, offset=2.0)
    variables = linen_variables(model, batch)
    f = condition(model, variables, batch)
    assert_close(rows(f, batch), train_rows(model, variables, batch))


def test_axis_name_is_ignored_since_the_batch_is_whole():
    named, plain = (OneLayer(nn.FrozenDict(axis_name=name)) for name in ("devices", None))
    batch = batch_of(5, 4)
    variables = linen_variables(plain, batch)
    assert_close(
        rows(condition(named, variables, batch), batch), train_rows(plain, variables, batch)
    )


@pytest.mark.parametrize("fold", [False, True])
def test_mask_selects_what_the_statistics_count(fold):
    model, batch = OneLayer(nn.FrozenDict(), fold), batch_of(5, 3, 4)
    mask = np.random.default_rng(3).random((5, 3, 1)) < 0.6
    variables = linen_variables(model, batch)
    expected = train_rows(model, variables, batch, mask=mask)
    with jax.enable_x64(True):
        f = condition(model, variables, batch, mask=mask)
        actual = np.stack([np.asarray(f(jnp.asarray(x))) for x in batch])
        (mark,) = marks_of(jax.make_jaxpr(f)(batch[0]).jaxpr)["subtract_batch_mean"]
    assert_close(actual, expected)
    assert mark.invars[2].aval.shape == ((5, 3, 1) if fold else (5, 1, 3, 1))


def test_the_mark_carries_one_mask_per_example_wherever_the_batch_axis_is():
    class Transposed(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.BatchNorm(axis=0, use_running_average=False)(x.T, mask=mask).T

    batch, mask = batch_of(5, 4), np.array([[True, False, True, True, False]])
    variables = linen_variables(Transposed(), batch, mask)
    with jax.enable_x64(True):
        f = condition(Transposed(), variables, batch, mask)
        closed = jax.make_jaxpr(f)(batch[0])
    (mark,) = marks_of(closed.jaxpr)["subtract_batch_mean"]
    constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    np.testing.assert_array_equal(constants[mark.invars[2]], mask.reshape(5, 1, 1))
    assert mark.params["axes"] == (-1,)
    assert_close(rows(f, batch), train_rows(Transposed(), variables, batch, mask))


def test_shared_batchnorm_has_statistics_per_call():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            bn = nn.BatchNorm(use_running_average=False)
            return bn(3.0 + nn.Dense(4)(nn.relu(bn(x))))

    batch = batch_of(6, 4)
    variables = linen_variables(Model(), batch)
    assert_close(
        rows(condition(Model(), variables, batch), batch), train_rows(Model(), variables, batch)
    )


def test_declared_dtype_is_the_output_dtype():
    model, batch = OneLayer(nn.FrozenDict(dtype=jnp.float32)), batch_of(6, 4)
    variables = linen_variables(model, batch)
    y = rows(condition(model, variables, batch), batch)
    assert y.dtype == np.float32
    assert_close(y, train_rows(model, variables, batch), 1e-6)


class Clipped(nn.BatchNorm):
    @nn.compact
    def __call__(self, x):
        return nn.relu(super().__call__(x, use_running_average=False))


class Rogue(nn.BatchNorm):
    @nn.compact
    def __call__(self, x):
        return x - x.mean(0)


def test_a_subclass_keeps_its_own_part():
    batch = batch_of(6, 4)
    variables = linen_variables(Clipped(), batch)
    f = condition(Clipped(), variables, batch)
    assert_close(rows(f, batch), train_rows(Clipped(), variables, batch))


def test_a_subclass_that_normalises_by_itself_is_rejected():
    with pytest.raises(ValueError, match=r"Rogue.__call__ to call BatchNorm.__call__"):
        condition(Rogue(), {}, batch_of(6, 4))


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_batchnorm_in_a_lifted_transformation_is_rejected(lift):
    model, batch = lift(nn.BatchNorm)(use_running_average=False), batch_of(6, 4)
    with pytest.raises(ValueError, match="condition the same model without it"):
        condition(model, model.init(jax.random.key(0), batch), batch)


@pytest.mark.parametrize("calls", [lambda n: 1 if n == 1 else 2, lambda n: 2 if n == 1 else 1])
def test_a_model_that_treats_one_example_differently_is_rejected(calls):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            bn = nn.BatchNorm(use_running_average=False)
            for _ in range(calls(x.shape[0])):
                x = bn(x)
            return x

    batch = batch_of(6, 4)
    f = condition(Model(), linen_variables(Model(), batch), batch)
    with pytest.raises(ValueError, match="BatchNorm calls, as on the batch"):
        f(batch[0])


def test_variables_that_do_not_fit_are_rejected():
    model, batch = Mlp(), batch_of(6, 4)
    variables = linen_variables(model, batch, False)
    params = variables["params"]
    norm = next(name for name in params if "scale" in params[name])
    with pytest.raises(ValueError, match=r"variables: .*expected to generate shape \(3, "):
        condition(model, variables, batch[:, :3], False)
    with pytest.raises(ValueError, match=r"variables: .* the collection is empty"):
        condition(model, params, batch, False)
    wrong = {**params, norm: {"scale": np.ones(2), "bias": params[norm]["bias"]}}
    with pytest.raises(ValueError, match=r"BatchNorm scale of \d+ features, received shape \(2,\)"):
        condition(model, {"params": wrong}, batch, False)


def test_the_batch_axis_as_feature_axis_is_rejected():
    model, batch = OneLayer(nn.FrozenDict(axis=0)), batch_of(6, 4)
    f = condition(model, linen_variables(model, batch), batch)
    with pytest.raises(ValueError, match="on one reduced axis"):
        f(batch[0])


# nnx


@pytest.mark.parametrize(("kind", "shape"), NNX)
def test_nnx_rows_equal_the_train_mode_forward_pass(kind, shape):
    model, batch = nnx_model(kind), batch_of(7, *shape)
    assert_close(rows(condition(model, None, batch), batch), nnx_train_rows(model, batch))


def test_nnx_model_stays_untouched():
    model, batch = nnx_model(NnxMlp), batch_of(7, 4)
    graph, before = nnx.split(model)
    condition(model, None, batch)(batch[0])
    graph_after, after = nnx.split(model)
    assert graph_after == graph
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("method", ["features", NnxMlp.features, "bound"])
def test_nnx_method_and_arguments_are_passed_on(method):
    model, batch = nnx_model(NnxMlp), batch_of(7, 4)
    method = model.features if method == "bound" else method
    f = condition(model, None, batch, scale=2.0, method=method)
    z = batch @ np.float64(model.a.kernel[...]) + np.float64(model.a.bias[...])
    expected = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) * np.float64(model.bn.scale[...])
    assert_close(rows(f, batch), 2.0 * (expected + np.float64(model.bn.bias[...])))


def test_nnx_running_statistics_have_no_influence():
    model, batch = nnx_model(NnxMlp), batch_of(7, 4)
    expected = rows(condition(model, None, batch), batch)
    model.bn.mean[...], model.bn.var[...] = jnp.full(6, np.nan), jnp.full(6, 9.0)
    np.testing.assert_array_equal(rows(condition(model, None, batch), batch), expected)


class NnxClipped(nnx.BatchNorm):
    def __call__(self, x):
        return nnx.relu(super().__call__(x, use_running_average=False))


class NnxRogue(nnx.BatchNorm):
    def __call__(self, x):
        return x - x.mean(0)


def test_nnx_subclass_keeps_its_own_part():
    model, batch = NnxClipped(4, rngs=nnx.Rngs(0)), batch_of(7, 4)
    assert_close(rows(condition(model, None, batch), batch), nnx_train_rows(model, batch))


@pytest.mark.parametrize(
    "use", [lambda m, b: condition(m, None, b), lambda m, b: without_batchnorm(m)(b)]
)
def test_nnx_subclass_that_normalises_by_itself_is_rejected(use):
    with pytest.raises(ValueError, match=r"NnxRogue.__call__ to call BatchNorm.__call__"):
        use(NnxRogue(4, rngs=nnx.Rngs(0)), batch_of(7, 4))


def test_nnx_works_under_grad_and_jit_with_traced_parameters():
    model, batch = nnx_model(NnxResidual), batch_of(7, 4)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def conditioned(params):
        f = condition(nnx.merge(graph, params, rest), None, batch)
        return (jax.vmap(f)(batch) ** 2).sum()

    def direct(params):
        return (nnx.merge(graph, params, rest, copy=True)(batch) ** 2).sum()

    with jax.enable_x64(True):
        params, rest = widen(params), widen(rest)
        actual = jax.jit(jax.grad(conditioned))(params)
        expected = jax.jit(jax.grad(direct))(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), actual, expected
        )
