"""Windows: membership, volume, the slice through three points, bad input."""

import jax
import numpy as np
import pytest

import jaxregions as jr


def test_log_volume_against_sampling_and_determinants():
    rng = np.random.default_rng(0)
    box = jr.Window(np.zeros(3), np.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(np.exp(box.log_volume()), 1.0 * 2.0 * 4.0)
    basis = rng.normal(size=(3, 2))
    slice_ = jr.Window(np.zeros(3), 0.5, basis)
    area = np.linalg.norm(np.cross(basis[:, 0], basis[:, 1]))
    np.testing.assert_allclose(np.exp(slice_.log_volume()), area)
    assert np.isfinite(jr.Window(np.zeros(3000), 1e-3).log_volume())


def test_radius_forms_agree():
    center = np.zeros((4, 3))
    forms = [0.5, np.full(4, 0.5), np.full((4, 3), 0.5)]
    for radius in forms:
        np.testing.assert_array_equal(jr.Window(center, radius).radii(), np.full((4, 3), 0.5))
    np.testing.assert_array_equal(jr.Window(np.zeros(3), [1, 2, 3]).radii(), [1, 2, 3])


def test_through_holds_the_points_and_no_less():
    points = np.random.default_rng(1).normal(size=(3, 10))
    window = jr.Window.through(*points)
    np.testing.assert_allclose(window.center, points.mean(0))
    np.testing.assert_allclose(window.basis.T @ window.basis, np.eye(2), atol=1e-14)
    u = (points - window.center) @ window.basis
    np.testing.assert_allclose(window.points(u), points, atol=1e-12)
    np.testing.assert_allclose(np.abs(u).max(), window.radius, rtol=1e-12)
    np.testing.assert_array_equal(window.anchor, points[0])


def test_indexing_and_reshaping_keep_windows_together():
    rng = np.random.default_rng(2)
    windows = jr.Window(rng.normal(size=(6, 4)), rng.uniform(1, 2, 6), rng.normal(size=(6, 4, 2)))
    grid = windows.reshape(2, 3)
    assert grid.batch_shape == (2, 3)
    for i in range(6):
        one, other = windows[i], grid[i // 3, i % 3]
        np.testing.assert_array_equal(one.center, other.center)
        np.testing.assert_array_equal(one.basis, other.basis)
        assert one.radius == other.radius
    assert grid.reshape(-1).batch_shape == (6,)
    with pytest.raises(IndexError, match="no leading axes"):
        windows[0][0]


def test_windows_pass_through_jit_and_tree_map():
    window = jr.Window(np.zeros((2, 3)), 1.0)
    assert jax.jit(lambda w: w.log_volume())(window).shape == (2,)
    assert jax.tree.map(lambda _: None, window).center is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.float64(1.0), 1.0), "received a scalar"),
        ((np.zeros(3), 0.0), "radius: expected > 0, received 0"),
        ((np.zeros(3), -1.0), "radius: expected > 0"),
        ((np.zeros(3), np.nan), "radius: .*NaN"),
        ((np.array([0, np.inf]), 1.0), "center: expected finite"),
        ((np.zeros((4, 3)), np.ones(3)), r"radius: expected shape \(\), \(4,\)"),
        ((np.zeros(3), 1.0, np.ones((2, 2))), "basis: expected shape"),
        ((np.zeros(3), 1.0, np.ones((3, 2))), "independent columns"),
        ((np.zeros(2), 1.0, np.ones((2, 3))), "k = 3"),
        ((np.zeros(2), 1.0, None, np.zeros(2)), "together with a basis"),
        ((np.zeros(3), 1.0, np.eye(3)[:, :2], np.ones(3)), "a point of the slice"),
        ((np.zeros(3), 1.0, np.eye(3)[:, :2], np.ones(2)), r"anchor: expected shape \(3,\)"),
    ],
)
def test_rejects_bad_windows(arguments, message):
    with pytest.raises(ValueError, match=message):
        jr.Window(*arguments)


def test_rejects_collinear_points():
    with pytest.raises(ValueError, match="not on one line"):
        jr.Window.through(np.zeros(3), np.ones(3), 2 * np.ones(3))
    with pytest.raises(ValueError, match="three points"):
        jr.Window.through(np.zeros(1), np.ones(1), 2 * np.ones(1))
