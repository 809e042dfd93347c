"""Crossing probabilities in three dimensions and more, and hits of other breakpoints."""

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy import special

import jaxregions as jr
from jaxregions import theory
from jaxregions.theory import hits

ROUNDING = 1e-12


def random_map(seed, m, k):
    rng = np.random.default_rng(seed)
    return {"A": rng.normal(size=(m, k)), "a": rng.normal(size=m)}


def cauchy_by_tensor_rule(window, affine, height, n=24):
    """P_k by one Gauss-Legendre rule on the whole window; for windows that are not too close."""
    k = window.dimension
    M, p = affine["A"] * window.radii(), affine["A"] @ window.center + affine["a"]
    x, w = np.polynomial.legendre.leggauss(n)
    u = np.stack(np.meshgrid(*[x] * k, indexing="ij"), -1).reshape(-1, k)
    weights = np.stack(np.meshgrid(*[w] * k, indexing="ij"), -1).reshape(-1, k).prod(1)
    across = p - M @ np.linalg.lstsq(M, p, rcond=None)[0]
    e = np.hypot(np.linalg.norm(across), height)
    square = ((u @ M.T + p) ** 2).sum(1) + height**2
    factor = special.gamma((k + 1) / 2) / np.pi ** ((k + 1) / 2)
    return factor * np.sqrt(np.linalg.det(M.T @ M)) * e * (weights @ square ** (-(k + 1) / 2))


def test_checked_values_of_a_cube():
    window = jr.Window([0.5, -0.3, 0.6], 0.45)
    layer = {"weight_std": 0.8, "bias_std": 0.5}
    found = theory.crossing_probabilities(window, **layer)
    np.testing.assert_allclose(found.probability[1:], [0.657288, 0.253377, 0.042099], atol=5e-7)
    assert theory.expected_regions(window, num_units=10, **layer) == pytest.approx(
        24.0267, abs=5e-5
    )
    assert (found.error[1:] < 1e-13).all()


@pytest.mark.parametrize(("k", "m"), [(3, 3), (3, 5), (4, 4), (4, 6)])
def test_expected_vertices_are_a_cauchy_integral(k, m):
    affine, window = random_map(m, m, k), jr.Window(np.full(k, 0.4), np.linspace(0.2, 0.4, k))
    expected = cauchy_by_tensor_rule(window, affine, 0.9)
    found = theory.crossing_probabilities(window, weight_std=1.0, bias_std=0.9, **affine)
    assert found.probability[k] == pytest.approx(expected, rel=1e-10)
    vertices = theory.expected_vertices(window, num_units=9, weight_std=1.0, bias_std=0.9, **affine)
    assert vertices == pytest.approx(comb(9, k) * expected, rel=1e-10)


@pytest.mark.parametrize("k", [3, 4, 5])
def test_two_ways_to_the_hits(k):
    # Faces of the window against a characteristic function, and against sampled directions.
    rng = np.random.default_rng(k)
    window = jr.Window(rng.normal(size=k), rng.uniform(0.2, 0.8, k))
    for bias_std in (0.0, 0.6):
        turn = np.linalg.qr(rng.normal(size=(k, k)))[0]
        # A rotation changes nothing, but hides that the axes are orthogonal from no one.
        straight = theory.crossing_probabilities(window, weight_std=1.0, bias_std=bias_std)
        turned = theory.crossing_probabilities(window, weight_std=1.0, bias_std=bias_std, A=turn)
        np.testing.assert_allclose(turned.probability, straight.probability, rtol=1e-10, atol=1e-13)
        ends = window.center - window.radius, window.center + window.radius
        direct, _ = hits.orthogonal(*ends, bias_std)
        assert theory.hit_probability(window, weight_std=1.0, bias_std=bias_std) == pytest.approx(
            direct, rel=1e-11
        )
        assert straight.probability[1] == pytest.approx(direct, rel=1e-11)
        w, b = rng.normal(size=(100_000, k)), bias_std * rng.normal(size=100_000)
        hit = abs(w @ window.center + b) < abs(w) @ window.radius
        assert abs(hit.mean() - direct) < 4.5 * hit.std() / np.sqrt(len(hit))


