"""C1 to C5 against draws of the weights in NumPy, and exact counts of the drawn arrangements."""

import math

import numpy as np
import pytest
from scipy import special

import jaxregions as jr
from jaxregions import theory

DRAWS, UNITS = 400, 8  # at most 16 hyperplanes: one compiled shape of the exact counts
STD = {"weight_std": 0.7, "bias_std": 0.3}


def draw(windows, center, *, weight_std, bias_std, A=None, a=None, units=UNITS, counts=True):
    """Hits and exact regions of drawn layers in one window: with BN and without, (2, DRAWS)."""
    rng = np.random.default_rng(0)
    d = windows.input_dimension
    A = np.eye(d) if A is None else np.asarray(A)
    a = np.zeros(len(A)) if a is None else np.asarray(a)
    w = weight_std * rng.normal(size=(DRAWS, units, len(A)))
    b = bias_std * rng.normal(size=(DRAWS, units))
    normal, point = w @ A, np.linalg.lstsq(A, center - a, rcond=None)[0]
    exact = np.allclose(A @ point + a, center)  # the centroid is in the image
    at_zero = np.zeros((DRAWS, units)) if exact else w @ (center - a - A @ point)
    found = []
    for origin, offset in ((point, at_zero), (np.zeros(d), -(w @ a) - b)):
        planes = jr.Hyperplanes(normal, np.tile(origin, (DRAWS, 1)), offset[..., None])
        value = (windows.center - origin) @ np.swapaxes(normal, 1, 2) - offset
        hits = (abs(value) < abs(normal) @ windows.radii()).sum(axis=1)
        many = jr.Window(np.tile(windows.center, (DRAWS, 1)), np.tile(windows.radii(), (DRAWS, 1)))
        regions = jr.count_arrangement(planes, many).regions if counts else None
        found.append((hits, regions))
    return found


def draw_steps(windows, bias_std):
    """Exact regions of drawn hard_tanh layers on data of mean 0, covariance I: BN, and without."""
    rng = np.random.default_rng(0)
    w = 0.7 * rng.normal(size=(DRAWS, UNITS, 2))
    b = bias_std * rng.normal(size=(DRAWS, UNITS))
    taus, many = np.array([-1.0, 1.0]), jr.Window(np.tile(windows.center, (DRAWS, 1)), 0.5)
    offsets = np.linalg.norm(w, axis=-1)[..., None] * taus, taus - b[..., None]
    planes = (jr.Hyperplanes(w, np.zeros((DRAWS, 2)), offset) for offset in offsets)
    return [jr.count_arrangement(p, many).regions for p in planes]


def z_score(samples, expected):
    samples = np.asarray(samples, float)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    return (samples.mean() - expected) / error


def single(at, radius, **options):
    windows = jr.Window(np.asarray(at, float), radius)
    return windows, theory.conditions(windows, **({"num_units": UNITS} | STD | options))


# C1 ----------------------------------------------------------------------------------------------


def test_c1_holds_with_the_centroid_inside_and_then_every_unit_hits():
    windows, found = single([0.4, -0.1], [0.5, 0.3], center=[0.1, 0.05])
    assert found.c1.applies
    assert found.c1.holds
    np.testing.assert_allclose(found.c1.left, max(0.3 / 0.5, 0.15 / 0.3), rtol=1e-12)
    (hits, _), _ = draw(windows, np.array([0.1, 0.05]), **STD, counts=False)
    assert (hits == UNITS).all()


def test_c1_applies_and_fails_with_the_centroid_outside_or_on_the_boundary():
    windows, found = single([1.4, -0.1], [0.5, 0.3], center=[0.1, 0.05])
    assert found.c1.applies
    assert not found.c1.holds
    (hits, _), _ = draw(windows, np.array([0.1, 0.05]), **STD, counts=False)
    assert (hits < UNITS).any()
    assert not single([0.5, 0.0], 0.5, center=[0.0, 0.25])[1].c1.holds


A = np.array([[1.0, 0.3], [-0.4, 0.8], [0.2, 0.5]])
SHIFT = np.array([0.3, -0.2, 0.1])


def test_c1_at_depth_needs_the_centroid_in_the_image():
    inside = A @ [0.2, -0.1] + SHIFT
    windows, found = single([0.1, 0.1], 0.4, center=inside, A=A, a=SHIFT)
    assert found.c1.applies
    assert found.c1.holds
    np.testing.assert_allclose(found.c1.left, 0.2 / 0.4, rtol=1e-12)
    (hits, _), _ = draw(windows, inside, **STD, A=A, a=SHIFT, counts=False)
    assert (hits == UNITS).all()
    # Its projection is at the same place, and yet not every unit refines the window.
    beside = inside + np.cross(A[:, 0], A[:, 1])
    windows, found = single([0.1, 0.1], 0.4, center=beside, A=A, a=SHIFT)
    assert not found.c1.applies
    assert np.isnan(found.c1.left)
    (hits, _), _ = draw(windows, beside, **STD, A=A, a=SHIFT, counts=False)
    assert (hits < UNITS).any()


