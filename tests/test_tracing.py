"""The tracer primitive by primitive: what is accepted, what is dropped, in which precision."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import initial_variables
from jax import lax

import jaxregions as jr
from jaxregions import NotPiecewiseAffineError
from jaxregions.tracing.network import CPAFunction

RNG = np.random.default_rng(0)
W, V, B = RNG.normal(size=(4, 6)), RNG.normal(size=(6, 6)), RNG.normal(size=6)
BIG = RNG.normal(size=(4, 5000))
POINTS = RNG.normal(size=(200, 4)) * 2
relu = jax.nn.relu


def sizes(net):
    return [s.size for s in net.stages]


def assert_same_function(net, f, points=POINTS, apart=0.05):
    """The program equals f, its values are finite, and equal patterns mean one affine map."""
    ends = points, points + apart * RNG.normal(size=points.shape)
    with jax.enable_x64(True):
        look = jax.jit(jax.vmap(lambda x: (net(x), f(x), net.switching_values(x))))
        ours, theirs, values = look(jnp.concatenate([*ends, (ends[0] + ends[1]) / 2]))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    signs = np.zeros((3 * len(points), 0))
    for v in values:
        assert np.isfinite(v).all()
        signs = np.hstack([signs, np.sign(v)])
    here, there, _ = np.split(signs, 3)
    one = (here == there).all(axis=1)
    assert one.any()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        start, stop, middle = (part[one] for part in np.split(np.asarray(b), 3))
        np.testing.assert_allclose(middle, (start + stop) / 2, rtol=1e-9, atol=1e-10)


# Structure ---------------------------------------------------------------------------------------

GOOD = {  # function, sizes of its stages
    "scan over xs, with ys": (
        lambda x: lax.scan(lambda c, m: (relu(c @ m), c.sum()), x @ W, jnp.stack([V, V.T])),
        [6, 6],
    ),
    "scan over x, reversed": (
        lambda x: lax.scan(lambda c, t: (relu(c + t), 2 * c), 0.0, x, reverse=True),
        [1, 1, 1, 1],
    ),
    "scan of nothing": (
        lambda x: lax.scan(lambda c, _: (c, c), x, jnp.zeros((0,)))[1].sum() + x,
        [],
    ),
    "fori_loop as scan": (
        lambda x: lax.fori_loop(0, 2, lambda i, h: relu(h @ V + i), x @ W),
        [6, 6],
    ),
    "fori_loop as while": (
        lambda x: lax.fori_loop(0, jnp.int32(2), lambda i, h: relu(h @ V + i), x @ W),
        [6, 6],
    ),
    "remat": (jax.checkpoint(lambda x: relu(x @ W)), [6]),
    "jit": (jax.jit(lambda x: relu(x @ W)), [6]),
    "cond on a constant": (lambda x: lax.cond(W.sum() > 99, lambda v: v, relu, x), [4]),
    "switch on a constant": (lambda x: lax.switch(7, [lambda v: v, relu], x), [4]),
    "shapes": (
        lambda x: jnp.cumsum(
            jnp.flip(jnp.pad(relu(x).reshape(2, 2).T.ravel(), 1, constant_values=3.0))
        )[::2],
        [4],
    ),
    "split and stack": (lambda x: jnp.stack(jnp.split(relu(x @ W), 3))[::-1], [6]),
    "take and tile": (lambda x: jnp.tile(jnp.take(relu(x), jnp.array([2, 0])), 2), [4]),
    "einsum": (lambda x: jnp.einsum("i,ij,k->kj", relu(x), W, B), [4]),
    "scatter": (
        lambda x: relu(x.at[1].add(x[2]).at[0].multiply(2.0).at[2].subtract(x[1]).at[3].set(x[0])),
        [4],
    ),
    "scatter to a constant": (lambda x: jnp.zeros(5).at[jnp.array([0, 2])].add(relu(x[:2])), [2]),
    "dynamic slices": (
        lambda x: (
            relu(lax.dynamic_slice(x, (1,), (2,))) + lax.dynamic_update_slice(x, x[:1], (2,))[1:3]
        ),
        [2],
    ),
    "depthwise dilated conv": (
        lambda x: nn.relu(
            lax.conv_general_dilated(
                jnp.outer(x, B[:2])[None],
                B.reshape(3, 1, 2),
                (1,),
                "SAME",
                rhs_dilation=(2,),
                dimension_numbers=("NHC", "HIO", "NHC"),
                feature_group_count=2,
            )
        ),
        [8],
    ),
    "sort": (lambda x: jnp.sort(x[:3]), [1, 1, 1]),
    "top_k": (lambda x: lax.top_k(x[:3], 2)[0], [1, 1, 1]),
    "median": (lambda x: jnp.median(x[:3]), [1, 1, 1]),
    "argmax unused": (lambda x: (jnp.argmax(x), relu(x))[1], [4]),
    "max over axes": (lambda x: jnp.outer(x, B).reshape(2, 2, 3, 2).max(axis=(0, 2)), [12, 4, 4]),
    "max of two": (lambda x: jnp.maximum(x @ W, x[0] * B), [6]),
    "where of two": (lambda x: jnp.where(x @ W < x[0] * B, x @ W, x[0] * B), [6]),
    "min by where": (lambda x: jnp.where(x[:2] >= x[2:], x[2:], x[:2]), [2]),
    "mixed scales in a chain": (
        lambda x: jax.nn.relu6(relu(x) * np.array([2.0, -1, 1, -3]) + 1),
        [4, 8],
    ),
    "relu of a big constant": (lambda x: jnp.maximum(jnp.outer(x, np.ones(5000)), BIG), [20000]),
    "dropout with a fixed mask": (
        lambda x: relu(x * jax.random.bernoulli(jax.random.key(0), 0.5, (4,)) + x),
        [4],
    ),
    "a chain turned around": (lambda x: jax.nn.relu6(1 - 2 * x) + relu(x), [12]),
    "stop_gradient": (lambda x: relu(lax.stop_gradient(x)), [4]),
    "nothing bends": (lambda x: x @ W, []),
    "constant": (lambda _: jnp.ones(3), []),
    "a tree of outputs": (lambda x: {"a": relu(x), "b": (x, 2.0)}, [4]),
}


@pytest.mark.parametrize("name", GOOD)
def test_accepted(name):
    f, expected = GOOD[name]
    net = jr.trace(f, np.zeros(4))
    assert sizes(net) == expected
    many = net.num_units > 1000
    assert_same_function(net, f, POINTS[:5] if many else POINTS, 1e-6 if many else 0.05)


def test_custom_derivatives_are_not_believed():
    @jax.custom_jvp
    def f(x):
        return relu(x)

    f.defjvp(lambda p, t: (f(*p), 7 * t[0]))

    @jax.custom_vjp
    def g(x):
        return relu(x - 1)

    g.defvjp(lambda x: (g(x), None), lambda _, t: (7 * t,))
    net = jr.trace(lambda x: f(x) + g(x) + lax.stop_gradient(x), np.zeros(4))
    with jax.enable_x64(True):
        slope = jax.jacobian(net)(jnp.array([-1.0, 0.5, 2.0, 3.0]))
    np.testing.assert_array_equal(slope, np.diag([1.0, 2, 3, 3]))


def test_breakpoints_of_one_preactivation_share_a_unit():
    net = jr.trace(lambda x: jax.nn.hard_tanh(x @ W) + relu(x @ W - 0.5), np.zeros(4))
    assert sizes(net) == [18]
    assert net.num_units == 6
    np.testing.assert_array_equal(net.stages[0].unit, np.tile(np.arange(6), 3))


def test_switching_values_are_preactivation_minus_breakpoint():
    net = jr.trace(lambda x: jax.nn.relu6(x @ W + B), np.zeros(4))
    with jax.enable_x64(True):
        (values,) = net.switching_values(POINTS[0])
    np.testing.assert_allclose(values, np.concatenate([z := POINTS[0] @ W + B, z - 6]), atol=1e-14)


def test_a_chain_turned_around_and_bent_again():
    # relu6(1 - 2x) + relu(x) - 2 is positive left of -0.5 and right of 2, and 4 left of -2.5.
    net = jr.trace(lambda x: relu(jax.nn.relu6(1 - 2 * x) + relu(x) - 2), np.zeros(1))
    with jax.enable_x64(True):
        (values,) = net.switching_values(np.zeros(1))
    np.testing.assert_array_equal(sorted(values), [-2, 0.5, 2.5])


def test_pattern_is_the_sign():
    net = jr.trace(lambda x: relu(x), np.zeros(4))
    (signs,) = net.pattern(np.array([-1.0, 0.0, 2.0, 1e-30]))
    assert signs.dtype == jnp.int8
    np.testing.assert_array_equal(signs, [-1, 0, 1, 1])


def test_traced_function_passes_through():
    net = jr.trace(relu, np.zeros(4))
    assert jr.trace(net, np.zeros(4)) is net


# Repeats and constants ---------------------------------------------------------------------------


def zero_unit(x):
    return relu(x @ np.where(np.arange(6) == 2, 0.0, W) + B)


def dead_channel(x):
    kernel = np.stack([np.ones(3), np.zeros(3)], axis=-1)[:, None]
    return nn.relu(
        lax.conv_general_dilated(
            x[None, :, None], kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )
    )


DROPS = {  # function, sizes, dropped
    "crelu": (lambda x: jnp.concatenate([relu(x @ W + B), relu(-(x @ W + B))]), [6], 6),
    "relu twice": (lambda x: relu(x @ W) @ V + relu(x @ W), [6], 6),
    "relu used twice": (lambda x: (lambda h: h @ V + h)(relu(x @ W)), [6], 0),
    "relu plus leaky": (lambda x: relu(x @ W) + jax.nn.leaky_relu(x @ W), [6], 0),
    "relu beside leaky": (lambda x: jnp.stack([relu(x @ W), jax.nn.leaky_relu(x @ W)]), [6], 6),
    "same zero set, rescaled": (lambda x: jnp.stack([relu(x - 1), relu(3 - 3 * x)]), [4], 4),
    "maximum and minimum": (
        lambda x: jnp.stack([jnp.maximum(x[:2], x[2:]), jnp.minimum(x[:2], x[2:])]), [2], 2),
    "maximum twice": (lambda x: x.max() + x.max(), [2, 1], 3),
    "unit without weights": (zero_unit, [5], 1),
    "channel without weights": (dead_channel, [4], 4),
    "entry set to a constant": (lambda x: relu(x.at[0].set(2.0)), [3], 1),
    "max of constants": (
        lambda x: jnp.concatenate([jnp.ones(2), x[:2]]).reshape(2, 2).max(axis=1), [1], 1),
    "masked by -inf": (lambda x: jnp.where(np.array([1, 0, 1, 0]) > 0, x, -jnp.inf).max(), [1], 0),
    "max where": (lambda x: x.max(where=np.arange(4) < 3, initial=-jnp.inf), [1, 1], 0),
    "x - x": (lambda x: relu(jnp.abs(x) - jnp.abs(x) + 1.0) + x, [], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPS)
def test_dropped(name):
    f, expected, dropped = DROPS[name]
    net = jr.trace(f, np.zeros(4))
    assert (sizes(net), net.dropped) == (expected, dropped)
    assert_same_function(net, f)


def test_dead_pooling_windows_have_finite_values_and_slopes():
    def f(x):
        z = -abs(x.reshape(1, 2, 2, 1)) - 1
        return nn.max_pool(z, (3, 3), (1, 1), padding="SAME").ravel()

    net = jr.trace(f, np.zeros(4))
    # Each of the four windows sees all four entries: 3 comparisons, and |.| has bent four before.
    assert net.stages[0].size == 4
    assert sum(sizes(net)[1:]) == 4 * 3
    assert_same_function(net, f)
    with jax.enable_x64(True):
        jacobians = jax.jit(jax.jacobian(net.switching_values))(jnp.asarray(POINTS[0]))
    assert all(np.isfinite(np.asarray(j)).all() for j in jacobians)


def test_infinite_constant_outside_a_maximum_is_refused():
    with pytest.raises(NotPiecewiseAffineError, match="infinite constant"):
        jr.trace(lambda x: relu(jnp.where(np.arange(4) > 1, x, -jnp.inf) @ W), np.zeros(4))


# Precision and transformations -------------------------------------------------------------------


def test_cast_is_counted_and_left_out():
    def f(x):
        h = (x.astype(jnp.bfloat16) @ W.astype(jnp.float32)).astype(jnp.float16)
        return lax.reduce_precision(relu(h), 5, 10).astype(jnp.float32)

    net = jr.trace(f, np.zeros(4))
    assert net.casts >= 2
    with jax.enable_x64(True):
        y = net(POINTS[0])
        assert y.dtype == jnp.float64
        exact = np.maximum(POINTS[0] @ W.astype(np.float32).astype(float), 0)
        np.testing.assert_allclose(y, exact, rtol=1e-14)


def test_cast_to_float_of_a_predicate_is_no_narrowing():
    net = jr.trace(lambda x: x * (x > 0).astype(jnp.bfloat16), np.zeros(4))
    assert sizes(net) == [4]


def test_function_that_insists_on_float32():
    def f(x):
        start = jnp.zeros((), jnp.float32)
        return lax.scan(lambda c, t: (relu(c + t), None), start, x)[0]

    net = jr.trace(f, np.zeros(4))
    assert sizes(net) == [1, 1, 1, 1]
    with jax.enable_x64(True):
        y = net(POINTS[0])
        expected = 0.0
        for t in POINTS[0]:
            expected = max(expected + t, 0.0)
        assert float(y) == expected


def test_evaluates_in_the_precision_of_its_point():
    net = jr.trace(lambda x: jax.nn.relu6(x @ W + B), np.zeros(4))
    assert not jax.config.jax_enable_x64
    low = net.switching_values(np.float32(POINTS[0]))[0]
    with jax.enable_x64(True):
        high = net.switching_values(POINTS[0])[0]
    assert (low.dtype, high.dtype) == (jnp.float32, jnp.float64)
    np.testing.assert_allclose(low, high, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x64", [pytest.param(False, marks=pytest.mark.slow), True])
def test_traced_parameters_under_jit_and_vmap(x64):
    batch = RNG.normal(size=(8, 4))
    model = nn.Sequential([nn.Dense(6), nn.BatchNorm(use_running_average=False), nn.PReLU()])
    variables = initial_variables(model, np.float32(batch))

    def values(variables, batch, x):
        f = jr.condition(model, variables, batch)
        return jr.trace(lambda x: f(x), x).switching_values(x)[0]

    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        variables = jax.tree.map(lambda a: jnp.asarray(a, dtype), variables)
        batch = jnp.asarray(batch, dtype)
        kernel = np.asarray(variables["params"]["layers_0"]["kernel"], float)
        got = jax.jit(values)(variables, batch, batch[0])
        many = jax.vmap(values, (None, 0, 0))(variables, jnp.stack([batch, batch[::-1]]), batch[:2])
        assert got.dtype == many.dtype == dtype
    z = np.asarray(batch, float) @ kernel
    expected = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    tolerance = 1e-10 if x64 else 1e-4
    np.testing.assert_allclose(got, expected[0], atol=tolerance)
    np.testing.assert_allclose(many, expected[:2], atol=tolerance)


def test_loop_and_constant_indices_fold_while_parameters_are_traced():
    @jax.jit
    def values(w, x):
        def f(x):
            h = lax.fori_loop(0, jnp.int32(2), lambda i, h: relu(h @ w + i)[jnp.arange(4)], x)
            return jnp.where(jnp.arange(4) < 2, h, -jnp.inf).max()

        return jr.trace(f, x).switching_values(x)

    # A copy: jax keeps the float64 view of an array that a jitted function closed over under x64.
    assert [v.shape for v in values(jnp.asarray(W.copy()), jnp.ones(4))] == [(6,), (6,), (1,)]


def test_marks_survive_wrapping():
    model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False), nn.relu])
    batch = RNG.normal(size=(5, 4))
    f = jr.condition(model, initial_variables(model, np.float32(batch)), batch)
    for g in (f, lambda x: f(x), jax.jit(f), lambda x: jax.vmap(f)(x[None])[0], jax.checkpoint(f)):
        names = [step.name for step in jr.trace(g, batch[0]).program.steps]
        assert names.count("enter_batch") == names.count("subtract_batch_mean") == 1


def test_trace_leaves_precision_alone():
    assert not jax.config.jax_enable_x64
    jr.trace(relu, np.zeros(4))
    assert not jax.config.jax_enable_x64


def test_switching_values_compile_once():
    net = jr.trace(lambda x: relu(x @ W), np.zeros(4))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def values(x):
        return net.switching_values(x)

    for x in np.float32(POINTS[:3]):
        values(x)


def test_closure_that_changed_is_traced_again():
    scale = {"value": 1.0}

    def f(x):
        return relu(x - scale["value"])

    first = jr.trace(f, np.zeros(1))
    scale["value"] = 2.0
    second = jr.trace(f, np.zeros(1))
    assert float(first.switching_values(np.zeros(1))[0][0]) == -1.0
    assert float(second.switching_values(np.zeros(1))[0][0]) == -2.0


def test_is_a_frozen_record():
    net = jr.trace(relu, np.zeros(4))
    assert isinstance(net, CPAFunction)
    with pytest.raises(AttributeError):
        net.casts = 3


def test_a_matrix_times_a_vector_keeps_the_precision_of_both():
    net = jr.trace(
        lambda x: jnp.dot(np.ones((3, 4)), x, precision=("highest", "default")), np.zeros(4)
    )
    (product,) = (
        e for e in jax.make_jaxpr(net)(np.zeros(4)).eqns if e.primitive.name == "dot_general"
    )
    of = {v.aval.shape: p for v, p in zip(product.invars, product.params["precision"], strict=True)}
    assert of == {(3, 4): jax.lax.Precision.HIGHEST, (4,): jax.lax.Precision.DEFAULT}


@pytest.mark.parametrize(
    ("convert", "known"),
    [
        (np.asarray, True),
        (jnp.asarray, False),
        pytest.param(np.asarray, False, marks=pytest.mark.slow),
        pytest.param(jnp.asarray, True, marks=pytest.mark.slow),
    ],
)
def test_a_traced_function_keeps_its_numbers(convert, known):
    """Weights changed in place later are those of another function."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(6, 2)), rng.normal(size=(5, 6))
    rows, window = np.array([0, 2, 3]), jr.Window(np.zeros(2), 1.0)

    def f(x):
        with jax.enable_x64(True):
            weights, picked = convert(second), convert(rows)
        return jax.nn.relu(weights @ jax.nn.relu(convert(first) @ x + 0.1) - 0.2)[picked]

    expected = jr.count_regions(jr.trace(f, np.zeros(2)), window)
    net = jr.trace(f, np.zeros(2))
    if known:
        jr.count_regions(net, window)
    first *= 1e3
    second[:], rows[:] = 1.0, 1
    found = jr.count_regions(net, window)
    assert found.activation_regions == expected.activation_regions
    other = jr.count_regions(jr.trace(f, np.zeros(2)), window)
    assert other.activation_regions != expected.activation_regions