@pytest.mark.parametrize(("k", "height"), [(3, 0.5), (3, 1e-3), (4, 0.5), (5, 0.5)])
def test_orthogonal_windows_have_their_own_quadrature(k, height):
    # A shear that the window does not feel to nine digits, but which is not diagonal to rounding.
    scale, window = np.linspace(0.5, 2.0, k), jr.Window(np.full(k, 0.3), 0.4)
    shear = np.eye(k)
    shear[0, 1] = 1e-9
    law = {"weight_std": 1.0, "bias_std": height}
    straight = theory.crossing_probabilities(window, A=np.diag(scale), **law)
    sheared = theory.crossing_probabilities(window, A=np.diag(scale) @ shear, **law)
    gap = abs(sheared.probability - straight.probability)
    assert (gap <= 4.5 * sheared.error + 1e-7 * straight.probability).all()


@pytest.mark.parametrize(
    ("center", "radius", "height"), [([8e5, 5e5, 1e5], 1e-6, 0.4), ([0.8, -0.5, 0.3], 1e-9, 0.4)]
)
def test_tiny_and_far_cubes_do_not_cancel(center, radius, height):
    # The density is constant on them: P_3 = 8 r^3 times it; P_1 and P_2 by their first terms.
    found = theory.crossing_probabilities(
        jr.Window(center, radius), weight_std=1.0, bias_std=height
    ).probability
    size = np.sqrt(np.dot(center, center) + height**2)
    density = height / (np.pi**2 * size**4)
    assert found[3] / (8 * radius**3 * density) == pytest.approx(1, rel=1e-11)
    # P_1: mean of |projection| of the cube on uniform directions across the line of sight.
    sight = np.append(center, height) / size
    w = np.random.default_rng(0).normal(size=(200_000, 4))
    w -= np.outer(w @ sight, sight)
    reach = abs(w[:, :3]).sum(1) / np.sqrt(2 * np.pi) * 2 * radius / size
    assert abs(found[1] - reach.mean()) < 4.5 * reach.std() / np.sqrt(len(reach))


def test_first_layers_of_any_width():
    rng = np.random.default_rng(2)
    center, w = rng.normal(size=64), rng.normal(size=(100_000, 64))
    window = jr.Window(center, 0.05)
    hit = abs(w @ center + 0.5 * rng.normal(size=len(w))) < 0.05 * abs(w).sum(1)
    found = theory.hit_probability(window, weight_std=1.0, bias_std=0.5)
    assert abs(hit.mean() - found) < 4.5 * hit.std() / np.sqrt(len(hit))
    affine = random_map(0, 20, 64)
    behind = abs(w[:, :20] @ (affine["A"] @ center + affine["a"])) < 0.05 * abs(
        w[:, :20] @ affine["A"]
    ).sum(1)
    found = theory.hit_probability(window, weight_std=1.0, **affine)
    assert abs(behind.mean() - found) < 4.5 * behind.std() / np.sqrt(len(hit))
    assert theory.hit_probability(window, weight_std=1.0, center=center + 0.049) == 1


def test_tangent_cones_are_orthants():
    # The centroid on a face of codimension f: what a random flat meets of R^(k-f) x orthant.
    for k in (3, 4):
        for f in range(1, 4):
            place = np.where(np.arange(k) < f, 0.5, 0.125)
            volume = [comb(f, j - k + f) / 2**f if j >= k - f else 0 for j in range(k + 3)]
            expected = [1] + [2 * sum(volume[j + 1 :: 2]) for j in range(1, k + 1)]
            found = theory.crossing_probabilities(
                jr.Window(np.zeros(k), 0.5), weight_std=1.0, center=place
            )
            np.testing.assert_allclose(found.probability, expected, atol=ROUNDING)
            assert not found.concurrent
            hit, _ = hits.orthogonal(-place - 0.5, 0.5 - place, 0.0)
            assert hit == pytest.approx(expected[1], abs=1e-12)


