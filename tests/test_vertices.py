"""Counts of windows of dimension 3 and more, against cells built in fractions, planes, Euler."""

import time
from itertools import product
from math import comb

import jax
import numpy as np
import oracles
import pytest
from batchnorm_models import initial_variables
from small_networks import gaussian_layers, integer_layers, recipe, traced

import jaxregions as jr
from jaxregions import zoo
from jaxregions._interrupts import Halt
from jaxregions.engines import sweep, vertices
from jaxregions.engines.complexes import tables
from jaxregions.engines.frontier import Limits, Status
from jaxregions.engines.points import Vertices
from jaxregions.engines.vertices import count


def exact_stages(layers, center, radius, basis=None):
    """Per stage (cells, hits) of one window, in fractions."""
    stages = oracles.window_polytopes(layers, center, radius, basis)
    return [(len(cells), oracles.hits_by_stage(cells)[-1]) for cells in stages]


def assert_exact(layers, windows):
    """Every window is exactly right or called degenerate; returns the statuses."""
    found = count(traced(layers), windows)
    for i, (c, r) in enumerate(zip(windows.center, windows.radii(), strict=True)):
        basis = None if windows.basis is None else windows.basis[i]
        stages = exact_stages(layers, c, r, basis)
        if found.status[i] == Status.COMPLETE:
            assert list(zip(found.by_stage[i], found.hits[i], strict=True)) == stages
            assert found.bound[i] == stages[-1][0]
        else:
            assert found.status[i] == Status.DEGENERATE
            assert found.bound[i] <= stages[-1][0]
    return found.status


@pytest.mark.parametrize(
    ("sizes", "how", "k", "radius"),
    [
        ((3, 5, 4, 1), "relu", 3, 1.0),
        pytest.param((5, 4, 3, 1), "leaky", 3, 0.8, marks=pytest.mark.slow),
        pytest.param((4, 4, 3, 1), "relu", 4, 0.8, marks=pytest.mark.slow),
        pytest.param((3, 3, 2, 1), "hard_tanh", 3, 2.0, marks=pytest.mark.slow),
        pytest.param((5, 4, 3, 3, 1), "leaky", 3, 0.8, marks=pytest.mark.slow),
        pytest.param((4, 5, 4, 1), "relu", 4, 1.0, marks=pytest.mark.slow),
        pytest.param((5, 4, 2, 1), "relu", 5, 1.0, marks=pytest.mark.slow),
    ],
)
def test_generic_networks_are_counted_exactly(sizes, how, k, radius):
    layers = gaussian_layers(sum(sizes), sizes, how)
    rng = np.random.default_rng(k)
    basis = rng.normal(size=(2, sizes[0], k))
    windows = jr.Window(rng.normal(size=(2, sizes[0])) / 2, radius, basis=basis)
    assert (assert_exact(layers, windows) == Status.COMPLETE).all()


@pytest.mark.parametrize("seed", range(2))
def test_degenerate_windows_are_counted_exactly_or_called_degenerate(seed):
    layers = integer_layers(seed, (3, 4, 3, 1), ("leaky", "relu", None))
    rng = np.random.default_rng(seed)
    center = rng.integers(-2, 3, (12, 3)) + np.where(rng.random((12, 1)) < 0.5, 0, 0.375)
    status = assert_exact(layers, jr.Window(center, rng.integers(1, 5, (12, 3)) / 3))
    assert set(status) == {Status.COMPLETE, Status.DEGENERATE}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_many_degenerate_windows_are_counted_exactly_or_called_degenerate(seed):
    hows = [("leaky", "relu", None), ("hard_tanh", "leaky", None), ("relu", "relu", None)]
    layers = integer_layers(50 + seed, (3, 3, 3, 1), hows[seed % 3])
    rng = np.random.default_rng(seed)
    center = rng.integers(-2, 3, (40, 3)) + np.where(rng.random((40, 1)) < 0.5, 0, 0.375)
    assert_exact(layers, jr.Window(center, rng.integers(1, 5, (40, 3)) / 3))


# Other engines and closed forms -------------------------------------------------------------------


