"""Estimates of trees that are too large to be walked, on trees of known size."""

import time

import numpy as np
import pytest
from small_networks import recipe, traced

import jaxregions as jr
from jaxregions.engines import draws, estimates
from jaxregions.engines.cells import count_cells
from jaxregions.engines.descents import thinned
from jaxregions.engines.draws import regions_drawn
from jaxregions.engines.estimates import (
    TreeEstimate,
    estimate_cells,
    interval,
    leaf_weights,
    lowest,
    sampled,
)
from jaxregions.engines.frontier import Limits
from jaxregions.engines.potentials import BINS, Steps, learned, likely

RECIPE, REGIONS = recipe((3, 8, 8), 3), 646
WINDOW = jr.Window(np.zeros(3), 1.0)


# Which nodes are kept ----------------------------------------------------------------------------


def test_a_kept_node_stands_for_those_left_out():
    logs = np.array([0.0, 1.0, 2.0, 3.0, -2.0, 0.5, 0.0, 9.0])
    window = np.repeat(np.arange(20_000), len(logs))
    keep, factor = thinned(np.random.default_rng(0), window, np.tile(logs, 20_000), 4)
    assert (np.diff(keep) > 0).all()
    assert (np.bincount(window[keep]) == 4).all()
    weight = np.zeros(len(window))
    weight[keep] = factor
    weight = weight.reshape(-1, len(logs))
    error = weight.std(axis=0) / np.sqrt(len(weight))
    assert (np.abs(weight.mean(axis=0) - 1) <= 5 * error).all()
    assert (weight[:, 7] == 1).all()  # larger than its share: certain
    assert error[3] < error[0] < error[4]


def test_few_nodes_are_all_kept():
    window = np.array([2, 0, 2, 0, 0])
    keep, factor = thinned(np.random.default_rng(0), window, np.arange(5.0), 3)
    assert keep.tolist() == [0, 1, 2, 3, 4]
    assert factor.tolist() == [1.0] * 5


def test_sizes_may_differ_beyond_all_floats():
    logs = np.array([0.0, 2000.0, 4000.0, 4001.0, 0.0])
    keep, factor = thinned(np.random.default_rng(0), np.zeros(5, int), logs, 2)
    assert keep.tolist() == [2, 3]
    assert factor.tolist() == [1.0, 1.0]


# What is learned ---------------------------------------------------------------------------------


def test_potentials_are_those_of_a_tree_of_known_size():
    """Nodes with room 2^b have two children, of room 2^b and 2^(b - 1), down to one without."""
    leaves, steps = {0: [1] * 6}, Steps()
    for left in range(1, 6):
        below = leaves[left - 1]
        leaves[left] = [2] + [below[b] + below[b - 1] for b in range(1, 6)]
        leaves[left][0] = below[0]
        room = np.exp2(np.arange(6.0))
        origin = np.r_[np.arange(6), np.arange(1, 6)]
        child = np.r_[room, room[:-1]]
        steps.split(0, np.full(6, left), room, origin, child)
        steps.split(1, np.full(6, left), room, origin, child)
    steps.begin(1, np.array([5, 3]), np.array([1.0, 4.0]))
    first, last = learned(steps, 2)
    some = np.exp2(likely([first, last], 1, np.full(6, 5), np.exp2(np.arange(6.0))))
    np.testing.assert_allclose(some, leaves[5])
    some = np.exp2(likely([first, last], 0, np.zeros(2, int), np.array([1.0, 4.0])))
    np.testing.assert_allclose(some, [leaves[5][0], leaves[3][2]])
    assert first.shape == last.shape == (6, BINS)


def test_nothing_is_known_at_first():
    assert likely(None, 0, np.zeros(2, int), np.ones(2)).tolist() == [0, 0]


# Intervals ---------------------------------------------------------------------------------------


def random_tree(seed, single):
    """Nodes with one or two children, on 16 levels; and the number of leaves."""
    rng, tree = np.random.default_rng(seed), {}

    def grow(path):
        ends = len(path) == 16 or rng.random() < 0.003 * len(path)
        tree[path] = 0 if ends else int(rng.choice([1, 2], p=[single, 1 - single]))
        return sum(grow((*path, i)) for i in range(tree[path])) or 1

    return tree, grow(())


@pytest.mark.parametrize(("seed", "single"), [(0, 0.5), (3, 0.7)])
def test_intervals_cover_the_number_of_leaves(seed, single):
    tree, leaves = random_tree(seed, single)
    rng = np.random.default_rng(seed + 100)
    weights = leaf_weights(tree.__getitem__, 200 * 16, rng, population=4).reshape(200, 16)
    assert covered(weights, leaves) >= 180


def covered(weights, leaves):
    found = map(interval, weights)
    return sum(one.low <= leaves <= one.high for one in found)


def test_a_descent_that_keeps_all_nodes_counts():
    tree, leaves = random_tree(0, 0.6)
    weights = leaf_weights(tree.__getitem__, 2, np.random.default_rng(0), population=1 << 20)
    assert weights.tolist() == [leaves, leaves]


