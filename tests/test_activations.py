"""Piecewise-linear activations: values, slopes, tables, and what is rejected."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxregions import activations as act
from jaxregions.activations import PiecewiseLinear

BUILT_IN = [
    act.relu,
    act.leaky_relu(),
    act.leaky_relu(0.2),
    act.prelu(-0.3),
    act.relu6,
    act.hard_tanh,
    act.hard_sigmoid,
    act.abs_,
    act.identity,
]
WITH_A_PEER = [
    (act.relu, jax.nn.relu),
    (act.leaky_relu(0.2), lambda x: jax.nn.leaky_relu(x, 0.2)),
    (act.leaky_relu(), jax.nn.leaky_relu),
    (act.relu6, jax.nn.relu6),
    (act.hard_tanh, jax.nn.hard_tanh),
    (act.hard_sigmoid, jax.nn.hard_sigmoid),
    (act.abs_, jnp.abs),
    (act.identity, lambda x: x),
]


def name_of(value):
    return value.name if isinstance(value, PiecewiseLinear) else ""


def integral(phi, x):
    """value_at_zero + integral of the slopes from 0 to x, piece by piece."""
    edges = [-np.inf, *phi.breakpoints, np.inf]
    low, high = min(0.0, x), max(0.0, x)
    area = sum(
        slope * max(0.0, min(high, right) - max(low, left))
        for slope, left, right in zip(phi.slopes, edges, edges[1:], strict=False)
    )
    return phi.value_at_zero + np.sign(x) * area


@st.composite
def tables(draw):
    """A random activation: up to six breakpoints, distinct neighbouring slopes."""
    number = st.floats(-8, 8, allow_nan=False, width=32)
    taus = sorted(draw(st.lists(number, max_size=6, unique=True)))
    slopes = [draw(number)]
    for _ in taus:
        slopes.append(draw(number.filter(lambda a: a != slopes[-1])))
    return PiecewiseLinear(taus, slopes, draw(number))


@pytest.mark.parametrize(("phi", "peer"), WITH_A_PEER, ids=name_of)
def test_value_agrees_with_jax_at_random_points_and_breakpoints(phi, peer):
    """The function of the same name in jax, in float64."""
    random = np.random.default_rng(0).normal(0, 4, 1000)
    taus = np.array(phi.breakpoints)
    x = np.concatenate([random, taus, np.nextafter(taus, -9), np.nextafter(taus, 9), [0.0, -0.0]])
    with jax.enable_x64(True):
        value, expected = np.asarray(phi(jnp.asarray(x))), np.asarray(peer(jnp.asarray(x)))
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, expected, rtol=2e-16, atol=2e-16)


@pytest.mark.parametrize("phi", BUILT_IN, ids=name_of)
def test_gradient_between_breakpoints_is_the_slope(phi):
    """One point inside each piece."""
    taus = np.array(phi.breakpoints)
    inside = [0.7]
    if len(taus):
        inside = [taus[0] - 0.5, *(taus[:-1] + taus[1:]) / 2, taus[-1] + 0.5]
    with jax.enable_x64(True):
        gradients = jax.vmap(jax.grad(phi))(jnp.asarray(inside))
    np.testing.assert_allclose(gradients, phi.slopes, rtol=1e-15)


@settings(max_examples=60, deadline=None)
@given(phi=tables(), x=st.lists(st.floats(-20, 20), min_size=1, max_size=5))
def test_table_is_the_integral_of_its_slopes(phi, x):
    """Against the piecewise integral, at given points and at every breakpoint."""
    x = np.array([*x, *phi.breakpoints])
    with jax.enable_x64(True):
        value = np.asarray(phi(jnp.asarray(x)))
    scale = abs(phi.value_at_zero) + 20 * sum(map(abs, phi.slopes))
    np.testing.assert_allclose(value, [integral(phi, v) for v in x], rtol=0, atol=4e-15 * scale)


@settings(max_examples=60, deadline=None)
@given(phi=tables())
def test_table_is_continuous(phi):
    """The two neighbours of a breakpoint differ by no more than rounding."""
    taus = np.array(phi.breakpoints)
    with jax.enable_x64(True):
        left = np.asarray(phi(jnp.asarray(np.nextafter(taus, -np.inf))))
        right = np.asarray(phi(jnp.asarray(np.nextafter(taus, np.inf))))
    scale = 1 + abs(phi.value_at_zero) + 20 * sum(map(abs, phi.slopes))
    np.testing.assert_allclose(left, right, rtol=0, atol=4e-15 * scale)


def test_table_interpolates_its_knots():
    """np.interp through hand-computed values at the breakpoints."""
    phi = PiecewiseLinear((-2, 1, 3), (0.5, -1, 2, 0), value_at_zero=1.0)
    x = np.linspace(-2, 3, 41)
    with jax.enable_x64(True):
        value = np.asarray(phi(jnp.asarray(x)))
    np.testing.assert_allclose(value, np.interp(x, [-2, 1, 3], [3, 0, 4]), atol=1e-15)


@pytest.mark.parametrize(
    ("phi", "low", "high"),
    [(act.relu6, 0, 6), (act.hard_tanh, -1, 1), (act.hard_sigmoid, 0, 1)],
    ids=name_of,
)
def test_saturation_loses_nothing(phi, low, high):
    """Far outside the breakpoints the value is the limit itself, at infinity too."""
    x = jnp.array([-jnp.inf, -1e30, 1e30, jnp.inf])
    np.testing.assert_allclose(phi(x), [low, low, high, high], rtol=0, atol=1e-7)


def test_nan_input_stays_nan():
    """No piece swallows a NaN."""
    assert all(np.isnan(phi(jnp.nan)) for phi in BUILT_IN)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtype_and_shape_are_kept(dtype):
    """Python-float tables do not promote."""
    for phi in BUILT_IN:
        value = phi(jnp.ones((2, 0, 3), dtype))
        assert (value.shape, value.dtype) == ((2, 0, 3), dtype)


def test_constant_function_is_its_value_at_zero():
    """A table of one zero slope."""
    np.testing.assert_array_equal(PiecewiseLinear((), (0,), 2.5)(jnp.arange(3.0)), [2.5] * 3)


def test_works_as_a_field_of_a_flax_module_under_jit():
    """With the module itself static."""

    class Net(nn.Module):
        activation: PiecewiseLinear

        @nn.compact
        def __call__(self, x):
            return self.activation(nn.Dense(3)(x))

    net, x = Net(act.abs_), jnp.ones((2, 4))
    variables = net.init(jax.random.key(0), x)
    run = jax.jit(lambda net, v, x: net.apply(v, x), static_argnums=0)
    dense = np.ones((2, 4)) @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(run(net, variables, x), np.abs(dense), rtol=1e-6)


def test_equal_tables_are_equal_and_hash_alike():
    """Lists, ints and floats make the same value."""
    one, two = PiecewiseLinear([0], [0, 1], name="relu"), act.relu
    assert one == two
    assert hash(one) == hash(two)
    assert act.relu != act.leaky_relu()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 0), (0, 1, 0)), "increasing"),
        (((0, 0), (0, 1, 0)), "increasing"),
        (((0,), (1, 1)), "differ"),
        (((0, 1), (0, 1, 1)), "differ"),
        (((0,), (0.0, -0.0)), "differ"),
        (((np.nan,), (0, 1)), "finite"),
        (((0,), (0, np.nan)), "finite"),
        (((np.inf,), (0, 1)), "finite"),
        (((0,), (0, -np.inf)), "finite"),
        (((0,), (0, 1), np.nan), "finite"),
        (((0,), (1,)), "one slope more"),
        (((), (0, 1)), "one slope more"),
        (((), ()), "one slope more"),
    ],
)
def test_bad_table_is_rejected(arguments, message):
    """ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=message):
        PiecewiseLinear(*arguments)


@pytest.mark.parametrize("make", [act.leaky_relu, act.prelu])
def test_leaky_slope_of_one_is_rejected(make):
    """There would be no breakpoint."""
    with pytest.raises(ValueError, match="differ"):
        make(1.0)
