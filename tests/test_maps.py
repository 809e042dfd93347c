"""Affine maps handed down from cell to cell, against automatic differentiation of the function."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import with_peak
from small_networks import gaussian_layers, traced

import jaxregions as jr
from jaxregions.engines import maps, planar, points, signs
from jaxregions.partitions import assembly, reading, refining
from jaxregions.tracing import levels_of

RNG = np.random.default_rng(0)
W = [RNG.normal(size=(5, 3)), RNG.normal(size=(5, 5)), RNG.normal(size=(4, 5))]
BASIS = RNG.normal(size=(3, 2))


def residual(x):
    """Values that skip stages, several breakpoints a unit, a maximum, outputs of every kind."""
    early = W[0] @ x + 0.1
    h = jax.nn.relu(early)
    h = early + jax.nn.hard_tanh(W[1] @ h)
    left, right = jnp.split(W[2] @ jnp.abs(h), 2)
    return jnp.maximum(left, right), jnp.ones(2), 2 * early[0] - x[1]


def assert_maps(f, window):
    part = jr.partition(f, window, affine=False)
    basis = np.asarray(window.basis)
    points = np.asarray(window.center) + part.witness @ basis.T

    def flat(x):
        return jnp.concatenate([jnp.ravel(v) for v in jax.tree.leaves(f(x))])

    with jax.enable_x64(True):
        jacobian = np.asarray(jax.jit(jax.vmap(jax.jacobian(flat)))(points))
        values = np.asarray(jax.jit(jax.vmap(flat))(points))
    chex.assert_trees_all_close(part.slope, jacobian @ basis, rtol=1e-11, atol=1e-11)
    found = (part.slope @ part.witness[..., None])[..., 0] + part.intercept
    chex.assert_trees_all_close(found, values, rtol=1e-11, atol=1e-11)
    return len(part.witness)


@pytest.mark.slow
@pytest.mark.parametrize("early", [0, maps.EARLY])
def test_maps_are_the_derivatives_at_the_witnesses(monkeypatch, early):
    monkeypatch.setattr(maps, "ROWS", (8, 16))  # blocks that end within others
    monkeypatch.setattr(maps, "EARLY", early)  # made when they are needed, or before
    assert assert_maps(residual, jr.Window(np.array([0.1, 0.2, -0.1]), 0.8, basis=BASIS)) > 64


def test_maps_through_minima_and_maxima_of_constants():
    def f(x):
        return W[2] @ jnp.minimum(jnp.maximum(W[1] @ jnp.minimum(W[0] @ x, 0.4), -0.3), 0.2)

    assert assert_maps(f, jr.Window(np.array([0.1, 0.2, -0.1]), 0.8, basis=BASIS)) > 30


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3])
def test_maps_of_other_dimensions(k):
    basis = np.eye(3)[:, :k] + 0.1
    assert assert_maps(residual, jr.Window(np.zeros(3), 0.5, basis=basis)) > 3


def test_maps_in_more_directions_than_are_taken_apart():
    rng = np.random.default_rng(2)
    first, second, basis = (rng.normal(size=s) for s in ((4, 5), (3, 4), (5, maps.APART + 1)))

    def f(x):
        return jax.nn.relu(second @ jax.nn.relu(first @ x) + 0.1)

    assert assert_maps(f, jr.Window(np.full(5, 0.1), 0.3, basis=basis)) > 8


@pytest.mark.slow
@pytest.mark.parametrize("f", [lambda x: x[:2], lambda x: jax.nn.relu(x) * 0.0 + 1.0])
def test_functions_that_need_no_step(f):
    assert_maps(f, jr.Window(np.zeros(3), 0.2, basis=BASIS))


def test_every_step_that_matters_runs_at_one_level():
    net = jr.trace(residual, np.zeros(3))
    levels = levels_of(net)
    assert len(levels) == len(net.stages) + 1
    steps = [i for level in levels for i in level.steps]
    assert len(set(steps)) == len(steps)
    assert sum(bool(level.steps) for level in levels) == 5
    for before, after in pairwise(levels):
        assert before.made == after.known


@pytest.fixture
def on_demand(monkeypatch):
    """The same partition twice: with its maps, and with none made."""
    window = jr.Window(np.array([0.1, 0.2, -0.1]), 0.8, basis=BASIS)
    whole = jr.partition(residual, window)
    monkeypatch.setattr(maps, "ROWS", (8, 16))
    monkeypatch.setattr(assembly, "HELD", 0)
    monkeypatch.setattr(reading, "BLOCK", 7)
    part = jr.partition(residual, window)
    assert "slope" not in vars(part)
    return whole, part


@pytest.mark.parametrize(
    "cells", [[], [40, 3, 3, 17], np.zeros(0, int), [0], slice(5, 30), slice(None, None, -3)]
)
def test_maps_of_some_cells_are_theirs(on_demand, cells):
    whole, part = on_demand
    rows = np.arange(len(whole.slope))[cells if len(np.shape(cells)) == 0 else np.array(cells, int)]
    wanted = whole.slope[rows], whole.intercept[rows]
    chex.assert_trees_all_close(part.maps(cells), wanted, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_equal(whole.maps(cells), wanted)
    assert "slope" not in vars(part)


def test_maps_are_made_when_they_are_asked_for(on_demand):
    whole, part = on_demand
    wanted = whole.slope, whole.intercept
    chex.assert_trees_all_close((part.slope, part.intercept), wanted, rtol=1e-12, atol=1e-12)
    assert part.slope is part.slope
    chex.assert_trees_all_equal(part.maps([2, 1]), (part.slope[[2, 1]], part.intercept[[2, 1]]))


def test_level_sets_and_pictures_make_no_more_maps_than_a_block(on_demand):
    whole, part = on_demand
    values = (whole.slope @ whole.witness[..., None])[..., 0] + whole.intercept
    for minus in (None, 1):
        level = values[5, 0] - (0 if minus is None else values[5, minus])
        found, wanted = (jr.level_set(p, 0, minus=minus, level=level) for p in (part, whole))
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert len(wanted[0]) > 0
    part.plot(color="slope")
    assert "slope" not in vars(part)


@pytest.mark.parametrize(
    "copied",
    [
        lambda part: pickle.loads(pickle.dumps(part)),
        copy.deepcopy,
        lambda part: jax.tree.map(lambda leaf: leaf, part),
        jr.to_dict,
    ],
)
def test_copies_have_their_maps(on_demand, copied):
    whole, part = on_demand
    found = copied(part)
    found = found if isinstance(found, dict) else vars(found)
    chex.assert_trees_all_close(found["slope"], whole.slope, rtol=1e-12, atol=1e-12)
    assert "_family" not in found


def test_maps_can_be_asked_for_from_several_threads(on_demand):
    whole, part = on_demand
    together = threading.Barrier(6)

    def read(i):
        together.wait()
        slope = part.maps(slice(None))[0] if i % 3 == 0 else part.slope
        return slope, (copy.copy(part) if i % 3 == 1 else part).intercept

    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(read, range(6)):
            wanted = whole.slope, whole.intercept
            chex.assert_trees_all_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_maps_can_be_asked_for_while_jax_traces(on_demand):
    whole, part = on_demand
    some = jax.jit(lambda x: x + part.maps([2])[0][0, 0, 0])(1.0)
    every = jax.jit(lambda x: x + part.slope[2, 0, 0])(1.0)
    np.testing.assert_allclose([some, every], 1 + whole.slope[2, 0, 0], rtol=1e-6)
    chex.assert_trees_all_close(part.slope, whole.slope, rtol=1e-12, atol=1e-12)


def test_maps_stay_what_they_were(monkeypatch):
    """Whatever is written into the function's, the window's and the partition's arrays."""
    monkeypatch.setattr(assembly, "HELD", 0)
    weights, center, basis = [w.copy() for w in W], np.array([0.1, 0.2, -0.1]), BASIS.copy()

    def f(x):
        return weights[2] @ jax.nn.relu(weights[1] @ jax.nn.relu(weights[0] @ x + 0.1))

    window = jr.Window(center, 0.8, basis=basis)
    whole, part = jr.partition(f, window), jr.partition(f, window)
    wanted = whole.slope.copy(), whole.intercept.copy()
    for array in (*weights, center, basis, part.witness, *(t.parent for t in part.tables)):
        array[:] = 0
    chex.assert_trees_all_close(part.maps(slice(None)), wanted, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close((part.slope, part.intercept), wanted, rtol=1e-12, atol=1e-12)


def test_looking_at_a_partition_makes_no_maps(on_demand):
    whole, part = on_demand
    cells = len(part.witness)
    regions = f"{cells} activation regions, {part.affine_regions} affine regions"
    assert repr(part) == repr(whole) == f"Partition({cells} cells, {regions}, COMPLETE)"
    assert part.outputs == whole.outputs == whole.slope.shape[1]
    assert "slope" not in vars(part)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([0.5], r"a list of cells' numbers or a slice, received float64 of shape \(1,\)"),
        (3, r"a list of cells' numbers or a slice, received int64 of shape \(\)"),
        ([True], "received bool"),
        ([-1], r"expected 0 to \d+, received -1 to -1"),
        ([0, 10**6], r"expected 0 to \d+, received 0 to 1000000"),
    ],
)
def test_cells_that_do_not_exist(on_demand, cells, message):
    for part in on_demand:
        with pytest.raises(ValueError, match=message):
            part.maps(cells)


