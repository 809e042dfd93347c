"""``count_regions``: BatchNorm, batches of windows, affine regions, maxima, limits, errors."""

from itertools import combinations
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from batchnorm_models import initial_variables
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import gaussian_layers, integer_layers, integer_windows, network, traced

import jaxregions as jr
from jaxregions.engines import chords, frontier, planar

# BatchNorm at initialisation ---------------------------------------------------------------------


class OneLayer(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(self.width)(x))
        return nn.Dense(1)(nn.relu(x))


def conditioned(width, d):
    batch = np.random.default_rng(width + d).normal(size=(50, d)).astype(np.float32)
    model = OneLayer(width)
    variables = initial_variables(model, batch)
    return jr.condition(model, variables, batch), jr.centroid(batch), variables


def centred_window(center, d):
    if d == 2:
        return jr.Window(center + np.array([0.1, -0.2]), 1.0)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(d, 2)))[0]
    return jr.Window(center, 1.0, basis=basis, anchor=center)


@pytest.mark.parametrize(
    ("width", "d"),
    [
        pytest.param(3, 2, marks=pytest.mark.slow),
        pytest.param(30, 64, marks=pytest.mark.slow),
        pytest.param(128, 64, marks=pytest.mark.slow),
        pytest.param(128, 2, marks=pytest.mark.slow),
        pytest.param(512, 2, marks=pytest.mark.slow),
        pytest.param(512, 64, marks=pytest.mark.slow),
    ],
)
def test_batchnorm_at_initialisation_makes_two_regions_a_unit(width, d):
    f, center, _ = conditioned(width, d)
    counts = jr.count_regions(f, centred_window(center, d))
    assert counts.by_stage[..., 0] == 2 * width
    assert counts.hits[..., 0] == width
    assert counts.certified


WRAPPERS = {
    "lambda": lambda f: lambda x: f(x),
    "jit": jax.jit,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
}


@pytest.mark.parametrize(
    ("wrap", "d"),
    [
        pytest.param("lambda", 64, marks=pytest.mark.slow),
        pytest.param("jit", 2, marks=pytest.mark.slow),
        pytest.param("vmap", 64, marks=pytest.mark.slow),
    ],
)
def test_wrapping_the_function_keeps_the_hyperplanes_concurrent(wrap, d):
    f, center, _ = conditioned(30, d)
    counts = jr.count_regions(WRAPPERS[wrap](f), centred_window(center, d))
    assert counts.by_stage[..., 0] == 60
    assert counts.certified


def test_float64_alone_would_invent_cells_at_the_centroid():
    f, center, variables = conditioned(30, 2)
    weights = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64).T
    bias = -weights @ center  # rounded: what folding BatchNorm into the layer does
    crossings = [
        np.linalg.solve(weights[[i, j]], -bias[[i, j]]) for i in range(30) for j in range(i)
    ]
    assert len(np.unique(crossings, axis=0)) > 1
    folded = jr.count_regions(
        network([(weights, bias, "relu")]), centred_window(center, 2)
    ).activation_regions
    assert folded > 60  # the exact count of the rounded lines
    assert jr.count_regions(f, centred_window(center, 2)).activation_regions == 60


# Many windows ------------------------------------------------------------------------------------


def assert_same(counts, others):
    for name in ("activation_regions", "affine_regions", "hits", "by_stage", "status"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(others, name), err_msg=name)


@pytest.fixture(scope="module")
def many():
    net = traced(integer_layers(21, (4, 5, 4, 1), ("relu", "leaky", None)))
    windows = integer_windows(22, 12, 4, 2)
    return net, windows, jr.count_regions(net, windows, affine=True)


def test_windows_together_count_as_one_at_a_time(many):
    net, windows, counts = many
    for i in range(12):
        one = jr.count_regions(net, windows[i], affine=True)
        assert one.activation_regions.shape == ()
        assert_same(jax.tree.map(lambda v, i=i: v[i] if np.ndim(v) else v, counts), one)


def test_leading_axes_of_windows_are_leading_axes_of_counts(many):
    net, windows, counts = many
    shaped = jr.count_regions(net, windows.reshape(3, 2, 2), affine=True)
    assert shaped.activation_regions.shape == (3, 2, 2)
    assert shaped.hits.shape == (3, 2, 2, len(net.stages))
    assert_same(
        jax.tree.map(lambda v: v.reshape(12, *v.shape[3:]) if np.ndim(v) else v, shaped), counts
    )


def test_the_order_of_windows_is_the_order_of_counts(many):
    net, windows, counts = many
    order = np.random.default_rng(0).permutation(12)
    permuted = jr.count_regions(net, windows[order], affine=True)
    assert_same(permuted, jax.tree.map(lambda v: v[order] if np.ndim(v) else v, counts))


