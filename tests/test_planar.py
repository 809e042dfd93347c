"""Exact partitions of 2-d windows, against cells built in fractions, linear programs and Euler."""

from fractions import Fraction
from itertools import product

import jax
import numpy as np
import oracles
import pytest
from small_networks import (
    gaussian_layers,
    integer_layers,
    integer_windows,
    network,
    recipe,
    traced,
)

import jaxregions as jr
from jaxregions.engines import edges, planar, points
from jaxregions.engines.mesh import from_cycles
from jaxregions.engines.signs import evaluate

INTEGER_CASES = [
    ((5, 4, 3, 3, 1), ("relu", "relu", "relu", None)),
    ((3, 3, 3, 1), ("hard_tanh", "leaky", None)),
    ((2, 4, 3, 2), ("leaky", "hard_tanh", "relu")),
    ((3, 3, 2, 2), ("relu", 3, "relu")),
]


def window_cells(layers, windows):
    basis = windows.basis
    return [
        oracles.window_cells(layers, c, r, None if basis is None else basis[i])
        for i, (c, r) in enumerate(zip(windows.center, windows.radii(), strict=True))
    ]


def assert_exact(layers, windows, *, hits=True):
    """Regions and hits, counted alone and on the way to affine regions, are the oracle's."""
    net = traced(layers)
    plain = jr.count_regions(net, windows)
    both = jr.count_regions(net, windows, affine=True)
    cells = window_cells(layers, windows)
    regions = [oracles.pattern_count(c) for c in cells]
    assert plain.activation_regions.tolist() == regions
    assert both.activation_regions.tolist() == regions
    assert both.affine_regions.tolist() == [oracles.affine_count(c) for c in cells]
    if hits:
        expected = [oracles.hits_by_stage(c) for c in cells]
        assert plain.hits.tolist() == expected
        assert both.hits.tolist() == expected
    assert plain.certified.all()


@pytest.mark.parametrize(
    ("sizes", "hows"),
    [*INTEGER_CASES[:1], *(pytest.param(*c, marks=pytest.mark.slow) for c in INTEGER_CASES[1:])],
)
def test_degenerate_integer_networks_are_counted_exactly(sizes, hows):
    layers = integer_layers(len(sizes), sizes, hows)
    windows = integer_windows(1, 16, sizes[0], 2)
    assert_exact(layers, windows, hits=not any(isinstance(h, int) for h in hows))