def test_other_attributes_are_still_missing(on_demand):
    with pytest.raises(AttributeError, match="'Partition' object has no attribute 'slopes'"):
        on_demand[1].slopes  # noqa: B018


def sliver(x):
    """Slopes 0, 1, 2 along the first axis, 1 between 0 and 2^-60: from 1 on no float is there."""
    z = x[0] - 1
    return jnp.stack([jax.nn.relu(z) + jax.nn.relu(2.0**60 * z - 1) / 2.0**60, x[1]])


@pytest.mark.parametrize("held", [0, assembly.HELD])
@pytest.mark.parametrize("k", [1, 2])
def test_cells_without_floats_have_their_own_maps(monkeypatch, held, k):
    monkeypatch.setattr(assembly, "HELD", held)
    window = jr.Window(np.array([1.0, 2.0]), 0.5, basis=np.eye(2)[:, :k])
    part = jr.partition(sliver, window)
    (thin,) = np.flatnonzero(~part.witness_inside)
    slope, intercept = part.maps([thin])
    assert slope[0, :, 0].tolist() == [1, 0]
    assert intercept[0].tolist() == [0, 2]
    assert sorted(part.slope[:, 0, 0].tolist()) == [0, 1, 2]
    np.testing.assert_allclose(part.intercept[:, 0], 0, atol=1e-15)