def test_no_windows_have_no_counts(many):
    net, windows, _ = many
    counts = jr.count_regions(net, windows[:0], affine=True)
    assert counts.activation_regions.shape == counts.affine_regions.shape == (0,)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(frontier, "BYTES", 64), (frontier, "FIRST_GROUP", 1), (chords, "PAIRS", 1)],
)
def test_little_memory_leaves_the_counts_as_they_are(many, monkeypatch, module, name, value):
    net, windows, counts = many
    monkeypatch.setattr(module, name, value)
    assert_same(jr.count_regions(net, windows, affine=True), counts)
    plain = jr.count_regions(net, windows)
    np.testing.assert_array_equal(plain.activation_regions, counts.activation_regions)
    np.testing.assert_array_equal(plain.hits, counts.hits)


# Affine regions ----------------------------------------------------------------------------------


def counted(layers, window):
    counts = jr.count_regions(network(layers), window, affine=True)
    return int(counts.activation_regions), int(counts.affine_regions)


def test_jumps_that_cancel_leave_one_affine_region():
    layers = [
        (np.array([[1.0], [-1.0]]), np.zeros(2), "relu"),
        (np.array([[1.0, -1.0]]), np.zeros(1), None),
    ]
    assert counted(layers, jr.Window(np.zeros(1), 1.0)) == (2, 1)


def test_a_unit_that_is_masked_downstream_makes_no_affine_region():
    layers = [
        (np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2), "relu"),
        (np.array([[1.0, 0.0]]), np.zeros(1), None),
    ]
    assert counted(layers, jr.Window(np.zeros(2), 1.0)) == (4, 2)


def test_equal_maps_that_do_not_touch_are_two_affine_regions():
    """relu(1/2 - |x|) is 0 on both sides of a hat."""
    layers = [
        (np.array([[1.0], [-1.0]]), np.zeros(2), "relu"),
        (np.array([[-1.0, -1.0]]), np.array([0.5]), "relu"),
    ]
    assert counted(layers, jr.Window(np.zeros(1), 1.0)) == (4, 4)
    # In the plane the two sides are joined around the end of the ridge.
    around = [
        (np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), np.zeros(4), "relu"),
        (np.array([[-1.0, -1, -1, -1]]), np.array([0.5]), "relu"),
    ]
    assert counted(around, jr.Window(np.zeros(2), 1.0)) == (8, 5)


def test_affine_regions_of_cells_too_thin_for_floats():
    """Cells around a crossing far narrower than the spacing of floats there."""
    weights = np.random.default_rng(3).normal(size=(4, 2))
    layers = [
        (weights, -weights @ np.array([0.3, 0.7]), "relu"),
        (np.ones((1, 4)), np.zeros(1), None),
    ]
    cells = oracles.window_cells(layers, [0.3, 0.7], [1.0, 1.0])
    assert oracles.pattern_count(cells) > 8  # rounding pulls the four lines apart
    window = jr.Window(np.array([0.3, 0.7]), 1.0)
    assert counted(layers, window) == (oracles.pattern_count(cells), oracles.affine_count(cells))


# Maxima ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_maxout_counts_sets_of_maximisers(size):
    layers = gaussian_layers(30, (2, 2 * size, 2))
    layers = [(*layers[0][:2], size), (np.array([[1.0, -2.0]]), np.array([0.1]), "relu")]
    cells = oracles.window_cells(layers, np.zeros(2), 2.0)
    counts = jr.count_regions(network(layers), jr.Window(np.zeros(2), 2.0), affine=True)
    assert counts.activation_regions == oracles.pattern_count(cells)
    assert counts.affine_regions == oracles.affine_count(cells)


def test_a_maximum_that_one_candidate_always_wins_is_one_region():
    def f(x):
        return jnp.max(jnp.stack([x[0], -x[0], 10 + 0 * x[1]]), keepdims=True)

    counts = jr.count_regions(f, jr.Window(np.zeros(2), 1.0), affine=True)
    assert (counts.activation_regions, counts.affine_regions) == (1, 1)


@pytest.mark.parametrize("k", [1, 2])
def test_maxima_that_no_window_divides(k):
    window = jr.Window(np.array([3.0, 0.0, -3.0]), 1.0, np.eye(3)[:, :k])
    counts = jr.count_regions(jnp.max, window, affine=True)
    assert (counts.activation_regions, counts.affine_regions) == (1, 1)
    assert not counts.hits.any()
    assert jr.partition(jnp.max, window).activation_regions == 1