def test_c1_of_a_rank_deficient_map_takes_the_nearest_of_many_points():
    # h = 3 x + y in a plane's direction: the points of that value nearest in the l_inf norm.
    _, found = single([0.0, 0.0], 0.4, center=[0.8, 1.6], A=[[3.0, 1.0], [6.0, 2.0]])
    grid = np.linspace(-2, 2, 4001)
    nearest = np.maximum(abs(grid), abs(0.8 - 3 * grid)).min() / 0.4
    assert found.c1.applies
    assert found.c1.holds
    np.testing.assert_allclose(found.c1.left, nearest, atol=0.005)


def white_batch():
    """Eight points of covariance I around (1, -1)."""
    angles = np.arange(8) * np.pi / 4
    return np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1) + [1.0, -1.0]


def refines_at(w, moved, radius, offsets, covariance):
    spread = np.sqrt(np.einsum("sm,mn,sn->s", w, covariance, w))
    return abs((w @ moved)[:, None] - spread[:, None] * offsets) < (abs(w) @ radius)[:, None]


@pytest.mark.parametrize("scale", [0.98, 1.02])
def test_c1_of_other_breakpoints_is_sharp(scale):
    batch = np.random.default_rng(3).normal(size=(20, 2)) @ [[0.3, 0.1], [0.0, 0.5]]
    covariance = np.cov(batch.T, bias=True)
    moved, needed = np.array([0.1, -0.2]), np.sqrt(np.diag(covariance))  # |t| = 1
    radius = scale * (abs(moved) + needed)
    found = single(
        batch.mean(axis=0) + moved, radius, batch=batch, activation=jr.activations.hard_tanh
    )[1]
    np.testing.assert_allclose(found.c1.left, 1 / scale, rtol=1e-9)
    w = np.concatenate([np.random.default_rng(4).normal(size=(4000, 2)), np.eye(2), -np.eye(2)])
    hit = refines_at(w, moved, radius, np.array([-1.0, 1.0]), covariance)
    assert found.c1.applies
    assert found.c1.holds == hit.all() == (scale > 1)


def test_c1_of_other_breakpoints_needs_epsilon_zero_and_a_covariance():
    options = {"activation": jr.activations.relu6, "center": [0.0, 0.0]}
    assert not single([0.0, 0.0], 9.0, **options)[1].c1.applies
    options["covariance"] = np.eye(2)
    assert single([0.0, 0.0], 9.0, **options)[1].c1.holds
    assert not single([0.0, 0.0], 9.0, **options, epsilon=1e-5)[1].c1.applies


# C2 ----------------------------------------------------------------------------------------------


def test_c2_holds_and_caps_hits_for_every_upstream_bias():
    options = {"weight_std": 0.7, "bias_std": 0.9}
    found = single([2.1, 1.0], 0.4, center=[2.0, 0.9], **options)[1]
    assert found.c2.applies
    assert found.c2.holds
    assert found.c2.left == 1
    w = 0.7 * np.random.default_rng(1).normal(size=(200_000, 2))
    chance = special.erf(0.4 * abs(w).sum(axis=1) / (0.9 * math.sqrt(2)))
    assert abs(z_score(chance, found.c2.right)) < 4.5
    assert found.c2.right < 2 * 0.4 * 2 * 0.7 / (math.pi * 0.9)
    for center in ([0.0, 0.0], [2.1, 1.0]):
        here = jr.Window(np.array(center), 0.4)
        _, (hits, _) = draw(here, np.array([2.0, 0.9]), **options, counts=False)
        assert z_score(hits / UNITS, found.c2.right) < 4.5


def test_c2_does_not_apply_without_biases_and_may_fail():
    assert not single([0.0, 0.0], 0.4, center=[0.1, 0.0], bias_std=0.0)[1].c2.applies
    found = single([2.0, 2.0], 0.4, center=[0.0, 0.0])[1]
    assert found.c2.applies
    assert not found.c2.holds


