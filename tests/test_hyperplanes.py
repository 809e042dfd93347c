"""The window criterion against fractions, sampling and memory limits."""

import subprocess
import sys
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxregions as jr
from jaxregions import _criterion
from jaxregions.hyperplanes import Hyperplanes, count_hits, distances, margins, meets, refines


def exact_relation(normal, point, offset, center, radius, basis=None):
    """1 refines, 0 tangent, -1 misses, by fractions; (units * breakpoints,)."""
    rows = oracles.slice_rows(normal, point, offset, center, basis)
    radius = oracles.fractions(radius)
    out = []
    for slope, value in rows:
        reach = sum(r * abs(g) for r, g in zip(radius, slope, strict=True))
        out.append((reach > abs(value)) - (reach < abs(value)))
    return np.array(out)


def draw(seed, lattice, d=3, n=4, breaks=2):
    rng = np.random.default_rng(seed)
    sample = (
        (lambda *s: rng.integers(-2, 3, s).astype(float))
        if lattice
        else (lambda *s: rng.normal(size=s))
    )
    normal = sample(n, d)
    normal[normal.any(1) == 0, 0] = 1.0
    radius = np.ones(d) if lattice else rng.uniform(0.2, 1.0, d)
    return normal, sample(d), sample(n, breaks), sample(d), radius


@pytest.mark.parametrize("lattice", [True, False])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_criterion_matches_fractions(lattice, seed):
    normal, point, offset, center, radius = draw(seed, lattice)
    planes, window = Hyperplanes(normal, point, offset), jr.Window(center, radius)
    expected = exact_relation(normal, point, offset, center, radius)
    np.testing.assert_array_equal(refines(planes, window).ravel(), expected > 0)
    np.testing.assert_array_equal(meets(planes, window).ravel(), expected >= 0)
    for dtype in (np.float32, np.float64):
        counts = count_hits(planes, window, dtype=dtype)
        assert counts.hits == (expected > 0).sum()
        assert counts.tangencies == (expected == 0).sum()
        assert counts.units == (expected.reshape(4, 2) > 0).any(1).sum()
        assert counts.undecided == 0


def test_slices_match_fractions():
    rng = np.random.default_rng(0)
    normal, point, offset = (
        rng.normal(size=(6, 5)),
        rng.normal(size=5),
        0.3 * rng.normal(size=(6, 1)),
    )
    centers, bases = rng.normal(size=(7, 5)), rng.normal(size=(7, 5, 2))
    planes = Hyperplanes(normal, point, offset)
    each = refines(planes, jr.Window(centers, 0.5, bases))
    shared = refines(planes, jr.Window(centers, 0.5, bases[0]))
    for i in range(7):
        for basis, answer in ((bases[i], each[i]), (bases[0], shared[i])):
            expected = exact_relation(normal, point, offset, centers[i], [0.5, 0.5], basis)
            np.testing.assert_array_equal(answer.ravel(), expected > 0)
    assert (
        count_hits(planes, jr.Window(centers, 0.5, bases[0])).hits.tolist()
        == shared.sum((1, 2)).tolist()
    )
    assert (
        count_hits(planes, jr.Window(centers, 0.5, bases)).hits.tolist()
        == each.sum((1, 2)).tolist()
    )


def test_a_hit_is_a_sign_change_at_two_corners():
    rng = np.random.default_rng(1)
    normal, offset = rng.normal(size=(50, 4)), rng.normal(size=(50, 1))
    planes, window = Hyperplanes(normal, np.zeros(4), offset), jr.Window(rng.normal(size=4), 0.4)
    corners = window.center + 0.4 * np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    signs = np.sign(corners @ normal.T - offset[:, 0])
    np.testing.assert_array_equal(refines(planes, window)[:, 0], abs(signs.sum(0)) < 16)


