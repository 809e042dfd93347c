"""Parent regions, windows inside them and embeddings, against fractions, NumPy and partitions."""

import itertools
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import LINEN, NNX, batch_of, linen_variables, nnx_model
from batchnorm_slices import at_centroid
from oracles import fractions
from small_networks import gaussian_layers, integer_layers, integer_windows, recipe, traced

import jaxregions as jr
from jaxregions.engines import parents

SLOW_1, SLOW_2, SLOW_3 = (pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 3))
BREAKS = {"relu": (0,), "leaky": (0,), "hard_tanh": (-1, 1)}
PIECES = {
    "relu": lambda z: max(z, 0),
    "leaky": lambda z: max(z, z / 4),
    "hard_tanh": lambda z: min(max(z, -1), 1),
}


def pre_activations(layers, x):
    """Per activated layer the pre-activations at a point of fractions."""
    out = []
    for weights, bias, how in layers:
        rows = zip(fractions(weights), fractions(bias), strict=True)
        x = [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]
        if how is not None:
            out.append(x)
            x = [PIECES[how](v) for v in x]
    return out


def refined(layers, window, stage):
    """(first stage that refines a window, its units, tangencies met), from its corners.

    Pre-activations are affine on a window that no earlier layer refines, so their extremes are at
    its corners.
    """
    center, radius = fractions(window.center), fractions(window.radii())
    basis = fractions(np.eye(len(center)) if window.basis is None else window.basis)
    values = []
    for signs in itertools.product((-1, 1), repeat=len(radius)):
        u = [s * r for s, r in zip(signs, radius, strict=True)]
        moved = [sum(b * v for b, v in zip(row, u, strict=True)) for row in basis]
        values.append(pre_activations(layers, [c + m for c, m in zip(center, moved, strict=True)]))
    tangent = 0
    for level, (_, _, how) in enumerate(layers[:stage]):
        units = []
        for unit, z in enumerate(zip(*(v[level] for v in values), strict=True)):
            if any(min(z) < t < max(z) for t in BREAKS[how]):
                units.append(unit)
            tangent += any(t in (min(z), max(z)) and min(z) < max(z) for t in BREAKS[how])
        if units:
            return level, units, tangent
    return -1, [], tangent


# Windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [SLOW_1, 2, SLOW_3])
def test_windows_of_integer_networks_against_fractions(k):
    tangencies, exactly, ends = 0, 0, []
    for seed in range(4):
        layers = integer_layers(seed, (3, 4, 3, 3, 1), ("relu", "hard_tanh", "leaky", None))
        net, windows = traced(layers), integer_windows(seed, 12, 3, k)
        shrink = np.where(np.arange(12) % 2, 4, 32)[:, None]
        windows = jr.Window(windows.center, windows.radius / shrink, windows.basis)
        found = jr.in_parent_region(net, windows, stage=3)
        for i in range(12):
            first, units, tangent = refined(layers, windows[i], 3)
            assert found.first[i] == first
            if first < 0 or net.stages[first].units == len(layers[first][1]):
                assert found.cut_unit[found.cut_window == i].tolist() == units
            tangencies += tangent
        assert (found.inside == (found.first < 0)).all()
        assert found.certified.all()
        exactly += found.settled_exactly
        ends += found.first.tolist()
    assert set(ends) >= {-1, 0, 1}
    assert tangencies > 1
    assert exactly > 0


def test_a_tangency_does_not_refine_and_one_more_bit_does():
    layers = [(np.eye(2), np.zeros(2), "relu"), (np.ones((1, 2)), -np.ones(1), "relu")]
    net, radius = traced(layers), np.array([0.5, np.nextafter(0.5, 1)])
    windows = jr.Window(np.full((2, 2), 0.5), radius)
    assert jr.in_parent_region(net, windows, stage=1).first.tolist() == [-1, 0]
    found = jr.in_parent_region(net, windows, stage=2)
    assert found.first.tolist() == [1, 0]
    assert found.cut_window.tolist() == [0, 1, 1]
    assert found.cut_unit.tolist() == [0, 0, 1]