def test_vertices_looked_at_twice_keep_their_signs(monkeypatch):
    monkeypatch.setattr("jaxregions.engines.signs.FEW", 0)
    sizes, hows = INTEGER_CASES[0]
    assert_exact(integer_layers(1, sizes, hows), integer_windows(1, 16, sizes[0], 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_many_degenerate_integer_networks_are_counted_exactly(seed):
    sizes, hows = INTEGER_CASES[seed % len(INTEGER_CASES)]
    layers = integer_layers(100 + seed, sizes, hows)
    windows = integer_windows(seed, 150, sizes[0], 2)
    assert_exact(layers, windows, hits=not any(isinstance(h, int) for h in hows))


def test_the_fraction_oracle_agrees_with_linear_programs_over_sign_patterns():
    """Layer by layer: signs that are feasible on the affine piece of their parent pattern."""
    layers = gaussian_layers(2, (5, 4, 3, 1))
    rng = np.random.default_rng(3)
    basis, center = rng.normal(size=(5, 2)), rng.normal(size=5)
    (w1, b1, _), (w2, b2, _) = layers[:2]
    first, start = w1 @ basis, w1 @ center + b1
    total = 0
    for signs in product((0, 1), repeat=len(b1)):
        mask = np.array(signs)[:, None]
        # Rows of the parent pattern keep their side; the oracle counts the sides of the others.
        rows = np.concatenate([first, w2 @ (mask * first)])
        values = np.concatenate([start, w2 @ (mask[:, 0] * start) + b2])
        fixed = 2 * np.array(signs) - 1
        total += oracles.count_cells_by_linear_programs(rows, values, np.full(2, 1.5), fixed)
    cells = oracles.window_cells(layers, center, 1.5, basis)
    window = jr.Window(center, 1.5, basis=basis)
    assert total == oracles.pattern_count(cells)
    assert total == jr.count_regions(network(layers), window).activation_regions


@pytest.mark.parametrize("power", [30, 40, 60])
def test_thin_wedges_are_counted(power):
    """Three lines through nearly one point: a triangle with legs of 2^-power is a region."""
    legs = 2.0**-power
    layers = [(np.array([[1.0, 0], [0, 1], [1, 1]]), np.array([0, 0, -legs]), "relu")]
    windows = jr.Window(np.zeros((2, 2)), [1.0, 2 * legs])
    counts = jr.count_regions(network(layers), windows, affine=True)
    assert counts.activation_regions.tolist() == [7, 7]
    assert counts.affine_regions.tolist() == [7, 7]


@pytest.mark.slow
def test_far_and_tiny_windows_around_crossings_are_counted_exactly():
    rng = np.random.default_rng(0)
    layers = gaussian_layers(1, (2, 4, 3, 1))
    layers[0] = (layers[0][0], np.array([1e6, 1e6, 1, 1]) * layers[0][1], "relu")
    center, radius = [], 10.0 ** rng.uniform(-17, 1, (40, 1)) * [1, 1]
    for r in radius:
        pair = rng.choice(4, 2, replace=False)
        crossing = np.linalg.solve(layers[0][0][pair], -layers[0][1][pair])
        r *= np.abs(crossing).max() * rng.choice([[1, 1], [1e-6, 1]])
        center.append(crossing + r * rng.choice([-1, -0.3, 0, 1], 2))
    assert_exact(layers, jr.Window(np.array(center), radius))


def test_lines_so_close_that_floats_merge_their_crossings_are_counted_exactly():
    weights = np.array([[1.0, 2], [1 + 2.0**-40, 2], [-1, 1], [-1, 1 + 2.0**-30]])
    layers = [
        (weights, np.array([1.0, 1, 0, 0]), "relu"),
        (np.array([[1.0, -1, 1, -1], [2, -2, 0, 1]]), np.array([2.0**-45, 0]), "relu"),
        (np.ones((1, 2)), np.zeros(1), None),
    ]
    crossing = np.array([-1 / 3, -1 / 3])
    center = np.array([crossing, crossing, [0, -0.5], [0, 0], crossing])
    assert_exact(layers, jr.Window(center, [1.0, 1e-9, 1e-11, 1e-13, 1e-15]))


def final_mesh(net, windows):
    ledger = points.Ledger(net, windows, points.corners(windows))
    mesh = planar.begin(len(windows.center))
    for stage in range(len(net.stages)):
        known = evaluate(ledger, mesh.vertices, stage)
        mesh, _ = planar.refined(ledger, mesh, stage, known)
    return ledger, mesh


MESHES = [
    (gaussian_layers(4, (2, 10, 8, 1)), jr.Window(np.zeros((3, 2)), [0.5, 1.0, 2.0])),
    (integer_layers(9, (4, 5, 4), ("relu", "hard_tanh")), integer_windows(5, 12, 4, 2)),
]


@pytest.mark.parametrize("case", MESHES, ids=["gaussian", "integer"])
def test_eulers_formula_holds_in_every_window(case):
    net, windows = traced(case[0]), case[1]
    _, mesh = final_mesh(net, windows)
    counts = jr.count_regions(net, windows)
    half_window = mesh.window[mesh.face]
    for w, regions in enumerate(counts.activation_regions):
        here = half_window == w
        vertices = len(np.unique(mesh.origin[here]))
        edges = ((mesh.twin[here] < 0) + 0.5 * (mesh.twin[here] >= 0)).sum()
        assert regions == 1 - vertices + edges == (mesh.window == w).sum()


@pytest.mark.parametrize("case", MESHES, ids=["gaussian", "integer"])
def test_areas_are_positive_and_sum_to_the_windows(case):
    ledger, mesh = final_mesh(traced(case[0]), case[1])
    u = ledger.vertices.u[mesh.vertices]
    a, b = u[mesh.origin], u[mesh.origin[mesh.following]]
    area = np.add.reduceat(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], mesh.start[:-1]) / 2
    assert (area > 0).all()
    expected = (2 * case[1].radii()).prod(axis=1)
    np.testing.assert_allclose(np.bincount(mesh.window, area), expected, rtol=1e-12)


def test_every_vertex_lies_within_its_error_bound_of_the_exact_one():
    layers, windows = MESHES[1]
    ledger, _ = final_mesh(traced(layers), windows)
    for vertex, (u, error) in enumerate(zip(ledger.vertices.u, ledger.vertices.error, strict=True)):
        for exact, close in zip(points.point(ledger, vertex), u, strict=True):
            exact = Fraction(int(exact.numerator), int(exact.denominator))
            assert abs(exact - Fraction(float(close))) <= Fraction(float(error))


def test_sampling_finds_no_pattern_that_was_not_counted():
    layers = gaussian_layers(5, (2, 6, 5, 1))
    net, window = traced(layers), jr.Window(np.zeros(2), 2.0)
    cells = oracles.window_cells(layers, np.zeros(2), 2.0)
    existing = {tuple(s for stage in c.pattern for unit in stage for s in unit) for c in cells}
    x = np.random.default_rng(0).uniform(-2, 2, (100_000, 2))
    with jax.enable_x64(True):
        patterns = np.concatenate(jax.jit(jax.vmap(net.pattern))(x), axis=1)
    found = {tuple(p) for p in np.unique(patterns, axis=0).tolist()}
    assert found <= existing
    assert len(found) > 0.9 * len(existing)
    assert jr.count_regions(net, window).activation_regions == len(existing)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 2), (6, 1), (6, 2)])
