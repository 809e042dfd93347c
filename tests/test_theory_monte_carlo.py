"""Closed forms against drawn weights: hits and regions by brute force, and one verdict over all.

The brute force shares no code with the package: a window's regions are counted from the subsets of
hyperplanes that have a common point in it, found by solving linear systems.
"""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

import jaxregions as jr
from jaxregions import theory

UNITS = 5
CONFIGURATIONS = 24
SAMPLES = 8_000
LIMIT = 4.5  # standard errors


class Layer:
    """One random configuration: a window, what it is mapped to, and the law of the weights."""

    def __init__(self, number):
        rng = np.random.default_rng([7, number])
        self.k = 1 + number % 3
        d = self.k if number % 2 else self.k + 2
        basis = None if d == self.k else rng.normal(size=(d, self.k))
        radius = rng.uniform(0.2, 0.8, self.k)
        self.window = jr.Window(rng.normal(size=d), radius, basis=basis)
        self.deep = number // 3 % 2 == 1
        kind = number // 6 % 4  # no BN; BN; no BN and no bias; rank deficient
        m = self.k + int(rng.integers(0, 3)) if self.deep else d
        A, a = rng.normal(size=(m, d)), rng.normal(size=m)
        if self.deep and kind == 3 and self.k > 1:
            # One rank too few; for lines by powers of two, so that they are exactly parallel.
            basis, radius = None, np.array([0.5, 0.25, 0.5])[: self.k]
            self.window = jr.Window(rng.normal(size=self.k), radius)
            columns = [[1.0, 2.0]] if self.k == 2 else rng.normal(size=(2, 3))
            A = rng.normal(size=(m, self.k - 1)) @ np.array(columns)
        self.affine = {"A": A, "a": a} if self.deep else {}
        self.weight_std = rng.uniform(0.5, 1.5)
        self.bias_std = 0.0 if kind == 2 else rng.uniform(0.1, 1.0)
        self.center = rng.normal(size=m) if kind == 1 else None
        M = A if self.deep else np.eye(d)
        basis = np.eye(M.shape[1]) if basis is None else basis
        self.matrix = M @ basis
        q = 0.0 if self.center is None else self.center
        self.offset = M @ self.window.center + (a if self.deep else 0.0) - q
        self.radius = radius

    @property
    def law(self):
        return {
            "weight_std": self.weight_std,
            "bias_std": self.bias_std,
            "center": self.center,
            **self.affine,
        }

    def draw(self, rng, samples):
        """Normals (samples, n, k) and constants (samples, n), window scaled to |u_j| < 1."""
        w = rng.normal(size=(samples, UNITS, len(self.offset))) * self.weight_std
        bias = 0.0
        if self.center is None:
            bias = rng.normal(size=(samples, UNITS)) * self.bias_std
        return (w @ self.matrix) * self.radius, w @ self.offset + bias


def crossing_counts(normal, constant):
    """How many hyperplanes, pairs and triples have a common point in the open box |u_j| < 1."""
    k, n = normal.shape[2], normal.shape[1]
    counts = [(abs(constant) < abs(normal).sum(2)).sum(1)]
    if k >= 2:
        meet = line_meets_square if k == 2 else line_meets_cube
        counts.append(sum(meet(normal[:, p], constant[:, p]) for p in pairs(n)))
    if k == 3:
        triples = map(list, combinations(range(n), 3))
        counts.append(sum(common_point_inside(normal[:, t], constant[:, t]) for t in triples))
    return np.stack(counts, axis=1)


def pairs(n):
    return map(list, combinations(range(n), 2))


def common_point_inside(normal, constant):
    determinant = np.linalg.det(normal)
    safe = np.where((determinant != 0)[:, None, None], normal, np.eye(normal.shape[1]))
    point = np.linalg.solve(safe, -constant[..., None])[..., 0]
    return (determinant != 0) & (abs(point) < 1).all(1)


line_meets_square = common_point_inside


