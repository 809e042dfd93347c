"""Error bounds of float64 evaluation, against the same values in rational arithmetic."""

import itertools
import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import LINEN, linen_variables
from flax import linen as nn

import jaxregions as jr
from jaxregions import activations, zoo
from jaxregions.tracing import bounds, error_rules, norms, rational, rules, tracked
from jaxregions.tracing.structure import compiled

RNG = np.random.default_rng


def mlp(phi, sizes, *, seed=0, gain=2.0, bias=0.1):
    """x -> W' phi(...phi(W'x + b)) + b', normal weights of variance gain / fan-in."""
    rng = RNG(seed)
    layers = [
        (rng.normal(size=s) * np.sqrt(gain / s[0]), bias * rng.normal(size=s[1]))
        for s in itertools.pairwise(sizes)
    ]

    def f(x):
        *hidden, (last, shift) = layers
        for kernel, offset in hidden:
            x = phi(x @ kernel + offset)
        return x @ last + shift

    return f


def all_stages(prepared, points, errors, stages):
    def values(x, e):
        found = []
        for s in range(stages):
            value, bound = bounds.bounded_values(prepared, x, e, stage=s)
            loose, largest = bounds.largest_bound(prepared, x, e, s, tight=False)
            found.append((value, bound, loose.bound, jnp.full(bound.shape, largest)))
        return found

    return jax.vmap(values)(points, errors)


def bounded(net, points, error=0.0):
    """Of all stages, (rows, all): values, bounds, those of norms alone, the largest of these."""
    prepared = bounds.prepare(net)
    run = compiled(all_stages, prepared.structure, static=(3,))
    with jax.enable_x64(True):
        pairs = run(prepared, points, np.full(len(points), float(error)), len(net.stages))
        return [np.concatenate(column, axis=1) for column in zip(*pairs, strict=True)]


def fraction(q):
    return q if isinstance(q, Fraction) else Fraction(int(q.numerator), int(q.denominator))


def exact(net, x):
    """All switching values at x as fractions."""
    values = [np.ravel(rational.exact_values(net, x, s)) for s in range(len(net.stages))]
    return [fraction(q) for q in np.concatenate(values).tolist()]


def check(net, points, error=0.0, shifts=(0.0,), rows=None):
    """|value - exact| <= bound at the first points, moved by each of the shifts times the error."""
    values, radii, loose, largest = bounded(net, points, error)
    assert not np.isnan(values).any()
    assert (largest >= loose).all()
    for x, value, *radius in list(zip(points, values, radii, loose, strict=True))[:rows]:
        for shift in shifts:
            steps = np.broadcast_to(shift, x.shape).ravel().tolist()
            pairs = zip(x.ravel().tolist(), steps, strict=True)
            moved = [Fraction(a) + Fraction(error) * Fraction(b) for a, b in pairs]
            target = np.array(moved, object).reshape(x.shape)
            for v, r, e in zip(
                value.tolist(), np.minimum(*radius), exact(net, target), strict=True
            ):
                assert r == np.inf or abs(Fraction(v) - e) <= Fraction(float(r)), (v, r, float(e))
    return values, radii


def on_hyperplanes(net, points):
    """The points, each moved onto the zero of one of its switching values by Newton steps."""

    def all_values(x):
        return jnp.concatenate(net.switching_values(x))

    with jax.enable_x64(True):
        value, slope = jax.jit(jax.vmap(all_values)), jax.jit(jax.vmap(jax.jacrev(all_values)))
        for _ in range(4):
            v, j = np.asarray(value(points)), np.asarray(slope(points))
            rows = np.arange(len(points))
            chosen = rows % v.shape[1]
            normal = j.reshape(*j.shape[:2], -1)[rows, chosen]
            step = v[rows, chosen] / np.maximum((normal**2).sum(1), 1e-30)
            points = points - (step[:, None] * normal).reshape(points.shape)
    return np.asarray(points)


