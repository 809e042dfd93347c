"""Exact evaluation against plain ``fractions``, and against floats where those are exact."""

import itertools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_tracing_models as models
from batchnorm_models import (
    Mlp,
    NnxMlp,
    OneLayer,
    Residual,
    initial_variables,
    linen_variables,
    nnx_model,
)
from flax import nnx

import jaxregions as jr
from jaxregions import exact, zoo
from jaxregions.tracing.rational import exact_outputs, exact_signs, exact_values


def fractions(array):
    """An array of floats, ints or exact rationals as Fractions."""
    array = np.asarray(array)
    out = np.empty(array.shape, object)
    out.ravel()[:] = [
        Fraction(*exact.key(v)) if hasattr(v, "p") else Fraction(v) for v in array.ravel().tolist()
    ]
    return out


def assert_equal(actual, expected):
    assert actual.shape == expected.shape
    assert fractions(actual).ravel().tolist() == fractions(expected).ravel().tolist()


def some_point(*shape, seed=7):
    """Rationals that are no floats: multiples of 1/3 ... 1/21."""
    rng = np.random.default_rng(seed)
    out = np.empty(shape, object)
    out.ravel()[:] = [
        Fraction(int(a), int(b))
        for a, b in zip(
            rng.integers(-60, 60, out.size), rng.choice([3, 7, 21], out.size), strict=True
        )
    ]
    return out


def as_rational(x):
    out = np.empty(x.shape, object)
    out.ravel()[:] = [exact.rational(1.0) * v.numerator / v.denominator for v in x.ravel()]
    return out


def each(function, values):
    return np.array([function(v) for v in values.ravel()], object).reshape(values.shape)


@pytest.fixture(params=["python-flint", "fractions"])
def backend(request, monkeypatch):
    if request.param == "fractions":
        monkeypatch.setattr(exact, "_fmpq", None)
    elif exact.rational_backend() != "python-flint":
        pytest.skip("python-flint is not installed")
    return request.param


# Plain networks ----------------------------------------------------------------------------------

