"""Partitions of windows of any dimension by the sign tree, against planes, fractions, sampling."""

import time

import chex
import jax
import jax.numpy as jnp
import networkx
import numpy as np
import oracles
import pytest
from batchnorm_slices import at_centroid
from scipy.spatial import ConvexHull
from small_networks import gaussian_layers, integer_layers, integer_windows, network, recipe, traced

import jaxregions as jr
from jaxregions import partitions
from jaxregions.engines import facets, polytopes
from jaxregions.engines.frontier import Limits, Status

UNLIMITED = Limits(None, np.inf)


def spatial(net, window):
    """The engine for dimension 3 and above, of any dimension."""
    return partitions._cell_by_cell(net, window, UNLIMITED, True, lambda *_: None)


def named(signs):
    """A name for each row of signs; columns that are the same everywhere say nothing."""
    signs = np.array(signs, np.int8)
    return [row.tobytes() for row in signs[:, (signs != signs[0]).any(axis=0)]]


def keys(part):
    """A name for each cell."""
    return named(np.concatenate(part.patterns, axis=1))


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


# Fractions ---------------------------------------------------------------------------------------


def assert_exact(layers, window):
    """Cells, facets, labels, volumes and corners of one window, against fractions."""
    basis = None if window.basis is None else window.basis
    cells = oracles.window_polytopes(layers, window.center, window.radius, basis)[-1]
    part = jr.partition(traced(layers), window)
    assert part.certified
    name = named([[s for stage in c.pattern for u in stage for s in u] for c in cells])
    assert sorted(keys(part)) == sorted(name)
    touching = oracles.touching_pairs(cells)
    assert neighbours(part) == {frozenset((name[i], name[j])) for i, j in touching}
    graph = networkx.Graph()
    graph.add_nodes_from(name)
    graph.add_edges_from((name[i], name[j]) for i, j in touching if cells[i].maps == cells[j].maps)
    affine = set(map(frozenset, networkx.connected_components(graph)))
    assert groups(part, part.affine_region) == affine
    assert part.affine_regions == len(affine)
    counts = jr.count_regions(traced(layers), window, affine=True)
    assert (counts.activation_regions, counts.affine_regions) == (len(cells), len(affine))
    place = dict(zip(keys(part), range(len(cells)), strict=True))
    scale = 1.0 if basis is None else np.sqrt(np.linalg.det(basis.T @ basis))
    for cell, own in zip(cells, name, strict=True):
        i = place[own]
        corners = np.array([[float(x) for x in v] for v in cell.vertices])
        assert part.volume[i] == pytest.approx(ConvexHull(corners).volume * scale, rel=1e-9)
        at = slice(part.start[i], part.start[i + 1])
        near, error = part.vertices[part.corner[at]], part.vertex_error[part.corner[at]]
        assert len(near) == len(corners)
        away = np.abs(near[:, None] - corners).max(axis=2).min(axis=1)
        assert (away <= error + 1e-15).all()
    return part


