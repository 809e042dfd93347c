"""Conditional expectations against plain averages over drawn biases, and Sobol normals."""

import jax
import numpy as np
import pytest
from scipy.stats import norm
from variance import (
    hits_given_weights,
    regions_given_weights,
    sobol_normals,
)

import jaxregions as jr

DEVIATION = 0.4
CDF = lambda b: jax.scipy.stats.norm.cdf(b, scale=DEVIATION)  # noqa: E731
DENSITY = lambda b: jax.scipy.stats.norm.pdf(b, scale=DEVIATION)  # noqa: E731
RNG = np.random.default_rng(3)
NORMAL = RNG.normal(size=(6, 2))
WINDOWS = jr.Window(RNG.uniform(-0.5, 0.5, (3, 2)), np.array([0.2, 0.5, 1.0]))


def drawn_regions(normal, windows, biases):
    """Regions (draws, W) by plain NumPy: crossing points of all pairs, tested one by one."""
    out = np.zeros((len(biases), len(windows.center)))
    for w, (c, r) in enumerate(zip(windows.center, windows.radii(), strict=True)):
        value = normal @ c + biases
        out[:, w] = 1 + (abs(value) < abs(normal) @ r).sum(1)
        for i in range(len(normal)):
            for j in range(i):
                pair = np.stack([normal[i], normal[j]])
                at = np.linalg.solve(pair, -value[:, [i, j]].T)
                out[:, w] += (abs(at) < r[:, None]).all(0)
    return out


@pytest.mark.slow
def test_hits_given_weights_is_a_sum_of_normal_probabilities():
    found = np.asarray(hits_given_weights(NORMAL, WINDOWS, CDF, breakpoints=(-0.3, 0.6)))
    expected = np.zeros(3)
    for w, (c, r) in enumerate(zip(WINDOWS.center, WINDOWS.radii(), strict=True)):
        for row in NORMAL:
            for tau in (-0.3, 0.6):
                middle, reach = tau - row @ c, abs(row) @ r
                expected[w] += np.diff(norm.cdf([middle - reach, middle + reach], 0, DEVIATION))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_regions_given_weights_is_the_mean_over_drawn_biases():
    rng = np.random.default_rng(5)
    drawn = drawn_regions(NORMAL, WINDOWS, rng.normal(size=(40_000, 6)) * DEVIATION)
    shift = rng.uniform(-1, 1, (4_000, 3, 2))
    estimate = jax.jit(jax.vmap(lambda s: regions_given_weights(NORMAL, WINDOWS, CDF, DENSITY, s)))
    found = np.asarray(estimate(shift), np.float64)
    error = np.hypot(drawn.std(0) / 200, found.std(0) / np.sqrt(4_000))
    gap = abs(found.mean(0) - drawn.mean(0))
    assert (gap < 4.5 * error).all()
    without_half = 2 * found.mean(0) - 1 - np.asarray(hits_given_weights(NORMAL, WINDOWS, CDF))
    assert (abs(without_half - drawn.mean(0)) > 4.5 * error).all()  # pairs counted twice
    # Worth it where the window is small next to the bias, and not where it is large.
    assert found.std(0)[0] < drawn.std(0)[0] / 2
    assert found.std(0)[2] > drawn.std(0)[2]


@pytest.mark.slow
def test_a_slice_is_measured_in_its_coordinates():
    """The same windows as a slice of four dimensions by doubled coordinate axes."""
    normal = np.hstack([NORMAL / 2, RNG.normal(size=(6, 2))])
    basis = np.zeros((4, 2))
    basis[:2] = 2 * np.eye(2)
    center = np.hstack([2 * WINDOWS.center, np.zeros((3, 2))])
    sliced = jr.Window(center, WINDOWS.radius, basis=basis)
    shift = np.random.default_rng(6).uniform(-1, 1, (3, 2))
    flat = regions_given_weights(NORMAL, WINDOWS, CDF, DENSITY, shift)
    np.testing.assert_allclose(
        regions_given_weights(normal, sliced, CDF, DENSITY, shift), flat, rtol=1e-5
    )


def test_an_interval_has_one_region_more_than_hits():
    windows = jr.Window(np.array([[0.1], [0.7]]), 0.3)
    normal = NORMAL[:, :1]
    found = regions_given_weights(normal, windows, CDF, DENSITY, np.zeros((2, 1)))
    np.testing.assert_allclose(found, 1 + hits_given_weights(normal, windows, CDF), rtol=1e-6)


def test_sobol_normals_are_standard_and_even():
    normals = sobol_normals(0, 1024, 12)
    assert normals.shape == (1024, 12)
    assert np.isfinite(normals).all()
    # Every coordinate has one point in each of 1024 equally likely cells.
    cells = np.sort(np.floor(norm.cdf(normals) * 1024), axis=0)
    np.testing.assert_array_equal(cells, np.arange(1024)[:, None] * np.ones(12))
    assert not np.array_equal(normals, sobol_normals(1, 1024, 12))


@pytest.mark.parametrize(("count", "dimension"), [(3, 2), (0, 2), (4, 0)])
def test_sobol_refuses(count, dimension):
    with pytest.raises(ValueError, match="expected"):
        sobol_normals(0, count, dimension)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expected shape \(n, 2\)"):
        hits_given_weights(np.ones((3, 4)), WINDOWS, CDF)
    with pytest.raises(ValueError, match="dimension 1 or 2"):
        regions_given_weights(np.ones((2, 3)), jr.Window(np.zeros((1, 3)), 1.0), CDF, DENSITY, None)
    with pytest.raises(ValueError, match="shift"):
        regions_given_weights(NORMAL, WINDOWS, CDF, DENSITY, np.zeros((2, 2)))