def test_nearly_tangent_decisions_are_exact_at_any_scale():
    # |w . c| against r sum |w| one unit in the last place apart, far below float32 resolution.
    for scale in (1e-200, 1e-150, 1.0, 1e150):
        normal = np.array([[1.0, 1.0]]) * scale
        radius = np.nextafter(0.5, [0.0, 1.0, 0.5])
        window = jr.Window(np.full((3, 2), 0.5), radius)
        planes = Hyperplanes(normal, np.zeros(2), np.zeros((1, 1)))
        assert refines(planes, window).ravel().tolist() == [False, True, False]
        counts = count_hits(planes, window)
        assert counts.hits.tolist() == [0, 1, 0]
        assert counts.tangencies.tolist() == [0, 0, 1]
        assert (counts.rechecked == 1).all()


def test_ragged_sizes_and_leading_axes():
    rng = np.random.default_rng(2)
    planes = Hyperplanes(rng.normal(size=(67, 9)), rng.normal(size=9), rng.normal(size=(67, 3)))
    windows = jr.Window(rng.normal(size=(5, 41, 9)), rng.uniform(0.1, 0.5, (5, 41)))
    answer = refines(planes, windows)
    assert answer.shape == (5, 41, 67, 3)
    counts = count_hits(planes, windows)
    np.testing.assert_array_equal(counts.hits, answer.sum((-2, -1)))
    np.testing.assert_array_equal(counts.units, answer.any(-1).sum(-1))
    per_axis = jr.Window(windows.center, rng.uniform(0.1, 0.5, (5, 41, 9)))
    np.testing.assert_array_equal(
        count_hits(planes, per_axis).hits, refines(planes, per_axis).sum((-2, -1))
    )


