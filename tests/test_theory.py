"""Closed forms of expected refinement for k = 1 and 2, against mpmath and by hand."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import jaxregions as jr
from jaxregions import theory

ROUNDING = 1e-12  # relative, of closed forms


def corners(center, radius):
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return [
        [
            mp.mpf(float(c)) + s * mp.mpf(float(r))
            for c, r, s in zip(center, radius, row, strict=True)
        ]
        for row in signs
    ]


def lifted(points, matrix, offset, center, ground):
    """Exact points (A x + a - q, g) of R^{m+1}."""
    rows = [[mp.mpf(float(v)) for v in row] for row in matrix]
    return [
        mp.matrix(
            [
                sum(a * x for a, x in zip(row, p, strict=True))
                + mp.mpf(float(b))
                - mp.mpf(float(q))
                for row, b, q in zip(rows, offset, center, strict=True)
            ]
            + [ground]
        )
        for p in points
    ]


def dot(x, y):
    return mp.fsum(a * b for a, b in zip(x, y, strict=True))


def angle(x, y):
    return mp.acos(dot(x, y) / mp.sqrt(dot(x, x) * dot(y, y)))


def girard(points):
    """Perimeter and area of a spherical polygon from angles alone; needs many digits."""
    n = len(points)
    length = sum(angle(points[i], points[(i + 1) % n]) for i in range(n))
    total = mp.mpf(0)
    for i, p in enumerate(points):
        sides = []
        for other in (points[i - 1], points[(i + 1) % n]):
            sides.append(other - p * (dot(other, p) / dot(p, p)))
        total += angle(*sides)
    return length, total - (n - 2) * mp.pi


def oracle(window_center, radius, *, matrix=None, offset=None, center=None, ground=0.0):
    d = len(window_center)
    matrix = np.eye(d) if matrix is None else matrix
    zero = np.zeros(len(matrix))
    with mp.workdps(120):
        points = lifted(
            corners(window_center, radius),
            matrix,
            zero if offset is None else offset,
            zero if center is None else center,
            mp.mpf(float(ground)),
        )
        length, area = girard(points)
        return length / (2 * mp.pi), area / (2 * mp.pi)


def relative(found, expected):
    return max(abs(mp.mpf(float(f)) / e - 1) for f, e in zip(found, expected, strict=True))


CASES = {
    "plain": ([0.8, -0.5], [0.4, 0.4], 0.43),
    "origin inside": ([0.1, -0.05], [0.4, 0.3], 0.2),
    "low and inside": ([0.1, -0.05], [0.4, 0.3], 1e-9),
    "centred": ([0.0, 0.0], [0.4, 0.3], 1e-7),
    "low and close to an edge": ([0.05, -0.3], [0.4, 0.3 + 2**-40], 1e-11),
    "tiny": ([0.8, -0.5], [1e-9, 2e-9], 0.43),
    "far": ([8e5, 5e5], [0.4, 0.4], 0.43),
    "far and tiny": ([8e5, -5e5], [1e-6, 1e-6], 0.43),
    "low": ([0.8, -0.5], [0.4, 0.4], 1e-12),
    "just outside": ([0.8, -0.5], [0.8 - 1e-9, 0.6], 1e-3),
    "thin": ([0.3, 2.0], [1.0, 1e-8], 0.1),
    "high": ([0.3, 2.0], [1.0, 0.5], 1e6),
    "huge": ([0.3, 2.0], [1e8, 1e8], 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_perimeter_and_area_do_not_cancel(case):
    center, radius, ground = CASES[case]
    found = theory.crossing_probabilities(
        jr.Window(center, radius), weight_std=1.0, bias_std=ground
    )
    assert relative(found.probability[1:], oracle(center, radius, ground=ground)) < ROUNDING
    assert not found.concurrent


@pytest.mark.parametrize("m", [2, 3, 7])
def test_windows_behind_an_affine_map(m):
    rng = np.random.default_rng(m)
    A, a, q, c = (rng.normal(size=s) for s in ((m, 2), m, m, 2))
    # With BatchNorm the height of the lift is what range A misses of the centroid.
    bn = theory.crossing_probabilities(
        jr.Window(c, [0.3, 1e-7]), weight_std=0.7, center=q, A=A, a=a
    )
    raw = theory.crossing_probabilities(
        jr.Window(c, [0.3, 1e-7]), weight_std=0.5, bias_std=0.25, A=A, a=a
    )
    more = {"matrix": A, "offset": a}
    # m = 2: the height is 0, the cone is flat, and the area is exactly 0.
    p, s = oracle(c, [0.3, 1e-7], center=q, **more)
    assert relative(bn.probability[1:2], [p]) < 1e-10
    assert bn.probability[2] == 0 if m == 2 else relative(bn.probability[2:], [s]) < 1e-10
    assert relative(raw.probability[1:], oracle(c, [0.3, 1e-7], ground=0.5, **more)) < 1e-10


def test_intervals():
    rng = np.random.default_rng(0)
    A, a, q, c = rng.normal(size=(5, 1)), rng.normal(size=5), rng.normal(size=5), 0.4
    for r in (0.3, 1e-9):
        with mp.workdps(60):
            ends = lifted([[mp.mpf(c) - mp.mpf(r)], [mp.mpf(c) + mp.mpf(r)]], A, a, q, mp.mpf(0))
            expected = angle(*ends) / mp.pi
        found = theory.hit_probability(jr.Window([c], r), weight_std=2.0, center=q, A=A, a=a)
        assert relative([found], [expected]) < 1e-10


def test_checked_values():
    window = jr.Window([0.8, -0.5], 0.4)
    layer = {"num_units": 20, "weight_std": 0.7, "bias_std": 0.3}
    assert theory.expected_hits(window, **layer) == pytest.approx(7.4444, abs=5e-5)
    assert theory.expected_regions(window, **layer) == pytest.approx(17.2982, abs=5e-5)
    hits = theory.expected_hits(window, num_units=20, weight_std=0.7)
    assert hits == pytest.approx(6.8082, abs=5e-5)
    # Arc: P = omega / pi, all meet outside the window.
    assert theory.expected_regions(window, num_units=20, weight_std=0.7) == 1 + hits
    assert theory.expected_vertices(window, num_units=20, weight_std=0.7) == 0


def test_batchnorm_is_a_shift_and_cancels_the_bias():
    shifted = theory.expected_regions(
        jr.Window([1.3, 0.5], 0.4), num_units=20, weight_std=0.7, bias_std=0.3, center=[0.5, 1.0]
    )
    plain = theory.expected_regions(jr.Window([0.8, -0.5], 0.4), num_units=20, weight_std=0.7)
    assert shifted == pytest.approx(plain, rel=ROUNDING)


@pytest.mark.parametrize(
    ("place", "hit", "concurrent", "regions"),
    [
        ([0.1, 0.2], 1.0, True, 2 * 7),  # inside
        ([0.5, 0.2], 1.0, False, 1 + 7),  # on an edge: every line through it enters
        ([0.5, -0.5], 0.5, False, 1 + 7 / 2),  # a corner: half of the directions enter
        ([0.7, 0.0], None, False, None),  # outside
    ],
)
def test_centroid_inside_on_the_edge_at_a_corner(place, hit, concurrent, regions):
    window = jr.Window([0.0, 0.0], 0.5)
    found = theory.crossing_probabilities(window, weight_std=1.0, center=place)
    if hit is None:
        omega = 2 * np.arctan2(0.5, 0.2)
        hit, regions = omega / np.pi, 1 + 7 * omega / np.pi
    assert found.probability[1] == pytest.approx(hit, rel=ROUNDING)
    assert found.concurrent == concurrent
    assert found.probability[2] == concurrent
    count = theory.expected_regions(window, num_units=7, weight_std=1.0, center=place)
    assert count == pytest.approx(regions, rel=ROUNDING)
    vertices = theory.expected_vertices(window, num_units=7, weight_std=1.0, center=place)
    assert vertices == (1 if concurrent else 0)


def test_edges_are_decided_on_the_stored_floats():
    # r = fl(q - c): rounding alone would put every centroid on the edge.
    rng = np.random.default_rng(0)
    q, c = rng.uniform(0.5, 1, 60), rng.uniform(-1, -0.1, 60)
    r = q - c
    pad = np.zeros(60)
    found = theory.crossing_probabilities(
        jr.Window(np.stack([c, pad], 1), np.stack([r, pad + 1], 1)),
        weight_std=1.0,
        center=np.stack([q, pad], 1),
    )
    exact = [Fraction(x) - Fraction(y) < Fraction(z) for x, y, z in zip(q, c, r, strict=True)]
    assert found.concurrent.tolist() == exact
    assert 0 < sum(exact) < 60


@pytest.mark.parametrize("basis", [[[1.0], [2.0], [-1.0]], [[1.0, 0.5], [2.0, 1.0], [-1.0, 3.0]]])
def test_slices_through_the_centroid_are_concurrent(basis):
    q = np.array([0.1, 0.7, -0.3])
    window = jr.Window(q + 0.1 * np.array(basis)[:, 0], 0.3, basis=basis, anchor=q)
    k = window.dimension
    count = theory.expected_regions(window, num_units=9, weight_std=1.0, center=q)
    assert count == (2 if k == 1 else 18)


def test_rank_one_maps_give_parallel_lines():
    v = np.array([0.3, -1.2, 0.4])
    A, a, window = (
        np.stack([v, 2 * v], axis=1),
        np.array([0.5, 0.1, -0.2]),
        jr.Window([0.2, 0.3], [0.5, 0.25]),
    )
    found = theory.crossing_probabilities(window, weight_std=1.0, bias_std=0.4, A=A, a=a)
    # The window's image is a segment of half length |v| (0.5 + 2 * 0.25) around v * 0.8 + a.
    with mp.workdps(40):
        ends = [
            [mp.mpf(float(s * x + y)) for x, y in zip(v, a, strict=True)] + [mp.mpf("0.4")]
            for s in (-0.2, 1.8)
        ]
        expected = angle(*ends) / mp.pi
    assert found.rank == 1
    assert relative(found.probability[1:2], [expected]) < 1e-10
    assert found.probability[2] == 0
    through = theory.crossing_probabilities(window, weight_std=1.0, center=a + 0.5 * v, A=A, a=a)
    assert through.concurrent
    layer = {"weight_std": 1.0, "A": A, "a": a, "num_units": 5}
    assert theory.expected_regions(window, center=a + 0.5 * v, **layer) == 2
    assert theory.expected_regions(window, center=a - 0.5 * v, **layer) == 1
    assert theory.expected_vertices(window, center=a + 0.5 * v, **layer) == 0


def test_dead_inputs_have_no_hyperplanes():
    layer = {"weight_std": 1.0, "bias_std": 0.4, "A": np.zeros((3, 2)), "a": np.zeros(3)}
    for more in ({}, {"center": np.zeros(3)}, {"center": np.ones(3)}):
        found = theory.crossing_probabilities(jr.Window([0.2, 0.3], 0.5), **layer, **more)
        assert found.probability.tolist() == [1, 0, 0]
        assert (found.rank, found.concurrent) == (0, False)


def test_small_heights_tend_to_the_flat_case_outside():
    window = jr.Window([0.8, -0.5], 0.4)
    low = theory.crossing_probabilities(window, weight_std=1.0, bias_std=1e-14).probability
    flat = theory.crossing_probabilities(window, weight_std=1.0).probability
    np.testing.assert_allclose(low, flat, rtol=ROUNDING, atol=1e-13)


def test_windows_in_a_batch_and_slices():
    rng = np.random.default_rng(5)
    center, radius = rng.normal(size=(2, 3, 4)), rng.uniform(0.1, 1, (2, 3, 2))
    basis, A, a = (
        rng.normal(size=(2, 3, 4, 2)),
        rng.normal(size=(2, 3, 5, 4)),
        rng.normal(size=(2, 3, 5)),
    )
    sw, sb = rng.uniform(0.5, 1, (2, 3)), rng.uniform(0, 1, (2, 3))
    windows = jr.Window(center, radius, basis=basis)
    batch = theory.expected_regions(windows, num_units=8, weight_std=sw, bias_std=sb, A=A, a=a)
    one = [
        theory.expected_regions(
            # the same slice as a full window of R^2
            jr.Window(np.zeros(2), radius[i]),
            num_units=8,
            weight_std=sw[i],
            bias_std=sb[i],
            A=A[i] @ basis[i],
            a=A[i] @ center[i] + a[i],
        )
        for i in np.ndindex(2, 3)
    ]
    np.testing.assert_allclose(batch, np.reshape(one, (2, 3)), rtol=1e-11)


def test_polygons():
    window = jr.Window([0.8, -0.5], [0.4, 0.2])
    square = window.center + np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * window.radius
    layer = {"weight_std": 0.7, "bias_std": 0.3}
    box = theory.crossing_probabilities(window, **layer)
    found = theory.polygon_crossing_probabilities(square, **layer)
    np.testing.assert_allclose(found.probability, box.probability, rtol=ROUNDING)
    # A hexagon cut into two along a diagonal: areas add up, perimeters overlap in the cut.
    turn = np.arange(6) * np.pi / 3
    hexagon = np.stack([1.5 + np.cos(turn), 0.4 + np.sin(turn)], axis=1)
    A, q = np.array([[1.0, 0.3], [0.0, 2.0], [1.0, 1.0]]), np.array([0.2, 0.1, 0.5])
    whole, left, right = (
        theory.polygon_crossing_probabilities(p, weight_std=1.0, center=q, A=A)
        for p in (hexagon, hexagon[:4], hexagon[[0, 3, 4, 5]])
    )
    cut = [np.append(A @ p - q, 0.0) for p in (hexagon[0], hexagon[3])]
    both = left.probability + right.probability
    assert both[2] == pytest.approx(whole.probability[2], rel=ROUNDING)
    assert both[1] - float(angle(*cut)) / np.pi == pytest.approx(whole.probability[1], rel=1e-11)
    inside = theory.polygon_crossing_probabilities(hexagon, weight_std=1.0, center=[1.5, 0.4])
    assert theory.regions_from_crossings(inside, 6) == 12


def regions(center, radius, ground, A):
    return theory.expected_regions(
        jr.Window(center, radius), num_units=20, weight_std=1.0, bias_std=ground, A=A, a=A[:, 0]
    )


@pytest.mark.slow
def test_gradients_under_jit():
    rng = np.random.default_rng(3)
    arguments = [rng.normal(size=2), np.array([0.3, 0.5]), np.array(0.4), rng.normal(size=(3, 2))]

    def exact(values):
        p, s = oracle(*values[:2], matrix=values[3], offset=values[3][:, 0], ground=values[2])
        with mp.workdps(60):
            return 1 + 20 * p + 190 * s

    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(regions, argnums=(0, 1, 2, 3)))(
            *map(jnp.asarray, arguments)
        )
        value, gradient = float(value), [np.asarray(g) for g in gradient]
    assert relative([value], [exact(arguments)]) < ROUNDING
    for which, slot in [(0, 0), (0, 1), (1, 0), (1, 1), (2, ()), (3, (0, 1)), (3, (2, 0))]:
        step, ends = 2.0**-30, []
        for sign in (1, -1):
            moved = [np.array(v) for v in arguments]
            moved[which][slot] += sign * step
            ends.append((exact(moved), float(moved[which][slot])))
        with mp.workdps(60):
            slope = float((ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1]))
        assert gradient[which][slot] == pytest.approx(slope, rel=1e-8)


@pytest.mark.slow
def test_gradients_are_finite_without_height():
    def count(center):
        window = jr.Window(np.zeros(2), 0.5)
        return theory.expected_regions(window, num_units=3, weight_std=1.0, center=center)

    places = jnp.array([[0.1, 0.2], [2.0, 0.3], [0.5, 0.2], [0.5, 0.5]])
    slopes = jax.jit(jax.vmap(jax.grad(count)))(places)
    assert np.isfinite(slopes).all()
    assert (slopes[0] == 0).all()  # inside, nothing changes
    assert slopes[1, 0] < 0  # further away, fewer hits


def test_moving_away_from_the_centroid_lowers_the_hits():
    centers = np.linspace(0.6, 3.0, 9)[:, None] * np.array([1.0, 0.4])
    found = theory.hit_probability(jr.Window(centers, 0.5), weight_std=1.0, center=[0.0, 0.0])
    assert (np.diff(found) < 0).all()
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_std": 0.0}, "weight_std: expected > 0"),
        ({"weight_std": [1.0, 1.0]}, "weight_std: expected shape"),
        ({"bias_std": -0.1}, "bias_std: expected >= 0"),
        ({"bias_std": np.inf}, "bias_std: expected finite"),
        ({"center": [0.0, 0.0, 0.0]}, "center: expected"),
        ({"A": np.ones((3, 3))}, "A: expected"),
        ({"A": np.ones((3, 2)), "a": np.ones(2)}, "a: expected"),
        ({"a": np.ones(2)}, "a: expected None"),
        ({"num_units": 0}, "num_units: expected an integer >= 1"),
        ({"num_units": 2.5}, "num_units: expected an integer >= 1"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        theory.expected_regions(
            jr.Window([0.0, 0.0], 1.0), **{"num_units": 3, "weight_std": 1.0, **change}
        )


def test_windows_of_another_kind():
    for function in (theory.hit_probability, theory.crossing_probabilities):
        with pytest.raises(ValueError, match=r"windows: expected a jr\.Window, received ndarray"):
            function(np.zeros(2), weight_std=1.0)
    with pytest.raises(ValueError, match=r"windows: expected a jr\.Window, received ndarray"):
        jr.log_density(1, np.zeros(2))


def test_bad_polygons_and_traced_cubes():
    for corners_ in (
        [[0, 0], [1, 0], [0, 0], [0, 1]],
        [[0, 0], [2, 0], [0, 1], [2, 1]],
        [[0, 0], [1, 1]],
    ):
        with pytest.raises(ValueError, match="vertices: expected"):
            theory.polygon_crossing_probabilities(corners_, weight_std=1.0)
    with pytest.raises(ValueError, match="concrete"):
        jax.jit(lambda c: theory.hit_probability(jr.Window(c, 1.0), weight_std=1.0))(jnp.ones(3))