def test_one_layer_agrees_with_the_arrangement_count(d, k):
    layers = gaussian_layers(7, (d, 12, 1))
    rng = np.random.default_rng(8)
    basis = None if d == k else rng.normal(size=(20, d, k))
    windows = jr.Window(0.3 * rng.normal(size=(20, d)), 0.8, basis=basis)
    counts = jr.count_regions(network(layers), windows)
    weights, bias, _ = layers[0]
    planes = jr.dense_hyperplanes(weights.T, bias)
    expected = [jr.count_arrangement(planes, windows[i]) for i in range(20)]
    assert counts.activation_regions.tolist() == [int(e.regions) for e in expected]


@pytest.mark.parametrize(
    ("sizes", "seed", "regions"),
    [
        ((2, 32, 32), 0, 1780),
        ((2, 64, 64, 64), 1, 16623),
        pytest.param((2, 128, 128, 128), 2, 62770, marks=pytest.mark.slow),
        pytest.param((2, 256, 256, 256), 3, 261938, marks=pytest.mark.slow),
    ],
)
def test_recipe_networks_have_their_known_counts(sizes, seed, regions):
    counts = jr.count_regions(network(recipe(sizes, seed)), jr.Window(np.zeros(2), 1.0))
    assert counts.activation_regions == regions
    assert counts.certified
    assert counts.status == jr.Status.COMPLETE


def test_places_at_the_rounding_of_their_errors_are_never_lost_between_two_tests():
    rng = np.random.default_rng(0)
    left_open = 0
    for _ in range(3000):
        low, one, two = rng.uniform(0, 0.4, 3) * 2.0 ** -rng.integers(0, 50, 3)
        high = low + (one + two) * (1 + rng.integers(-12, 20) * 2.0**-53)
        t, error = np.array([low, high]), np.array([one, two])
        if not edges.apart_from(t, error)[0]:
            left_open += 1
            assert [r.tolist() for r in edges.undecided_runs(t, error)] == [[0, 1]]
    assert 300 < left_open < 3000


def test_a_badly_known_place_joins_all_it_may_belong_to():
    t, error = np.array([0.1, 0.5, 0.51, 0.6, 0.8, 0.99]), np.array([0.0, 0, 0.35, 0, 0, 0])
    assert [r.tolist() for r in edges.undecided_runs(t, error)] == [[1, 2, 3, 4]]