def test_tiny_windows_and_normals_have_honest_rounding_bounds():
    # Squares of these underflow: a bound made of them would be zero, and prove anything.
    rng = np.random.default_rng(7)
    normal, offset = rng.normal(size=(40, 5)), rng.normal(size=(40, 1))
    centers = rng.normal(size=(30, 5))
    expected = refines(Hyperplanes(normal, np.zeros(5), offset), jr.Window(centers, 0.3))
    for exponent in (-600, 600):
        scaled = Hyperplanes(
            np.ldexp(normal, -exponent // 2), np.zeros(5), np.ldexp(offset, exponent // 2)
        )
        windows = jr.Window(np.ldexp(centers, exponent), np.ldexp(0.3, exponent))
        np.testing.assert_array_equal(refines(scaled, windows), expected)
        np.testing.assert_array_equal(count_hits(scaled, windows).hits, expected.sum((1, 2)))
    tie = jr.Window(np.full((1, 2), 2.0**-600), np.nextafter(2.0**-600, 0))
    planes = Hyperplanes(np.full((1, 2), 2.0**-300), np.zeros(2), np.zeros((1, 1)))
    assert count_hits(planes, tie).hits == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormal_numbers_are_not_read_as_zero(dtype):
    # Compiled code flushes them: |w . c| = 0 would be a hit.
    tiny = float(np.finfo(dtype).tiny)
    centers = np.array([[tiny / 8], [-tiny / 8]], dtype)
    windows = jr.Window(centers, tiny / 16)
    for scale in (1.0, tiny / 4, 1 / tiny):
        planes = Hyperplanes(np.full((1, 1), scale), np.zeros(1), np.zeros((1, 1)))
        assert not refines(planes, windows).any()
        assert count_hits(planes, windows).hits.tolist() == [0, 0]


@pytest.mark.parametrize(("rows", "slab", "count"), [(8, 20, 53), (8, 24, 24), (16, 40, 41)])
def test_overlapping_slabs_count_every_window_once(monkeypatch, rows, slab, count):
    # Integer data: most blocks hold a tie, so nearly everything is decided twice.
    monkeypatch.setattr(_criterion, "_ROWS", rows)
    monkeypatch.setattr(_criterion, "_SLAB", slab)
    rng = np.random.default_rng(count)
    normal, offset = rng.integers(-2, 3, (37, 2)), rng.integers(-2, 3, (37, 2))
    planes = Hyperplanes(normal, np.zeros(2), offset)
    windows = jr.Window(rng.integers(-2, 3, (count, 2)), 1.0)
    sign = refines(planes, windows).astype(int) + meets(planes, windows) - 1
    counts = count_hits(planes, windows)
    np.testing.assert_array_equal(counts.hits, (sign == 1).sum((1, 2)))
    np.testing.assert_array_equal(counts.units, (sign == 1).any(2).sum(1))
    np.testing.assert_array_equal(counts.tangencies, (sign == 0).sum((1, 2)))
    assert (counts.tangencies > 0).all()


def test_centres_count_the_same_however_they_lie_in_memory():
    # Screening uses aligned arrays in place; the last slab overlaps with the one before.
    rng = np.random.default_rng(5)
    room = rng.normal(size=300 * 5 + 32).astype(np.float32)
    aligned = -(room.ctypes.data // 4) % 16
    planes = Hyperplanes(rng.normal(size=(40, 5)), rng.normal(size=5), np.zeros((40, 1)))
    for first in (aligned, aligned + 1):
        centers = room[first : first + 1500].reshape(300, 5)
        copy = centers.copy()
        copy.flags.writeable = False
        expected = refines(planes, jr.Window(centers, 0.3)).sum((1, 2))
        for same in (centers, copy, np.asfortranarray(centers), jnp.asarray(centers)):
            np.testing.assert_array_equal(count_hits(planes, jr.Window(same, 0.3)).hits, expected)
        np.testing.assert_array_equal(centers, copy)


def test_single_precision_centres_count_as_their_double_copies():
    # A point that float32 does not hold, and centres near it: float32 differences are rounded.
    rng = np.random.default_rng(8)
    point = 100 + rng.normal(size=24)
    centers = (point + 0.1 * rng.normal(size=(300, 24))).astype(np.float32)
    normal = rng.normal(size=(50, 24))
    planes = Hyperplanes(normal, point, np.zeros((50, 1)))
    single, double = jr.Window(centers, 0.02), jr.Window(centers.astype(np.float64), 0.02)
    assert single.center.dtype == np.float32
    value = np.longdouble(centers) - np.longdouble(point)
    value = abs(value @ np.longdouble(normal).T)
    expected = (value < 0.02 * abs(np.longdouble(normal)).sum(1)).sum(1)
    for windows in (single, double):
        np.testing.assert_array_equal(count_hits(planes, windows).hits, expected)
        np.testing.assert_array_equal(refines(planes, windows).sum((1, 2)), expected)
    assert 0 < expected.sum() < expected.size * 50


@pytest.mark.parametrize("d", [3, 200])
def test_screening_in_single_precision_decides_like_the_dense_path_with_offsets(d):
    # Offsets larger than the terms, windows of all sizes, one unit along an axis.
    rng = np.random.default_rng(d)
    normal = rng.normal(size=(40, d)) * 10.0 ** rng.integers(-30, 30, (40, 1))
    normal[0] = np.eye(d)[0]
    size = np.linalg.norm(normal, axis=1, keepdims=True)
    offset = size * rng.normal(size=(40, 3)) * [1.0, 1e4, 1e-4]
    planes = Hyperplanes(normal, rng.normal(size=d), offset)
    windows = jr.Window(rng.normal(size=(200, d)), 10.0 ** rng.uniform(-25, 3, 200))
    sign = refines(planes, windows)
    counts = count_hits(planes, windows)
    np.testing.assert_array_equal(counts.hits, sign.sum((1, 2)))
    np.testing.assert_array_equal(counts.units, sign.any(2).sum(1))


def test_units_without_hyperplane_meet_nothing():
    normal, offset = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, np.inf], [0.0, 1.0]])
    planes, window = Hyperplanes(normal, np.zeros(2), offset), jr.Window(np.zeros(2), 1.0)
    assert refines(planes, window).tolist() == [[True, False], [False, False]]
    assert meets(planes, window).tolist() == [[True, False], [False, False]]
    assert count_hits(planes, window).hits == 1
    assert np.isinf(np.asarray(distances(planes, np.zeros(2)))).sum() == 3
    assert (np.asarray(margins(planes, window)) == -np.inf).sum() == 3


