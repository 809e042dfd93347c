"""Critical scales of windows, and all of ``depth`` on a ResNet-18 with max-pooling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import linen_variables

import jaxregions as jr
from jaxregions import _progress, depth, zoo
from jaxregions.activations import hard_tanh
from jaxregions.depth import critical_scales

D = 3
RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(D, 6)), RNG.normal(size=(6, 6))
BIAS = RNG.normal(size=6)


def forward(x, xp=jnp):
    z0 = x @ FIRST + BIAS
    return z0, xp.maximum(z0, 0) @ SECOND - BIAS


NET = jr.trace(lambda x: jnp.maximum(forward(x)[1], 0).sum(), np.zeros(D))
CENTERS = np.random.default_rng(1).normal(size=(30, D))


def corner_signs(center, radius, basis):
    """Per layer and unit: do the values at the corners have both signs?"""
    k = basis.shape[1]
    u = np.array(list(itertools.product((-1.0, 1.0), repeat=k))) * radius
    return [(z.min(axis=0) < 0) & (z.max(axis=0) > 0) for z in forward(center + u @ basis.T, np)]


@pytest.mark.parametrize("k", [None, 2])
def test_scales_are_where_corners_begin_to_differ_in_sign(k):
    """No derivative: a value that is affine on a window has its extremes at corners."""
    basis = np.eye(D) if k is None else np.random.default_rng(2).normal(size=(D, k))
    radius = np.array([0.5, 1.0, 2.0])[: basis.shape[1]]
    radii = np.broadcast_to(radius, (30, len(radius)))
    found = critical_scales(NET, jr.Window(CENTERS, radii, None if k is None else basis))
    checked = 0
    for i, s in itertools.product(range(30), range(2)):
        for unit, scale in enumerate(found.scales[s][i]):
            if scale * 1.001 < found.limit[i, s]:
                for factor, hit in ((0.999, False), (1.001, True)):
                    signs = corner_signs(CENTERS[i], factor * scale * radius, basis)
                    assert signs[s][unit] == hit
                    checked += s
    assert checked > 20


def test_limits_are_where_an_earlier_unit_begins_to_hit():
    found = critical_scales(NET, jr.Window(CENTERS, 1.0))
    assert (found.limit[:, 0] == np.inf).all()
    for center, limit in zip(CENTERS, found.limit[:, 1], strict=True):
        inside, outside = (corner_signs(center, limit * f, np.eye(D)) for f in (0.999, 1.001))
        assert not inside[0].any()
        assert outside[0].any()


@pytest.mark.parametrize("radius", [0.01, 0.05, 0.2, 1.0])
def test_hits_follow_from_scales_by_counting(radius):
    found = critical_scales(NET, jr.Window(CENTERS, 1.0))
    hits = jr.stage_hits(NET, jr.Window(CENTERS, radius))
    np.testing.assert_array_equal(hits.in_parent, radius <= found.limit)
    counted = np.stack([(s < radius).sum(axis=-1) for s in found.scales], axis=-1)
    np.testing.assert_array_equal(hits.hits, np.where(hits.in_parent, counted, -1))


def test_breakpoints_of_a_unit_share_the_smaller_scale():
    kernel = np.random.default_rng(4).normal(size=(D, 5))
    net = jr.trace(lambda x: hard_tanh(x @ kernel).sum(), np.zeros(D))
    found = critical_scales(net, jr.Window(CENTERS, 1.0)).scales[0]
    distance = np.abs(np.stack([CENTERS @ kernel - t for t in (-1, 1)])).min(axis=0)
    np.testing.assert_allclose(found, distance / np.abs(kernel).sum(axis=0), rtol=1e-13)


def test_a_unit_that_does_not_vary_on_the_slice_is_never_hit():
    net = jr.trace(lambda x: jnp.maximum(x, 0).sum(), np.zeros(2))
    found = critical_scales(net, jr.Window(np.array([0.5, 0.0]), 1.0, np.array([[0.0], [2.0]])))
    np.testing.assert_array_equal(found.scales[0], [np.inf, 0.0])


def test_shapes_without_windows_without_stages_and_with_leading_axes():
    none = critical_scales(NET, jr.Window(np.zeros((0, D)), 1.0))
    assert [s.shape for s in (*none.scales, none.limit)] == [(0, 6), (0, 6), (0, 2)]
    affine = critical_scales(jr.trace(lambda x: 2 * x, np.zeros(D)), jr.Window(CENTERS, 1.0))
    assert affine.scales == ()
    assert affine.limit.shape == (30, 0)
    flat = critical_scales(NET, jr.Window(CENTERS, 1.0))
    grid = critical_scales(NET, jr.Window(CENTERS.reshape(5, 6, D), 1.0))
    np.testing.assert_array_equal(grid.scales[1], flat.scales[1].reshape(5, 6, 6))
    np.testing.assert_array_equal(grid.limit, flat.limit.reshape(5, 6, 2))


def test_scales_under_jit():
    def scales(centers):
        return critical_scales(NET, jr.Window(centers, jnp.ones(30, centers.dtype)))

    traced = jax.jit(scales)(jnp.float32(CENTERS))
    expected = critical_scales(NET, jr.Window(CENTERS, 1.0))
    np.testing.assert_allclose(traced.scales[1], expected.scales[1], rtol=2e-3)
    np.testing.assert_allclose(traced.limit[:, 1], expected.limit[:, 1], rtol=2e-3)


def test_a_bar_of_directions(monkeypatch, capsys):
    monkeypatch.setattr(_progress, "PATIENCE", 0.0)
    critical_scales(NET, jr.Window(CENTERS, 1.0))
    assert capsys.readouterr().err == ""  # not a terminal
    critical_scales(NET, jr.Window(CENTERS, 1.0), progress=True)
    shown = capsys.readouterr().err
    assert "directions" in shown
    assert "90/90" in shown


# A ResNet-18 -------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(5).normal(size=(6, 8, 8, 3))
ROWS = 16  # of every stage: one compilation for all pull-backs


@pytest.fixture(scope="module")
def resnet():
    """Traced, with a working set of five tangents so that windows take several calls."""
    model = zoo.ResNet18(width=4, num_outputs=2)
    net = jr.trace(jr.condition(model, linen_variables(model, IMAGES), IMAGES), IMAGES[0])
    width = sum(s.size for s in net.stages) + IMAGES[0].size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "_BYTES", 5 * 8 * 4 * width)
        yield net


@pytest.fixture(scope="module")
def scales(resnet):
    """Critical scales of the first image's full window with these radii, and the radii."""
    radius = np.random.default_rng(6).uniform(0.5, 2.0, size=IMAGES[0].size)
    return critical_scales(resnet, jr.Window(IMAGES[0].ravel(), radius)), radius