def test_c2_of_several_breakpoints_sums_over_them():
    batch = white_batch()
    options = {"batch": batch, "activation": jr.activations.hard_tanh, "bias_std": 9.0}
    windows, found = single([2.0, -0.8], 0.5, **options)
    w = 0.7 * np.random.default_rng(5).normal(size=(100_000, 2))
    moved = windows.center - batch.mean(axis=0)
    hits = refines_at(w, moved, windows.radii(), np.array([-1.0, 1.0]), np.eye(2)).sum(axis=1)
    assert found.c2.applies
    assert abs(z_score(hits, found.c2.left)) < 4.5
    once = single([2.0, -0.8], 0.5, batch=batch, bias_std=9.0)[1]
    np.testing.assert_allclose(found.c2.right, 2 * once.c2.right, rtol=1e-12)
    assert found.c2.holds


# C3 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("center", "hbar", "units", "holds"),
    [
        ([2.0, 1.4], [2.0, 0.7], 8, True),
        ([2.0, 0.9], [2.0, 0.7], 8, True),  # the centroid is inside
        ([0.2, 0.1], [0.1, 0.0], 16, False),  # it is inside, and concurrency costs more
        ([0.8, 0.5], [0.1, 0.0], 8, False),
    ],
)
def test_c3_says_whether_bn_has_more_regions(center, hbar, units, holds):
    windows, found = single(center, 0.4, center=hbar, num_units=units)
    assert found.c3.applies
    assert found.c3.holds == holds
    (hits, regions), (plain_hits, plain) = draw(windows, np.array(hbar), **STD, units=units)
    assert abs(z_score(hits - plain_hits, found.c3.left)) < 4.5
    assert abs(z_score((plain - plain_hits) - (regions - hits), found.c3.right)) < 4.5
    assert (z_score(regions - plain, 0) > 4.5) == holds
    assert (z_score(regions - plain, 0) < -4.5) != holds


def test_c3_sides_are_those_of_spherical_polygons():
    # Both origins outside: n (L_BN - L) / (2 pi) and C(n, 2) (S - S_BN) / (2 pi), S_BN = 0.
    windows, found = single([2.0, 1.4], 0.4, center=[2.0, 0.7])
    corners = windows.center + 0.4 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    lifted = np.append(corners, np.full((4, 1), 0.3 / 0.7), axis=1)
    unit = lifted / np.linalg.norm(lifted, axis=1, keepdims=True)
    length = np.arccos((unit * np.roll(unit, 1, axis=0)).sum(axis=1)).sum()
    angles = []
    for i in range(4):
        here, before, after = unit[i], unit[i - 1], unit[(i + 1) % 4]
        one, two = np.cross(here, before), np.cross(here, after)
        angles.append(np.arccos(one @ two / np.linalg.norm(one) / np.linalg.norm(two)))
    area = sum(angles) - 2 * np.pi
    seen = corners - [2.0, 0.7]
    omega = np.ptp(np.arctan2(seen[:, 1], seen[:, 0]))
    np.testing.assert_allclose(found.c3.left, UNITS * (2 * omega - length) / (2 * np.pi))
    np.testing.assert_allclose(found.c3.right, 28 * area / (2 * np.pi), rtol=1e-9)


def test_c3_does_not_apply_in_one_dimension_or_rank_one():
    assert not single([0.3], 0.4, center=[0.0])[1].c3.applies
    flat = single([0.0, 0.0], 0.4, center=[0.8, 1.6], A=[[3.0, 1.0], [6.0, 2.0]])[1]
    assert not flat.c3.applies


# C4 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
def test_c4_bounds_expected_regions_from_both_sides(inside):
    center = np.array([4.0, 3.0]) if inside else np.array([4.0, 3.3])
    windows, found = single(center, 0.2, center=[4.0, 3.0], bias_std=2.0)
    assert found.c4.applies
    assert found.c4.holds
    (_, regions), (_, plain) = draw(windows, np.array([4.0, 3.0]), weight_std=0.7, bias_std=2.0)
    assert z_score(regions, found.c4.left) > -4.5 if not inside else (regions == 2 * UNITS).all()
    assert found.c4.left == pytest.approx(2 * UNITS) if inside else found.c4.left < 1 + UNITS
    assert z_score(plain, found.c4.right) < 4.5
    assert z_score(regions - plain, 0) > 4.5
    chance = theory.hit_probability(windows, weight_std=0.7, bias_std=2.0)
    np.testing.assert_allclose(found.c4.right, 1 + 8 * chance + 28 * chance**2, rtol=1e-12)


def test_c4_counts_coinciding_hyperplanes_once():
    # In one dimension all BN units switch in the centroid: two regions, whatever n is.
    found = single([0.1], 0.4, center=[0.0])[1]
    assert found.c4.applies
    assert found.c4.left == 2
    assert not found.c4.holds
    outside = single([1.0], 0.4, center=[0.0])[1]
    assert outside.c4.left == 1