@pytest.mark.slow
def test_planar_windows_agree_with_the_planar_engine():
    layers = gaussian_layers(1, (4, 8, 6, 1))
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(40, 4, 2))
    windows = jr.Window(rng.normal(size=(40, 4)), rng.uniform(0.05, 2, (40, 2)), basis=basis)
    net = traced(layers)
    found, expected = count(net, windows), jr.count_regions(net, windows)
    assert (found.status == Status.COMPLETE).all()
    assert found.by_stage.tolist() == expected.by_stage.tolist()
    assert found.hits.tolist() == expected.hits.tolist()


@pytest.mark.slow
def test_a_network_on_a_product_has_the_product_of_the_counts():
    """Two networks side by side on independent inputs: R^2 x R^2."""
    one, two = gaussian_layers(3, (2, 5, 5, 1)), gaussian_layers(4, (2, 5, 5, 1))

    def beside(a, b):
        return np.block([[a, np.zeros((len(a), b.shape[1]))], [np.zeros((len(b), a.shape[1])), b]])

    both = [
        (beside(a, b), np.concatenate([p, q]), how)
        for (a, p, how), (b, q, _) in zip(one, two, strict=True)
    ]
    plane = jr.Window(np.zeros(2), 1.5)
    found = count(traced(both), jr.Window(np.zeros((1, 4)), 1.5))
    first, second = (jr.count_regions(traced(n), plane) for n in (one, two))
    assert found.by_stage[0].tolist() == (first.by_stage * second.by_stage).tolist()
    assert found.hits[0].tolist() == (first.hits + second.hits).tolist()


@pytest.mark.parametrize(
    ("sizes", "seed", "radius", "regions"),
    [((3, 16, 16), 3, 1.0, 4896), ((4, 16, 16), 4, 0.5, 17007)],
)
def test_recipe_networks_have_their_known_counts(sizes, seed, radius, regions):
    layers = recipe(sizes, seed)
    found = count(traced(layers), jr.Window(np.zeros((1, sizes[0])), radius))
    assert found.bound.tolist() == [regions]
    assert found.by_stage[0, 1] == regions
    assert found.status.tolist() == [Status.COMPLETE]


@pytest.mark.slow
def test_one_layer_agrees_with_the_arrangement_of_its_planes():
    rng = np.random.default_rng(5)
    weights, offset = rng.normal(size=(12, 3)), rng.normal(size=12) / 2
    windows = jr.Window(rng.normal(size=(20, 3)) / 2, rng.uniform(0.1, 2, (20, 3)))
    found = count(traced([(weights, -offset, "relu")]), windows)
    expected = jr.count_arrangement(jr.Hyperplanes(weights, np.zeros(3), offset[:, None]), windows)
    assert found.bound.tolist() == expected.regions.tolist()
    assert found.hits[:, 0].tolist() == expected.hyperplanes.tolist()


@pytest.mark.parametrize("power", [20, 60])
def test_thin_simplices_are_counted(power):
    """k + 1 planes through nearly one point: a simplex with legs of 2^-power is a region."""
    legs = 2.0**-power
    for k, regions in ((3, 15), (4, 31)):
        layers = [(np.vstack([np.eye(k), np.ones(k)]), np.append(np.zeros(k), -legs), "relu")]
        windows = jr.Window(np.full((2, k), legs / 8), [0.75, 2 * legs])
        assert count(traced(layers), windows).by_stage.tolist() == [[regions], [regions]]


# The subdivision itself ---------------------------------------------------------------------------