def test_tangencies_that_rounding_hides():
    # The hyperplanes meet in the corner 0 of these windows, exactly; floats see it to rounding.
    rng = np.random.default_rng(0)
    net = traced([(rng.uniform(0.1, 1, (20, 3)), np.zeros(20), "relu")])
    radius = rng.uniform(0.1, 1, 10)
    center = np.repeat(radius[:, None], 3, axis=1)
    found = jr.in_parent_region(net, jr.Window(center, radius), stage=1)
    assert found.inside.all()
    assert found.settled_exactly == 200
    center[:, 0] = np.nextafter(center[:, 0], 0)
    found = jr.in_parent_region(net, jr.Window(center, radius), stage=1)
    assert len(found.cut_unit) == 200


@pytest.mark.parametrize("k", [1, SLOW_2, SLOW_3])
def test_inside_iff_the_partition_of_the_earlier_stages_is_one_cell(k):
    net = traced(gaussian_layers(0, (3, 6, 6, 1)))
    rng = np.random.default_rng(k)
    windows = jr.Window(
        rng.normal(size=(40, 3)), rng.uniform(0.02, 0.4, 40), rng.normal(size=(40, 3, k))
    )
    by_stage = jr.count_regions(net, windows).by_stage
    for stage in (0, 1, 2):
        found = jr.in_parent_region(net, windows, stage=stage)
        one = np.ones(40, bool) if stage == 0 else by_stage[:, stage - 1] == 1
        assert found.inside.tolist() == one.tolist()
    assert 0 < found.inside.sum() < (by_stage[:, 0] == 1).sum() < 40


def models(names):
    """All models, those that are not named marked slow."""
    params = []
    for make, shape in [*LINEN, *NNX]:
        name = make.__name__ if isinstance(make, type) else type(make).__name__
        marks = [] if name in names else [pytest.mark.slow]
        params.append(pytest.param(make, shape, id=name, marks=marks))
    return params


def conditioned(make, shape):
    batch = batch_of(12, *shape)
    if isinstance(make, type):
        return jr.trace(jr.condition(nnx_model(make), None, batch), batch[0]), batch
    variables = linen_variables(make, batch, train=False)
    return jr.trace(jr.condition(make, variables, batch, train=False), batch[0]), batch


@pytest.mark.parametrize(("make", "shape"), models([]))
def test_models_with_batchnorm_against_their_partitions(make, shape):
    net, batch = conditioned(make, shape)
    rng = np.random.default_rng(1)
    flat = batch.reshape(12, -1)
    bases = rng.normal(size=(12, flat.shape[1], 2))
    windows = jr.Window(flat, 10.0 ** rng.uniform(-4, -1, 12), bases)
    by_stage = jr.count_regions(net, windows).by_stage
    assert (by_stage[:, 0] > 1).any()
    for stage in range(1, len(net.stages) + 1):
        found = jr.in_parent_region(net, windows, stage=stage)
        assert found.inside.tolist() == (by_stage[:, stage - 1] == 1).tolist()
        assert found.certified.all()
    assert found.inside.any()


@pytest.mark.slow
def test_windows_around_the_centroid_of_a_batch():
    """All hyperplanes of a first layer at initialisation meet there, exactly."""
    net, window = at_centroid(8, 5, 2)
    tiny = jr.Window(window.anchor, 1e-9, window.basis, anchor=window.anchor[0])
    found = jr.in_parent_region(net, tiny, stage=1)
    assert found.cut_unit.tolist() == list(range(8))
    beside = jr.Window(window.anchor + 3e-9 * window.basis[:, 0], 1e-9, window.basis)
    assert 0 < len(jr.in_parent_region(net, beside, stage=1).cut_unit) < 8


def test_agrees_with_stage_hits():
    net = traced(gaussian_layers(1, (6, 12, 12, 12, 1)))
    rng = np.random.default_rng(2)
    windows = jr.Window(rng.normal(size=(5, 20, 6)), 10 ** rng.uniform(-3, -1, (5, 20)))
    hits = jr.stage_hits(net, windows)
    found = jr.in_parent_region(net, windows, stage=2)
    assert found.inside.shape == (5, 20)
    assert (found.inside == hits.in_parent[..., 2]).all()
    per_window = np.bincount(found.cut_window, minlength=100).reshape(5, 20)
    first = np.take_along_axis(hits.hits, np.maximum(found.first, 0)[..., None], -1)[..., 0]
    assert (per_window == np.where(found.inside, 0, first)).all()
    assert 10 < found.inside.sum() < 90