def rotated_boxes(count):
    """A ledger of so many windows whose corners are turned about, and their faces."""
    windows = jr.Window(np.zeros((count, 2)), 1.0)
    ledger = points.Ledger(
        traced(integer_layers(0, (2, 2), ("relu",))), windows, points.corners(windows)
    )
    angle = np.random.default_rng(count).uniform(0, 2 * np.pi, count).repeat(4)
    x, y = ledger.vertices.u.T
    turned = [x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)]
    ledger.vertices = ledger.vertices._replace(u=np.stack(turned, axis=1))
    return ledger, planar.begin(count)


def test_a_witness_beside_an_edge_is_inside_only_if_it_is_exactly():
    count = 2000
    ledger, mesh = rotated_boxes(count)
    u, rng = ledger.vertices.u.reshape(count, 4, 2), np.random.default_rng(1)
    a, b = u[:, 0], u[:, 1]
    w = a + rng.uniform(0.1, 0.9, (count, 1)) * (b - a)
    w += rng.integers(-9, 10, (count, 2)) * np.spacing(w)
    exactly = []
    for p, q, r in zip(a.tolist(), b.tolist(), w.tolist(), strict=True):
        (px, py), (qx, qy), (rx, ry) = (map(Fraction, v) for v in (p, q, r))
        exactly.append((qx - px) * (ry - py) - (qy - py) * (rx - px) > 0)
    exactly = np.array(exactly)
    assert 0.2 < exactly.mean() < 0.8
    proven = planar.cells(ledger, mesh, w).inside
    assert proven.any()
    assert not (proven & ~exactly).any()


def test_a_witness_within_the_errors_of_the_corners_is_not_proven():
    ledger, mesh = rotated_boxes(50)
    a, b, c = ledger.vertices.u.reshape(50, 4, 2)[:, :3].swapaxes(0, 1)
    error = 2.0**-20
    ledger.vertices = ledger.vertices._replace(error=np.full(200, error))
    for depth, inside in ((0.5 * error, False), (16 * error, True)):
        w = (a + b) / 2 + depth / 2 * (c - b)  # sides have length 2
        assert (planar.cells(ledger, mesh, w).inside == inside).all()


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([0, 3], None),
        ([0], "the turns at the vertices contradict each other"),
        ([0, 1], "the turns at the vertices contradict each other"),
        ([0, 2, 3], "two heads of one cycle"),
        ([0, 0], "two heads of one cycle"),
    ],
)
def test_faces_are_cycles_with_one_head_each(heads, message):
    following, columns = np.array([1, 2, 0, 4, 5, 3]), (np.arange(6), np.full(6, -1), np.arange(6))
    parent = np.zeros(len(heads), np.int64)
    given = np.arange(6), following, np.array(heads), parent, np.zeros(1, np.int64), columns
    if message is None:
        faces, place = from_cycles(*given)
        assert faces.origin.tolist() == place.tolist() == [0, 1, 2, 3, 4, 5]
        assert faces.start.tolist() == [0, 3, 6]
    else:
        with pytest.raises(RuntimeError, match=message):
            from_cycles(*given)


def test_dead_layers_are_exactly_zero_without_rationals():
    # Where both units of layer 2 are dead, all of layer 3 is zero: at hundreds of vertices.
    rng = np.random.default_rng(0)
    first, shift = rng.normal(size=(24, 2)), rng.normal(size=24) * 0.1
    second, third = -np.abs(rng.normal(size=(2, 24))), rng.normal(size=(5, 2))

    def f(x):
        return jax.nn.relu(third @ jax.nn.relu(second @ jax.nn.relu(first @ x + shift)))

    net, window = jr.trace(f, np.zeros(2)), jr.Window(np.zeros(2), 1.0)
    counts, part = jr.count_regions(net, window), jr.partition(net, window)
    assert counts.by_stage.tolist() == [266, 266, 266]
    assert counts.certified
    assert part.affine_regions == 1
    assert counts.settled_exactly == part.settled_exactly == 0
