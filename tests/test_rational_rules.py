"""Every primitive of exact evaluation, on integers, where float64 is exact and the oracle."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxregions as jr
from jaxregions.tracing import quotients, rational_rules, rules
from jaxregions.tracing.quotients import Infinity, Quotients
from jaxregions.tracing.rational import exact_outputs, exact_signs, exact_values


def integers(*shape):
    return np.random.default_rng(len(shape)).integers(-4, 5, size=shape).astype(float)


def float_of(q):
    return float(Fraction(int(q.p), int(q.q)) if hasattr(q, "p") else q)


def conv(x, kernel, **options):
    names = {
        "window_strides": (1, 1),
        "padding": "VALID",
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    return lax.conv_general_dilated(x, kernel, **{**names, **options})


def window_sum(x, window, strides, padding, base=None, spread=None):
    return lax.reduce_window(x, 0.0, lax.add, window, strides, padding, base, spread)


def at(x, method, where, values, **options):
    return getattr(x.at[where], method)(values, **options)


K, TWICE = integers(3, 4), np.array([[0, 2], [2, 2]])
CASES = {  # name: (f, shape of the input)
    "reshape transpose": (lambda x: jnp.transpose(x.reshape(3, 2, 2), (2, 0, 1)), (4, 3)),
    "rev roll": (lambda x: jnp.roll(jnp.flip(x, 0), 2, axis=1), (3, 4)),
    "squeeze expand": (lambda x: jnp.expand_dims(jnp.squeeze(x[:, None]), (0, 2)), (4,)),
    "broadcast": (lambda x: jnp.broadcast_to(x[:, None], (2, 3, 4)), (3,)),
    "concatenate with constants": (lambda x: jnp.concatenate([x / 4, jnp.ones(2), 2 * x]), (3,)),
    "stack tile": (lambda x: jnp.tile(jnp.stack([x, -x / 8], 1), (2, 2)), (3,)),
    "pad": (lambda x: lax.pad(x / 2, 3.0, ((1, -1, 1), (-1, 2, 0))), (3, 3)),
    "pad by a slot": (lambda x: lax.pad(x[:2], x[2] / 4, ((1, 2, 1),)), (3,)),
    "strided slice": (lambda x: x[4:0:-2, ::3], (5, 7)),
    "split": (lambda x: jnp.split(x, [1, 4]), (6,)),
    "dynamic slice": (lambda x: lax.dynamic_slice(x, (2, 5), (2, 2)), (4, 4)),
    "dynamic update slice": (lambda x: lax.dynamic_update_slice(x, x[:1, :2] / 2, (3, 9)), (4, 4)),
    "gather": (lambda x: x[TWICE, np.array([1, -1])], (3, 3)),
    "gather, filled": (lambda x: x.at[np.array([0, 9])].get(mode="fill", fill_value=7.0), (3,)),
    "gather, clipped": (lambda x: x.at[np.array([0, 9])].get(mode="clip"), (3,)),
    "take": (lambda x: jnp.take(x, np.array([[2, 0]]), axis=1), (2, 3)),
    "scatter": (lambda x: at(x, "set", np.array([0, 2]), x[1:3] / 2), (4,)),
    "scatter into constants": (lambda x: at(jnp.ones((4, 2)), "set", np.array([3]), x), (1, 2)),
    "scatter-add": (lambda x: at(x, "add", TWICE, x[:2, None] / 2), (3, 2)),
    "scatter-add, dropped": (
        lambda x: at(x, "add", np.array([1, 9, 1]), x, mode="drop"),
        (3,),
    ),
    "scatter-sub": (lambda x: lax.scatter_sub(x, *_scattered(x)), (4,)),
    "scatter-mul": (lambda x: at(x, "multiply", np.array([1, 1, 3]), np.array([3, 0.5, 2])), (4,)),
    "reduce_sum": (lambda x: (x.sum(axis=(0, 2)), x.sum(), x.sum(axis=-1)), (2, 3, 4)),
    "cumsum": (lambda x: (jnp.cumsum(x, 1), lax.cumsum(x, 0, reverse=True)), (3, 4)),
    "window sum": (lambda x: window_sum(x, (2, 3), (1, 2), ((1, 0), (2, 1))), (4, 5)),
    "window sum, dilated": (
        lambda x: window_sum(x, (2, 2), (2, 1), ((-1, 2), (1, 1)), (3, 2), (2, 3)),
        (4, 5),
    ),
    "matrix vector": (lambda x: K.T @ x, (3,)),
    "dot, batched": (
        lambda x: jnp.einsum("bij,bjk->kbi", x.reshape(2, 3, 3), np.arange(24.0).reshape(2, 3, 4)),
        (18,),
    ),
    "dot, several axes": (
        lambda x: jnp.tensordot(K.reshape(2, 3, 2), x, ((2, 0), (2, 0))),
        (2, 5, 2),
    ),
    "conv": (lambda x: conv(x, integers(3, 2, 2, 3)), (1, 5, 4, 2)),
    "conv, strides and dilation": (
        lambda x: conv(
            x,
            integers(2, 3, 2, 3),
            window_strides=(2, 1),
            padding=((1, 2), (0, -1)),
            lhs_dilation=(1, 2),
            rhs_dilation=(2, 1),
        ),
        (2, 6, 5, 2),
    ),
    "conv, feature groups": (
        lambda x: conv(x, integers(2, 2, 2, 6), feature_group_count=2),
        (2, 4, 3, 4),
    ),
    "conv, batch groups": (
        lambda x: conv(x, integers(2, 2, 3, 4), batch_group_count=2),
        (4, 4, 3, 3),
    ),
    "conv, other layout": (
        lambda x: conv(x, integers(4, 3, 2, 2), dimension_numbers=("CHNW", "OIHW", "HNWC")),
        (3, 5, 2, 4),
    ),
    "conv with kernels that vary": (lambda x: conv(integers(2, 5, 4, 2), x), (2, 2, 2, 3)),
    "conv under vmap of kernels": (
        lambda x: jax.vmap(lambda k: conv(x, k))(integers(3, 2, 2, 2, 1)),
        (1, 4, 4, 2),
    ),
    "transposed conv": (
        lambda x: lax.conv_transpose(x, integers(3, 3, 2, 1), (2, 2), "SAME"),
        (1, 3, 3, 2),
    ),
    "arithmetic": (lambda x: (-x + 3 - x / 4) * np.array([2.0, 0, -0.5]) - (1 - x), (3,)),
    "scalar with array": (lambda x: x.sum() * np.ones((2, 3)) + x, (3,)),
    "division by different powers": (lambda x: x / np.array([2.0, -8, 0.25]), (3,)),
    "division by a piece": (lambda x: jax.nn.relu(x) / (1.0 + (x > 0)), (5,)),
    "powers of a piece": (lambda x: x * (x > 0) ** 2 + x * jnp.square(jnp.sign(x)), (5,)),
    "min max clamp abs": (
        lambda x: jnp.minimum(x, 2) + jnp.maximum(-1, x) + lax.clamp(-2.0, x, 3.0) + abs(x),
        (9,),
    ),
    "sign": (lambda x: x * jnp.sign(x), (5,)),
    "comparisons": (
        lambda x: x * (x > 0) + x * (x >= 0) + 2 * x * (x < 0) + x * (x <= 0),
        (9,),
    ),
    "equalities": (lambda x: x * (x != 0) + x * ~(x == 0), (9,)),
    "logic": (
        lambda x: x * ((x > 0) & (x > 0)) + x * ((x > 0) | (x < 0)) + x * ((x > 0) ^ (x < 0)),
        (9,),
    ),
    "selection": (lambda x: jnp.where(x > 2, x / 2 + 1, jnp.where(x > 0, x, 3 * x)), (9,)),
    "constant mask of cases": (
        lambda x: lax.select_n(np.array([0, 2, 1, 2]), x, 2 * x, x / 4),
        (4,),
    ),
    "truth values as numbers": (lambda x: x * (x > 0).astype(jnp.int32).astype(bool), (5,)),
    "masked maximum": (lambda x: jnp.where(np.array([True, False, True]), x, -np.inf).max(), (3,)),
    "maximum along a mask": (lambda x: jnp.max(x, 0, where=K > 0, initial=-9.0), (3, 4)),
    "pooling with padding": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3,), (2,), ((1, 2),)),
        (6,),
    ),
    "smallest of a window": (
        lambda x: lax.reduce_window(x, jnp.inf, lax.min, (2,), (1,), ((1, 1),)),
        (4,),
    ),
    "sorting": (lambda x: (jnp.sort(x), lax.top_k(x, 2)[0], jnp.min(x)), (5,)),
}


def _scattered(x):
    numbers = lax.ScatterDimensionNumbers((), (0,), (0,))
    return np.array([[1], [1], [3]]), x[:3] / 2, numbers


@pytest.mark.parametrize("name", CASES)
def test_exact_where_floats_are_exact(name):
    f, shape = CASES[name]
    net = jr.trace(f, np.zeros(shape))
    both = jax.jit(lambda x: (f(x), net.switching_values(x)))
    with jax.enable_x64(True):
        for seed in range(3):
            x = np.random.default_rng(seed).integers(-9, 10, size=shape).astype(float)
            y, stages = both(x)
            for found, value in zip(exact_outputs(net, x), jax.tree.leaves(y), strict=True):
                assert found.shape == value.shape
                assert [float_of(q) for q in found.ravel()] == np.asarray(value).ravel().tolist()
            for stage, values in enumerate(stages):
                found = [float_of(q) for q in exact_values(net, x, stage)]
                assert found == np.asarray(values).tolist()
                assert exact_signs(net, x, stage).tolist() == np.sign(values).tolist()


def test_every_primitive_of_a_trace_has_a_rule():
    # These become steps of pairwise maxima; the positions of argmax are never used.
    contests = {"reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "sort"}
    contests |= {"top_k", "argmax", "argmin"}
    marked = {"subtract_batch_mean"}  # needs the batch, so it is no rule
    assert set(rules.RULES) - contests - marked == set(rational_rules.RULES)


def test_a_primitive_without_a_rule_is_named(monkeypatch):
    net = jr.trace(lambda x: jax.nn.relu(jnp.cumsum(x)), np.zeros(3))
    monkeypatch.delitem(rational_rules.RULES, "cumsum")
    with pytest.raises(ValueError, match="primitive 'cumsum'"):
        exact_outputs(net, np.zeros(3))


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "stage", "message"),
    [
        (np.zeros(2), 0, r"x: expected shape \(3,\), received \(2,\)"),
        (np.array([0, np.nan, 1]), 0, "x: expected exact rationals"),
        (np.array([0, np.inf, 1]), 0, "x: expected finite numbers"),
        (np.array(["a", 0, 0], object), 0, "x: expected exact rationals"),
        (np.zeros(3), 1, "stage: expected 0 to 0, received 1"),
        (np.zeros(3), -1, "stage: expected 0 to 0, received -1"),
    ],
)
def test_bad_input(x, stage, message):
    net = jr.trace(jax.nn.relu, np.zeros(3))
    for function in (exact_values, exact_signs):
        with pytest.raises(ValueError, match=message):
            function(net, x, stage)


def test_a_function_over_tracers_is_refused():
    @jax.jit
    def inside(weight):
        net = jr.trace(lambda x: jax.nn.relu(weight * x), np.zeros(3))
        with pytest.raises(ValueError, match="received one over tracers"):
            exact_values(net, np.ones(3), 0)
        return weight

    inside(2.0)


def test_works_while_something_else_is_traced():
    net = jr.trace(lambda x: jax.nn.relu(jnp.flip(2 * x)), np.zeros(2))
    found = []

    @jax.jit
    def inside(y):
        found.append(exact_signs(net, np.array([3, -1], object), 0).tolist())
        return y

    inside(1.0)
    assert found == [[-1, 1]]


def test_an_index_out_of_bounds_that_reads_nan_is_refused():
    net = jr.trace(lambda x: jax.nn.relu(x).at[np.array([0, 9])].get(mode="fill"), np.zeros(3))
    with pytest.raises(ValueError, match="primitive 'gather': expected indices in bounds"):
        exact_outputs(net, np.zeros(3))


# Quotients ---------------------------------------------------------------------------------------


def test_infinity_compares_and_scales_with_integers_of_any_size():
    huge = 10**400
    values = np.array([Infinity(-1), -huge, 0, huge, Infinity(1)], object)
    assert (values[:-1] < values[1:]).all()
    assert np.maximum(values, values[::-1])[0] == Infinity(1)
    assert (values * -huge).tolist()[::4] == [Infinity(1), Infinity(-1)]
    assert Infinity(1) - huge == Infinity(1) == huge - Infinity(-1)
    with pytest.raises(ArithmeticError, match="infinity minus infinity"):
        Infinity(1) - Infinity(1)
    with pytest.raises(ArithmeticError, match="zero times infinity"):
        Infinity(1) * 0


def test_infinite_values_become_no_rationals():
    with pytest.raises(ValueError, match="received infinity"):
        quotients.rationals(quotients.quotients(np.array([[0.5, np.inf]])))


def test_division_by_zero_is_refused():
    one = Quotients(np.array([[1]], object), 1)
    with pytest.raises(ValueError, match="divisors that are finite and not zero"):
        quotients.divided(one, quotients.quotients(np.array([[0.0]])))


@pytest.mark.parametrize("x", [0.1, -5e-324, 1.7976931348623157e308, 3, True, Fraction(-2, 6)])
def test_numbers_in_and_out(x):
    (found,) = quotients.rationals(quotients.quotients(np.array([x], object)))
    assert (
        Fraction(int(found.p), int(found.q)) == Fraction(x) if hasattr(found, "p") else found == x
    )
