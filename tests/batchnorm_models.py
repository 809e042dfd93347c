"""Small models with BatchNorm, and flax's own train-mode forward pass in float64 as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx


def batch_of(*shape, seed=0, offset=0.0):
    return np.random.default_rng(seed).normal(size=shape) + offset


def widen(tree):
    """The tree in float64 (inside x64)."""
    return jax.tree.map(
        lambda a: (
            jnp.asarray(np.asarray(a, np.float64)) if jnp.issubdtype(a.dtype, jnp.floating) else a
        ),
        tree,
    )


def linen_variables(model, batch, *args, **kwargs):
    """Random float32 variables of the model's shapes; scales near 1, running statistics initial."""
    init = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, *args, **kwargs), batch)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if path[0].key == "batch_stats":
            return jnp.asarray(np.full(leaf.shape, name == "var", np.float32))
        values = (name == "scale") + 0.4 * rng.normal(size=leaf.shape)
        return jnp.asarray(values.astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, init)


def initial_variables(model, batch, *args, **kwargs):
    """The same with BatchNorm as at initialisation; no program is compiled for them."""

    def initial(tree):
        if "scale" in tree:
            return {
                name: jnp.asarray(np.full(v.shape, name == "scale", np.float32))
                for name, v in tree.items()
            }
        return {name: initial(v) if isinstance(v, dict) else v for name, v in tree.items()}

    return initial(linen_variables(model, batch, *args, **kwargs))


def train_rows(model, variables, batch, *args, **kwargs):
    """flax's train-mode forward pass in float64 (the caller sets the train arguments)."""
    with jax.enable_x64(True):

        def forward(variables, batch):
            return model.apply(variables, batch, *args, mutable=["batch_stats"], **kwargs)[0]

        return np.asarray(jax.jit(forward)(widen(variables), jnp.asarray(batch)))


def rows(f, batch):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(f))(jnp.asarray(batch)))


def assert_close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


class Mlp(nn.Module):
    bn: dict = nn.FrozenDict()

    @nn.compact
    def __call__(self, x, train):
        for width in (6, 5):
            x = nn.relu(nn.BatchNorm(use_running_average=not train, **self.bn)(nn.Dense(width)(x)))
        return nn.Dense(3)(x)


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3))(x))
        return nn.Dense(2)(nn.avg_pool(nn.relu(x), (3, 3)).reshape(x.shape[0], -1))


class Residual(nn.Module):
    def setup(self):
        self.stem, self.inner, self.head = nn.Dense(6), nn.Dense(6), nn.Dense(3)
        self.first, self.second = nn.BatchNorm(), nn.BatchNorm(epsilon=1e-3)

    def __call__(self, x, train):
        x = nn.relu(self.first(self.stem(x), use_running_average=not train))
        x = nn.relu(x + self.second(self.inner(x), use_running_average=not train))
        return self.head(x)


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.bn, self.dropout = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.dropout(nnx.relu(self.bn(self.a(x)))))

    def features(self, x, scale):
        return scale * self.bn(self.a(x))


class NnxCnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.bn, self.head = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(36, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.bn(self.conv(x))), (2, 2), (2, 2))
        return self.head(x.reshape(x.shape[0], -1))


class NnxResidual(nnx.Module):
    def __init__(self, rngs):
        self.stem, self.inner = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.bn = nnx.BatchNorm(6, rngs=rngs)  # shared by both layers

    def __call__(self, x):
        x = nnx.relu(self.bn(self.stem(x)))
        return nnx.relu(x + self.bn(self.inner(x)))


class OneLayer(nn.Module):
    """BatchNorm with these options on the input or, folded, on (N * T, D) of an (N, T, D) input."""

    options: dict
    fold: bool = False

    @nn.compact
    def __call__(self, x, mask=None):
        z = x.reshape(-1, x.shape[-1]) if self.fold else x
        mask = mask.reshape(-1, 1) if self.fold and mask is not None else mask
        y = nn.BatchNorm(use_running_average=False, **self.options)(z, mask=mask)
        return y.reshape(x.shape)


LINEN = [(Mlp(), (4,)), (Cnn(), (6, 6, 1)), (Residual(), (4,))]
NNX = [(NnxMlp, (4,)), (NnxCnn, (6, 6, 1)), (NnxResidual, (4,))]


def nnx_model(kind):
    model = kind(nnx.Rngs(0))
    rng = np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    nnx.update(
        model, jax.tree.map(lambda a: a + np.float32(0.3 * rng.normal(size=a.shape)), params)
    )
    return model


def nnx_train_rows(model, batch):
    """flax nnx's train-mode forward pass in float64, dropout off."""
    with jax.enable_x64(True):
        graph, state = nnx.split(model)
        model = nnx.merge(graph, widen(state))
        model.train()
        model.set_attributes(deterministic=True, raise_if_not_found=False)
        return np.asarray(model(jnp.asarray(batch)))


def marks_of(jaxpr, found=None):
    """The mark equations of a jaxpr and everything nested in it."""
    found = {"enter_batch": [], "subtract_batch_mean": []} if found is None else found
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in found:
            found[eqn.primitive.name].append(eqn)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                marks_of(inner, found)
    return found
