"""What the tracer refuses, and that it names the primitive and the user's line."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxregions as jr
from jaxregions import NotPiecewiseAffineError

RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(4, 6)), RNG.normal(size=6)
relu = jax.nn.relu


def batchnorm(fast):
    module = nn.BatchNorm(use_running_average=False, use_fast_variance=fast)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    variables = {
        "params": {"scale": ones, "bias": zeros},
        "batch_stats": {"mean": zeros, "var": ones},
    }

    def f(x):
        return module.apply(variables, x[None], mutable=["batch_stats"])[0]

    return f


def attention(x):
    h = jnp.outer(x, B)
    return jnp.einsum("qd,kd->qk", h, h) @ h


BAD = {  # function, primitive, hint
    "silu": (lambda x: jax.nn.silu(x @ W), "logistic", "smooth"),
    "gelu": (lambda x: jax.nn.gelu(x), "integer_pow", "power"),
    "exact gelu": (lambda x: jax.nn.gelu(x, approximate=False), "erf", "gelu"),
    "softmax": (lambda x: jax.nn.softmax(x), "exp", "logits"),
    "celu": (lambda x: jax.nn.celu(x), "expm1", ""),
    "elu": (lambda x: jax.nn.elu(x), "expm1", ""),
    "tanh": (lambda x: jnp.tanh(x), "tanh", "hard_tanh"),
    "sigmoid": (lambda x: jax.nn.sigmoid(x), "logistic", ""),
    "hard_swish": (lambda x: jax.nn.hard_swish(x), "mul", "product"),
    "square": (lambda x: x**2, "", "power"),
    "x x": (lambda x: x * x, "mul", "product"),
    "two inputs": (lambda x: x[:2] * x[2:], "mul", "product"),
    "reciprocal": (lambda x: 1 / x, "div", "division"),
    "attention": (attention, "dot_general", "product"),
    "fast BatchNorm": (batchnorm(True), "", "jr.condition"),
    "BatchNorm": (batchnorm(False), "", "jr.condition"),
    "division by a norm": (lambda x: x / jnp.abs(x).sum(), "div", "jr.condition"),
    "step": (lambda x: jnp.where(x > 0, 1.0, -1.0), "select_n", "continuous: it jumps by up to 2"),
    "jump": (lambda x: jnp.where(x > 0, x, x + 1) @ W, "select_n", "jumps by up to 1"),
    "mask": (lambda x: (x > 0.5) * 1.0, "gt", "where its argument is 0.5"),
    "hard_shrink": (lambda x: jnp.where(abs(x) > 1, x, 0.0), "select_n", "jumps by up to 1"),
    "other predicate": (lambda x: jnp.where(x[:2] > 0, x[2:], 0.0), "select_n", "agree"),
    "comparison of two": (lambda x: (x[:2] > x[2:]) * 1.0, "gt", "tie"),
    "where of three": (lambda x: jnp.where(x[:2] > x[2:], x[:2], 0.0), "gt", "tie"),
    "cast": (lambda x: x.astype(int), "convert_element_type", "from float64 to int"),
    "floor": (lambda x: jnp.floor(x), "floor", "jumps"),
    "round": (lambda x: jnp.round(x), "round", "jumps"),
    "argmax": (lambda x: jnp.argmax(x), "argmax", "tie"),
    "index by x": (lambda x: x[jnp.argmax(x)], "argmax", "tie"),
    "top_k indices": (lambda x: lax.top_k(x, 2)[1], "top_k", "tie"),
    "argsort": (lambda x: jnp.argsort(x), "sort", "carries other values"),
    "cond": (lambda x: lax.cond(x[0] > 0, lambda v: v, lambda v: -v, x), "cond", "jnp.where"),
    "while": (lambda x: lax.while_loop(lambda v: v[0] > 0, lambda v: v - 1, x), "while", "often"),
    "loop body": (lambda x: lax.fori_loop(0, 2, lambda _, h: jnp.sin(h), x), "sin", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused_with_primitive_and_line(name):
    f, primitive, hint = BAD[name]
    lines, first = inspect.getsourcelines(f)
    with pytest.raises(NotPiecewiseAffineError, match=hint or None) as caught:
        jr.trace(f, np.zeros(4))
    message = str(caught.value)
    assert f"primitive '{primitive}" in message
    line = int(message.split(f" at {__file__}:")[1].split()[0].strip(":"))
    assert first <= line < first + len(lines)


def test_line_is_this_call_not_the_one_that_filled_jax_cache():
    def first(x):
        return jax.nn.silu(x)

    def second(x):
        return jax.nn.silu(x)

    for f in (first, second):
        with pytest.raises(NotPiecewiseAffineError) as caught:
            jr.trace(f, np.zeros(4))
        assert f"{__file__}:{f.__code__.co_firstlineno + 1} " in str(caught.value)


@pytest.mark.parametrize("call", ["shard_map", "pure_callback"])
def test_opaque_calls_are_refused_by_name(call):
    def f(x):
        if call == "pure_callback":
            return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec()
        return jax.shard_map(lambda v: lax.psum(v, "i"), mesh=mesh, in_specs=spec, out_specs=spec)(
            x
        )

    with pytest.raises(NotPiecewiseAffineError, match=call):
        jr.trace(f, np.zeros(4))


NOT_FINITE = {
    "NaN in the weights": (lambda x: jnp.asarray(W.T).at[0, 0].set(np.nan) @ x, "not a number"),
    "NaN in the biases": (lambda x: x + np.array([np.nan, 0, 0, 0]), "not a number"),
    "infinite weights": (lambda x: jnp.asarray(W.T).at[0, 0].set(np.inf) @ x, "infinite"),
    "infinite in float32 only": (lambda x: jnp.float32(1e300) * x, "infinite"),
    "an infinite mask": (lambda x: jnp.max(x + np.array([-np.inf, 0, 0, 0])), "jnp.where"),
}


@pytest.mark.parametrize("name", NOT_FINITE)
@pytest.mark.filterwarnings("ignore:overflow")
def test_constants_that_are_not_finite_are_refused(name):
    f, reason = NOT_FINITE[name]
    with pytest.raises(NotPiecewiseAffineError, match=f"primitive .*{reason}"):
        jr.trace(lambda x: relu(f(x)), np.zeros(4))


def test_padding_with_infinity_is_welcome():
    net = jr.trace(lambda x: jnp.max(jnp.where(np.arange(4) > 0, x, -np.inf)), np.zeros(4))
    assert jr.count_regions(net, jr.Window(np.zeros(4), 1.0)).activation_regions == 3


@pytest.mark.parametrize("example", [np.array([1.0, np.nan]), np.array([np.inf])])
def test_example_must_be_finite(example):
    with pytest.raises(ValueError, match="example_x: expected finite numbers"):
        jr.trace(relu, example)


def test_point_of_another_shape():
    net = jr.trace(relu, np.zeros(4))
    for method in (net, net.switching_values, net.pattern):
        with pytest.raises(ValueError, match=r"expected shape \(4,\), received \(5,\)"):
            method(np.zeros(5))
