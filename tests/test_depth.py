"""Deeper stages: hits and parent regions against NumPy at corners, pull-backs against vjp."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import linen_variables

import jaxregions as jr
from jaxregions import depth, zoo
from jaxregions.activations import hard_tanh

D = 3
RNG = np.random.default_rng(0)
SIZES = (D, 6, 6, 4)
LAYERS = [(RNG.normal(size=s), RNG.normal(size=s[1])) for s in itertools.pairwise(SIZES)]
BATCH = RNG.normal(size=(16, D))


def forward(x, xp=jnp, phi=lambda z, xp: xp.maximum(z, 0)):
    """(output, pre-activations of every hidden layer), in NumPy or JAX."""
    values = []
    for kernel, bias in LAYERS[:-1]:
        values.append(x @ kernel + bias)
        x = phi(values[-1], xp)
    return x @ LAYERS[-1][0] + LAYERS[-1][1], values


NET = jr.trace(lambda x: forward(x)[0], np.zeros(D))


def windows(count, radius, *, k=None, seed=1):
    rng = np.random.default_rng(seed)
    basis = None if k is None else rng.normal(size=(D, k))
    return jr.Window(rng.normal(size=(count, D)), radius, basis)


def corners(window):
    k = window.dimension
    return window.points(np.array(list(itertools.product((-1.0, 1.0), repeat=k))) * window.radii())


def hits_by_corners(window):
    """Per layer: units of both signs at the corners; -1 once an earlier layer has any.

    A pre-activation is affine on a parent region, so on a window inside one its extremes are at
    corners: no derivative is needed.
    """
    found, blocked = [], False
    for z in forward(corners(window), np)[1]:
        hits = int(((z.min(axis=0) < 0) & (z.max(axis=0) > 0)).sum())
        found.append(-1 if blocked else hits)
        blocked |= hits > 0
    return found


@pytest.mark.parametrize(
    ("radius", "k"), [(0.02, None), (0.1, None), (0.5, None), (0.1, 2), (0.05, 1)]
)
def test_hits_agree_with_corner_values(radius, k):
    batch = windows(40, radius, k=k)
    found = jr.stage_hits(NET, batch)
    expected = np.array([hits_by_corners(batch[i]) for i in range(40)])
    np.testing.assert_array_equal(found.hits, expected)
    np.testing.assert_array_equal(found.in_parent, expected >= 0)
    assert found.hits.dtype == np.int64
    assert isinstance(found.hits, np.ndarray)


def test_small_windows_reach_the_second_stage():
    found = jr.stage_hits(NET, windows(200, 0.05))
    assert (found.hits[:, 1] > 0).any()
    assert (found.hits[:, 1] == 0).any()
    assert (~found.in_parent[:, 1]).any()


def test_sampling_finds_no_hit_that_is_missing_and_no_second_parent():
    batch = windows(60, 0.1)
    found = jr.stage_hits(NET, batch)
    u = np.random.default_rng(2).uniform(-0.1, 0.1, size=(400, D))
    for i in range(60):
        signs = [z > 0 for z in forward(batch.center[i] + u, np)[1]]
        seen = [int((s.any(0) & ~s.all(0)).sum()) for s in signs]
        assert seen[0] <= found.hits[i, 0]
        if found.in_parent[i, 1]:
            assert seen[0] == 0
            assert seen[1] <= found.hits[i, 1]


def test_breakpoints_of_a_unit_count_once():
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(D, 5))
    net = jr.trace(lambda x: hard_tanh(x @ kernel).sum(), np.zeros(D))
    batch = windows(30, 3.0)
    found = jr.stage_hits(net, batch).hits[:, 0]
    z = np.stack([corners(batch[i]) @ kernel for i in range(30)])
    both = [(z.min(1) < t) & (z.max(1) > t) for t in (-1, 1)]
    np.testing.assert_array_equal(found, (both[0] | both[1]).sum(axis=1))
    assert (both[0] & both[1]).any()


def test_max_pooling_comparisons_are_units():
    kernel = np.random.default_rng(5).normal(size=(D, 4))
    net = jr.trace(lambda x: (x @ kernel).max(), np.zeros(D))
    batch = windows(80, 0.1)
    found = jr.stage_hits(net, batch)
    for i in range(80):
        z = corners(batch[i]) @ kernel
        first = [z[:, 0] - z[:, 2], z[:, 1] - z[:, 3]]
        assert found.hits[i, 0] == sum(v.min() < 0 < v.max() for v in first)
        if found.in_parent[i, 1]:
            last = np.maximum(z[:, 0], z[:, 2]) - np.maximum(z[:, 1], z[:, 3])
            assert found.hits[i, 1] == (last.min() < 0 < last.max())


@pytest.mark.parametrize("k", [None, 2])
def test_first_stage_is_the_closed_form_of_batchnorm(k):
    model = zoo.MLP(widths=(8, 4), num_outputs=2)
    variables = linen_variables(model, BATCH)
    net = jr.trace(jr.condition(model, variables, BATCH), BATCH[0])
    layer, norm = (variables["params"][n] for n in ("dense_0", "norm_0"))
    planes = jr.batch_hyperplanes(layer["kernel"], BATCH, gamma=norm["scale"], beta=norm["bias"])
    batch = windows(100, 0.3, k=k)
    expected = jr.count_hits(planes.switching, batch).hits
    np.testing.assert_array_equal(jr.stage_hits(net, batch).hits[:, 0], expected)
    assert 0 < expected.mean() < 8


def test_windows_of_any_leading_shape():
    flat = windows(6, 0.2, k=2)
    found = jr.stage_hits(NET, flat)
    for shape in ((2, 3), (6, 1)):
        again = jr.stage_hits(NET, flat.reshape(*shape))
        np.testing.assert_array_equal(again.hits, found.hits.reshape(*shape, 2))
    one = jr.stage_hits(NET, flat[0])
    assert one.hits.shape == one.in_parent.shape == (2,)
    np.testing.assert_array_equal(one.hits, found.hits[0])


def test_one_basis_a_window_and_anchored_slices():
    rng = np.random.default_rng(6)
    bases, centers = rng.normal(size=(5, D, 2)), rng.normal(size=(5, D))
    found = jr.stage_hits(NET, jr.Window(centers, 0.2, bases))
    anchors = centers + (bases @ rng.normal(size=(5, 2, 1)))[..., 0]
    anchored = jr.stage_hits(NET, jr.Window(centers, 0.2, bases, anchor=anchors))
    for i in range(5):
        expected = hits_by_corners(jr.Window(centers[i], 0.2, bases[i]))
        np.testing.assert_array_equal(found.hits[i], expected)
        np.testing.assert_array_equal(anchored.hits[i], expected)


def test_no_windows_and_no_stages():
    none = jr.stage_hits(NET, jr.Window(np.zeros((0, D)), 1.0))
    assert none.hits.shape == (0, 2)
    affine = jr.stage_hits(jr.trace(lambda x: 2 * x, np.zeros(D)), windows(3, 1.0))
    assert affine.hits.shape == affine.in_parent.shape == (3, 0)


def test_small_memory_steps_give_the_same(monkeypatch):
    batch = windows(23, 0.1)
    whole = jr.stage_hits(NET, batch)
    net = jr.trace(lambda x: forward(x)[0], np.zeros(D))
    monkeypatch.setattr(depth, "_BYTES", 5 * 8 * 4 * 15)
    np.testing.assert_array_equal(jr.stage_hits(net, batch).hits, whole.hits)


def test_compiles_once_a_network_and_shape(monkeypatch):
    traced = []
    original = depth._one_window
    monkeypatch.setattr(depth, "_one_window", lambda *a: traced.append(1) or original(*a))
    net = jr.trace(lambda x: forward(x)[0], np.zeros(D))
    jr.stage_hits(net, windows(4, 0.1))
    first = len(traced)
    for seed in range(3):
        jr.stage_hits(net, windows(4, 0.2, seed=seed))
    assert len(traced) == first > 0


# Pull-backs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1])
def test_pull_back_against_vjp_rows_and_finite_differences(stage):
    x = np.array([0.3, -0.7, 0.2])
    planes = jr.pull_back(NET, x, stage=stage)
    assert all(isinstance(v, np.ndarray) for v in (planes.normal, planes.point, planes.offset))
    with jax.enable_x64(True):
        _, pull = jax.vjp(lambda v: forward(v)[1][stage], jnp.asarray(x))
        rows = np.stack([pull(e)[0] for e in jnp.eye(6)])
    np.testing.assert_allclose(planes.normal, rows, atol=1e-13)
    z = forward(x, np)[1][stage]
    np.testing.assert_allclose(planes.offset, -z[:, None], atol=1e-13)
    np.testing.assert_array_equal(planes.point, x)
    step = 1e-6
    for j, e in enumerate(np.eye(D)):
        ahead, behind = (forward(x + s * step * e, np)[1][stage] for s in (1, -1))
        np.testing.assert_allclose(planes.normal[:, j], (ahead - behind) / (2 * step), atol=1e-8)


def test_pull_back_reproduces_values_in_the_parent_region():
    x = np.array([0.3, -0.7, 0.2])
    planes = jr.pull_back(NET, x, stage=1)
    y = x + 1e-3 * np.array([1.0, -2.0, 0.5])
    before, after = (forward(v, np)[1] for v in (x, y))
    assert (np.sign(before[0]) == np.sign(after[0])).all()
    values = planes.normal @ (y - planes.point) - planes.offset[:, 0]
    np.testing.assert_allclose(values, after[1], atol=1e-13)


def test_pull_back_of_images_is_flat():
    kernel = np.random.default_rng(7).normal(size=(3, 3, 1, 2))

    def f(x):
        z = jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(z).sum()

    image = np.random.default_rng(8).normal(size=(4, 4, 1))
    planes = jr.pull_back(jr.trace(f, image), image, stage=0)
    assert planes.normal.shape == (8, 16)
    patch = np.zeros((4, 4, 1))
    patch[1:4, :3] = kernel[..., 1]
    np.testing.assert_allclose(planes.normal[2 * 2 + 1], patch.ravel(), atol=1e-14)
    np.testing.assert_allclose(planes.offset[5], -(patch * image).sum(), atol=1e-13)


@pytest.mark.parametrize("stage", [0, 1])
def test_some_rows_of_a_pull_back(stage, monkeypatch):
    x, rows = np.array([0.3, -0.7, 0.2]), [4, 0, 3, 4, 1]
    whole = jr.pull_back(NET, x, stage=stage)
    net = jr.trace(lambda x: forward(x)[0], np.zeros(D))
    monkeypatch.setattr(depth, "_BYTES", 2 * 8 * 4 * 15)  # two rows a step
    some = jr.pull_back(net, x, stage=stage, rows=rows)
    np.testing.assert_allclose(some.normal, whole.normal[rows], rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(some.offset, whole.offset[rows])
    assert jr.pull_back(net, x, stage=stage, rows=np.zeros(0, int)).normal.shape == (0, D)
    traced = jax.jit(lambda x: jr.pull_back(net, x, stage=stage, rows=rows).normal)(jnp.float32(x))
    np.testing.assert_allclose(traced, whole.normal[rows], rtol=1e-4, atol=1e-5)


# Under jit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_a_training_loop_can_jit_the_measurement(x64):
    model = zoo.MLP(widths=(5, 4), num_outputs=2)
    variables = linen_variables(model, BATCH)
    centers = np.random.default_rng(9).normal(size=(7, D))

    def measure(variables, batch, centers):
        net = jr.trace(jr.condition(model, variables, batch), batch[0])
        window = jr.Window(centers, jnp.full(centers.shape[:1], 0.1, centers.dtype))
        planes = jr.pull_back(net, centers[0], stage=1)
        return jr.stage_hits(net, window), planes.normal, net.switching_values(centers[0])

    net = jr.trace(jr.condition(model, variables, BATCH), BATCH[0])
    expected = jr.stage_hits(net, jr.Window(centers, 0.1))
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        cast = jax.tree.map(lambda a: jnp.asarray(a, dtype), (variables, BATCH, centers))
        found, normal, values = jax.jit(measure)(*cast)
        np.testing.assert_array_equal(found.hits, expected.hits)
        np.testing.assert_array_equal(found.in_parent, expected.in_parent)
        assert normal.dtype == values[0].dtype == dtype
    tolerance = {"atol": 1e-12} if x64 else {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(normal, jr.pull_back(net, centers[0], stage=1).normal, **tolerance)
    assert (expected.hits[:, 1] >= 0).any()


@pytest.mark.slow
def test_traced_windows_of_a_known_network():
    batch = windows(9, 0.1, k=2)
    traced = jax.jit(lambda w: jr.stage_hits(NET, w))(jax.tree.map(jnp.float32, batch))
    np.testing.assert_array_equal(traced.hits, jr.stage_hits(NET, batch).hits)
    mapped = jax.vmap(lambda c: jr.pull_back(NET, c, stage=1).normal)(jnp.float32(batch.center))
    expected = jr.pull_back(NET, batch.center[3], stage=1).normal
    np.testing.assert_allclose(mapped[3], expected, rtol=1e-4, atol=1e-5)


def test_traced_centres_of_slices_whose_basis_is_known():
    known = windows(4, 0.1, k=2)
    traced = jax.jit(lambda c: jr.stage_hits(NET, jr.Window(c, 0.1, known.basis)).hits)
    np.testing.assert_array_equal(traced(jnp.float32(known.center)), jr.stage_hits(NET, known).hits)


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [-1, 2])
def test_stage_that_does_not_exist(stage):
    with pytest.raises(ValueError, match=f"stage: expected 0 to 1, received {stage}"):
        jr.pull_back(NET, np.zeros(D), stage=stage)


def test_stage_of_an_affine_function():
    with pytest.raises(ValueError, match="received 0"):
        jr.pull_back(jr.trace(lambda x: x, np.zeros(2)), np.zeros(2), stage=0)


def test_point_of_another_shape():
    with pytest.raises(ValueError, match=r"expected shape \(3,\), received \(4,\)"):
        jr.pull_back(NET, np.zeros(4), stage=0)


@pytest.mark.parametrize("x", [[np.nan, 0, 0], [np.inf, 0, 0]])
def test_point_must_be_finite(x):
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        jr.pull_back(NET, np.array(x), stage=0)


@pytest.mark.parametrize("rows", [[6], [-1], [0.5], 3, [[0]]])
def test_rows_that_do_not_exist(rows):
    with pytest.raises(ValueError, match=r"rows: expected \(m,\) integers from 0 to 5"):
        jr.pull_back(NET, np.zeros(D), stage=1, rows=rows)


@pytest.mark.parametrize("function", [jr.stage_hits, depth.critical_scales])
def test_arguments_of_another_kind(function):
    with pytest.raises(
        ValueError, match=r"net: expected the result of jr\.trace, received function"
    ):
        function(lambda x: x, jr.Window(np.zeros(3), 1.0))
    with pytest.raises(ValueError, match=r"windows: expected a jr\.Window, received ndarray"):
        function(NET, np.zeros(3))


@pytest.mark.parametrize("function", [jr.pull_back, jr.parent_region, jr.embedding])
def test_functions_that_were_not_traced(function):
    with pytest.raises(
        ValueError, match=r"net: expected the result of jr\.trace, received function"
    ):
        function(lambda x: x, np.zeros(3), stage=0)


@pytest.mark.parametrize("function", [jr.stage_hits, depth.critical_scales])
def test_windows_of_another_dimension(function):
    with pytest.raises(ValueError, match=r"windows in 3 dimensions .* received 4"):
        function(NET, jr.Window(np.zeros(4), 1.0))


def test_comparisons_of_losers_are_stage_hits_but_no_hits_of_the_count():
    net = jr.trace(lambda x: jnp.max(jnp.stack([x[0], x[1], -x[0], 0 * x[0] + 9.0])), np.zeros(2))
    window = jr.Window(np.zeros(2), 1.0)
    counts, found = jr.count_regions(net, window), jr.stage_hits(net, window)
    assert (counts.activation_regions, counts.hits.tolist()) == (1, [0, 0])
    assert found.hits[0] == 1
