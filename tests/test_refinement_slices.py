"""Layers in two-dimensional slices: the lines against fractions, the counts against exact ones."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from test_refinement_planes import exactly, planes_of

import jaxregions as jr
from jaxregions.refinement.placed import own_numbers
from jaxregions.refinement.planes import Sample, measure_again, measure_planes, share_plane
from jaxregions.refinement.restricted import place_slices, products

DRAWS, UNITS, DIM = 8, 12, 5
RNG = np.random.default_rng(31)
POINT = RNG.normal(size=DIM)
BASIS = np.linalg.qr(RNG.normal(size=(DIM, 2)))[0]
SHIFTS = np.array([[0.1, -0.2], [1.5, 0.5], [-0.4, 2.0]])
RADII = np.array([0.4, 0.9, 1.7])


def windows_of(kind):
    if kind == "one plane through the point":
        return jr.Window(POINT + SHIFTS @ BASIS.T, RADII, BASIS, anchor=POINT)
    if kind == "one plane":
        anchor = POINT + 0.3
        return jr.Window(anchor + SHIFTS @ BASIS.T, RADII, BASIS, anchor=anchor)
    if kind == "parallel planes, one through the point":
        centers = POINT + np.arange(3)[:, None] * np.ones(DIM) / 7
        return jr.Window(centers, RADII, BASIS, anchor=centers)
    if kind == "parallel planes":
        return jr.Window(POINT + RNG.normal(size=(3, DIM)), RADII, BASIS)
    bases = np.random.default_rng(32).normal(size=(3, DIM, 2))
    return jr.Window(POINT + np.outer(RADII, np.ones(DIM)), RADII, bases)


def draw(kind, seed=0):
    """Half of the hyperplanes through the point; normals of 24 bits, as models draw them."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(DRAWS, UNITS, DIM)).astype(np.float32).astype(np.float64)
    offset = 0.4 * rng.normal(size=(DRAWS, UNITS, 1))
    offset[:, ::2] = 0.0
    return planes_of(normal, offset, POINT)


def measured(planes, windows, **options):
    coplanar = share_plane(windows)
    with jax.enable_x64(True):
        run = jax.jit(
            lambda p, w: jax.vmap(
                lambda q: measure_planes(q, w, coplanar=coplanar, again=False, **options)
            )(p)
        )
        return Sample(*map(np.asarray, run(planes, windows)))


