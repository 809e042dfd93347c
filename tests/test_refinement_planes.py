"""The jitted measurement of one layer against exact arithmetic and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxregions as jr
from jaxregions._records import build
from jaxregions.refinement import planes as module
from jaxregions.refinement.planes import Sample, measure_exactly, measure_hits, measure_planes

UNITS, DRAWS = 7, 8
RNG = np.random.default_rng(11)
CENTER = RNG.uniform(-1, 1, (4, 2))
WINDOWS = jr.Window(CENTER, np.array([0.05, 0.3, 0.7, 1.5]))
POINT = np.array([0.25, -0.5])


def planes_of(normal, offset, point=POINT):
    """Hyperplanes with a leading axis of draws."""
    normal, offset = np.asarray(normal), np.asarray(offset)
    point = np.broadcast_to(np.asarray(point, np.float64), (len(normal), normal.shape[-1]))
    return build(jr.Hyperplanes, normal=normal, point=point, offset=offset)


@jax.jit
def many(planes, windows):
    return jax.vmap(measure_planes, in_axes=(0, None))(planes, windows)


@jax.jit
def many_simple(planes, windows):
    return jax.vmap(lambda p: measure_planes(p, windows, simple=True))(planes)


def measured(planes, windows=WINDOWS, run=many):
    with jax.enable_x64(True):
        return Sample(*map(np.asarray, run(planes, windows)))


def exactly(planes, windows=WINDOWS):
    """(hits, regions) of every draw and window from the exact engines, one draw at a time."""
    hits, regions = [], []
    for normal, point, offset in zip(planes.normal, planes.point, planes.offset, strict=True):
        own = jr.Hyperplanes(np.float64(normal), point, np.float64(offset))
        hits.append(jr.count_hits(own, windows).hits)
        regions.append(jr.count_arrangement(own, windows).regions)
    return np.stack(hits), np.stack(regions)


def draw(bias=0.4, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(DRAWS, UNITS, 2)).astype(dtype)
    return planes_of(normal, (bias * rng.normal(size=(DRAWS, UNITS, 1))).astype(dtype))


@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def test_hits_and_regions_are_the_exact_ones(dtype):
    planes = draw(dtype=dtype)
    found, (hits, regions) = measured(planes), exactly(planes)
    assert found.decided.mean() > (0.9 if dtype is np.float32 else 0.999)
    sure = found.decided
    np.testing.assert_array_equal(found.hits[sure], hits[sure])
    np.testing.assert_array_equal(found.lower[sure], regions[sure])
    np.testing.assert_array_equal(found.upper, found.lower)


def test_regions_are_those_of_a_fraction_splitter():
    """Exact polygons, cut one line at a time; and a dense grid never finds more patterns."""
    planes = draw(seed=1)
    found = measured(planes)
    for s in range(2):
        shift = -planes.normal[s] @ planes.point[s] - planes.offset[s, :, 0]
        for w in range(1, 4):
            radius = WINDOWS.radii()[w]
            grid = np.linspace(-1, 1, 201)[1:-1]
            points = CENTER[w] + radius * np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
            patterns = np.unique(points @ planes.normal[s].T + shift > 0, axis=0)
            assert len(patterns) <= found.lower[s, w]
            rows = oracles.slice_rows(
                planes.normal[s], planes.point[s], planes.offset[s], CENTER[w]
            )
            assert oracles.count_cells(rows, radius) == found.lower[s, w]


def test_concurrent_hyperplanes_are_counted_as_one_point():
    """Offset 0: 2n regions with the common point inside the window, 1 + hits without."""
    normal = np.random.default_rng(2).normal(size=(DRAWS, UNITS, 2))
    planes = planes_of(normal, np.zeros((DRAWS, UNITS, 1)))
    windows = jr.Window(
        np.stack([POINT, POINT + 0.29, POINT + np.array([2, 0]), POINT + np.array([0, 9])]),
        [1e-12, 0.3, 1, 1],
    )
    found = measured(planes, windows)
    assert found.decided.all()
    np.testing.assert_array_equal(found.lower[:, :2], 2 * UNITS)
    np.testing.assert_array_equal(found.hits[:, :2], UNITS)
    np.testing.assert_array_equal(found.lower[:, 2:], 1 + found.hits[:, 2:])
    np.testing.assert_array_equal(found.hits, exactly(planes, windows)[0])
    # With the quadratic count of pairs it would be 1 + n + n (n - 1) / 2.
    assert 2 * UNITS != 1 + UNITS + UNITS * (UNITS - 1) // 2


def test_concurrent_and_other_hyperplanes_together():
    planes = draw(seed=3)
    planes.offset[:, :4] = 0.0
    windows = jr.Window(np.stack([POINT, POINT + 0.1, POINT - 0.4, POINT + 1]), 0.5)
    found, (hits, regions) = measured(planes, windows), exactly(planes, windows)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)


def test_absent_hyperplanes_count_nothing():
    planes = draw(seed=4)
    planes.offset[:, 0] = np.inf
    planes.normal[:, 1] = 0.0
    fewer = planes_of(planes.normal[:, 2:], planes.offset[:, 2:])
    found, (hits, regions) = measured(planes), exactly(fewer)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)


def degenerate(case):
    """A draw that floats must not decide, and the window 0 (or all) that it concerns."""
    planes = draw(seed=5)
    if case == "the same line twice":
        planes.normal[:, 1], planes.offset[:, 1] = (
            -2 * planes.normal[:, 0],
            -2 * planes.offset[:, 0],
        )
    elif case == "three lines in a point":
        planes.normal[:, :3] = [[1, 0], [0, 1], [1, 1]]
        planes.offset[:, :3] = [[0.25], [0.5], [0.75]]
    elif case == "the same line twice through the common point":
        planes.offset[:] = 0.0
        planes.normal[:, 1] = 3 * planes.normal[:, 0]
    elif case == "a tangent line":
        planes.normal[:, 0], planes.offset[:, 0] = [1, 1], 4.0
    elif case == "a crossing on the boundary":
        planes.normal[:, :2] = [[1, 1], [1, -1]]
        planes.offset[:, :2] = [[2.0], [2.0]]
    return planes


WHOLE = jr.Window(np.broadcast_to(POINT, (4, 2)), [2.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    "case",
    [
        "the same line twice",
        "three lines in a point",
        "the same line twice through the common point",
        "a tangent line",
        "a crossing on the boundary",
    ],
)
def test_ties_are_left_open_and_then_decided_exactly(case):
    planes = degenerate(case)
    assert not measured(planes, WHOLE).decided.any()
    first = jr.Hyperplanes(planes.normal[0], planes.point[0], planes.offset[0])
    settled = measure_exactly(first, WHOLE[:1])
    rows = oracles.slice_rows(first.normal, first.point, first.offset, POINT)
    assert settled.decided.all()
    assert settled.lower[0] == oracles.count_cells(rows, [2.0, 2.0])


def test_the_common_point_on_the_boundary_is_left_open():
    planes = planes_of(draw().normal, np.zeros((DRAWS, UNITS, 1)))
    windows = jr.Window(
        POINT + np.array([[0.5, 0], [0, 0.25], [0.5, 0.5], [1, 2]]), [0.5, 0.25, 0.5, 1]
    )
    found = measured(planes, windows)
    assert not found.decided[:, :3].any()
    assert found.decided[:, 3].all()  # another coordinate is outside for certain


@pytest.mark.parametrize("case", ["three lines", "a crossing and an edge"])
def test_what_nearly_meets_is_told_apart(case):
    """At distances from far above the bands of the integers to below what float64 resolves."""
    planes = draw(seed=21)
    gap = np.where(np.arange(DRAWS) % 2, -1, 1) * 2.0 ** -(16 + 5 * np.arange(DRAWS))
    normal, offset = planes.normal, planes.offset[..., 0]
    meet = np.linalg.solve(normal[:, :2], offset[:, :2, None])[..., 0]
    windows = jr.Window(np.broadcast_to(POINT, (4, 2)), [3.0, 3.5, 4.0, 5.0])
    if case == "three lines":
        offset[:, 2] = (normal[:, 2] * meet).sum(-1) + gap
    else:  # line 2 is the edge of no window: the crossing moves to x = 3
        offset[:, :2] += normal[:, :2, 0] * (3.0 + gap - meet[:, 0])[:, None]
    found, (hits, regions) = measured(planes, windows), exactly(planes, windows)
    assert found.decided[abs(gap) > 2.0**-42].all()
    sure = found.decided
    np.testing.assert_array_equal(found.hits[sure], hits[sure])
    np.testing.assert_array_equal(found.lower[sure], regions[sure])


def test_lines_along_the_axes_are_measured_again():
    """Their intervals have no bounded ends; all draws of a block are left open by the integers."""
    planes = draw(seed=22)
    planes.normal[:, ::2, 0], planes.normal[:, 1::4, 1] = 0.0, 0.0
    found, (hits, regions) = measured(planes), exactly(planes)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_length_of_normals_does_not_matter(scale):
    planes = draw(seed=23)
    far = planes_of(planes.normal * scale, planes.offset * scale)
    found, (hits, regions) = measured(far), exactly(planes)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)


@pytest.mark.slow
def test_simple_skips_only_the_search_for_triple_points():
    """With three lines in a point the count of pairs is one too many, and is not noticed."""
    planes = degenerate("three lines in a point")
    known = measured(planes, WHOLE, many_simple)
    assert known.decided.all()
    regions = exactly(planes, WHOLE)[1]
    assert ((known.lower - regions >= 0) & (known.lower - regions <= 1)).all()
    assert (known.lower == regions + 1).any()


@pytest.mark.slow
@pytest.mark.parametrize(("d", "k"), [(1, 1), (5, 1), (5, 2), (2, 2)])
def test_other_dimensions_and_slices(d, k):
    rng = np.random.default_rng(7 * d + k)
    point = rng.normal(size=d) * 0.1
    offset = 0.4 * rng.normal(size=(DRAWS, 5, 2))
    planes = planes_of(rng.normal(size=(DRAWS, 5, d)), offset, point)
    center = rng.uniform(-0.5, 0.5, (4, d))
    basis = None if d == k and d == 1 else np.linalg.qr(rng.normal(size=(4, d, k)))[0]
    windows = jr.Window(center, rng.uniform(0.2, 0.9, (4, k)), basis=basis)
    found, (hits, regions) = measured(planes, windows), exactly(planes, windows)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)


@pytest.mark.slow
def test_slices_anchored_at_the_common_point_keep_it():
    rng = np.random.default_rng(8)
    planes = planes_of(rng.normal(size=(DRAWS, 5, 4)), np.zeros((DRAWS, 5, 1)), np.zeros(4))
    basis = np.linalg.qr(rng.normal(size=(4, 2)))[0]
    center = (basis @ np.array([[0.1, 0.1], [-0.3, 0.2], [2, 0], [0.4, 3]]).T).T
    windows = jr.Window(center, 0.5, basis=basis, anchor=np.zeros(4))
    found, regions = measured(planes, windows), exactly(planes, windows)[1]
    assert found.decided.all()
    np.testing.assert_array_equal(found.lower, regions)
    np.testing.assert_array_equal(found.lower[:, :2], 10)


@pytest.mark.slow
def test_three_dimensions_have_a_bracket():
    rng = np.random.default_rng(9)
    planes = planes_of(
        rng.normal(size=(DRAWS, 5, 3)), 0.4 * rng.normal(size=(DRAWS, 5, 1)), [0, 0, 0]
    )
    windows = jr.Window(rng.uniform(-0.5, 0.5, (4, 3)), 0.8)
    found, (hits, regions) = measured(planes, windows), exactly(planes, windows)
    np.testing.assert_array_equal(found.hits, hits)
    assert ((found.lower <= regions) & (regions <= found.upper)).all()
    first = jr.Hyperplanes(planes.normal[0], planes.point[0], planes.offset[0])
    np.testing.assert_array_equal(measure_exactly(first, windows).lower, regions[0])


def test_tiny_and_distant_windows_are_decided_or_left_open():
    planes = draw(seed=10)
    on_a_line = POINT + planes.normal[0, 0] * planes.offset[0, 0] / (planes.normal[0, 0] ** 2).sum()
    windows = jr.Window(
        np.stack([on_a_line, on_a_line, POINT + 1e8, POINT]), [1e-15, 1e-8, 1, 1e-300]
    )
    found, (hits, regions) = measured(planes, windows), exactly(planes, windows)
    sure = found.decided
    assert sure[:, 1:3].all()
    np.testing.assert_array_equal(found.hits[sure], hits[sure])
    np.testing.assert_array_equal(found.lower[sure], regions[sure])


@pytest.mark.slow
def test_one_draw_and_a_vmap_of_draws_agree():
    planes = draw(seed=12)
    batch = measured(planes)
    single = jax.jit(measure_planes)
    with jax.enable_x64(True):
        alone = single(jax.tree.map(lambda a: a[3], planes), WINDOWS)
        hits, decided = jax.jit(measure_hits)(jax.tree.map(lambda a: a[3], planes), WINDOWS)
    for one, all_draws in zip(alone, batch, strict=True):
        np.testing.assert_array_equal(one, all_draws[3])
    np.testing.assert_array_equal(hits, batch.hits[3])
    assert decided.all()


@pytest.mark.slow
def test_chunks_of_draws_agree(monkeypatch):
    planes = draw(seed=13)
    whole = measured(planes)
    monkeypatch.setattr(module, "_CHUNK", 4)
    parts = measured(planes, run=jax.jit(lambda p, w: jax.vmap(lambda q: measure_planes(q, w))(p)))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_32_bit_contexts_are_refused():
    """Windows would be rounded before anything is proven about them."""
    with pytest.raises(ValueError, match="64-bit"):
        measure_planes(jr.Hyperplanes(np.eye(2), POINT, np.ones((2, 1))), WINDOWS)


def test_windows_need_one_leading_axis():
    with pytest.raises(ValueError, match="one leading axis"):
        measure_planes(jr.Hyperplanes(np.eye(2), np.zeros(2), np.ones((2, 1))), jr.Window(POINT, 1))


def test_results_are_integers_in_float_range():
    found = measured(draw(seed=14))
    assert found.hits.dtype == np.int32
    assert found.lower.dtype == np.float64
    assert jnp.issubdtype(found.decided.dtype, jnp.bool_)