def map_of(layers, signs, center):
    """(m, k), (m,) the map around the centre where the hidden layers have these signs, rounded."""
    exactly = np.vectorize(Fraction, otypes=[object])
    slope, shift = exactly(np.eye(len(center))), exactly(np.array(center, float))
    for stage, (weight, bias, _) in enumerate(layers):
        weight = exactly(weight)
        slope, shift = weight @ slope, weight @ shift + exactly(bias)
        if stage < len(signs):
            on = exactly((signs[stage] > 0).astype(float))
            slope, shift = on[:, None] * slope, on * shift
    return slope.astype(float), shift.astype(float)


@pytest.mark.parametrize(
    ("k", "seed", "digits"),
    [
        pytest.param(2, 4, 16, marks=pytest.mark.slow),
        (2, 37, 14),
        pytest.param(3, 49, 16, marks=pytest.mark.slow),
    ],
)
def test_maps_in_windows_as_small_as_rounding(k, seed, digits):
    """Around a point where k lines of the first layer cross, floats do not know the signs."""
    rng = np.random.default_rng(seed)
    sizes = k, int(rng.integers(k + 1, 7)), int(rng.integers(3, 6)), 2
    layers = gaussian_layers(seed, sizes)
    (weight, bias, _), *_ = layers
    center = np.linalg.solve(weight[:k], -bias[:k])
    part = jr.partition(traced(layers), jr.Window(center, 10.0**-digits))
    assert len(part.witness) > 1
    for cell, slope, shift in zip(
        range(len(part.witness)), part.slope, part.intercept, strict=True
    ):
        signs = [pattern[cell] for pattern in part.patterns]
        wanted = map_of(layers, signs, center)
        chex.assert_trees_all_close((slope, shift), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("least", "close"), [(6e-12, True), (7e-12, False), (0.0, False)])