def test_distance_is_to_the_nearest_point_of_the_hyperplane():
    rng = np.random.default_rng(3)
    normal, point, offset = rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=(5, 2))
    x = rng.normal(size=3)
    with jax.enable_x64(True):
        got = np.asarray(distances(Hyperplanes(normal, point, offset), x))
    for i in range(5):
        for k in range(2):
            foot = x - normal[i] * (normal[i] @ (x - point) - offset[i, k]) / (
                normal[i] @ normal[i]
            )
            assert abs(normal[i] @ (foot - point) - offset[i, k]) < 1e-12
            np.testing.assert_allclose(got[i, k], np.linalg.norm(x - foot), rtol=1e-12)


def test_under_jit_vmap_and_grad_the_float_decision_stands():
    rng = np.random.default_rng(4)
    planes = Hyperplanes(rng.normal(size=(12, 6)), np.zeros(6), rng.normal(size=(12, 1)))
    windows = jr.Window(rng.normal(size=(9, 6)), 0.2)
    exact = refines(planes, windows)
    np.testing.assert_array_equal(jax.jit(refines)(planes, windows), exact)
    np.testing.assert_array_equal(jax.vmap(lambda w: refines(planes, w))(windows), exact)
    counts = jax.jit(count_hits)(planes, windows)
    np.testing.assert_array_equal(counts.hits, exact.sum((1, 2)))
    tie = Hyperplanes(np.array([[1.0, 0.0]]), np.zeros(2), np.ones((1, 1)))
    assert jax.jit(count_hits)(tie, jr.Window(np.zeros(2), 1.0)).undecided == 1
    slope = jax.grad(lambda c: margins(planes, jr.Window(c, 0.2)).sum())(jnp.zeros(6))
    expected = (np.sign(planes.offset) * planes.normal).sum(0)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_same_shapes_trace_once():
    chex.clear_trace_counter()
    planes = Hyperplanes(np.eye(3), np.zeros(3), np.zeros((3, 1)))
    traced = jax.jit(chex.assert_max_traces(count_hits, n=1))
    for seed in range(3):
        traced(planes, jr.Window(np.random.default_rng(seed).normal(size=(4, 3)), 0.5))