@pytest.mark.parametrize("k", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_generic_cells_in_fractions(k):
    layers = gaussian_layers(k, (5, 4, 3, 1))
    basis = np.random.default_rng(k).normal(size=(5, k))
    part = assert_exact(layers, jr.Window(np.full(5, 0.1), 0.8, basis))
    assert len(part.vertices) < len(part.corner) / 2  # shared


@pytest.mark.parametrize("seed", range(3))
def test_degenerate_cells_in_fractions(seed):
    layers = integer_layers(seed, (3, 4, 3, 1), ("relu", "relu", None))
    assert_exact(layers, jr.Window(np.zeros(3), 1.5))


@pytest.mark.slow
@pytest.mark.parametrize("hows", [("leaky", "relu", None), ("relu", "leaky", None)])
def test_many_degenerate_cells_in_fractions(hows):
    for seed in range(20, 32):
        layers = integer_layers(seed, (3, 4, 3, 1), hows)
        center = np.random.default_rng(seed).integers(-2, 3, 3) / 2
        assert_exact(layers, jr.Window(center, 1.25))


# Known numbers, sampling, all engines ------------------------------------------------------------


@pytest.fixture(scope="module")
def part():
    return jr.partition(traced(RECIPE), jr.Window(np.zeros(3), 1.0))


RECIPE = recipe((3, 8, 8), 3)
REGIONS = 646


def test_counts_volumes_and_tables_of_a_recipe_network(part):
    assert (part.activation_regions, part.status, part.certified) == (646, Status.COMPLETE, True)
    counts = jr.count_regions(traced(RECIPE), jr.Window(np.zeros(3), 1.0))
    assert [t.regions for t in part.tables] == counts.by_stage.tolist()
    assert [t.hits for t in part.tables] == counts.hits.tolist()
    for table in part.tables:
        assert (np.bincount(table.parent, minlength=table.parents) == table.children).all()
    assert part.volume.sum() == pytest.approx(8.0, rel=1e-13)
    graph = jr.to_networkx(part)
    assert networkx.is_connected(graph)
    assert graph.number_of_edges() == len(part.left)
    assert jr.to_dict(part)["certified"]


def test_samples_lie_in_their_cells_as_often_as_the_volumes_say(part):
    count = 100_000
    points = np.random.default_rng(0).uniform(-1, 1, (count, 3))
    hidden, signs = points, []
    for weights, bias, _ in RECIPE:
        z = hidden @ weights.T + bias
        hidden, signs = np.maximum(z, 0), [*signs, z > 0]
    seen = np.concatenate(signs, axis=1)
    rows = np.concatenate(part.patterns, axis=1) > 0
    place = {row.tobytes(): i for i, row in enumerate(rows)}
    cell = np.array([place[row.tobytes()] for row in seen])
    share = part.volume / 8
    found = np.bincount(cell, minlength=len(share)) / count
    assert (np.abs(found - share) <= 6 * np.sqrt(share / count) + 20 / count).all()
    maps = np.einsum("nmk,nk->nm", part.slope[cell], points) + part.intercept[cell]
    chex.assert_trees_all_close(maps, hidden, atol=1e-12)


def test_a_point_just_across_a_facet_has_the_neighbours_signs(part):
    """The middle of the vertices that two cells share."""
    first = np.cumsum([0, *(p.shape[1] for p in part.patterns)])
    signs = np.concatenate(part.patterns, axis=1)
    for left, right, stage, unit in zip(
        part.left, part.right, part.facet_stage, part.facet_unit, strict=True
    ):
        both = np.intersect1d(
            *(part.corner[part.start[c] : part.start[c + 1]] for c in (left, right))
        )
        assert len(both) >= 3
        middle = part.vertices[both].mean(axis=0)
        h = np.maximum(RECIPE[0][0] @ middle + RECIPE[0][1], 0)
        z = (RECIPE[0][0] @ middle + RECIPE[0][1], RECIPE[1][0] @ h + RECIPE[1][1])
        assert abs(z[stage][unit]) < 1e-9
        assert np.flatnonzero(signs[left] != signs[right]).tolist() == [first[stage] + unit]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "seed", "radius", "regions"),
    [((3, 16, 16), 3, 1.0, 4896), ((4, 16, 16), 4, 0.5, 17007)],
)
def test_recipe_networks(sizes, seed, radius, regions):
    part = jr.partition(traced(recipe(sizes, seed)), jr.Window(np.zeros(sizes[0]), radius))
    assert (part.activation_regions, part.affine_regions) == (regions, regions)
    assert part.volume.sum() == pytest.approx((2 * radius) ** sizes[0], rel=1e-12)


ENGINES = {1: ("segments", "cells"), 2: ("planar", "cells"), 3: ("vertices", "cells")}


def assert_all_engines_agree(layers, k, seed, basis=None):
    """Counts by every engine, and the cells of the partition."""
    net, rng = traced(layers), np.random.default_rng(seed)
    d = net.input_shape[0]
    basis = rng.normal(size=(d, k)) if basis is None else basis
    window = jr.Window(rng.integers(-2, 3, d) / 2, 1.0, basis)
    engines = ENGINES.get(k, ENGINES[3])
    each = [jr.count_regions(net, window, engine=e) for e in engines]
    unions = jr.count_regions(net, window, engine=None if k > 2 else "cells", affine=True)
    assert unions.certified
    for counts in (*each, unions):
        if counts.status != Status.DEGENERATE:
            assert counts.activation_regions == unions.activation_regions
            assert counts.by_stage.tolist() == unions.by_stage.tolist()
            assert counts.hits.tolist() == unions.hits.tolist()
    if k <= 2:
        planar = jr.count_regions(net, window, affine=True)
        assert planar.affine_regions == unions.affine_regions
    part = jr.partition(net, window)
    assert part.activation_regions == unions.activation_regions
    assert part.affine_regions == unions.affine_regions
    assert len(part.witness) == each[0].by_stage[-1]
    total = np.exp(window.log_volume())
    assert part.volume.sum() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_all_engines_agree(k):
    assert_all_engines_agree(gaussian_layers(k, (4, 5, 4, 2)), k, k)
    basis = np.eye(4)[:, :k]
    assert_all_engines_agree(integer_layers(k, (4, 4, 3, 1), ("relu", "relu", None)), k, k, basis)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_all_engines_agree_on_hundreds_of_networks(k):
    for seed in range(50):
        sizes = (5, 6, 5, 2) if k < 4 else (5, 5, 3, 2)
        assert_all_engines_agree(gaussian_layers(seed, sizes), k, seed)
    for seed in range(30):
        layers = integer_layers(seed, (5, 4, 3, 1), ("relu", "leaky", None))
        assert_all_engines_agree(layers, k, seed, np.eye(5)[:, :k])
