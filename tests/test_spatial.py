"""Partitions of windows of any dimension by the sign tree, against planes, fractions, sampling."""

import math
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from batchnorm_slices import at_centroid
from small_networks import gaussian_layers, integer_layers, integer_windows, network, recipe, traced

import jaxregions as jr
from jaxregions import partitions
from jaxregions.engines import facets, sides
from jaxregions.engines.frontier import Limits

UNLIMITED = Limits(None, np.inf)


def spatial(net, window):
    """The engine for dimension 3 and above, of any dimension."""
    return partitions._cell_by_cell(net, window, UNLIMITED, True, lambda *_: None)


def keys(part):
    """A name for each cell: its signs."""
    return [row.tobytes() for row in np.concatenate(part.patterns, axis=1)]


def neighbours(part):
    name = keys(part)
    pairs = [frozenset((name[a], name[b])) for a, b in zip(part.left, part.right, strict=True)]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def groups(part, label):
    """The cells of equal labels, by name."""
    found = {}
    for name, one in zip(keys(part), label.tolist(), strict=True):
        found.setdefault(one, set()).add(name)
    return set(map(frozenset, found.values()))


def assert_same_partition(one, other):
    assert set(keys(one)) == set(keys(other))
    assert neighbours(one) == neighbours(other)
    assert groups(one, one.region) == groups(other, other.region)
    assert groups(one, one.affine_region) == groups(other, other.affine_region)
    assert one.activation_regions == other.activation_regions
    assert one.affine_regions == other.affine_regions
    for a, b in zip(one.tables, other.tables, strict=True):
        assert (a.parents, a.regions, a.hits) == (b.parents, b.regions, b.hits)
        assert sorted(a.children) == sorted(b.children)
        assert sorted(a.cut_unit) == sorted(b.cut_unit)


# The planar engine -------------------------------------------------------------------------------


def assert_like_the_plane(layers, windows):
    net = traced(layers)
    for i in range(len(windows.center)):
        planar, found = jr.partition(net, windows[i]), spatial(net, windows[i])
        assert found.certified
        assert_same_partition(found, planar)


def generic_windows(seed, count, d):
    rng = np.random.default_rng(seed)
    return jr.Window(rng.normal(size=(count, d)) / 2, 1.0, rng.normal(size=(count, d, 2)))


@pytest.mark.parametrize("seed", range(2))
def test_a_generic_plane(seed):
    assert_like_the_plane(gaussian_layers(seed, (3, 6, 5, 2)), generic_windows(seed, 2, 3))


@pytest.mark.parametrize("hows", [("relu", "relu", None), ("relu", "hard_tanh", None)])
def test_a_degenerate_plane(hows):
    """Equal, parallel and dead units, zeros on whole cells, several units on one facet."""
    for seed in range(4):
        layers = integer_layers(seed, (3, 4, 3, 1), hows)
        assert_like_the_plane(layers, integer_windows(seed, 2, 3, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "hows",
    [
        ("relu", "relu", None),
        ("relu", "hard_tanh", None),
        ("leaky", "relu", "relu"),
        ("relu", 2, "relu"),
        (3, "relu", 2),
    ],
)
def test_many_degenerate_planes(hows):
    for seed in range(100, 140):
        layers = integer_layers(seed, (3, 4, 3, 2), hows)
        assert_like_the_plane(layers, integer_windows(seed, 3, 3, 2))


def test_a_plane_through_the_centroid_of_a_batch():
    net, windows = at_centroid(7, 6, 2)
    found, planar = spatial(net, windows[0]), jr.partition(net, windows[0])
    assert_same_partition(found, planar)
    assert found.settled_exactly > 0