def test_small_memory_steps_give_the_same(monkeypatch):
    net = traced(gaussian_layers(1, (6, 12, 12, 12, 1)))
    rng = np.random.default_rng(2)
    windows = jr.Window(rng.normal(size=(60, 6)), 10 ** rng.uniform(-3, -1, 60))
    whole = jr.in_parent_region(net, windows, stage=3)
    monkeypatch.setattr(parents, "_BYTES", 64 * 12 * 7)  # seven windows, one step of points
    small = jr.in_parent_region(net, windows, stage=3)
    for one, other in zip(whole, small, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_windows_and_no_stages():
    net = traced(gaussian_layers(0, (3, 6, 6, 1)))
    assert jr.in_parent_region(net, jr.Window(np.zeros((0, 3)), 1.0), stage=2).inside.shape == (0,)
    affine = jr.trace(lambda x: 2 * x, np.zeros(3))
    assert jr.in_parent_region(affine, jr.Window(np.zeros(3), 1.0), stage=0).inside


def test_what_the_time_does_not_allow_is_not_certified(monkeypatch):
    layers = [(np.eye(2), np.zeros(2), "relu")]
    windows = jr.Window([[0.5, 0.5], [3.0, 3.0], [0.25, 0.5]], 0.5)
    monkeypatch.setattr(parents, "time", SimpleNamespace(monotonic=lambda: np.inf))
    found = jr.in_parent_region(traced(layers), windows, stage=1, max_seconds=60)
    assert found.certified.tolist() == [False, True, False]
    assert found.inside.tolist() == [False, True, False]
    assert found.first.tolist() == [0, -1, 0]
    assert (found.cut_window.tolist(), found.cut_unit.tolist()) == ([2], [0])


# Points ------------------------------------------------------------------------------------------


def test_patterns_planes_and_maps_of_a_dense_network():
    layers = gaussian_layers(3, (4, 7, 6, 5, 2))
    net, x = traced(layers), np.random.default_rng(0).normal(size=4)
    (w1, b1, _), (w2, b2, _), *_ = layers
    z1 = w1 @ x + b1
    h1, on1 = np.maximum(z1, 0), np.diag((z1 > 0).astype(float))
    z2 = w2 @ h1 + b2
    region = jr.parent_region(net, x, stage=2)
    for sign, z in zip(region.pattern, (z1, z2), strict=True):
        assert sign.dtype == np.int8
        np.testing.assert_array_equal(sign, np.sign(z))
    slopes = w1, w2 @ on1 @ w1
    for planes, slope, z in zip(region.planes, slopes, (z1, z2), strict=True):
        np.testing.assert_allclose(planes.normal, slope, atol=1e-13)
        np.testing.assert_allclose(planes.offset[:, 0], -z, atol=1e-13)
        np.testing.assert_array_equal(planes.point, x)
    on2 = np.diag((z2 > 0).astype(float))
    np.testing.assert_allclose(region.slope, on2 @ w2 @ on1 @ w1, atol=1e-13)
    np.testing.assert_allclose(region.value, np.maximum(z2, 0), atol=1e-13)
    signs_only = jr.parent_region(net, x, stage=2, maps=False)
    assert signs_only.planes == ()
    assert signs_only.slope is None
    np.testing.assert_array_equal(signs_only.pattern[1], region.pattern[1])


def test_the_whole_function_and_the_first_stage():
    layers = gaussian_layers(3, (4, 7, 6, 5, 2))
    net, x = traced(layers), np.random.default_rng(0).normal(size=4)
    first, last = jr.parent_region(net, x, stage=0), jr.parent_region(net, x, stage=3, maps=False)
    assert first.pattern == first.planes == ()
    np.testing.assert_array_equal(first.slope, np.eye(4))
    np.testing.assert_array_equal(first.value, x)
    assert [len(p) for p in last.pattern] == [7, 6, 5]


def test_a_point_on_a_hyperplane_is_named():
    layers = [(np.eye(2), np.zeros(2), "relu"), ([[1.0, 1.0], [1.0, -1.0]], np.zeros(2), "relu")]
    net = traced(layers)
    with pytest.raises(ValueError, match=r"switching hyperplanes of units \[1\] of stage 0"):
        jr.parent_region(net, [1.0, 0.0], stage=1)
    with pytest.raises(ValueError, match=r"switching hyperplanes of units \[1\] of stage 1"):
        jr.parent_region(net, [0.5, 0.5], stage=2)
    assert jr.parent_region(net, [0.5, 0.5], stage=1).pattern[0].tolist() == [1, 1]
    with pytest.raises(ValueError, match="received one on the switching"):
        jr.embedding(net, [0.5, 0.5], stage=2)


def test_values_that_vanish_on_the_whole_cell_are_no_boundary():
    # Dead inputs: floats know. Equal inputs: only rationals do.
    dead = [(np.eye(2), np.zeros(2), "relu"), (np.ones((2, 2)), np.zeros(2), "relu")]
    assert jr.parent_region(traced(dead), [-1.0, -2.0], stage=2).pattern[1].tolist() == [0, 0]
    same = [([[0.1, 0.3]] * 2, [0.7, 0.7], "relu"), ([[1.0, -1.0]], [0.0], "relu")]
    assert jr.parent_region(traced(same), [1.0, 1.0], stage=2).pattern[1].tolist() == [0]
    near = [([[0.1, 0.3], [0.1, np.nextafter(0.3, 1)]], [0.7, 0.7], "relu"), *same[1:]]
    with pytest.raises(ValueError, match=r"units \[0\] of stage 1"):
        jr.parent_region(traced(near), [1.0, 0.0], stage=2)


def test_signs_too_close_for_floats_are_exact():
    rng = np.random.default_rng(5)
    weights, x = rng.normal(size=(6, 4)), rng.normal(size=4)
    exactly = [
        sum(Fraction(w) * Fraction(v) for w, v in zip(row, x.tolist(), strict=True))
        for row in weights.tolist()
    ]
    bias = -np.array([float(z) for z in exactly])  # z + b is the rounding of z alone
    net = traced([(weights, bias, "relu")])
    expected = [
        (z + Fraction(b) > 0) - (z + Fraction(b) < 0)
        for z, b in zip(exactly, bias.tolist(), strict=True)
    ]
    assert jr.parent_region(net, x, stage=1).pattern[0].tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape"), [LINEN[1], NNX[1]])
def test_images(make, shape):
    net, batch = conditioned(make, shape)
    region = jr.parent_region(net, batch[0], stage=len(net.stages))
    with jax.enable_x64(True):
        expected = net.pattern(jnp.asarray(batch[0]))
    for sign, float_sign in zip(region.pattern, expected, strict=True):
        np.testing.assert_array_equal(sign, float_sign)
    assert any((sign == 0).any() for sign in region.pattern)  # ties of dead units in the pooling


# Embeddings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 2])
def test_singular_values_of_a_dense_network(k):
    layers = gaussian_layers(3, (4, 7, 6, 5, 2))
    net, x = traced(layers), np.random.default_rng(0).normal(size=4)
    basis = None if k is None else np.random.default_rng(1).normal(size=(4, k))
    (w1, b1, _), *_ = layers
    slope = np.diag((w1 @ x + b1 > 0).astype(float)) @ w1
    slope = slope if basis is None else slope @ basis
    expected = np.linalg.svd(slope, compute_uv=False)
    found = jr.embedding(net, x, stage=1, basis=basis, certify=True)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-12, atol=1e-14)
    assert found.smallest == pytest.approx(expected[-1], rel=1e-9)
    assert found.condition == pytest.approx(expected[0] / expected[-1], rel=1e-9)
    assert found.rank == np.linalg.matrix_rank(slope) == found.dimension == (k or 4)
    assert found.certified
    again = jr.embedding(net, x, stage=1, basis=basis)
    assert (again.rank, again.certified) == (found.rank, False)