HUNDREDTH, ZERO = Fraction(0.01), Fraction(0)
ACTIVATIONS = {  # jax function, the same on Fractions, breakpoints
    "relu": (jax.nn.relu, lambda v: max(v, ZERO), (0,)),
    "leaky_relu": (jax.nn.leaky_relu, lambda v: v if v >= 0 else HUNDREDTH * v, (0,)),
    "hard_tanh": (jax.nn.hard_tanh, lambda v: max(-1, min(v, Fraction(1))), (-1, 1)),
    "abs": (jnp.abs, abs, (0,)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_by_hand(name, backend):
    phi, by_hand, breakpoints = ACTIVATIONS[name]
    rng = np.random.default_rng(1)
    layers = [(rng.normal(size=s), rng.normal(size=s[1])) for s in ((3, 6), (6, 5), (5, 2))]

    def f(x):
        for kernel, bias in layers[:2]:
            x = phi(x @ kernel + bias)
        return x @ layers[2][0] + layers[2][1]

    net, x = jr.trace(f, np.zeros(3)), some_point(3)
    value = x
    for stage, (kernel, bias) in enumerate(layers[:2]):
        z = value @ fractions(kernel) + fractions(bias)
        expected = np.concatenate([z - tau for tau in breakpoints])
        found = exact_values(net, as_rational(x), stage)
        assert type(found[0]) is type(exact.rational(1.0))
        assert_equal(found, expected)
        assert exact_signs(net, x, stage).tolist() == [(v > 0) - (v < 0) for v in expected]
        value = each(by_hand, z)
    (y,) = exact_outputs(net, x)
    assert_equal(y, value @ fractions(layers[2][0]) + fractions(layers[2][1]))


def test_a_tie_is_zero_and_its_neighbours_are_not():
    # In floats 3 * (1/3 + 2^-60) - 1 is 0 too.
    net = jr.trace(lambda x: jax.nn.relu(3.0 * x - 1.0), np.zeros(3))
    x = np.array([Fraction(1, 3) + Fraction(k, 2**60) for k in (0, 1, -1)], object)
    assert exact_signs(net, x, 0).tolist() == [0, 1, -1]
    np.testing.assert_array_equal(net.switching_values(x.astype(float))[0], 0.0)


def by_hand_conv(x, kernel):
    """(H, W, C) with (3, 3, C, D), same padding of zeros."""
    height, width, _ = x.shape
    out = np.full((height, width, kernel.shape[-1]), ZERO, object)
    for i, j, a, b in itertools.product(range(height), range(width), range(3), range(3)):
        r, c = i + a - 1, j + b - 1
        if 0 <= r < height and 0 <= c < width:
            out[i, j] += x[r, c] @ kernel[a, b]
    return out


def test_convolution_and_pooling_by_hand():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(3, 3, 1, 2)), rng.normal(size=(3, 3, 2, 1))

    def conv(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def f(x):
        h = nn.max_pool(jax.nn.relu(conv(x[None], first)), (3, 3), (2, 2), padding="SAME")
        return jax.nn.relu(nn.avg_pool(conv(h, second), (2, 2), (1, 1)))[0]

    net, x = jr.trace(f, np.zeros((6, 6, 1))), some_point(6, 6, 1)
    z = by_hand_conv(x, fractions(first))
    assert_equal(exact_values(net, x, 0), z.ravel())
    h = np.full((3, 3, 2), ZERO, object)  # SAME: no row before, one behind
    for i, j, c in np.ndindex(3, 3, 2):
        h[i, j, c] = max(*z[2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c].ravel(), ZERO)
    z = by_hand_conv(h, fractions(second))
    pooled = np.array([z[i : i + 2, j : j + 2].sum() / 4 for i, j in np.ndindex(2, 2)], object)
    assert_equal(exact_values(net, x, len(net.stages) - 1), pooled)
    assert_equal(exact_outputs(net, x)[0].ravel(), each(lambda v: max(v, ZERO), pooled))


def test_comparisons_of_maxima_by_hand():
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(3, 4))

    def f(x):
        z = x @ kernel
        return jnp.max(z), jnp.sort(z), jax.lax.top_k(z, 2)[0], jnp.min(z.reshape(2, 2), axis=1)

    net, x = jr.trace(f, np.zeros(3)), some_point(3)
    z = x @ fractions(kernel)
    in_order = np.array(sorted(z), object)
    leaves = [in_order[3:].reshape(()), in_order, in_order[:1:-1], [min(z[:2]), min(z[2:])]]
    for found, expected in zip(exact_outputs(net, x), leaves, strict=True):
        assert_equal(found, fractions(expected))
    differences = {abs(a - b) for a, b in itertools.combinations(z, 2)}
    for stage in range(len(net.stages)):
        assert {abs(v) for v in fractions(exact_values(net, x, stage))} <= differences
    tie = np.array([Fraction(0)] * 3, object)
    assert not any(exact_signs(net, tie, s).any() for s in range(len(net.stages)))


# Batch means -------------------------------------------------------------------------------------


def stored_inverse_deviations(net):
    """The float64 numbers that the values behind each batch mean are multiplied by."""
    steps = net.program.steps
    centred = [s.outputs[0] for s in steps if s.name == "subtract_batch_mean"]
    found = []
    for index in centred:
        product = next(
            s for s in steps if any(getattr(o, "index", None) == index for o in s.inputs)
        )
        assert product.name == "mul"
        found.append(fractions(next(o for o in product.inputs if isinstance(o, np.ndarray))))
    return found


def normalise(z, mean, inverse, layer):
    return (z - mean) * inverse.ravel() * fractions(layer["scale"]) + fractions(layer["bias"])


def dense(x, layer):
    return x @ fractions(layer["kernel"]) + fractions(layer["bias"])


def relu(z):
    return each(lambda v: max(v, ZERO), z)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_residual_batchnorm_by_hand(wrap, backend):
    batch = np.random.default_rng(4).normal(size=(7, 4)) + 3
    variables = linen_variables(Residual(), batch, train=False)
    net = jr.trace(wrap(jr.condition(Residual(), variables, batch, train=False)), batch[0])
    params = variables["params"]
    inverse = stored_inverse_deviations(net)

    def first(rows):
        mean = dense(fractions(jr.centroid(batch)), params["stem"])
        return normalise(dense(rows, params["stem"]), mean, inverse[0], params["first"])

    rows, x = fractions(batch), some_point(4)
    on_batch = relu(first(rows))
    mean = dense(on_batch, params["inner"]).sum(axis=0) / len(batch)
    hidden = relu(first(x))
    second = normalise(dense(hidden, params["inner"]), mean, inverse[1], params["second"])
    assert_equal(exact_values(net, x, 0), first(x))
    assert_equal(exact_values(net, x, 1), hidden + second)
    assert_equal(exact_outputs(net, x)[0], dense(relu(hidden + second), params["head"]))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_first_stage_hyperplanes_share_the_centroid(kind):
    batch = np.random.default_rng(5).normal(size=(7, 4)) * 0.1 + 0.7
    if kind == "linen":
        variables = initial_variables(Mlp(), np.float32(batch), train=False)
        f = jr.condition(Mlp(), variables, batch, train=False)
    else:
        f = jr.condition(NnxMlp(nnx.Rngs(0)), None, batch)
    net, p = jr.trace(f, batch[0]), jr.centroid(batch)
    assert exact_signs(net, fractions(p), 0).tolist() == [0] * 6
    with jax.enable_x64(True):
        assert np.any(np.asarray(net.switching_values(p)[0]) != 0)
    q = fractions(p)
    q[0] += Fraction(1, 10**40)
    assert np.all(exact_signs(net, q, 0) != 0)


def test_nnx_agrees_with_its_switching_values():
    batch = np.random.default_rng(6).normal(size=(9, 4))
    assert_agrees(jr.condition(nnx_model(NnxMlp), None, batch), (4,))


def test_positions_of_a_first_convolution_are_averaged_at_the_centroid():
    batch = np.random.default_rng(7).normal(size=(5, 3, 2))
    model = OneLayer({})  # on the input: mean over examples and the 3 positions
    f = jr.condition(model, linen_variables(model, batch), batch)
    net, x = jr.trace(f, batch[0]), some_point(3, 2)
    params = linen_variables(model, batch)["params"]["BatchNorm_0"]
    mean = fractions(jr.centroid(batch)).sum(axis=0) / 3
    (inverse,) = stored_inverse_deviations(net)
    assert_equal(exact_outputs(net, x)[0], normalise(x, mean, inverse, params))


def test_masked_entries_do_not_count():
    batch = np.random.default_rng(8).normal(size=(5, 3, 2))
    mask = np.random.default_rng(9).random((5, 3, 1)) < 0.6
    model = OneLayer({})
    variables = linen_variables(model, batch)
    net = jr.trace(jr.condition(model, variables, batch, mask=mask), batch[0])
    x, rows = some_point(3, 2), fractions(batch)
    mean = rows[mask[..., 0]].sum(axis=0) / int(mask.sum())
    (inverse,) = stored_inverse_deviations(net)
    expected = normalise(x, mean, inverse, variables["params"]["BatchNorm_0"])
    assert_equal(exact_outputs(net, x)[0], expected)


class Two(nn.Module):
    """Two BatchNorms without shift and deviation, to be read off by eye."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)(x))
        return nn.BatchNorm(use_running_average=False, use_scale=False, use_bias=False)(x)


def two_by_hand(x, batch, inverse):
    centred = [
        each(lambda v: max(v, ZERO), (v - fractions(jr.centroid(batch))) * inverse[0])
        for v in (fractions(batch), x)
    ]
    return (centred[1] - centred[0].sum(axis=0) / len(batch)) * inverse[1]


def test_marks_under_vmap_and_called_twice():
    batch = np.random.default_rng(10).normal(size=(5, 2))
    f = jax.jit(jr.condition(Two(), {}, batch))
    inverse = [v.ravel() for v in stored_inverse_deviations(jr.trace(f, batch[0]))]
    x = some_point(2)
    one, two = (two_by_hand(v, batch, inverse) for v in (x, 2 * x))

    def mapped(x):
        return jax.vmap(jax.vmap(f))(jnp.stack([x, 2 * x, x, x, x, x]).reshape(3, 2, 2))

    assert_equal(exact_outputs(jr.trace(mapped, batch[0]), x)[0][0], np.stack([one, two]))
    assert_equal(exact_outputs(jr.trace(lambda x: f(x) + f(2 * x), batch[0]), x)[0], one + two)


def test_batches_under_vmap_keep_their_own_means():
    # As many batches as examples in one, and nested: axes cannot be told apart by their lengths.
    batches = np.random.default_rng(11).normal(size=(2, 2, 2, 2))

    def f(x):
        one = lambda b, x: jr.condition(Two(), {}, b)(x)  # noqa: E731
        return jax.vmap(jax.vmap(one, (0, None)), (0, 0))(batches, jnp.stack([x, 2 * x]))

    net, x = jr.trace(f, np.zeros(2)), some_point(2)
    inverse = stored_inverse_deviations(net)
    found = exact_outputs(net, x)[0]
    for i, j in np.ndindex(2, 2):
        scales = [np.broadcast_to(v, (2, 2, 1, 2))[i, j, 0] for v in inverse]
        assert_equal(found[i, j], two_by_hand((1 + i) * x, batches[i, j], scales))
    with jax.enable_x64(True):
        close = fractions(found).astype(float)
        np.testing.assert_allclose(net(x.astype(float)), close, rtol=1e-12, atol=1e-12)


# Whole models ------------------------------------------------------------------------------------


def assert_agrees(f, shape, points=2):
    """Stages and outputs equal the float64 ones but for rounding, at random floats."""
    net = jr.trace(f, np.zeros(shape))
    rng = np.random.default_rng(12)
    in_floats = jax.jit(lambda x: (net.switching_values(x), net(x)))
    with jax.enable_x64(True):
        for _ in range(points):
            x = rng.normal(size=shape)
            values, y = in_floats(x)
            both = [(exact_values(net, x, s), v) for s, v in enumerate(values)]
            both += zip(exact_outputs(net, x), jax.tree.leaves(y), strict=True)
            for found, expected in both:
                found = fractions(found).astype(float)
                scale = max(1.0, abs(found).max(initial=0))
                assert found.shape == expected.shape
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)


def scanned(x):
    kernel = np.random.default_rng(13).normal(size=(4, 3, 3))

    def layer(h, w):
        h = jax.nn.relu(h @ w + 0.1)
        return h, h[0] - h[1]

    return jax.lax.scan(layer, x, jnp.asarray(kernel))


def images(size):
    return models.IMAGES[:, :size, :size]


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        pytest.param(zoo.SmallResNet(channels=(2, 3)), images(4), marks=pytest.mark.slow),
        (models.Unet(), images(4)),
        pytest.param(models.PooledCnn(), images(4), marks=pytest.mark.slow),
    ],
    ids=["resnet", "unet", "pooled cnn"],
)
def test_conditioned_model_agrees_with_its_switching_values(model, batch):
    assert_agrees(jr.condition(model, linen_variables(model, batch), batch), batch.shape[1:], 1)


def test_unrolled_loop_agrees_with_its_switching_values():
    assert_agrees(scanned, (3,))


@pytest.mark.parametrize("name", ["hard_sigmoid", "shrink", "x sign(x)", "jr.table"])
def test_activation_agrees_with_its_switching_values(name):
    assert_agrees(models.dense_net(models.PHIS[name][0]), (3,))
