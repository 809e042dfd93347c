"""Gradients in reverse lie within their bounds of the exact ones, and so do the rows they give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_slices import at_centroid
from small_networks import gaussian_layers, integer_layers, integer_windows, recipe, traced

import jaxregions as jr
from jaxregions import exact
from jaxregions.engines import enclosures
from jaxregions.engines.cells import count_cells
from jaxregions.engines.frontier import UNLIMITED
from jaxregions.engines.points import frame_of
from jaxregions.tracing import bounded_gradient, exact_values, prepare_reverse
from jaxregions.verification import verify


def residual(x):
    weights = np.random.default_rng(3).normal(size=(5, 5)).astype(x.dtype)
    h = jax.nn.relu(weights @ x)
    return jax.nn.leaky_relu(h + x / 2 + jnp.abs(weights.T @ h) - jnp.clip(x, -0.1, 0.2))


def convolution(x):
    kernel = np.random.default_rng(4).normal(size=(2, 2, 1, 3)).astype(x.dtype)
    names = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x[None, ..., None], kernel, (1, 1), "SAME", dimension_numbers=names
    )
    return jax.nn.relu(jnp.sum(jax.nn.relu(y).reshape(-1, 4), axis=1) - 1)


def gradients(net, x, stage, error=0.0):
    """(size, d) gradients and bounds of all switching values of a stage."""

    def one(reverse, entry):
        return tuple(bounded_gradient(reverse, x.reshape(net.input_shape), error, stage, entry))

    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(one, (None, 0)))(
            prepare_reverse(net), np.arange(net.stages[stage].size)
        )
    return tuple(map(np.asarray, found))


def exact_gradients(net, x, stage):
    """Differences over a step that stays in the cell of x."""
    at, h = exact.rationals(x), exact.rational(2.0**-60)
    first, columns = exact_values(net, at.reshape(net.input_shape), stage), []
    for j in range(len(x)):
        moved = at.copy()
        moved[j] = moved[j] + h
        columns.append((exact_values(net, moved.reshape(net.input_shape), stage) - first) / h)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    ("net", "d"),
    [
        (jr.trace(residual, np.zeros(5)), 5),
        pytest.param(traced(gaussian_layers(2, (4, 6, 3), "hard_tanh")), 4, marks=pytest.mark.slow),
        pytest.param(traced(recipe((6, 8, 8, 3), 1)), 6, marks=pytest.mark.slow),
        pytest.param(traced(gaussian_layers(2, (4, 6, 3), "leaky")), 4, marks=pytest.mark.slow),
        pytest.param(jr.trace(convolution, np.zeros((4, 4))), 16, marks=pytest.mark.slow),
    ],
    ids=["residual", "hard_tanh", "relu", "leaky", "convolution"],
)
def test_gradients_are_within_their_bounds(net, d):
    x = np.random.default_rng(0).normal(size=d) / 3
    for stage in range(len(net.stages)):
        value, bound = gradients(net, x, stage)
        assert (bound <= 1e-12 * (1 + np.abs(value).max())).all()
        for g, b, true in zip(
            value.ravel(), bound.ravel(), exact_gradients(net, x, stage).ravel(), strict=True
        ):
            assert abs(exact.rational(float(g)) - true) <= exact.rational(float(b))


@pytest.mark.slow
def test_a_choice_in_doubt_has_no_bound():
    net = traced([(np.eye(2), np.zeros(2), "relu"), (np.ones((1, 2)), np.array([-1.0]), "relu")])
    _, bound = gradients(net, np.array([1e-3, 0.5]), 1, 1e-4)
    assert np.isfinite(bound).all()
    _, bound = gradients(net, np.array([1e-5, 0.5]), 1, 1e-4)
    assert np.isinf(bound).all()


def test_a_tie_at_the_point_alone_has_no_bound():
    """Both selects choose 0 at 0, and yet their difference is x there."""

    weights = np.array([[1.0, 2.0], [3.0, 1.0]])

    def f(x):
        y = weights.astype(x.dtype) @ x
        y = jnp.where(y > 0, y, 0.0) - jnp.where(y < 0, -y, 0.0)
        return jax.nn.relu(weights.astype(x.dtype) @ y)

    net = jr.trace(f, np.zeros(2))
    assert [s.size for s in net.stages] == [2]
    value, bound = gradients(net, np.zeros(2), 0)
    assert (np.abs(value - weights @ weights) <= bound).all()


def test_a_predicate_is_constant_on_a_cell():
    def f(x):
        return jax.nn.relu(x[0] + x[1] * (x[1] > 0).astype(x.dtype) - 0.5)[None]

    net, x = jr.trace(f, np.zeros(2)), np.array([0.1, 0.2])
    value, bound = gradients(net, x, len(net.stages) - 1)
    assert (np.abs(value - np.ones((1, 2))) <= bound).all()


@pytest.mark.slow
def test_rows_by_gradients_enclose_the_exact_ones():
    net, window = traced(recipe((5, 8, 6), 2)), jr.Window(np.zeros((1, 5)), 0.05)
    frame, radius = frame_of(window), np.full((1, 5), 0.05)
    u = np.full((1, 5), 0.01)
    span = exact.rationals(u[0]), exact.rationals(np.full(5, 1e-6))
    decided = 0
    for stage in range(2):
        (rows,) = enclosures._by_gradients(net, frame, np.zeros(1, int), radius, u, stage)
        slope, value = enclosures.exact_rows(net, window, 0, *span, stage)
        off = np.abs(slope.astype(float) - rows.slope) @ radius[0]
        off += np.abs(value.astype(float) - rows.value)
        assert (off <= rows.error * (1 + 1e-9) + 1e-15).all()
        assert not rows.lost.any()
        flat = (rows.slope == 0).all(axis=1)
        assert (np.abs(rows.value) > rows.error)[flat].all()
        decided += flat.sum()
    assert 0 < decided < 14


def both_ways(monkeypatch, net, windows):
    """Counts with certificates by k + 1 values and by gradients."""
    with monkeypatch.context() as patch:
        patch.setattr(enclosures, "_MANY", 1 << 20)
        found = count_cells(net, windows, limits=UNLIMITED)
        patch.setattr(enclosures, "_MANY", 1)
        other = count_cells(net, windows, limits=UNLIMITED, certificate=True)
    assert other.regions.tolist() == found.regions.tolist()
    assert other.by_stage.tolist() == found.by_stage.tolist()
    assert other.hits.tolist() == found.hits.tolist()
    assert other.certified.all()
    assert verify(net, windows, other.certificate) is True


@pytest.mark.slow
def test_counts_are_the_same(monkeypatch):
    windows = jr.Window(np.random.default_rng(2).normal(size=(4, 3)) / 2, 0.35)
    both_ways(monkeypatch, traced(recipe((3, 8, 8), 3)), windows)


@pytest.mark.slow
def test_counts_of_concurrent_hyperplanes_in_a_slice_are_the_same(monkeypatch):
    net, windows = at_centroid(7, 6, 3)
    both_ways(monkeypatch, net, windows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_counts_of_degenerate_slices_are_the_same(monkeypatch, seed):
    net = traced(integer_layers(seed, (3, 4, 3, 1), ("relu", "relu", None)))
    both_ways(monkeypatch, net, integer_windows(seed, 6, 3, 2))


@pytest.mark.slow
def test_784_dimensions(monkeypatch):
    net, window = traced(recipe((784, 32, 32), 9)), jr.Window(np.zeros((1, 784)), 0.0005)
    both_ways(monkeypatch, net, window)