@pytest.mark.parametrize("seed", [SLOW_1, SLOW_3])
def test_exact_ranks_of_integer_networks(seed):
    layers = integer_layers(seed, (3, 4, 4, 1), ("relu", "relu", None))
    net, x = traced(layers), np.array([0.413, -0.337, 0.771])
    (w1, b1, _), (w2, b2, _), _ = layers
    z1 = w1 @ x + b1
    z2 = w2 @ np.maximum(z1, 0) + b2
    first = np.diag((z1 > 0).astype(float)) @ w1
    for stage, slope in ((1, first), (2, np.diag((z2 > 0).astype(float)) @ w2 @ first)):
        found = jr.embedding(net, x, stage=stage, certify=True)
        assert found.rank == np.linalg.matrix_rank(slope)
        assert (found.smallest > 1e-12) == (found.rank == 3)


def test_a_rank_that_floats_do_not_see():
    layers = [(np.diag([1.0, 2.0**-70]), np.ones(2), "relu"), (np.eye(2), np.ones(2), "relu")]
    net = traced(layers)
    assert jr.embedding(net, [0.5, 0.5], stage=1).rank == 1
    found = jr.embedding(net, [0.5, 0.5], stage=1, certify=True)
    assert (found.rank, found.dimension) == (2, 2)
    assert found.condition == pytest.approx(2.0**70)