def test_the_faces_of_the_subdivision_obey_eulers_formula():
    """Faces are named by sign vectors: sum (-1)^dim = 1, and as many cells as were counted."""
    net = traced(gaussian_layers(5, (3, 6, 5, 1)))
    _, skeleton, counts = vertices.subdivision(net, jr.Window(np.zeros((1, 3)), 1.0))
    words = tables(6 + sum(s.size for s in net.stages))
    faces = [set() for _ in range(4)]
    for key, planes in zip(skeleton.key.tolist(), skeleton.planes.tolist(), strict=True):
        for choice in product(*(((0,), (0, 1), (0, 1, 2))[1 + (p >= 6)] for p in planes)):
            name = key
            for plane, side in zip(planes, choice, strict=True):
                if side:
                    other = (words.minus, words.plus)[side - 1][plane]
                    name ^= int(words.zero[plane] ^ other)
            faces[sum(side > 0 for side in choice)].add(name)
    sizes = [len(f) for f in faces]
    assert sizes[0] == len(skeleton.ids)
    assert sizes[0] - sizes[1] + sizes[2] - sizes[3] == 1
    assert sizes[3] == counts.bound[0]


def test_vertices_lie_on_their_constraints():
    layers = gaussian_layers(5, (3, 6, 5, 1))
    net = traced(layers)
    ledger, skeleton, _ = vertices.subdivision(net, jr.Window(np.zeros((1, 3)), 1.0))
    at = ledger.vertices.rows(skeleton.ids)
    with jax.enable_x64(True):
        found = [np.concatenate(net.switching_values(x)) for x in at.u]
    values = np.hstack([np.stack([-1 - at.u.T, 1 - at.u.T], 1).reshape(6, -1).T, np.stack(found)])
    on = np.take_along_axis(values, skeleton.planes, axis=1)
    assert np.abs(on).max() < 1e-9
    assert (np.sort(np.abs(values), axis=1)[:, 3] > np.abs(on).max(axis=1)).all()


# Degenerate positions -----------------------------------------------------------------------------


def one_layer(weights, bias):
    return traced([(np.array(weights, float), np.array(bias, float), "relu")])


@pytest.mark.parametrize(
    ("weights", "bias"),
    [
        ([[1, 0, 0], [2, 0, 0]], [0.5, 1]),  # equal planes
        ([[1, 0, 0], [0, 1, 0], [1, 1, 0]], [0, 0, 0]),  # a common line
        ([[1, 0, 0], [0, 1, 0], [1, 2, 3]], [0.5, 0.5, -1.5]),  # a common point on a side
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 2, 3]], [0, 0, 0, 0, 0]),
        ([[1, 1, 0]], [0]),  # through an edge of the window
    ],
)
def test_planes_in_special_position_are_reported(weights, bias):
    found = count(one_layer(weights, bias), jr.Window(np.zeros((1, 3)), 1.0))
    assert found.status.tolist() == [Status.DEGENERATE]
    assert (found.by_stage.tolist(), found.hits.tolist()) == ([[0]], [[-1]])
    assert found.bound.tolist() == [1]


def test_a_degenerate_window_leaves_the_others_alone():
    net = one_layer([[1, 0, 0], [0, 1, 0], [1, 1, 0]], [0, 0, 0])
    windows = jr.Window([[0, 0, 0], [2.3, 0.1, 0], [0, 0, 7], [-0.9, 1.7, 0]], 1.0)
    found = count(net, windows)
    assert found.status.tolist() == [4, 0, 4, 0]
    assert found.bound[[1, 3]].tolist() == [2, 3]


def test_planes_that_touch_or_vanish_or_are_parallel_cut_as_they_should():
    net = one_layer([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0]], [3, 0, 0.25, -0.25])
    found = count(net, jr.Window(np.zeros((1, 3)), 1.0))
    assert found.by_stage.tolist() == [[3]]
    assert found.hits.tolist() == [[2]]


# Apexes: more than k hyperplanes of the first stage through one point -----------------------------


@pytest.mark.parametrize(("k", "n"), [(2, 9), (3, 12), (4, 9), (5, 8)])
def test_concurrent_hyperplanes_have_their_closed_form(k, n):
    """2 sum_{j < k} C(n - 1, j) regions around one point, nothing else crossing the window."""
    weights = np.random.default_rng(n).normal(size=(n, k))
    windows = jr.Window(np.outer([0.125, -0.5], np.ones(k)), 1.0)
    found = count(one_layer(weights, np.zeros(n)), windows)
    regions = 2 * sum(comb(n - 1, j) for j in range(k))
    assert found.bound.tolist() == [regions] * 2
    assert (found.status == Status.COMPLETE).all()