def test_the_lowest_expectation_is_rarely_too_high():
    """Log-normal weights, where half of the interval is wider than the mean."""
    weights = np.exp(np.random.default_rng(0).normal(size=(400, 16)) * 3 - 4.5)  # mean 1
    bounds = np.array([lowest(w) for w in weights])
    assert (bounds > 1).mean() <= 0.04
    assert np.median(bounds) > 0.02
    assert 5.0 / 1.4 < lowest(np.full(16, 5.0)) < 5.0 / 1.26  # 1.26^16 = 40


def test_estimates_need_two_descents():
    with pytest.raises(ValueError, match="two descents"):
        interval(np.ones(1))


def test_an_interval_begins_at_what_is_proven():
    found = interval(np.array([1.0, 2.0, 40.0]), proven=39.0, population=4)
    assert (found.low, found.proven, found.population) == (39.0, 39.0, 4)
    assert interval(np.array([1.0, 2.0]), proven=1e9).high == 1e9


def test_a_spread_beyond_all_floats_ends_at_infinity():
    found = interval(np.array([1.0, 1e300]))
    assert (found.mean, found.high) == (5e299, np.inf)
    assert found.low < found.mean


# Sign trees --------------------------------------------------------------------------------------


def test_an_estimate_that_keeps_all_nodes_counts():
    every = estimate_cells(traced(RECIPE), WINDOW, descents=2, population=1 << 20)
    assert every == TreeEstimate(REGIONS, REGIONS, REGIONS, 1, 2, np.inf)


def test_time_ends_an_estimate():
    net = traced(RECIPE)
    assert estimate_cells(net, WINDOW, max_seconds=0.0) is None
    found = estimate_cells(net, WINDOW, descents=8, max_seconds=60.0, population=4)
    assert found.population == 4


@pytest.mark.parametrize(
    ("after", "descents"), [(0, 0), (2, 16), (4, 16), (5, 8), (6, 12), (9, 16)]
)
def test_an_interrupt_keeps_what_is_finished(monkeypatch, after, descents):
    """Three rounds to learn from, then four groups of the last: half of them are enough."""
    calls = iter(range(100))

    def one(search, rng, population, potential, steps):
        if next(calls) == after:
            raise KeyboardInterrupt
        return np.full(len(search.radius), 1e6)

    monkeypatch.setattr(estimates, "descend", one)
    found = estimate_cells(traced(RECIPE), WINDOW, descents=16)
    assert (found.descents if found else 0) == descents


def two_hundred(sizes, seed, radius, population):
    """Regions, and the weights of 200 runs of 16 descents after two rounds from which to learn."""
    net, window = traced(recipe(sizes, seed)), jr.Window(np.zeros(sizes[0]), radius)
    exact = count_cells(net, window.reshape(1), limits=Limits(None, np.inf))
    assert exact.certified.all()
    assert exact.regions[0] > 10 * population
    rng, steps, potential, weights = np.random.default_rng(0), Steps(), None, np.zeros(0)
    for descents in (16, 16, 200 * 16):
        weights = sampled(net, window, rng, descents, population, potential, steps)
        potential = learned(steps, len(net.stages))
    return int(exact.regions[0]), weights.reshape(200, 16)


def require_coverage(regions, weights):
    error = weights.std() / np.sqrt(weights.size)
    assert abs(weights.mean() - regions) < 5 * error < 0.2 * regions
    assert covered(weights, regions) >= 180


@pytest.mark.slow
def test_intervals_cover_the_number_of_cells():
    require_coverage(*two_hundred((3, 8, 8), 3, 1.0, 4))


@pytest.mark.slow
@pytest.mark.parametrize("case", [((10, 12, 12), 6, 0.04, 8), ((16, 24, 24), 8, 0.006, 8)])
def test_intervals_cover_the_number_of_cells_in_more_dimensions(case):
    require_coverage(*two_hundred(*case))


# A lower bound -----------------------------------------------------------------------------------


def test_regions_with_a_random_point_are_regions():
    net = traced(RECIPE)
    few, many = (regions_drawn(net, WINDOW, points=n) for n in (100, 50_000))
    assert 10 < few < many <= REGIONS
    one_layer = traced(recipe((2, 3), 1))
    exact = int(jr.count_regions(one_layer, jr.Window(np.zeros(2), 2.0)).activation_regions)
    assert exact > 4
    assert regions_drawn(one_layer, jr.Window(np.zeros(2), 2.0), points=50_000) == exact


def test_points_at_which_a_value_is_zero_say_nothing():
    """Four regions; the second layer's values vanish on some of their units in all but one."""
    layers = [(np.eye(2), np.zeros(2), "relu")] * 2
    assert regions_drawn(traced(layers), jr.Window(np.zeros(2), 1.0), points=1000) == 1


def test_an_interrupt_keeps_the_regions_drawn(monkeypatch):
    def drawn(*_):
        yield np.array([3, 5], np.uint64)
        yield np.array([5, 7], np.uint64)
        raise KeyboardInterrupt

    monkeypatch.setattr(draws, "_drawn", drawn)
    assert regions_drawn(traced(RECIPE), WINDOW, points=1000) == 3


def test_no_point_is_drawn_after_the_deadline():
    assert regions_drawn(traced(RECIPE), WINDOW, points=1000, deadline=time.monotonic()) == 1