def line_meets_cube(normal, constant):
    """Whether the line of two planes enters the open cube: its parameter interval is not empty."""
    direction = np.cross(normal[:, 0], normal[:, 1])
    gram = np.einsum("sik,sjk->sij", normal, normal)
    independent = abs(direction).max(1) > 0
    gram = np.where(independent[:, None, None], gram, np.eye(2))
    point = np.einsum("sik,si->sk", normal, np.linalg.solve(gram, -constant[..., None])[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.sort(np.stack([-1 - point, 1 - point]) / direction, axis=0)
    return independent & (ends[0].max(1) < ends[1].min(1))


def simulate(layer, number, samples, chunk=SAMPLES):
    """Means and standard errors of hits and regions."""
    total, square, done = np.zeros(2), np.zeros(2), 0
    rng = np.random.default_rng([11, number])
    while done < samples:
        counts = crossing_counts(*layer.draw(rng, chunk))
        values = np.stack([counts[:, 0], 1 + counts.sum(1)], axis=1).astype(float)
        total, square, done = total + values.sum(0), square + (values**2).sum(0), done + chunk
    mean = total / done
    return mean, np.sqrt((square / done - mean**2) / (done - 1))


def closed_form(layer):
    hits = theory.expected_hits(layer.window, num_units=UNITS, **layer.law)
    return np.array([hits, theory.expected_regions(layer.window, num_units=UNITS, **layer.law)])


def agrees(z):
    """No score beyond the limit, and scores that spread as standard normals do."""
    spread = stats.chi2(len(z)).cdf((z**2).sum(0))
    return (abs(z) < LIMIT).all() and ((spread > 1e-4) & (spread < 1 - 1e-4)).all()


@pytest.fixture(scope="module")
def layers():
    return [Layer(i) for i in range(CONFIGURATIONS)]


@pytest.fixture(scope="module")
def simulated(layers):
    return [simulate(layer, i, SAMPLES) for i, layer in enumerate(layers)]


def scores(simulated, expected):
    """One row per configuration whose draws differ at all."""
    return np.array(
        [
            (mean - e) / error
            for (mean, error), e in zip(simulated, expected, strict=True)
            if error[0] > 0
        ]
    )


def test_configurations_cover_what_they_should(layers):
    ranks = [np.linalg.matrix_rank(layer.matrix) for layer in layers]
    assert {layer.k for layer in layers} == {1, 2, 3}
    assert sum(layer.deep for layer in layers) == CONFIGURATIONS // 2
    assert sum(r < layer.k for r, layer in zip(ranks, layers, strict=True)) >= 2
    assert sum(layer.center is not None for layer in layers) == 6
    flat = [la for la in layers if la.center is None and la.bias_std == 0]
    assert len(flat) == 6


def test_hits_and_regions_agree(layers, simulated):
    found = scores(simulated, map(closed_form, layers))
    assert len(found) >= 20
    assert agrees(found)


def test_what_never_varies_is_exact(layers, simulated):
    fixed = [
        (la, mean) for la, (mean, error) in zip(layers, simulated, strict=True) if not error[0]
    ]
    assert {mean[0] for _, mean in fixed} == {0, UNITS}
    assert all(closed_form(layer)[0] == mean[0] for layer, mean in fixed)


def dropped_area(layer):
    p = theory.crossing_probabilities(layer.window, **layer.law).probability
    return np.array([UNITS * p[1], 1 + UNITS * p[1]])


def twice_the_hits(layer):
    return closed_form(layer) * [2, 1]


def half_the_vertices(layer):
    vertices = theory.expected_vertices(layer.window, num_units=UNITS, **layer.law)
    return closed_form(layer) - [0, vertices / 2]


def no_height(layer):
    law = {**layer.law, "bias_std": 0.0}
    hits = theory.expected_hits(layer.window, num_units=UNITS, **law)
    return np.array([hits, theory.expected_regions(layer.window, num_units=UNITS, **law)])


def twice_the_bias(layer):
    law = {**layer.law, "bias_std": 2 * layer.bias_std}
    hits = theory.expected_hits(layer.window, num_units=UNITS, **law)
    return np.array([hits, theory.expected_regions(layer.window, num_units=UNITS, **law)])


@pytest.mark.parametrize(
    "wrong", [dropped_area, twice_the_hits, half_the_vertices, no_height, twice_the_bias]
)
def test_wrong_formulas_are_caught(wrong, layers, simulated):
    assert not agrees(scores(simulated, map(wrong, layers)))


def test_too_small_spreads_are_caught(layers, simulated):
    assert not agrees(scores(simulated, map(closed_form, layers)) / 10)


@pytest.mark.slow
def test_hits_and_regions_agree_on_a_million_samples(layers):
    simulated = [simulate(layer, 100 + i, 10**6) for i, layer in enumerate(layers)]
    assert agrees(scores(simulated, map(closed_form, layers)))


PENCILS = {
    "interval": (np.eye(1), 2),
    "plane": (np.eye(2), 2 * UNITS),
    "space": (np.eye(3), 2 * (1 + 4 + 6)),
    "sheet in space": (np.array([[1.0, 0], [0, 2], [1, 1]]), 2 * UNITS),
    "rank two of three": (np.array([[1.0, 0, 1], [0, 2, 2], [1, 1, 2]]), 2 * UNITS),
    "rank one of three": (np.array([[1.0, 2, -1], [2.0, 4, -2]]), 2),
}


def pencil(name):
    """Window, a point in it, the map and its law with the point's image as the centroid."""
    matrix, expected = PENCILS[name]
    m, k = matrix.shape
    # Dyadic numbers: the centroid's image is exact, and so is every product.
    place = np.full(k, 0.25)
    law = {"A": matrix, "a": np.full(m, 0.5), "center": matrix @ place + 0.5}
    return jr.Window(np.zeros(k), 0.5), place, law, expected


@pytest.mark.parametrize("name", PENCILS)
def test_concurrent_counts(name):
    window, _, law, expected = pencil(name)
    assert theory.expected_regions(window, num_units=UNITS, weight_std=1.0, **law) == expected
    assert theory.hit_probability(window, weight_std=1.0, **law) == 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if "space" in n or "three" in n else ())
        for n in PENCILS
    ],
)
def test_concurrent_counts_are_those_of_every_draw(name):
    window, place, law, expected = pencil(name)
    m, k = law["A"].shape
    weights = np.random.default_rng(0).integers(-1000, 1000, size=(2, UNITS, m)) / 64
    planes = jr.Hyperplanes(weights @ law["A"], np.tile(place, (2, 1)), np.zeros((2, UNITS, 1)))
    windows = jr.Window(np.zeros((2, k)), window.radius)
    assert (jr.count_arrangement(planes, windows).regions == expected).all()


@pytest.mark.slow
def test_centroids_on_the_boundary_of_a_cube_and_outside():
    places = [[0.5, 0.1, 0.2], [0.5, -0.5, 0.2], [0.5, 0.5, 0.5], [0.5, 0.7, 0.1], [1.0, 0.7, -0.9]]
    samples = 60
    points = np.repeat(places, samples, axis=0)
    normal = np.random.default_rng(1).normal(size=(len(points), UNITS, 3))
    planes = jr.Hyperplanes(normal, points, np.zeros((len(points), UNITS, 1)))
    windows = jr.Window(np.zeros_like(points), 0.5)
    counts = jr.count_arrangement(planes, windows).regions.reshape(len(places), samples)
    expected = theory.expected_regions(
        windows[::samples], num_units=UNITS, weight_std=1.0, center=np.array(places)
    )
    error = counts.std(1) / np.sqrt(samples)
    assert (abs(counts.mean(1) - expected) <= LIMIT * error + 1e-9).all()
    assert (error[1:] > 0).all()