def test_two_apexes_in_one_layer_are_counted_exactly():
    rng = np.random.default_rng(0)
    weights = rng.integers(-99, 100, (9, 3)).astype(float)
    at = np.array([[0.25, 0.125, 0.5], [-0.25, 0.5, 0.375]])
    bias = -np.concatenate([weights[:5] @ at[0], weights[5:] @ at[1]])
    layers = [(weights, bias, "relu")]
    windows = jr.Window(np.zeros((1, 3)), 1.0)
    assert assert_exact(layers, windows).tolist() == [Status.COMPLETE]


def test_an_apex_of_a_later_stage_is_counted_in_the_last_and_reported_before():
    weights = np.random.default_rng(3).integers(-99, 100, (7, 3)).astype(float)
    shifted = [(np.eye(3), np.full(3, 8.0), "relu"), (weights, -weights.sum(axis=1) * 8, "relu")]
    window = jr.Window(np.full((1, 3), 0.125), 1.0)
    assert assert_exact(shifted, window).tolist() == [Status.COMPLETE]
    more = [*shifted, (np.ones((1, 7)), np.ones(1), "relu")]
    assert assert_exact(more, window).tolist() == [Status.DEGENERATE]


@pytest.mark.parametrize(
    ("k", "n", "m"), [(3, 5, 4), pytest.param(4, 5, 3, marks=pytest.mark.slow)]
)
def test_layers_after_an_apex_are_counted_exactly(k, n, m):
    rng = np.random.default_rng(k)
    layers = [
        (rng.normal(size=(n, k)), np.zeros(n), "relu"),
        (rng.normal(size=(m, n)), rng.normal(size=m), "leaky"),
        (rng.normal(size=(2, m)), rng.normal(size=2), "relu"),
    ]
    windows = jr.Window(np.outer([0.125, -0.25], np.ones(k)), 1.0)
    assert (assert_exact(layers, windows) == Status.COMPLETE).all()


@pytest.mark.slow
def test_batch_norm_at_initialisation_is_counted_around_its_centroid():
    batch = np.random.default_rng(0).normal(size=(64, 3))
    model = zoo.MLP(widths=(30, 20))
    f = jr.condition(model, initial_variables(model, batch), batch, train=False)
    found = count(jr.trace(f, batch[0]), jr.Window(jr.centroid(batch)[None], 0.5))
    assert found.status.tolist() == [Status.COMPLETE]
    assert found.by_stage[0, 0] == 2 * (1 + 29 + comb(29, 2))
    assert found.hits[0, 0] == 30
    # In every plane through the centroid as the planar engine has it.
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 3, 2)))[0]
    planes = jr.Window(np.tile(jr.centroid(batch), (4, 1)), 0.5, basis=basis)
    expected = jr.count_regions(f, planes)
    assert count(jr.trace(f, batch[0]), planes).by_stage.tolist() == expected.by_stage.tolist()


# Limits and directions ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    return traced(recipe((3, 16, 16), 3))


def test_too_many_regions_leave_a_lower_bound(net):
    windows = jr.Window(np.array([[0, 0, 0], [0.9, 0.9, 0.9]]), [[1.0], [0.01]] * np.ones(3))
    found, free = count(net, windows, limits=Limits(1000)), count(net, windows)
    assert found.status.tolist() == [Status.MAX_REGIONS, Status.COMPLETE]
    assert 1000 < found.bound[0] <= 4896 == free.bound[0]
    assert found.bound[1] == free.bound[1]


def test_time_and_interruption_leave_what_was_proven(net):
    window = jr.Window(np.zeros((1, 3)), 1.0)
    late = count(net, window, limits=Limits(deadline=time.monotonic() - 1))
    assert (late.status[0], late.bound[0]) == (Status.MAX_SECONDS, 1)
    halt, calls = Halt(), iter(range(1000))

    def watch(_):
        if next(calls) > 3:
            halt.set()

    some = count(net, window, limits=Limits(halt=halt), watch=watch)
    assert some.status[0] == Status.INTERRUPTED
    assert 654 <= some.bound[0] < 4896
    assert some.by_stage.tolist() == [[654, 0]]


