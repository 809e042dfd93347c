"""Whole models: predicted sign changes against finite evaluation along random rays."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import linen_variables, train_rows, widen
from flax import nnx

import jaxregions as jr
from jaxregions import activations, zoo

RAYS, GRID = 4, 64
BATCH = np.random.default_rng(0).normal(size=(12, 3))
IMAGES = np.random.default_rng(1).normal(size=(6, 7, 7, 2))


def dense_net(phi, *, widths=(5, 4), seed=0):
    """x -> W' phi(...phi(W'x + b)), plain JAX, weights of a known seed."""
    rng = np.random.default_rng(seed)
    sizes = (3, *widths, 2)
    layers = [(rng.normal(size=s), rng.normal(size=s[1])) for s in itertools.pairwise(sizes)]

    def f(x):
        *hidden, (last, bias) = layers
        for kernel, shift in hidden:
            x = phi(x @ kernel + shift)
        return x @ last + bias

    return f


def along_rays(f, net, *, scale=2.0, seed=3):
    """``look(ray, t)`` -> f and switching values at x0 + t v, for RAYS * GRID pairs at once."""
    rng = np.random.default_rng(seed)
    starts, steps = (rng.normal(size=(RAYS, *net.input_shape)) * scale for _ in range(2))

    @jax.jit
    @jax.vmap
    def look(x):
        return f(x).ravel(), net.switching_values(x)

    def on(ray, t):
        t = t.reshape(-1, *[1] * len(net.input_shape))
        y, values = look(starts[ray] + t * steps[ray])
        return np.asarray(y), [np.asarray(v) for v in values]

    return on


def check_against_evaluation(f, net):
    """The three claims of a trace, from values of f alone (derivatives at ties are up to XLA).

    Where signs agree at both ends of a segment the function is affine between, because cells are
    convex; where the signs of earlier stages agree, so is each switching value; and bisecting to
    where f bends ends at a change of sign. Returns how many bends were bisected.
    """
    with jax.enable_x64(True):
        on = along_rays(f, net)
        ray = np.repeat(np.arange(RAYS), GRID)
        left = np.tile(np.linspace(-1, 1, GRID + 1)[:-1], RAYS)
        right = left + 2 / GRID
        (y0, v0), (y1, v1) = on(ray, left), on(ray, right)
        ym, vm = on(ray, (left + right) / 2)
        same = np.ones(len(ray), bool)
        for a, b, middle in zip(v0, v1, vm, strict=True):
            assert np.isfinite(a).all()
            assert np.isfinite(b).all()
            np.testing.assert_allclose(middle[same], ((a + b) / 2)[same], rtol=1e-9, atol=1e-9)
            same &= (np.sign(a) == np.sign(b)).all(axis=1)
        np.testing.assert_allclose(ym[same], ((y0 + y1) / 2)[same], rtol=1e-11, atol=1e-11)
        bent = abs(ym - (y0 + y1) / 2).max(axis=1) > 1e-5
        for _ in range(16):
            t = np.linspace(left, right, 5)
            y = [on(ray, at)[0] for at in t]
            first, second = (abs(y[i] - (y[i - 1] + y[i + 1]) / 2).max(axis=1) for i in (1, 3))
            left, right = (
                np.where(first > second, left, t[2]),
                np.where(first > second, t[2], right),
            )
        before, after = (np.sign(np.concatenate(on(ray, t)[1], axis=1)) for t in (left, right))
        assert (before != after).any(axis=1)[bent].all()
        return int(bent.sum())


PHIS = {  # activation, breakpoints
    "relu": (jax.nn.relu, 1),
    "relu6": (jax.nn.relu6, 2),
    "leaky_relu": (jax.nn.leaky_relu, 1),
    "hard_tanh": (jax.nn.hard_tanh, 2),
    "hard_sigmoid": (jax.nn.hard_sigmoid, 2),
    "abs": (jnp.abs, 1),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.7), 2),
    "maximum": (lambda x: jnp.maximum(x, 0.3 * x), 1),
    "minimum": (lambda x: jnp.minimum(0.5, x + 1), 1),
    "where": (lambda x: jnp.where(x > 0.5, x, 0.5), 1),
    "where of slopes": (lambda x: jnp.where(x <= 0, 0.2 * x, 3 * x), 1),
    "x (x > 0)": (lambda x: x * (x > 0), 1),
    "x sign(x)": (lambda x: x * jnp.sign(x), 1),
    "relu - relu": (lambda x: jax.nn.relu(x) - jax.nn.relu(x - 1), 2),
    "shrink": (lambda x: jnp.where(abs(x) > 0.4, x - 0.4 * jnp.sign(x), 0.0), 2),
    "relu of leaky": (lambda x: jax.nn.relu(jax.nn.leaky_relu(x) + 0.005), 2),
    "jr.relu": (activations.relu, 1),
    "jr.relu6": (activations.relu6, 2),
    "jr.leaky_relu": (activations.leaky_relu(0.1), 1),
    "jr.prelu": (activations.prelu(-0.3), 1),
    "jr.abs_": (activations.abs_, 1),
    "jr.hard_tanh": (activations.hard_tanh, 2),
    "jr.hard_sigmoid": (activations.hard_sigmoid, 2),
    "jr.table": (activations.PiecewiseLinear((-1, 0, 2), (0.5, 1, -1, 2), 0.3), 3),
}


@pytest.mark.parametrize("name", PHIS)
def test_mlp_with_activation(name):
    phi, breakpoints = PHIS[name]
    f = dense_net(phi)
    net = jr.trace(f, np.zeros(3))
    assert [s.size for s in net.stages] == [5 * breakpoints, 4 * breakpoints]
    assert [s.units for s in net.stages] == [5, 4]
    assert net.dropped == net.casts == 0
    assert check_against_evaluation(f, net) > 4


def test_identity_activation_leaves_nothing_to_switch():
    for phi in (activations.identity, lambda x: x, jax.nn.identity):
        net = jr.trace(dense_net(phi), np.zeros(3))
        assert net.stages == ()
        assert net.switching_values(np.zeros(3)) == ()


def test_crelu_switches_every_unit_once():
    rng = np.random.default_rng(0)
    kernel, head = rng.normal(size=(3, 5)), rng.normal(size=(10, 2))

    def g(x):
        z = x @ kernel + 0.2
        return jnp.concatenate([jax.nn.relu(z), jax.nn.relu(-z)]) @ head

    net = jr.trace(g, np.zeros(3))
    assert [s.size for s in net.stages] == [5]
    assert net.dropped == 5
    assert check_against_evaluation(g, net) > 2


class Prelu(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.PReLU()(nn.BatchNorm(use_running_average=True)(nn.Dense(5)(x))))


class Maxout(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(12)(x))
        x = x.reshape(x.shape[0], 4, 3).max(axis=-1)
        return nn.Dense(2)(x)


class Unet(nn.Module):
    """Down by average pooling, up by repeating, joined by concatenation."""

    @nn.compact
    def __call__(self, x, train=False):
        skip = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (3, 3))(x)))
        low = nn.avg_pool(skip, (2, 2), (2, 2))
        low = nn.leaky_relu(nn.Conv(2, (3, 3), kernel_dilation=2)(low))
        up = jnp.repeat(jnp.repeat(low, 2, axis=1), 2, axis=2)
        both = jnp.concatenate([skip[:, : up.shape[1], : up.shape[2]], up], axis=-1)
        return nn.relu(nn.Conv(4, (2, 2), feature_group_count=4)(both)).mean(axis=(1, 2))


class PooledCnn(nn.Module):
    """Overlapping max-pool with zero-free SAME padding, then an average pool."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (3, 3))(x))
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), padding="SAME")
        x = nn.relu(nn.avg_pool(nn.Conv(2, (2, 2))(x), (2, 2), padding="SAME"))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(3, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.second = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))