def test_c4_in_many_dimensions_and_with_huge_upper_bounds():
    windows = jr.Window(np.tile([[0.0], [5.0]], 40), 0.05)
    found = theory.conditions(
        windows, num_units=3000, weight_std=1.0, bias_std=40.0, center=np.zeros(40)
    )
    assert found.c4.applies.all()
    assert np.isfinite(found.c4.left[1])
    assert not found.c5.applies.any()
    assert not found.c3.applies.any()
    few = theory.conditions(windows[0], num_units=3, weight_std=1.0, bias_std=40.0, center=[0] * 40)
    assert few.c4.holds
    assert few.c4.left == pytest.approx(8)


def test_c4_of_several_breakpoints_needs_whitened_data():
    options = {"activation": jr.activations.hard_tanh, "center": [0.0, 0.0], "bias_std": 9.0}
    white = single([1.0, 0.0], 0.5, covariance=np.eye(2), **options)[1]
    assert white.c4.applies
    assert white.c4.holds
    regions, plain = draw_steps(jr.Window(np.array([1.0, 0.0]), 0.5), bias_std=9.0)
    assert z_score(regions, white.c4.left) > -4.5
    assert z_score(plain, white.c4.right) < 4.5
    assert z_score(regions - plain, 0) > 4.5
    q = 2 * single([1.0, 0.0], 0.5, center=[0.0, 0.0], bias_std=9.0)[1].c2.right
    np.testing.assert_allclose(white.c4.right, 1 + 8 * q + 28 * q**2, rtol=1e-12)
    skew = single([1.0, 0.0], 0.5, covariance=np.diag([1.0, 2.0]), **options)[1]
    assert not skew.c4.applies
    assert not skew.c2.applies
    assert "whitened" in str(skew.c4)


# C5 ----------------------------------------------------------------------------------------------


def test_c5_more_hits_and_fewer_regions():
    windows, found = single([0.1, 0.05], 0.4, num_units=16, center=[0.0, 0.0])
    assert found.c5.applies
    assert found.c5.holds
    assert found.c1.holds
    (hits, regions), (plain_hits, plain) = draw(windows, np.zeros(2), **STD, units=16)
    assert (hits == 16).all()
    assert (regions == 32).all()
    assert found.c5.left == 32
    assert z_score(hits - plain_hits, 0) > 4.5
    assert z_score(regions - plain, 0) < -4.5
    assert abs(z_score(plain, found.c5.right)) < 4.5


def test_c5_does_not_apply_where_the_hyperplanes_are_in_general_position():
    beside = A @ [0.2, -0.1] + SHIFT + np.cross(A[:, 0], A[:, 1])
    assert not single([0.1, 0.1], 0.4, center=beside, A=A, a=SHIFT)[1].c5.applies
    assert not single([2.0, 1.4], 0.4, center=[2.0, 0.7])[1].c5.holds


# The rest ----------------------------------------------------------------------------------------


def test_windows_with_leading_axes_agree_with_single_windows():
    centers = np.array([[0.1, 0.05], [0.8, -0.5], [2.0, 1.4]])
    together = theory.conditions(jr.Window(centers, 0.4), num_units=UNITS, **STD, center=[0.0, 0.0])
    for i, center in enumerate(centers):
        one = single(center, 0.4, center=[0.0, 0.0])[1]
        for many, alone in zip(together, one, strict=True):
            for name in ("applies", "left", "right", "holds"):
                expected = getattr(alone, name)
                np.testing.assert_allclose(getattr(many, name)[i], expected, rtol=1e-12)


def test_reads_as_five_sentences():
    text = str(single([0.1, 0.05], 0.4, num_units=20, center=[0.0, 0.0])[1])
    lines = text.splitlines()
    assert [line[:2] for line in lines] == ["C1", "C2", "C3", "C4", "C5"]
    assert "0.25 < 1" in lines[0]
    assert "holds" in lines[4]
    assert "40 <" in lines[4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center": None}, "exactly one"),
        ({"batch": np.eye(2)}, "exactly one"),
        ({"center": None, "batch": np.ones((1, 2))}, "N >= 2"),
        ({"center": [0.0]}, "center"),
        ({"covariance": np.eye(3)}, "covariance"),
        ({"activation": jr.activations.identity}, "breakpoint"),
        ({"gamma": 0.0}, "gamma"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"num_units": 0}, "num_units"),
        ({"bias_std": -1.0}, "bias_std"),
        ({"A": np.eye(3)}, "A"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        single([0.0, 0.0], 1.0, **({"center": [0.0, 0.0]} | change))