@pytest.mark.slow
def test_large_problem_stays_within_two_gigabytes():
    """10^5 windows x 1024 units at d = 64 in float32, in a process of its own."""
    script = """
import resource, sys, numpy as np, jaxregions as jr
from jaxregions.hyperplanes import Hyperplanes, count_hits
rng = np.random.default_rng(0)
planes = Hyperplanes(rng.normal(size=(1024, 64)), np.zeros(64), np.zeros((1024, 1)))
centers = rng.normal(size=(100_000, 64)).astype(np.float32)
counts = count_hits(planes, jr.Window(centers, 0.02))
some = slice(0, 200)
value = np.abs(np.float64(centers[some]) @ planes.normal.T)
assert (counts.hits[some] == (value < 0.02 * np.abs(planes.normal).sum(1)).sum(1)).all()
if sys.platform == "darwin":
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
else:  # ru_maxrss counts the process that forked this one too
    status = dict(line.split(":") for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) * 1024
print(peak)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 1 << 26 < int(run.stdout) < 2 << 30


@pytest.mark.parametrize(
    ("normal", "point", "offset", "message"),
    [
        (np.ones(3), np.zeros(3), np.zeros((1, 1)), r"normal \(..., n, d\)"),
        (np.ones((2, 3)), np.zeros(2), np.zeros((2, 1)), r"point \(3,\)"),
        (np.ones((2, 3)), np.zeros(3), np.zeros((3, 1)), r"received \(3,\) and \(3, 1\)"),
        (np.full((2, 3), np.nan), np.zeros(3), np.zeros((2, 1)), "normal: .*NaN"),
        (np.full((2, 3), np.inf), np.zeros(3), np.zeros((2, 1)), "normal: expected finite"),
        (np.ones((2, 3)), np.zeros(3), np.full((2, 1), -np.inf), "received -inf"),
        ("abc", np.zeros(3), np.zeros((2, 1)), "normal: expected numbers, received 'abc'"),
        (jnp.ones((2, 3), int), np.zeros(3), np.zeros((2, 1)), "floating-point"),
    ],
)
def test_rejects_bad_hyperplanes(normal, point, offset, message):
    with pytest.raises(ValueError, match=message):
        Hyperplanes(normal, point, offset)


def test_arguments_of_another_kind_are_named():
    planes, window = jr.Hyperplanes([[1.0]], [0.0], [[0.0]]), jr.Window([0.0], 1.0)
    for function in (jr.refines, jr.meets, jr.margins, jr.count_hits, jr.count_arrangement):
        with pytest.raises(ValueError, match=r"windows: expected a jr\.Window, received list"):
            function(planes, [0.0])
        with pytest.raises(ValueError, match=r"planes: expected jr\.Hyperplanes, received tuple"):
            function((1, 2), window)
    for wrong in ("1", None):
        with pytest.raises(ValueError, match="expected numbers, received"):
            jr.Window([0.0], wrong)


def test_rejects_windows_that_do_not_fit():
    planes = Hyperplanes(np.ones((2, 3)), np.zeros(3), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="3 dimensions, received 4"):
        refines(planes, jr.Window(np.zeros(4), 1.0))
    batched = Hyperplanes(np.ones((5, 2, 3)), np.zeros((5, 3)), np.zeros((5, 2, 1)))
    with pytest.raises(ValueError, match="leading axes"):
        refines(batched, jr.Window(np.zeros((4, 3)), 1.0))
    with pytest.raises(ValueError, match="float32 or float64, received int32"):
        count_hits(planes, jr.Window(np.zeros(3), 1.0), dtype=np.int32)


def test_records_survive_tree_operations():
    planes = Hyperplanes(np.ones((2, 3)), np.zeros(3), np.zeros((2, 1)))
    doubled = jax.tree.map(lambda a: 2 * a, planes)
    assert isinstance(doubled, Hyperplanes)
    assert (doubled.normal == 2).all()
    assert jax.tree.map(lambda _: None, planes).normal is None
    assert Fraction(float(doubled.normal[0, 0])) == 2


@pytest.mark.parametrize("anchored", [False, True])
def test_slices_are_projected_in_full_precision(anchored):
    """Devices multiply float32 matrices in fewer digits unless told otherwise."""
    basis, center = np.eye(4, 2, dtype=np.float32), np.zeros((3, 4), np.float32)
    planes = jr.Hyperplanes(np.ones((5, 4), np.float32), np.zeros(4, np.float32), np.ones((5, 1)))
    windows = jr.Window(center, 0.5, basis, anchor=center if anchored else None)
    jaxpr = str(jax.make_jaxpr(jr.margins)(planes, windows))
    products = jaxpr.count("dot_general")
    assert products >= 3
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


@pytest.mark.parametrize("offset", [0.0, 1e-47])
def test_every_offset_of_a_unit_counts_though_all_are_zero_in_float32(offset):
    planes = jr.Hyperplanes([[1.0, -1.0]], [0.0, 0.0], [[offset, -offset]])
    windows = jr.Window(np.zeros((3, 2)), 1.0)
    found = jr.count_hits(planes, windows)
    np.testing.assert_array_equal(jr.refines(planes, windows).sum((-2, -1)), 2)
    np.testing.assert_array_equal(found.hits, 2)
    np.testing.assert_array_equal(jr.count_hits(planes, windows, dtype=np.float64).hits, 2)


def test_a_hyperplane_that_holds_the_slice_meets_it_and_is_tangent_traced_or_not():
    planes = jr.Hyperplanes([[0.0, 0.0, 1.0]], np.zeros(3), [[0.0]])
    inside, beside = (
        jr.Window(np.array([0.0, 0.0, z]), 1.0, np.array([[1.0], [0.0], [0.0]])) for z in (0, 1)
    )
    for window, holds in ((inside, True), (beside, False)):
        for function in (jr.meets, jax.jit(jr.meets)):
            assert function(planes, window).item() == holds
        for function in (jr.count_hits, jax.jit(jr.count_hits)):
            assert function(planes, window).tangencies == int(holds)
        assert jr.margins(planes, window) == -(not holds)