def test_fewer_units_than_directions():
    net = traced([(np.ones((1, 3)), np.ones(1), "relu"), (np.ones((2, 1)), np.ones(2), "relu")])
    found = jr.embedding(net, np.ones(3), stage=1, certify=True)
    assert (found.rank, found.smallest, found.condition) == (1, 0.0, np.inf)


def test_everything_that_enters_a_stage_counts():
    # The input enters the second stage beside the one activation.
    net = jr.trace(lambda x: jax.nn.relu(x + jax.nn.relu(x.sum())).sum(), np.zeros(3))
    found = jr.embedding(net, np.ones(3), stage=1, certify=True)
    assert found.rank == 3
    np.testing.assert_allclose(found.singular_values, [2, 1, 1])
    assert jr.parent_region(net, np.ones(3), stage=1).slope.shape == (4, 3)


@pytest.mark.parametrize(("make", "shape"), models(["NnxMlp"]))
def test_embeddings_of_models_with_batchnorm(make, shape):
    net, batch = conditioned(make, shape)
    basis = np.random.default_rng(0).normal(size=(batch[0].size, 2))
    stage = len(net.stages) - 1
    found = jr.embedding(net, batch[0], stage=stage, basis=basis, certify=True)
    region = jr.parent_region(net, batch[0], stage=stage)
    expected = np.linalg.svd(region.slope @ basis, compute_uv=False)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-9, atol=1e-12)
    assert found.rank == np.linalg.matrix_rank(region.slope @ basis)
    # The stage's switching values are affine in what enters it.
    planes = jr.pull_back(net, batch[0], stage=stage)
    both = np.linalg.matrix_rank(np.concatenate([region.slope, planes.normal]))
    assert both == np.linalg.matrix_rank(region.slope)


# Errors ------------------------------------------------------------------------------------------


NET = traced(recipe((3, 4, 4), 0))


@pytest.mark.parametrize("function", [jr.parent_region, jr.embedding])
@pytest.mark.parametrize(
    ("x", "stage", "message"),
    [
        (np.zeros(3), 3, "stage: expected 0 to 2, received 3"),
        (np.zeros(3), -1, "stage: expected 0 to 2, received -1"),
        (np.zeros(4), 1, r"x: expected shape \(3,\), received \(4,\)"),
        ([np.inf, 0.0, 0.0], 1, "x: expected finite numbers"),
    ],
)
def test_bad_points(function, x, stage, message):
    with pytest.raises(ValueError, match=message):
        function(NET, x, stage=stage)


def test_bad_windows_and_bases():
    with pytest.raises(ValueError, match="stage: expected 0 to 2, received 4"):
        jr.in_parent_region(NET, jr.Window(np.zeros(3), 1.0), stage=4)
    with pytest.raises(ValueError, match=r"shape \(3,\), received 2"):
        jr.in_parent_region(NET, jr.Window(np.zeros(2), 1.0), stage=1)
    with pytest.raises(ValueError, match="basis: expected"):
        jr.embedding(NET, np.zeros(3), stage=1, basis=np.zeros((3, 2)))


def test_tracers_are_refused():
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda x: jr.parent_region(NET, x, stage=1).slope)(jnp.zeros(3))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda w: jr.in_parent_region(NET, w, stage=1).inside)(jr.Window(np.zeros(3), 1.0))