PHIS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "abs": jnp.abs,
    "clamp": lambda x: jax.lax.clamp(-0.3, x, 0.9),
    "where of slopes": lambda x: jnp.where(x <= 0, 0.2 * x, 3 * x),
    "x (x > 0)": lambda x: x * (x > 0),
    "x sign(x)": lambda x: x * jnp.sign(x),
    "relu - relu": lambda x: jax.nn.relu(x) - jax.nn.relu(x - 1),
    "shrink": lambda x: jnp.where(abs(x) > 0.4, x - 0.4 * jnp.sign(x), 0.0),
    "table": activations.PiecewiseLinear((-1, 0, 2), (0.5, 1, -1, 2), 0.3),
}


def some_slow(names, quick):
    """All names as parameters, those that are not ``quick`` marked slow."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", some_slow(PHIS, ("relu", "hard_tanh", "x sign(x)")))
def test_activation(name):
    net = jr.trace(mlp(PHIS[name], (3, 6, 5, 4, 2)), np.zeros(3))
    points = on_hyperplanes(net, RNG(1).normal(size=(12, 3)))
    _, radii = check(net, points)
    assert np.max(radii) < 1e-12
    shifts = [0.0, 1.0, -1.0, *RNG(2).uniform(-1, 1, size=(1, 3)).tolist()]
    check(net, points, 1e-3, shifts, rows=4)


BATCH = RNG(0).normal(size=(5, 3))
IMAGES = RNG(1).normal(size=(3, 6, 6, 1))


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (3, 3))(x))
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), padding="SAME")
        x = nn.relu(nn.avg_pool(nn.Conv(2, (2, 2))(x), (2, 2), padding="SAME"))
        return nn.relu(nn.Dense(2)(x.reshape(x.shape[0], -1)))


MODELS = {
    type(m).__name__: (m, RNG(1).normal(size=(5, *shape)), (True,))
    for m, shape in LINEN
    if len(shape) == 1
}
MODELS["Pooled"] = Pooled(), IMAGES, ()
MODELS["SmallResNet"] = zoo.SmallResNet(channels=(2, 3)), IMAGES[:, :4, :4], ()


@pytest.mark.parametrize("name", some_slow(MODELS, ("Mlp",)))
def test_model_conditioned_on_a_batch(name):
    model, batch, args = MODELS[name]
    f = jr.condition(model, linen_variables(model, batch, *args), batch, *args)
    net = jr.trace(f, batch[0])
    points = np.concatenate([batch[:1], jr.centroid(batch)[None]])
    if batch.ndim == 2:
        near = on_hyperplanes(net, RNG(3).normal(size=(4, *batch.shape[1:])))
        points = np.concatenate([points, near])
    _, radii = check(net, points)
    assert np.max(radii) < 1e-8


@pytest.mark.slow
def test_sums_moves_and_comparisons():
    kernel = RNG(4).normal(size=(3, 12))

    def f(x):
        z = (x @ kernel).reshape(3, 4)
        z = z.at[1, 2].add(x[0]).at[0, 0].set(2 * x[1]).at[2, 3].multiply(3.0)
        top = jnp.sort(z, axis=1)[:, ::-1].cumsum(axis=1)
        best = jax.lax.top_k(z.sum(axis=0), 2)[0]
        rest = jnp.concatenate([jnp.pad(z, 1)[1:3, :2].ravel(), jnp.tile(x, 2)])
        return jax.nn.relu(top.sum() + best[0] - rest.mean()), jax.nn.relu(z.min() - x[2])

    net = jr.trace(f, np.zeros(3))
    _, radii = check(net, on_hyperplanes(net, RNG(5).normal(size=(6, 3))))
    assert np.max(radii) < 1e-12


@pytest.mark.parametrize(("gain", "bias"), [(2e16, 1e8), (2e-16, 1e-8), (2.0, 1e8), (2e16, 1e-8)])
def test_weights_and_biases_of_any_size(gain, bias):
    net = jr.trace(mlp(jax.nn.relu, (3, 8, 8, 2), gain=gain, bias=bias), np.zeros(3))
    check(net, on_hyperplanes(net, RNG(6).normal(size=(8, 3))))


@pytest.mark.parametrize("size", [1e-310, 5e-324, 1e-200, 1e-155, 1e150, 1e300, 8e307])
def test_numbers_at_the_ends_of_the_range(size):
    points = RNG(7).choice([-1.5, 0.0, 1.0, 2.0], size=(6, 3)) * size
    for bias in (0.0, size):
        net = jr.trace(mlp(jax.nn.relu, (3, 8, 8, 2), bias=bias), np.zeros(3))
        values, tight, loose, largest = bounded(net, points)
        assert not (largest < loose).any()
        for radii in (tight, loose):
            for x, value, radius in zip(points, values, radii, strict=True):
                for v, r, e in zip(value.tolist(), radius.tolist(), exact(net, x), strict=True):
                    assert not r < np.inf or abs(Fraction(v) - e) <= Fraction(r)


def test_subnormal_weights():
    kernel = RNG(8).choice([-1.0, 1.0], size=(3, 4)) * 3e-310
    net = jr.trace(lambda x: jax.nn.relu(jax.nn.relu(x @ kernel + 2e-310) * 4e-310), np.zeros(3))
    check(net, RNG(9).normal(size=(4, 3)))


def test_cancelling_biases():
    kernel = RNG(10).normal(size=(3, 16))

    def f(x):
        h = jax.nn.relu(x @ kernel + 1e6)
        return jax.nn.relu(h @ kernel.T - 1e6 * kernel.sum(axis=1))

    check(jr.trace(f, np.zeros(3)), RNG(11).normal(size=(6, 3)))


def test_norms_of_what_is_put_together():
    # A product with many columns sees the errors of both parts through their norms alone.
    rng = RNG(17)
    small, large, last = (rng.normal(size=s) for s in ((3, 8), (3, 8), (16, 4)))

    def f(x):
        return jax.nn.relu(jnp.concatenate([x @ small * 1e-3, x @ large]) @ last)

    check(jr.trace(f, np.zeros(3)), rng.normal(size=(4, 3)), 1e-3, (1.0, -1.0))
    check(jr.trace(f, np.zeros(3)), rng.normal(size=(4, 3)), 1e-3, rng.choice([-1, 1], (6, 3)))


def test_units_behind_dead_units_are_exact_zeros():
    rng = RNG(12)
    kernels = [rng.normal(size=(4, 4)) for _ in range(3)]

    def f(x):
        h = jax.nn.relu(x @ kernels[0] - 100.0)
        h = jnp.maximum(jax.nn.relu(h @ kernels[1]) * 0.3, 0.0)
        return jax.nn.relu(jnp.where(h > 0, h, 0.1 * h) @ kernels[2])

    values, radii, *_ = bounded(jr.trace(f, np.zeros(4)), rng.normal(size=(8, 4)), 1e-6)
    assert (radii[:, :4] > 0).all()
    assert (values[:, 4:] == 0).all()
    assert (radii[:, 4:] == 0).all()


def test_constant_pieces_are_exact():
    def f(x):
        return jax.nn.relu(jnp.maximum(x, 1.0) - 1.0)

    net = jr.trace(lambda x: f(x @ np.eye(2)) @ np.eye(2), np.zeros(2))
    with jax.enable_x64(True):
        (out,) = jax.jit(bounds.bounded_outputs)(bounds.prepare(net), np.array([0.3, -2]), 1e-3)
    assert np.asarray(out.values).tolist() == np.asarray(out.bound).tolist() == [0.0, 0.0]


def test_what_follows_from_a_known_zero_is_exact():
    # At x0 = 1/3, which no float is, unit 0 is exactly zero and unit 1 is dead: they tie.
    rows = np.array([[3.0, 0.0], [1.0, 0.0]])
    net = jr.trace(lambda x: jnp.max(jax.nn.relu(rows @ x - np.array([1.0, 9.0]))), np.zeros(2))
    x, error = np.array([1 / 3, 0.2]), 1e-15
    prepared = bounds.prepare(net)
    with jax.enable_x64(True):
        found = {
            k: bounds.bounded_values(prepared, x, error, 1, np.asarray(k))
            for k in ((-1, -1), (0, -1), (1, -1))
        }
    assert [v.bound[0] > 0 for v in found.values()] == [True, False, True]
    assert found[0, -1].values[0] == 0


def test_a_known_zero_is_as_far_off_as_its_breakpoint():
    # The nearest float of a third is off by more than what is inferred of the value's own error.
    third, own = bounds.stored_exactly(np.array([Fraction(1, 3)])), tracked.Tracked
    env = {0: own(np.array([0.3]), np.array([1e-20]), norm=1e-20, most=1e-20)}
    with jax.enable_x64(True):
        bounds._pin(env, (0,), {0: [(np.array([7]), third)]}, np.array([7]))
        off = abs(Fraction(1, 3) - Fraction(float(env[0].value[0])))
        assert min(float(tracked.most(env[0])), float(env[0].norm or 1.0)) >= off > 0


@pytest.mark.slow
def test_known_zeros_beside_breakpoints_that_are_not_zero():
    net = jr.trace(
        lambda x: jnp.max(jnp.clip(x, -0.1, 0.3), keepdims=True), np.zeros(3)
    )  # entries: x + 0.1, then x - 0.3
    with jax.enable_x64(True):
        upper = net.switching_values(np.array([0.3, 0.0, 0.0]))[0]
    number = int(np.argmin(np.abs(np.asarray(upper))))
    x = np.array([0.3 + 1e-9, 0.4, 0.5])
    prepared = bounds.prepare(net)
    with jax.enable_x64(True):
        tie = bounds.bounded_values(prepared, x, 1e-8, 1, np.asarray([number]))
    exact_tie = rational.exact_values(net, np.array([0.3, 0.4, 0.5]), 1)
    assert all(v == 0 for v in exact_tie)
    assert (np.abs(tie.values) <= tie.bound).all()


def test_outputs():
    net = jr.trace(mlp(jax.nn.relu, (3, 7, 6, 2)), np.zeros(3))
    x = RNG(13).normal(size=3)
    with jax.enable_x64(True):
        (out,) = jax.jit(bounds.bounded_outputs)(bounds.prepare(net), x, 0.0)
    (expected,) = rational.exact_outputs(net, x)
    for v, r, e in zip(*map(np.asarray, out), expected.ravel().tolist(), strict=True):
        assert abs(Fraction(float(v)) - fraction(e)) <= Fraction(float(r)) < 1e-13


@pytest.mark.parametrize(
    ("phi", "sizes", "limit"),
    [
        (jax.nn.relu, (2, 256, 256, 256, 1), 2e-11),
        (jax.nn.leaky_relu, (2, 256, 256, 256, 1), 2e-11),
        (jax.nn.relu, (2, *[128] * 10, 1), 1e-8),
    ],
)
def test_bounds_stay_small_with_depth(phi, sizes, limit):
    net = jr.trace(mlp(phi, sizes), np.zeros(2))
    prepared, last = bounds.prepare(net), len(net.stages) - 1
    with jax.enable_x64(True):
        values, radii = jax.jit(jax.vmap(partial(bounds.bounded_values, prepared, stage=last)))(
            RNG(14).normal(size=(64, 2)), np.zeros(64)
        )
    assert np.median(np.asarray(radii) / abs(np.asarray(values))) < limit


def test_operator_norm_is_bounded_from_above_and_closely():
    for shape in ((5, 3), (40, 64), (1, 7), (128, 128)):
        matrix = RNG(15).normal(size=shape) * 1e3
        true = np.linalg.norm(matrix, 2)
        assert true * (1 - 1e-12) <= norms._largest_singular_value(matrix) <= 1.05 * true
    # |(1, 2)| = 2.24 units in the last place, which a product rounds to 2
    assert norms._largest_singular_value(np.array([[5e-324], [1e-323]])) > 1e-323


PRODUCTS = {  # shapes of input and weights, axes summed, axes that go along
    "vectors": ((3,), (3,), ((0,), (0,)), ((), ())),
    "all axes": ((2, 3), (3, 2), ((0, 1), (1, 0)), ((), ())),
    "rows beside": ((2, 4, 3), (3, 2), ((2,), (0,)), ((), ())),
    "batched": ((2, 3), (2, 4, 3), ((1,), (2,)), ((0,), (0,))),
    "no row": ((2, 0), (0, 3), ((1,), (0,)), ((), ())),
    "no output": ((2, 3), (3, 0), ((1,), (0,)), ((), ())),
}


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("name", PRODUCTS)
def test_norms_of_products(name, slot):
    shape, other, summed, along = PRODUCTS[name]
    weights = RNG(16).normal(size=other)
    order = slice(None, None, -1 if slot else 1)

    def f(x):
        return jax.lax.dot_general(*(x, weights)[order], (summed[order], along[order]))

    (step,) = (s for s in jr.trace(f, np.zeros(shape)).program.steps if s.name == "dot_general")
    with jax.enable_x64(True):
        found = norms.linear_norms(step)
        rows = np.asarray(jax.jacobian(f)(np.zeros(shape)))
    out = rows.shape[: rows.ndim - len(shape)]
    matrix = rows.reshape(math.prod(out), math.prod(shape))
    for norm, order in ((found.row, 1), (found.length, 2)):
        assert norm.shape == out
        true = np.linalg.norm(matrix, order, axis=1).reshape(out)
        assert (true * (1 - 1e-12) <= norm).all()
        assert (norm <= true * (1 + 1e-9) + 1e-100).all()
    assert np.linalg.norm(matrix) * (1 - 1e-12) <= found.frobenius
    if matrix.size:
        assert np.linalg.norm(matrix, 2) * (1 - 1e-12) <= found.operator
    assert found.terms >= (matrix != 0).sum(axis=1).max(initial=0)


def test_an_operation_without_a_rule_is_never_certain(monkeypatch):
    monkeypatch.delitem(error_rules.RULES, "max")
    net = jr.trace(mlp(jax.nn.relu, (3, 4, 4, 2)), np.zeros(3))
    values, radii, *_ = bounded(net, RNG(16).normal(size=(2, 3)))
    assert (abs(values) > radii)[:, :4].all()
    assert not (abs(values) > radii)[:, 4:].any()


def test_every_traced_primitive_has_a_rule():
    # Tracing turns these into comparisons of pairs; positions of a maximum are no values.
    played = {"reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "sort"}
    played |= {"top_k", "argmax", "argmin"}
    assert set(rules.RULES) - set(error_rules.RULES) == played


def test_refuses_other_precisions_and_shapes():
    net = jr.trace(mlp(jax.nn.relu, (3, 4, 2)), np.zeros(3))
    prepared = bounds.prepare(net)
    with pytest.raises(ValueError, match="float64"):
        bounds.bounded_values(prepared, jnp.zeros(3, jnp.float32), 0.0, 0)
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"\(3,\)"):
        bounds.bounded_values(prepared, np.zeros(4), 0.0, 0)


def test_refuses_a_function_of_tracers():
    def inside(kernel):
        with pytest.raises(ValueError, match="tracers"):
            bounds.prepare(jr.trace(lambda x: jax.nn.relu(kernel @ x), np.zeros(3)))
        return kernel

    jax.jit(inside)(np.ones((2, 3)))
