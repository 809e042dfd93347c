"""Exact arrangement counts against brute force, linear programs and closed forms."""

import math

import numpy as np
import oracles
import pytest

import jaxregions as jr
from jaxregions.arrangements import count_arrangement, region_bracket
from jaxregions.hyperplanes import Hyperplanes


def small_case(seed):
    """Up to 5 hyperplanes in k = 1, 2, 3 dimensions; odd seeds draw small integers only."""
    rng = np.random.default_rng(seed)
    k, lattice = 1 + seed // 2 % 3, seed % 2 == 1
    d = k + int(rng.integers(0, 2))
    breaks = int(rng.integers(1, 3))
    units = int(rng.integers(1, 5 // breaks + 1))

    def draw(*shape):
        return rng.integers(-2, 3, shape).astype(float) if lattice else rng.normal(size=shape)

    offset = draw(units, breaks) * rng.integers(0, 2, (units, breaks))
    basis = None
    while d > k and (basis is None or np.linalg.matrix_rank(basis) < k):
        basis = draw(d, k)
    radius = rng.integers(1, 3, k).astype(float) if lattice else rng.uniform(0.3, 1.5, k)
    return draw(units, d), draw(d), offset, draw(d), radius, basis


def check_small_case(seed):
    normal, point, offset, center, radius, basis = small_case(seed)
    counts = count_arrangement(Hyperplanes(normal, point, offset), jr.Window(center, radius, basis))
    rows = oracles.slice_rows(normal, point, offset, center, basis)
    assert counts.regions == oracles.count_cells(rows, radius), seed
    assert counts.certified


@pytest.mark.parametrize("block", range(4))
def test_small_cases_match_exact_brute_force(block):
    for seed in range(100 * block, 100 * (block + 1)):
        check_small_case(seed)


@pytest.mark.slow
def test_two_thousand_small_cases_match_exact_brute_force():
    for seed in range(2000):
        check_small_case(seed)


def check_against_linear_programs(seed):
    rng = np.random.default_rng(seed)
    k = 2 + seed % 2
    normal, offset = rng.normal(size=(10, k)), 0.4 * rng.normal(size=(10, 1))
    radius = rng.uniform(0.5, 1.0, k)
    counts = count_arrangement(
        Hyperplanes(normal, np.zeros(k), offset), jr.Window(np.zeros(k), radius)
    )
    expected = oracles.count_cells_by_linear_programs(normal, -offset[:, 0], radius)
    assert counts.regions == expected, seed


@pytest.mark.slow
def test_two_cases_match_linear_programs_over_all_sign_vectors():
    for seed in range(2):
        check_against_linear_programs(seed)


@pytest.mark.slow
def test_twenty_cases_match_linear_programs_over_all_sign_vectors():
    for seed in range(20):
        check_against_linear_programs(seed)


def concurrent_count(n, k):
    """n >= 1 generic hyperplanes through one interior point: 2 sum_{j<k} C(n - 1, j)."""
    return 2 * sum(math.comb(n - 1, j) for j in range(k))


@pytest.mark.parametrize(
    ("k", "sizes"),
    [
        (1, (1, 7, 200)),
        (2, (2, 30)),
        pytest.param(2, (1, 200), marks=pytest.mark.slow),
        pytest.param(3, (1, 2, 25), marks=pytest.mark.slow),
    ],
)
def test_concurrent_hyperplanes_count_exactly(k, sizes):
    for n in sizes:
        rng = np.random.default_rng(n)
        batch = rng.normal(size=(32, k)) * 3 + 10
        point = batch.mean(0)
        planes = Hyperplanes(rng.normal(size=(n, k)), point, np.zeros((n, 1)))
        centers = point + rng.uniform(-0.4, 0.4, (6, k)) * (np.arange(6) > 0)[:, None]
        counts = count_arrangement(planes, jr.Window(centers, 0.5))
        assert (counts.regions == concurrent_count(n, k)).all()
        assert (counts.rechecked == 0).all()  # the concurrency is structural: no rational needed


@pytest.mark.slow
def test_concurrent_hyperplanes_count_exactly_in_space_at_n_200():
    rng = np.random.default_rng(3)
    planes = Hyperplanes(rng.normal(size=(200, 3)), rng.normal(size=3), np.zeros((200, 1)))
    centers = planes.point + rng.uniform(-0.4, 0.4, (4, 3))
    assert (count_arrangement(planes, jr.Window(centers, 0.5)).regions == 39802).all()


@pytest.mark.slow
def test_slice_through_the_common_point_counts_exactly():
    rng = np.random.default_rng(0)
    n, d = 40, 64
    planes = Hyperplanes(rng.normal(size=(n, d)), rng.normal(size=d), np.zeros((n, 1)))
    for k in (1, 2, 3):
        at_point = jr.Window(planes.point, 0.3, rng.normal(size=(d, k)))
        assert count_arrangement(planes, at_point).regions == concurrent_count(n, k)
    axes = np.eye(d)[:, [3, 11]]
    shifted = jr.Window(planes.point + axes @ [0.1, -0.2], 0.3, axes)
    assert count_arrangement(planes, shifted).regions == 2 * n


def test_window_through_the_common_point_first_keeps_it_exactly():
    rng = np.random.default_rng(1)
    n, d = 60, 64
    planes = Hyperplanes(rng.normal(size=(n, d)), rng.normal(size=d), np.zeros((n, 1)))
    window = jr.Window.through(planes.point, rng.normal(size=d), rng.normal(size=d))
    counts = count_arrangement(planes, window)
    assert (counts.hyperplanes, counts.regions) == (n, 2 * n)


def test_common_point_outside_and_on_the_boundary():
    rng = np.random.default_rng(2)
    normal = np.abs(rng.normal(size=(12, 2))) * [1, -1]  # all run from below left to above right
    planes = Hyperplanes(normal, np.zeros(2), np.zeros((12, 1)))
    for center in ([1.0, 1.0], [1.5, 1.5]):  # the point is a corner of the window, or outside it
        counts = count_arrangement(planes, jr.Window(np.array(center), 1.0))
        assert counts.regions == 1 + counts.hyperplanes
    edge = count_arrangement(planes, jr.Window(np.array([1.0, 0.5]), 1.0))  # on an edge
    assert edge.regions == 1 + edge.hyperplanes == 13


def test_breakpoints_of_one_unit_are_parallel_and_need_no_rationals():
    rng = np.random.default_rng(4)
    normal, offset = rng.normal(size=(9, 2)), np.tile([-0.1, 0.2], (9, 1))
    window = jr.Window(np.zeros(2), 1.0)
    counts = count_arrangement(Hyperplanes(normal, np.zeros(2), offset), window)
    assert (counts.hyperplanes, counts.rechecked) == (18, 0)
    few = count_arrangement(Hyperplanes(normal[:3], np.zeros(2), offset[:3]), window)
    rows = oracles.slice_rows(normal[:3], np.zeros(2), offset[:3], np.zeros(2))
    assert few.regions == oracles.count_cells(rows, [1.0, 1.0])


@pytest.mark.slow
def test_order_scale_and_sign_of_the_hyperplanes_do_not_matter():
    rng = np.random.default_rng(5)
    normal, offset = rng.normal(size=(20, 3)), 0.3 * rng.normal(size=(20, 1))
    normal, offset = np.vstack([normal, 2 * normal[:4]]), np.vstack([offset, 2 * offset[:4]])
    window = jr.Window(rng.normal(size=(3, 3)) * 0.1, 0.6)
    counts = count_arrangement(Hyperplanes(normal, np.zeros(3), offset), window)
    order, factor = (
        rng.permutation(24),
        np.ldexp(rng.choice([-1.0, 1.0], 24), rng.integers(-9, 9, 24)),
    )
    other = count_arrangement(
        Hyperplanes(
            (normal * factor[:, None])[order], np.zeros(3), (offset * factor[:, None])[order]
        ),
        window,
    )
    np.testing.assert_array_equal(counts.regions, other.regions)
    assert (counts.hyperplanes <= 20).all()


def test_one_family_per_window():
    rng = np.random.default_rng(6)
    normal, point, offset = (
        rng.normal(size=(5, 8, 2)),
        rng.normal(size=(5, 2)),
        rng.normal(size=(5, 8, 1)),
    )
    windows = jr.Window(point + 0.1, 0.7)
    counts = count_arrangement(Hyperplanes(normal, point, offset), windows)
    single = [
        count_arrangement(Hyperplanes(normal[i], point[i], offset[i]), windows[i]).regions
        for i in range(5)
    ]
    np.testing.assert_array_equal(counts.regions, single)


def test_thin_real_cells_are_not_lost():
    # A triangle with legs of 2^-40: far below any usual tolerance, and a region.
    normal = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    offset = np.array([[0.0], [0.0], [2.0**-40]])
    counts = count_arrangement(
        Hyperplanes(normal, np.zeros(2), offset), jr.Window(np.zeros(2), 1.0)
    )
    assert counts.regions == 7


@pytest.mark.parametrize("k", [1, 2, 3])
def test_subnormal_slopes_are_counted_exactly(k):
    normal = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [3, 1, 3], [-3, -1, -3], [3, 2, 1]])[:, :k]
    radius = np.array([0.7, 0.3, 0.9])[:k]  # products with it are rounded far more than usual
    expected = oracles.count_cells(
        oracles.slice_rows(normal.astype(float), np.zeros(k), np.zeros((6, 1)), np.zeros(k)), radius
    )
    for scale in (2.0**-1020, 2.0**-1050, 2.0**-1070):
        planes = Hyperplanes(normal * scale, np.zeros(k), np.zeros((6, 1)))
        counts = count_arrangement(planes, jr.Window(np.zeros(k), radius))
        assert counts.regions == expected, scale
        assert counts.hyperplanes == (1 if k == 1 else 4)
        tiny = jr.Window(np.zeros(k), radius * 2.0**-500)  # B'w times r underflows to zero
        counts = count_arrangement(Hyperplanes(normal * scale, np.zeros(k), np.zeros((6, 1))), tiny)
        assert counts.regions == expected, scale