def test_no_height_and_the_centroid_outside_is_a_lower_dimension():
    # P_j of the flat cone in R^3: perimeter and area of a polygon on the sphere, by rays.
    window, q = jr.Window([0.4, 0.3, 0.2], 0.25), np.array([1.0, -0.2, 0.5])
    found = theory.crossing_probabilities(window, weight_std=1.0, center=q).probability
    rays = np.random.default_rng(0).normal(size=(400_000, 3))
    low, high = window.center - q - 0.25, window.center - q + 0.25
    ends = np.sort(np.stack([low, high])[:, None] / rays, axis=0)
    seen = ends[0].max(1) < ends[1].min(1)  # as lines, both ways
    assert abs(seen.mean() - found[2]) < 4.5 * seen.std() / np.sqrt(len(seen))
    assert found[3] == 0
    low_height = theory.crossing_probabilities(
        jr.Window(window.center - q, 0.25), weight_std=1.0, bias_std=1e-9
    ).probability
    np.testing.assert_allclose(found, low_height, atol=1e-8)


@pytest.mark.parametrize("place", [[0.5, 0.7, 0.1], [0.5, 0.7, 0.1, 0.3], [0.5, -0.5, 0.8, 0.3]])
def test_centroids_in_the_plane_of_a_facet(place):
    def at(place):
        window = jr.Window(np.zeros(len(place)), 0.5)
        return theory.crossing_probabilities(window, weight_std=1.0, center=place)

    found, near = at(np.array(place)), at(np.array(place) + 1e-9)
    assert (found.error < 1e-12).all()
    np.testing.assert_allclose(found.probability, near.probability, atol=1e-7)
    direct, _ = hits.orthogonal(-np.array(place) - 0.5, 0.5 - np.array(place), 0.0)
    assert found.probability[1] == pytest.approx(direct, rel=1e-10)


@pytest.mark.parametrize(("k", "m", "rank"), [(3, 4, 2), (4, 3, 3), (5, 6, 2), (3, 3, 1)])
def test_deficient_maps_see_the_image_of_the_window(k, m, rank):
    rng = np.random.default_rng(k)
    A = rng.normal(size=(m, rank)) @ rng.normal(size=(rank, k))
    window = jr.Window(rng.normal(size=k), rng.uniform(0.1, 0.4, k))
    law = {"weight_std": 1.0, "bias_std": 0.7, "A": A}
    found = theory.crossing_probabilities(window, **law)
    assert found.rank == rank
    assert (found.probability[rank + 1 :] == 0).all()
    w, b = rng.normal(size=(100_000, m)), 0.7 * rng.normal(size=100_000)
    hit = abs(w @ A @ window.center + b) < abs(w @ A) @ window.radii()
    slack = 4.5 * (hit.std() / np.sqrt(len(hit)) + found.error[1])
    assert abs(hit.mean() - found.probability[1]) < slack
    if rank == 2:
        # Two hyperplanes meet in the image: its corners surround their common point.
        x = np.linalg.qr(A[:, :2])[0]
        base, columns = x.T @ A @ window.center, x.T @ A * window.radii()
        across = A @ window.center - x @ base
        e = np.hypot(np.linalg.norm(across), 0.7)
        corner = np.array(list(product((-1, 1), repeat=k))) @ columns.T + base
        z = rng.normal(size=(100_000, 3))
        point = e * z[:, :2] / z[:, 2:]
        normal = np.stack([-columns[1], columns[0]], axis=1)
        normal = np.concatenate([normal, -normal])
        inside = (point @ normal.T < (corner @ normal.T).max(0)).all(1)
        gap = abs(inside.mean() - found.probability[2])
        assert gap < 4.5 * inside.std() / np.sqrt(len(inside))


def test_sampled_entries_say_how_far_they_may_be_off():
    # k = 6: the normals of a 2-dimensional face have no elementary angle.
    window = jr.Window(np.full(6, 0.4), 0.5)
    found = theory.crossing_probabilities(window, weight_std=1.0, bias_std=0.8)
    assert 1e-4 < found.error[2] < 2e-2
    assert (np.delete(found.error, 2) < 1e-10).all()
    w = np.random.default_rng(0).normal(size=(10_000, 2, 7))
    w[:, :, 6] *= 0.8
    feasible = [two_planes_meet(rows, np.full(6, 0.4), 0.5) for rows in w]
    error = np.hypot(np.std(feasible) / 100, found.error[2])
    assert abs(np.mean(feasible) - found.probability[2]) < 4.5 * error


def two_planes_meet(rows, center, radius):
    """0 in the zonogon {W (x, 1) : x in the box}, by its support function at its edge normals."""
    sides, middle = rows[:, :6] * radius, rows[:, :6] @ center + rows[:, 6]
    normals = np.stack([-sides[1], sides[0]])
    return bool((abs(normals.T @ middle) < abs(normals.T @ sides).sum(1)).all())