KINDS = [
    pytest.param("one plane through the point", marks=pytest.mark.slow),
    pytest.param("one plane", marks=pytest.mark.slow),
    "parallel planes, one through the point",
    pytest.param("parallel planes", marks=pytest.mark.slow),
    pytest.param("planes of their own", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_the_exact_ones(kind):
    """By integers alone: nothing is measured again."""
    windows, planes = windows_of(kind), draw(kind)
    assert share_plane(windows) == kind.startswith("one plane")
    found, (hits, regions) = measured(planes, windows), exactly(planes, windows)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)
    if "through the point" in kind:  # it is inside window 0
        assert (found.hits[:, 0] >= UNITS // 2).all()


def fractions(values):
    return [Fraction(float(v)) for v in values]


@pytest.mark.parametrize(("d", "scale"), [(7, 1.0), (300, 1e-150), (300, 1e120)])
def test_products_are_as_near_as_they_say(d, scale):
    """And the bound is far below one rounding of |v| |c|, however their digits are spread."""
    rng = np.random.default_rng(d)
    vectors = scale * rng.normal(size=(4, d)) * 2.0 ** rng.integers(-40, 5, (4, d))
    columns = rng.normal(size=(d, 3)) * 2.0 ** rng.integers(-8, 3, (d, 3))
    vectors[3], low = 0.0, columns * rng.uniform(-1, 1, (d, 3)) * 2.0**-53
    with jax.enable_x64(True):
        whole, rest, error = map(np.asarray, jax.jit(products)(vectors, columns, low))
    for i, j in np.ndindex(4, 3):
        exact = sum(
            v * (c + t)
            for v, c, t in zip(*map(fractions, (vectors[i], columns[:, j], low[:, j])), strict=True)
        )
        gap = abs(exact - Fraction(float(whole[i, j])) - Fraction(float(rest[i, j])))
        assert gap <= Fraction(float(error[i, j]))
        size = np.linalg.norm(vectors[i] / scale) * scale * np.linalg.norm(columns[:, j])
        assert error[i, j] <= 2.0**-53 * size + 1e-280  # a vector of zeros has the least scale


@pytest.mark.parametrize("anchored", [False, True])
def test_lines_are_as_near_as_they_say(anchored):
    """Slopes and values against fractions, of hyperplanes nearly orthogonal to the slice too."""
    rng = np.random.default_rng(33)
    normal = rng.normal(size=(UNITS, DIM))
    normal[::3] -= (normal[::3] @ BASIS) @ BASIS.T * (1 - 1e-6)
    centers = POINT + rng.normal(size=(2, DIM))
    # Through points near the centre, so that the distance from the common point all but cancels.
    offset = normal @ (centers[0] - POINT)[:, None] + 1e-3 * rng.normal(size=(UNITS, 1))
    anchor = centers[0] - BASIS @ [0.3, 0.7] if anchored else None
    windows = jr.Window(centers[:1], 0.5, BASIS, anchor=anchor)
    planes = normal, POINT, offset
    with jax.enable_x64(True):
        found = jax.jit(lambda p, w: place_slices(own_numbers(p, w), p, w))(planes, windows)
    slope, value, slope_error, value_error = (np.asarray(v) for v in found[:4])
    start = centers[0] if windows.anchor is None else windows.anchor[0]
    for i in range(UNITS):
        w, o = fractions(normal[i]), Fraction(float(offset[i, 0]))
        exact = [sum(a * b for a, b in zip(w, fractions(c), strict=True)) for c in BASIS.T]
        gaps = [abs(e - Fraction(float(g))) for e, g in zip(exact, slope[0, i], strict=True)]
        assert sum(gaps) <= Fraction(float(slope_error[0, i]))
        height = sum(
            a * (b - c) for a, b, c in zip(w, *map(fractions, (start, POINT)), strict=True)
        )
        if windows.shift is not None:
            height += sum(e * s for e, s in zip(exact, fractions(windows.shift[0]), strict=True))
        assert abs(height - o - Fraction(float(value[0, i]))) <= Fraction(float(value_error[0, i]))
        assert slope_error[0, i] <= 2.0**-50 * np.linalg.norm(slope[0, i]) + 2.0**-60


@pytest.mark.slow
def test_what_is_measured_apart_is_what_is_measured_again():
    windows, planes = windows_of("planes of their own"), draw("", seed=3)
    picked = np.arange(6) % 3
    own = jax.tree.map(lambda a: a[:6], planes)
    with jax.enable_x64(True):
        found = measure_again(own, windows[picked], simple=False)
    hits, regions = exactly(own, windows)
    rows = np.arange(6)
    assert np.asarray(found.decided).all()
    np.testing.assert_array_equal(found.hits, hits[rows, picked])
    np.testing.assert_array_equal(found.lower, regions[rows, picked])


@pytest.mark.slow
def test_slices_of_full_dimension_are_boxes_turned():
    """A basis (2, 2): the same counts as the box behind it, by the other path."""
    rng = np.random.default_rng(35)
    planes = planes_of(
        rng.normal(size=(DRAWS, 9, 2)), 0.3 * rng.normal(size=(DRAWS, 9, 1)), np.zeros(2)
    )
    centers = rng.uniform(-1, 1, (4, 2))
    box = jr.Window(centers, 0.6)
    turned = jr.Window(centers, 0.6, np.array([[0.0, -1.0], [1.0, 0.0]]))
    one, two = measured(planes, box), measured(planes, turned)
    np.testing.assert_array_equal(one.lower, two.lower)
    np.testing.assert_array_equal(one.hits, two.hits)