def test_values_within_64_errors_may_be_uncertain_between_vertices(least, close):
    values, error = np.array([[0.0, -1.0], [2.0, least], [3, 3]]), np.array([1e-14, 1e-13, 1e-3])
    bits = np.zeros((3, 1), np.uint64)
    zeros = np.nonzero(values == 0)
    known = signs.Signs(np.arange(3), values, error, bits, bits, *zeros)
    at = points.Vertices(np.zeros((3, 2)), np.array([0, 0, 1e-3]), *np.zeros((6, 3), np.int64))
    ledger = points.Ledger(None, jr.Window(np.zeros((1, 2)), 1.0), at)
    assert signs.close(ledger, known) == close


@pytest.mark.parametrize("seed", range(2))
def test_maps_far_from_the_origin(seed):
    """Where inputs of 1e8 hide what happens within 1e-8 of them."""
    rng = np.random.default_rng(seed)
    center, weight = rng.normal(size=6) * 1e8, rng.normal(size=6)
    bias = -float(weight @ center)
    exactly = sum(Fraction(w) * Fraction(c) for w, c in zip(weight, center, strict=True))
    zero = -float(exactly + Fraction(bias)) / weight[0]  # of the first unit, along the first axis
    assert abs(zero) > 1e-9

    def f(x):
        first = x[0] - center[0]
        return jax.nn.relu(jnp.stack([weight @ x + bias, first - zero / 3, first - 0.9 * zero]))

    part = jr.partition(f, jr.Window(center, 2 * abs(zero), basis=np.eye(6)[:, :1]))
    wanted = (part.patterns[0] > 0) * np.array([weight[0], 1, 1])
    np.testing.assert_allclose(part.slope[..., 0], wanted)
    assert len(part.witness) == 4


@pytest.mark.parametrize("near", [False, True])
def test_maps_are_checked_of_slivers_and_of_all_where_signs_are_close(monkeypatch, near):
    asked, real = [], planar._seen_from

    def seen_from(*args):
        inside, area = real(*args)
        inside[2] = False
        return inside, area

    def float_maps(family, known, cells):
        asked.append(cells.tolist())
        return maps.float_maps(family, known, cells)

    monkeypatch.setattr(planar, "_seen_from", seen_from)
    monkeypatch.setattr(refining, "close", lambda *_: near)
    monkeypatch.setattr(refining, "float_maps", float_maps)
    net = traced(gaussian_layers(0, (2, 5, 4, 2)))
    part = jr.partition(net, jr.Window(np.zeros(2), 1.0), affine=False)
    assert part.settled_exactly == 0
    assert asked == [list(range(len(part.witness))) if near else [2]]


LARGE = """
import numpy as np
import jaxregions as jr
from small_networks import recipe, traced
part = jr.partition(traced(recipe((2, 256, 256, 256), 3)), jr.Window(np.zeros(2), 1.0))
pieces, _ = jr.level_set(part, 0, minus=1)
print(part.activation_regions, len(pieces))
"""


@pytest.mark.slow
def test_a_large_partition_fits_in_two_gigabytes():
    """Its maps alone would be 1.6."""
    regions, pieces, kilobytes = with_peak(LARGE)
    assert (regions, pieces > 0) == (261938, True)
    assert 1024 * kilobytes < 2e9