@pytest.mark.parametrize(
    ("model", "batch", "args", "sizes"),
    [
        (Prelu(), BATCH, (), [5]),
        (Maxout(), BATCH, (), [4, 4]),
        pytest.param(
            zoo.SmallResNet(channels=(2, 3)),
            IMAGES[:, :4, :4],
            (),
            [32, 32, 32, 12, 12],
            marks=pytest.mark.slow,
        ),
        (Unet(), IMAGES[:, :4, :4], (), [32, 8, 64]),
    ],
    ids=["prelu", "maxout", "resnet", "unet"],
)
def test_linen_model_conditioned_on_a_batch(model, batch, args, sizes):
    f = jr.condition(model, linen_variables(model, batch), batch, *args)
    net = jr.trace(f, batch[0])
    assert [s.size for s in net.stages] == sizes
    assert net.dropped == 0
    assert check_against_evaluation(f, net) > 2


def test_cnn_with_overlapping_padded_pooling():
    model = PooledCnn()
    f = jr.condition(model, linen_variables(model, IMAGES), IMAGES)
    net = jr.trace(f, IMAGES[0])
    # 4 x 4 windows of 3 x 3 on 7 x 7, stride 2, one row of padding on each side.
    inside = sum(len(range(max(0, 2 * i - 1), min(7, 2 * i + 2))) for i in range(4))
    comparisons = (inside**2 - 16) * 2
    assert sum(s.size for s in net.stages[1:-1]) == comparisons
    assert net.stages[0].size == 7 * 7 * 2
    assert check_against_evaluation(f, net) > 2


def test_nnx_model_conditioned_on_a_batch():
    f = jr.condition(NnxMlp(nnx.Rngs(0)), None, BATCH)
    net = jr.trace(f, BATCH[0])
    assert [s.size for s in net.stages] == [6]
    assert check_against_evaluation(f, net) > 2


def test_net_equals_flax_in_train_mode_on_the_batch():
    model = Maxout()
    variables = linen_variables(model, BATCH)
    net = jr.trace(jr.condition(model, variables, BATCH), BATCH[0])
    with jax.enable_x64(True):
        ours = np.asarray(jax.vmap(net)(jnp.asarray(BATCH)))
    np.testing.assert_allclose(ours, train_rows(model, variables, BATCH, True), atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_casts_inside_a_model_are_identities(dtype):
    class Net(nn.Module):
        dtype: object

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(3, (2,), dtype=self.dtype)(x[..., None]))
            return nn.Dense(2, dtype=self.dtype)(x.reshape(x.shape[0], -1))

    variables = linen_variables(Net(dtype), BATCH)
    net = jr.trace(lambda x: Net(dtype).apply(variables, x[None])[0], BATCH[0])
    with jax.enable_x64(True):
        exact = Net(jnp.float64).apply(widen(variables), jnp.asarray(BATCH))
        ours = jax.vmap(net)(jnp.asarray(BATCH))
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(ours), np.asarray(exact), rtol=1e-13, atol=1e-13)
    assert net.casts >= 1
    assert [s.size for s in net.stages] == [9]


def test_max_pool_under_vmap_and_several_reduction_axes():
    kernel = np.random.default_rng(5).normal(size=(3, 24))

    def f(x):
        z = (x @ kernel).reshape(2, 4, 3, 1)
        pooled = jax.vmap(lambda v: nn.max_pool(v, (2, 2), (1, 1)))(z[:, None])
        return jnp.stack([pooled.sum(), z.max(axis=(0, 2)).sum(), z.min()])

    net = jr.trace(f, np.zeros(3))
    assert check_against_evaluation(f, net) > 2