@pytest.mark.parametrize("basis", [None, np.eye(2)])
def test_common_point_may_be_farther_away_than_floats_reach(basis):
    planes = Hyperplanes(np.array([[1.0, -1.0], [2.0, -2.0]]), np.zeros(2), np.zeros((2, 1)))
    counts = count_arrangement(planes, jr.Window(np.array([4.0, 4.0]), 1e-308, basis))
    assert (counts.regions, counts.hyperplanes) == (2, 1)


def test_the_same_hyperplane_is_found_where_rounding_lost_its_slopes():
    slopes = np.array([[1, 1, 0], [2, 2, 0], [-1, -1, 0], [0, 1, 0], [0, 0, 1]]) / 2
    basis = np.array([[1, 1, 1], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [1, 1, 1]])
    window = jr.Window(np.zeros(5), 1.0, basis)
    for large in ([1e16] * 5, [1e16, 0, 0, 1e16, 0], [1e16, 3e15, 0, 2.0**51, 0]):
        normal = np.column_stack([large, 2 * slopes, np.negative(large)])
        counts = count_arrangement(Hyperplanes(normal, np.zeros(5), np.zeros((5, 1))), window)
        assert (counts.regions, counts.hyperplanes) == (8, 3), large


def test_units_without_hyperplane_cut_nothing():
    normal, offset = (
        np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]),
        np.array([[0.0], [0.0], [np.inf]]),
    )
    counts = count_arrangement(
        Hyperplanes(normal, np.zeros(2), offset), jr.Window(np.zeros(2), 1.0)
    )
    assert (counts.regions, counts.hyperplanes) == (2, 1)


@pytest.mark.parametrize("d", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_bracket_holds(d):
    rng = np.random.default_rng(d)
    planes = Hyperplanes(rng.normal(size=(12, d)), np.zeros(d), 0.5 * rng.normal(size=(12, 1)))
    counts = count_arrangement(planes, jr.Window(rng.normal(size=(50, d)), 0.5))
    low, high = region_bracket(counts.hyperplanes, d)
    assert (low <= counts.regions).all()
    assert (counts.regions <= high).all()


def test_bracket_in_64_dimensions_is_the_binomial_sum():
    low, high = region_bracket(np.array([0, 3, 100]), 64)
    assert low.tolist() == [1, 4, 101]
    assert high[:2].tolist() == [1.0, 8.0]
    assert high[2] >= sum(math.comb(100, j) for j in range(65))


def test_rejects_windows_above_three_dimensions_and_negative_hits():
    planes = Hyperplanes(np.ones((2, 4)), np.zeros(4), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="dimension 1, 2 or 3, received 4"):
        count_arrangement(planes, jr.Window(np.zeros(4), 1.0))
    with pytest.raises(ValueError, match="hits >= 0"):
        region_bracket(np.array([-1]), 2)