def test_too_many_dimensions_for_regions():
    with pytest.raises(ValueError, match="dimension <= 10"):
        theory.expected_regions(jr.Window(np.zeros(11), 1.0), num_units=2, weight_std=1.0)


def circle_average(window, center, offset, n=20_001):
    turn = (np.arange(n) + 0.5) * 2 * np.pi / n
    theta = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    hit = abs(theta @ (window.center - center) - offset) < abs(theta) @ window.radii()
    return hit.mean()


def test_breakpoints_on_whitened_data():
    window, q, v = jr.Window([0.8, -0.5], [0.4, 0.3]), np.array([0.1, 0.2]), 0.6
    offsets = np.array([0.0, 0.5, -1.0, 3.0])
    found = theory.breakpoint_hit_probability(window, center=q, variance=v, breakpoints=offsets)
    expected = [circle_average(window, q, np.sqrt(v) * t) for t in offsets]
    np.testing.assert_allclose(found, expected, atol=3e-4)
    relu = theory.hit_probability(window, weight_std=1.0, center=q)
    assert found[0] == pytest.approx(relu, rel=1e-12)
    tanh = theory.breakpoint_hit_probability(
        window, center=q, variance=v, activation=jr.activations.hard_tanh
    )
    assert tanh.shape == (2,)
    assert tanh[0] == pytest.approx(tanh[1], rel=1e-12)


def test_breakpoints_with_epsilon():
    window, q, v, eps, sw = jr.Window([0.8, -0.5], 0.4), np.array([0.1, 0.2]), 0.3, 0.5, 0.7
    found, error = theory.breakpoint_hit_probability(
        window,
        center=q,
        variance=v,
        breakpoints=[0.8, -0.2],
        epsilon=eps,
        weight_std=sw,
        return_error=True,
    )
    w = sw * np.random.default_rng(4).normal(size=(400_000, 2))
    for t, p, doubt in zip([0.8, -0.2], found, error, strict=True):
        offset = t * np.sqrt(v * (w**2).sum(1) + eps)
        hit = abs(w @ (window.center - q) - offset) < abs(w) @ window.radii()
        assert abs(hit.mean() - p) < 4.5 * hit.std() / np.sqrt(len(hit))
        assert doubt < 1e-6


def test_breakpoints_in_one_and_three_dimensions():
    line = jr.Window([[0.5], [0.2]], 0.3)
    found = theory.breakpoint_hit_probability(
        line, center=[0.0], variance=1.0, breakpoints=[0.4, 0.1]
    )
    # Offsets 0.4 and 0.1 on either side of 0, windows (0.2, 0.8) and (-0.1, 0.5).
    np.testing.assert_array_equal(found, [[0.5, 0.0], [0.5, 0.5]])
    rng = np.random.default_rng(8)
    basis = rng.normal(size=(5, 2))
    window = jr.Window(rng.normal(size=5), 0.3, basis=basis)
    found, error = theory.breakpoint_hit_probability(
        window, center=np.zeros(5), variance=0.4, breakpoints=[0.5], return_error=True
    )
    w = rng.normal(size=(200_000, 5))
    size = np.linalg.norm(w, axis=1)
    hit = abs(w @ window.center - np.sqrt(0.4) * 0.5 * size) < 0.3 * abs(w @ basis).sum(1)
    gap = np.hypot(hit.std() / np.sqrt(len(hit)), error[0])
    assert 0 < error[0] < 1e-3
    assert abs(hit.mean() - found[0]) < 4.5 * gap


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"breakpoints": None}, "breakpoints or activation"),
        ({"variance": 0.0}, "variance: expected > 0"),
        ({"epsilon": 0.1}, "weight_std: expected > 0"),
        ({"epsilon": -0.1}, "epsilon: expected >= 0"),
        ({"breakpoints": []}, "breakpoints: expected"),
        ({"center": [0.0]}, "center: expected"),
    ],
)
def test_bad_breakpoints(change, message):
    given = {"center": [0.0, 0.0], "variance": 1.0, "breakpoints": [0.5], **change}
    with pytest.raises(ValueError, match=message):
        theory.breakpoint_hit_probability(jr.Window([0.0, 0.0], 1.0), **given)