def test_nothing_is_built_after_the_end(net, monkeypatch):
    halt, child, calls = Halt(), vertices.child, []

    def counted(*args, **options):
        calls.append(halt.is_set())
        if len(calls) == 5:
            halt.set()
        return child(*args, **options)

    monkeypatch.setattr(sweep, "VALUES", 1)  # a flat at a time
    monkeypatch.setattr(vertices, "child", counted)
    found = count(net, jr.Window(np.zeros((1, 3)), 1.0), limits=Limits(halt=halt))
    assert found.status.tolist() == [Status.INTERRUPTED]
    assert not any(calls)


def test_crossings_in_portions_are_the_same(net, monkeypatch):
    windows = jr.Window(np.zeros((1, 3)), 1.0)
    whole = count(net, windows)
    monkeypatch.setattr(sweep, "CROSSINGS", 10)
    some = count(net, windows)
    assert some.by_stage.tolist() == whole.by_stage.tolist()
    assert some.status.tolist() == [Status.COMPLETE]


def test_what_has_too_many_vertices_is_split_and_then_counted_by_cells(net, monkeypatch):
    windows = jr.Window(np.zeros((6, 3)), [0.01, 0.02, 0.03, 0.02, 1.0, 0.01])
    whole = count(net, windows)
    monkeypatch.setattr(vertices, "NUMBERS", 10_000)
    some = count(net, windows)
    assert some.status.tolist() == 4 * [Status.COMPLETE] + [Status.LARGE, Status.COMPLETE]
    assert 1 < some.bound[4] < whole.bound[4]
    assert np.delete(some.bound, 4).tolist() == np.delete(whole.bound, 4).tolist()
    both = jr.count_regions(net, windows)
    assert both.activation_regions.tolist() == whole.bound.tolist()
    assert both.by_stage.tolist() == whole.by_stage.tolist()
    stopped = jr.count_regions(net, windows, max_regions=int(some.bound[4]) + 1)
    assert stopped.status[4] == Status.MAX_REGIONS
    assert stopped.activation_regions[4] > some.bound[4]


def test_any_generic_direction_gives_the_same_count(net):
    directions = np.random.default_rng(8).normal(size=(5, 3))
    found = count(net, jr.Window(np.zeros((1, 3)), 1.0), directions=directions)
    assert found.bound.tolist() == [4896]


def test_a_direction_level_with_an_edge_is_reported(net):
    window = jr.Window(np.zeros((1, 3)), 1.0)
    found = count(net, window, directions=np.eye(3))
    assert (found.status[0], found.bound[0]) == (Status.DEGENERATE, 1)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 2)])
def test_directions_of_another_shape_are_rejected(net, shape):
    with pytest.raises(ValueError, match="directions: expected shape"):
        count(net, jr.Window(np.zeros((1, 3)), 1.0), directions=np.ones(shape))


def test_many_windows_in_one_call_are_counted_as_alone(net):
    rng = np.random.default_rng(1)
    windows = jr.Window(rng.uniform(-1, 1, (30, 3)), rng.uniform(0.01, 0.7, (30, 3)))
    found = count(net, windows)
    alone = [count(net, windows[np.arange(i, i + 1)]) for i in range(0, 30, 7)]
    assert found.by_stage[::7].tolist() == [a.by_stage[0].tolist() for a in alone]
    assert found.hits[::7].tolist() == [a.hits[0].tolist() for a in alone]


def test_rows_of_vertices_by_mask_and_by_number():
    none = np.arange(3)
    every = Vertices(np.eye(3), np.arange(3.0), none, none, none, none, none, none)
    for mask in (np.array([False, True, True]), np.zeros(3, bool)):
        by_number = every.rows(np.flatnonzero(mask))
        for picked, numbered in zip(every.rows(mask), by_number, strict=True):
            np.testing.assert_array_equal(picked, numbered)
        np.testing.assert_array_equal(every.rows(mask).u, np.eye(3)[mask])