@pytest.mark.slow
def test_candidates_that_all_die_tie_in_one_region():
    """max over relu(x), relu(y), relu(x + y - 1): where all die there is one piece."""
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    layers = [(rows, np.array([0.0, 0.0, -1.0]), "relu"), (np.eye(3), np.zeros(3), 3)]
    window = jr.Window(np.zeros(2), 2.0)
    cells = oracles.window_cells(layers, np.zeros(2), 2.0)
    counts = jr.count_regions(network(layers), window, affine=True)
    assert counts.activation_regions == oracles.pattern_count(cells)
    assert counts.affine_regions == oracles.affine_count(cells)


def test_pooling_a_convolution_counts_sets_of_maximisers():
    """Overlapping windows of 2 over 5 channels of a line: each pool is a group of candidates."""
    rng = np.random.default_rng(4)
    weights, bias = rng.normal(size=(4, 2)), rng.normal(size=4)

    def f(x):
        z = jnp.asarray(weights, x.dtype) @ x + jnp.asarray(bias, x.dtype)
        return nn.max_pool(z[None, :, None], (2,), strides=(1,), padding="VALID").ravel()

    pairs = [k for i in range(3) for k in (i, i + 1)]
    cells = oracles.window_cells([(weights[pairs], bias[pairs], 2)], np.zeros(2), 3.0)
    counts = jr.count_regions(f, jr.Window(np.zeros(2), 3.0), affine=True)
    assert counts.activation_regions == oracles.pattern_count(cells)
    assert counts.affine_regions == oracles.affine_count(cells)


def test_sorting_counts_orders():
    rng = np.random.default_rng(6)
    weights, bias = rng.normal(size=(4, 2)), rng.normal(size=4)
    u = rng.uniform(-3, 3, (200_000, 2))
    orders = np.unique(np.argsort(u @ weights.T + bias, axis=1), axis=0)
    maps = list(zip(oracles.fractions(weights), oracles.fractions(bias), strict=True))
    rows = [oracles.combination((1, -1), 0, pair) for pair in combinations(maps, 2)]
    window = jr.Window(np.zeros(2), 3.0)
    counts = jr.count_regions(
        lambda x: jnp.sort(jnp.asarray(weights, x.dtype) @ x + jnp.asarray(bias, x.dtype)), window
    )
    assert counts.activation_regions == oracles.count_cells(rows, [3.0, 3.0]) == len(orders)


# Limits ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def growing():
    net = traced(gaussian_layers(40, (2, 12, 10, 8, 1)))
    windows = jr.Window(np.zeros((4, 2)), [1.0, 1e-3, 3.0, 0.2])
    return net, windows, jr.count_regions(net, windows).activation_regions


def assert_lower_bounds(counts, exact):
    done = counts.status == jr.Status.COMPLETE
    np.testing.assert_array_equal(counts.activation_regions[done], exact[done])
    assert (counts.activation_regions >= 1).all()
    assert (counts.activation_regions <= exact).all()
    assert (counts.affine_regions[~done] == -1).all()
    assert counts.certified.all()


def test_max_regions_stops_only_the_windows_that_have_more(growing):
    net, windows, exact = growing
    counts = jr.count_regions(net, windows, max_regions=20, affine=True)
    assert counts.status.tolist() == [jr.Status.MAX_REGIONS if n > 20 else 0 for n in exact]
    assert (counts.activation_regions[counts.status > 0] > 20).all()
    assert_lower_bounds(counts, exact)


def test_no_time_leaves_bounds(growing):
    net, windows, exact = growing
    counts = jr.count_regions(net, windows, max_seconds=1e-9, affine=True)
    assert (counts.status == jr.Status.MAX_SECONDS).all()
    assert (counts.hits == -1).all()
    assert_lower_bounds(counts, exact)


def test_time_that_ends_in_the_last_stage_keeps_what_was_counted(growing, monkeypatch):
    """A clock that passes the deadline after the third run of cells."""
    net, windows, exact = growing
    counted, runs = planar.counted, []

    def slow(*args):
        runs.append(args)
        return counted(*args)

    monkeypatch.setattr(frontier, "BYTES", 2_000)
    monkeypatch.setattr(planar, "counted", slow)
    monkeypatch.setattr(frontier, "time", SimpleNamespace(monotonic=lambda: 2.0 * (len(runs) > 2)))
    tally = frontier.explore(
        net, windows, limits=frontier.Limits(None, 1.0), finish=None, watch=lambda *_: None
    )
    assert set(tally.status.tolist()) <= {jr.Status.COMPLETE, jr.Status.MAX_SECONDS}
    assert (tally.status == jr.Status.MAX_SECONDS).any()
    done = tally.status == jr.Status.COMPLETE
    np.testing.assert_array_equal(tally.bound[done], exact[done])
    assert (tally.bound <= exact).all()


