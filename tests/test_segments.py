"""Exact counts on 1-d windows, against cells built in fractions and against dense sampling."""

from fractions import Fraction

import jax
import numpy as np
import oracles
import pytest
from small_networks import gaussian_layers, integer_layers, integer_windows, network, traced

import jaxregions as jr
from jaxregions.engines import frontier, points, segments
from jaxregions.engines.signs import evaluate

INTEGER_CASES = [
    ((4, 4, 3, 3, 1), ("relu", "relu", "relu", None)),
    pytest.param((3, 4, 3, 1), ("hard_tanh", "leaky", None), marks=pytest.mark.slow),
]


def assert_exact(layers, windows):
    """Regions and hits, counted alone and on the way to affine regions, are the oracle's."""
    net = traced(layers)
    plain = jr.count_regions(net, windows)
    both = jr.count_regions(net, windows, affine=True)
    basis = windows.basis
    cells = [
        oracles.window_cells(layers, c, r, None if basis is None else basis[i])
        for i, (c, r) in enumerate(zip(windows.center, windows.radii(), strict=True))
    ]
    regions = [oracles.pattern_count(c) for c in cells]
    assert plain.activation_regions.tolist() == regions
    assert both.activation_regions.tolist() == regions
    assert both.affine_regions.tolist() == [oracles.affine_count(c) for c in cells]
    hits = [oracles.hits_by_stage(c) for c in cells]
    assert plain.hits.tolist() == hits
    assert both.hits.tolist() == hits
    assert plain.certified.all()


@pytest.mark.parametrize(("sizes", "hows"), INTEGER_CASES)
def test_degenerate_integer_networks_are_counted_exactly(sizes, hows):
    layers = integer_layers(3, sizes, hows)
    assert_exact(layers, integer_windows(4, 120, sizes[0], 1))


def test_far_and_tiny_segments_are_counted_exactly():
    rng = np.random.default_rng(0)
    layers = gaussian_layers(1, (1, 4, 3, 1))
    weights, bias, _ = layers[0]
    zeros = (-bias / weights[:, 0])[rng.integers(0, 4, 40)]
    radius = 10.0 ** rng.uniform(-17, 2, 40)
    center = zeros + radius * rng.choice([-1, -0.3, 0, 1], 40)
    center[:8] += 1e6
    radius[:8] = 2e6
    assert_exact(layers, jr.Window(center[:, None], radius))


def cancelling(big, a, b, c):
    """On the line y = 0: units with zeros at -a (through a sum near ``big``), -b and -c (steep)."""

    def f(x):
        far, near, aside = jax.nn.relu(x[0] + big), jax.nn.relu(x[0] + 4), jax.nn.relu(x[1] + 2)
        one = jax.nn.relu(far + aside - (big + 2 - a))
        two = jax.nn.relu(big * (near + aside - (6 - b)))
        three = jax.nn.relu(big * (jax.nn.relu(near + aside - 1) + aside - (7 - c)))
        return one + two + three

    return f


@pytest.mark.parametrize("seed", [3, 5])
def test_zeros_that_rounding_puts_in_the_wrong_order_keep_their_places(seed):
    """Two zeros 4e-9 apart, one known to 1e-8 and one to 1e-15; the next stage meets the latter."""
    rng, big = np.random.default_rng(seed), 2.0**27
    a = round(rng.uniform(-0.6, 0.6) * 2**26) / 2**26
    b = round((a + rng.normal() * 3e-9) * 2**48) / 2**48
    rng.normal()
    window = jr.Window(np.zeros(2), rng.uniform(0.7, 1), basis=np.array([[1.0], [0.0]]))
    assert a != b
    net = jr.trace(cancelling(big, a, b, b), np.zeros(2))
    assert jr.count_regions(net, window).activation_regions == 3
    line = jr.Window(window.center[None], window.radius[None], basis=window.basis)
    ledger = points.Ledger(net, line, points.corners(line))
    mesh = segments.begin(1)
    for stage in range(len(net.stages)):
        known = evaluate(ledger, mesh.vertices, stage)
        mesh, _ = segments.refined(ledger, mesh, stage, known)
    for vertex, (u, error) in enumerate(
        zip(ledger.vertices.u[:, 0], ledger.vertices.error, strict=True)
    ):
        exact = points.point(ledger, vertex)[0]
        exact = Fraction(int(exact.numerator), int(exact.denominator))
        assert abs(exact - Fraction(float(u))) <= Fraction(float(error))


@pytest.mark.slow
def test_sampling_a_segment_finds_every_region_and_no_other():
    layers = gaussian_layers(5, (6, 8, 8, 1))
    window = jr.Window(np.zeros(6), 2.0, basis=np.random.default_rng(2).normal(size=(6, 1)))
    u = np.linspace(-2, 2, 200_001)[1:-1, None]
    net = traced(layers)
    with jax.enable_x64(True):
        patterns = jax.jit(jax.vmap(net.pattern))(u @ window.basis.T)
    found = len(np.unique(np.concatenate(patterns, axis=1), axis=0))
    assert jr.count_regions(net, window).activation_regions == found


def test_ten_thousand_segments_match_counting_slope_changes():
    """One layer: 1 + distinct zeros inside, from plain arithmetic on generic weights."""
    rng = np.random.default_rng(7)
    layers = gaussian_layers(6, (3, 5, 1))
    center, basis = rng.normal(size=(10_000, 3)), rng.normal(size=(10_000, 3, 1))
    radius = rng.uniform(0.1, 2, 10_000)
    weights, bias, _ = layers[0]
    value, slope = center @ weights.T + bias, np.einsum("md,wdk->wm", weights, basis)
    inside = np.abs(value) < radius[:, None] * np.abs(slope)
    counts = jr.count_regions(network(layers), jr.Window(center, radius, basis=basis))
    np.testing.assert_array_equal(counts.activation_regions, 1 + inside.sum(axis=1))
    np.testing.assert_array_equal(counts.hits[:, 0], inside.sum(axis=1))


def test_little_memory_leaves_the_counts_as_they_are(monkeypatch):
    net, windows = traced(gaussian_layers(9, (3, 6, 5, 1))), integer_windows(2, 9, 3, 1)
    counts = jr.count_regions(net, windows)
    monkeypatch.setattr(frontier, "BYTES", 64)
    small = jr.count_regions(net, windows)
    np.testing.assert_array_equal(small.activation_regions, counts.activation_regions)
    np.testing.assert_array_equal(small.hits, counts.hits)