@pytest.mark.slow
def test_stages_of_the_resnet(resnet):
    """Stem, four rounds of 3 x 3 pooling, two activations for each of the eight blocks."""
    comparisons = 9 * 8 + 2 * 3 * 5 + 3  # 4 x 4 windows, clipped at two edges
    sizes = [s.size for s in resnet.stages]
    assert sizes[0] == 8 * 8 * 4
    assert sum(sizes[1:5]) == 4 * comparisons
    assert sizes[5:] == [64] * 4 + [32] * 4 + [16] * 4 + [32] * 4


@pytest.mark.slow
def test_resnet_scales_against_vjp_rows(resnet, scales):
    """Random units of every stage on the full window."""
    found, radius = scales
    rng = np.random.default_rng(9)
    for s, stage in enumerate(resnet.stages):
        rows = rng.choice(stage.size, ROWS, replace=False)
        planes = jr.pull_back(resnet, IMAGES[0], stage=s, rows=rows)
        reach, value = np.abs(planes.normal) @ radius, np.abs(planes.offset[:, 0])
        expected = np.divide(value, reach, out=np.full(ROWS, np.inf), where=reach > 0)
        np.testing.assert_allclose(found.scales[s][stage.unit[rows]], expected, rtol=1e-10)


@pytest.mark.slow
def test_units_that_change_sign_in_the_window_are_the_hits(resnet, scales):
    """Random points, and both corners where the value of a hit on a late stage is extreme."""
    stage = len(resnet.stages) - 2
    nearest = np.argsort(scales[0].scales[stage])[:ROWS]
    x = IMAGES[0]
    for _ in range(20):  # onto the hyperplane of the nearest
        planes = jr.pull_back(resnet, x, stage=stage, rows=nearest)
        normal, offset = planes.normal[0], planes.offset[0, 0]
        x = x + (offset * normal / (normal @ normal)).reshape(x.shape)
    around = critical_scales(resnet, jr.Window(x.ravel(), np.ones(x.size)))
    radius = 0.9 * around.limit[stage]
    found = jr.stage_hits(resnet, jr.Window(x.ravel(), np.full(x.size, radius)))
    assert found.in_parent[: stage + 1].all()
    assert (found.hits[:stage] == 0).all()
    hit = np.flatnonzero(around.scales[stage] < radius)
    assert nearest[0] in hit
    assert found.hits[stage] == len(hit)
    corner = np.sign(jr.pull_back(resnet, x, stage=stage, rows=np.resize(hit, ROWS)).normal)
    u = np.random.default_rng(8).uniform(-1, 1, size=(100, x.size))
    u = np.concatenate([u, 0.999999 * corner, -0.999999 * corner])
    with jax.enable_x64(True):
        points = (x.ravel() + radius * u).reshape(-1, *x.shape)
        values = jax.tree.map(np.asarray, jax.jit(jax.vmap(resnet.switching_values))(points))
    changing = [(v > 0).any(axis=0) & (v < 0).any(axis=0) for v in values]
    assert not any(c.any() for c in changing[:stage])
    np.testing.assert_array_equal(np.flatnonzero(changing[stage]), hit)