def test_an_interrupt_keeps_the_finished_windows(growing, monkeypatch):
    net, windows, exact = growing
    refined, seen = planar.refined, []

    def interrupted(ledger, mesh, stage, known):
        seen.append(stage)
        if len(seen) > 2 * len(net.stages) - 1:
            raise KeyboardInterrupt
        return refined(ledger, mesh, stage, known)

    monkeypatch.setattr(frontier, "FIRST_GROUP", 1)
    monkeypatch.setattr(frontier, "GROUP_VERTICES", 1)
    monkeypatch.setattr(planar, "refined", interrupted)
    counts = jr.count_regions(net, windows, affine=True)
    assert counts.status.tolist() == [0, *[jr.Status.INTERRUPTED] * 3]
    assert_lower_bounds(counts, exact)


@pytest.mark.parametrize("affine", [False, True])
def test_groups_that_overlap_count_as_one_group_does(growing, monkeypatch, affine):
    net, windows, _ = growing
    whole = jr.count_regions(net, windows, affine=affine)
    monkeypatch.setattr(frontier, "FIRST_GROUP", 1)
    monkeypatch.setattr(frontier, "GROUP_VERTICES", 1)
    chex.assert_trees_all_equal(vars(jr.count_regions(net, windows, affine=affine)), vars(whole))


# Errors ------------------------------------------------------------------------------------------


def square(d=2):
    return jr.Window(np.zeros(d), 1.0)


ERRORS = [
    (lambda: jr.count_regions(jnp.abs, square(), engine="segments"), "'cells' or 'planar'.*'segm"),
    (
        lambda: jr.count_regions(jnp.abs, square(), max_regions=0),
        "max_regions: expected a number > 0",
    ),
    (lambda: jr.count_regions(jnp.abs, square(), max_seconds=-1), "max_seconds.*received -1"),
    (lambda: jr.count_regions(jnp.abs, np.zeros(2)), "expected a jr.Window, received ndarray"),
    (lambda: jr.count_regions(3, square()), "expected a function of one array, received int"),
    (lambda: jr.count_regions(jnp.abs, square(), input_shape=(3,)), r"2 entries.*\(3,\)"),
    (
        lambda: jr.count_regions(jr.trace(jnp.abs, np.zeros(2)), square(), input_shape=(2, 1)),
        r"input_shape: expected \(2,\), received \(2, 1\)",
    ),
    (
        lambda: jr.count_regions(jr.trace(jnp.abs, np.zeros(3)), square()),
        "centres of 3 entries.*received 2",
    ),
    (
        lambda: jax.jit(lambda c: jr.count_regions(jnp.abs, jr.Window(c, 1.0)))(jnp.zeros(2)),
        "windows.center: expected known numbers",
    ),
    (
        lambda: jax.jit(lambda a: jr.count_regions(lambda x: jnp.abs(a * x), square()))(2.0),
        "f: expected known parameters, received tracers",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Symmetries --------------------------------------------------------------------------------------


def numbers(layers, center, radius):
    window = jr.Window(np.array(center, float), np.array(radius))
    counts = jr.count_regions(network(layers), window, affine=True)
    return int(counts.activation_regions), int(counts.affine_regions), counts.hits.tolist()


def assert_symmetric(seed, order, powers, turns, shift):
    """Hidden units permuted and scaled, input and window turned by quarters and moved."""
    layers = (w, b, how), (v, c, then), last = integer_layers(
        seed, (2, 3, 3, 1), ("relu", "relu", None)
    )
    scale = 2.0 ** np.array(powers)
    turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns)
    w1 = (scale[:, None] * w @ turn.T)[order]
    b1 = (scale * b)[order] - w1 @ shift
    moved = [(w1, b1, how), ((v / scale)[:, order], c, then), last]
    radius = [1.0, 2.0]
    assert numbers(moved, shift, radius[::-1] if turns % 2 else radius) == numbers(
        layers, (0, 0), radius
    )


SYMMETRIES = given(
    seed=st.integers(0, 2**31),
    order=st.permutations(range(3)),
    powers=st.lists(st.integers(-3, 3), min_size=3, max_size=3),
    turns=st.integers(0, 3),
    shift=st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)),
)


@settings(max_examples=2, deadline=None)
@SYMMETRIES
def test_symmetries_leave_the_counts(seed, order, powers, turns, shift):
    assert_symmetric(seed, order, powers, turns, shift)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@SYMMETRIES
def test_more_symmetries_leave_the_counts(seed, order, powers, turns, shift):
    assert_symmetric(seed, order, powers, turns, shift)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_values_beyond_the_largest_float_are_decided_in_rationals(k):
    layers = [(1e300 * np.eye(k), np.zeros(k), "relu"), (1e300 * np.eye(k), -np.ones(k), "relu")]
    for engine in (None, "cells"):
        counts = jr.count_regions(traced(layers), jr.Window(np.zeros(k), 1.0), engine=engine)
        assert (counts.activation_regions, counts.certified) == (3**k, True)
