"""Partitions of windows of any dimension by the sign tree, against planes, fractions, sampling."""

import chex
import jax
import jax.numpy as jnp
import networkx
import numpy as np
import oracles
import pytest
from batchnorm_slices import at_centroid
from scipy.spatial import ConvexHull
from small_networks import gaussian_layers, integer_layers, integer_windows, recipe, traced

import jaxregions as jr
from jaxregions.engines import leaves, polytopes, touching, vertices
from jaxregions.engines.frontier import UNLIMITED, Status
from jaxregions.engines.margins import Margins
from jaxregions.partitions import trees

SIZES, HOWS = (3, 4, 3, 1), ("relu", "relu", None)  # one structure is compiled once


def spatial(net, window):
    """The engine for dimension 3 and above, of any dimension."""
    return trees.grown(net, window, UNLIMITED, True, lambda *_: None)


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


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_generic_plane(seed):
    assert_like_the_plane(gaussian_layers(seed, SIZES), generic_windows(seed, 2, 3))


def test_a_degenerate_plane():
    """Equal, parallel and dead units, zeros on whole cells, several units on one facet."""
    for seed in range(4):
        layers = integer_layers(seed, SIZES, HOWS)
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


@pytest.mark.slow
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


@pytest.mark.parametrize("sizes", [SIZES, pytest.param((5, 4, 3, 1), marks=pytest.mark.slow)])
def test_generic_cells_in_fractions(sizes):
    d, k = sizes[0], min(sizes[0], 4)
    layers = gaussian_layers(k, sizes)
    basis = np.random.default_rng(k).normal(size=(d, k))
    part = assert_exact(layers, jr.Window(np.full(d, 0.1), 0.8, basis))
    assert len(part.vertices) < len(part.corner) / 2  # shared


@pytest.mark.parametrize("seed", range(3))
def test_degenerate_cells_in_fractions(seed):
    assert_exact(integer_layers(seed, SIZES, HOWS), jr.Window(np.zeros(3), 1.5))


@pytest.mark.slow
@pytest.mark.parametrize("hows", [("leaky", "relu", None), ("relu", "leaky", None)])
def test_many_degenerate_cells_in_fractions(hows):
    for seed in range(20, 32):
        layers = integer_layers(seed, (3, 4, 3, 1), hows)
        center = np.random.default_rng(seed).integers(-2, 3, 3) / 2
        assert_exact(layers, jr.Window(center, 1.25))


# Known numbers, sampling, all engines ------------------------------------------------------------


LAYERS = gaussian_layers(18, SIZES)
CUBE = jr.Window(np.zeros(3), 1.0)


@pytest.fixture(scope="module")
def part():
    return jr.partition(traced(LAYERS), CUBE)


def test_counts_volumes_and_tables(part):
    counts = jr.count_regions(traced(LAYERS), CUBE)
    assert (part.status, part.certified) == (Status.COMPLETE, True)
    assert part.activation_regions == counts.activation_regions > 30
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
    for weights, bias, how in LAYERS:
        hidden = hidden @ weights.T + bias
        if how:
            signs.append(hidden > 0)
            hidden = np.maximum(hidden, 0)
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
        (w, b, _), (v, c, _) = LAYERS[:2]
        z = w @ middle + b, v @ np.maximum(w @ middle + b, 0) + c
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


@pytest.mark.parametrize("k", [1, 2, 3])
def test_all_engines_agree(k):
    for seed in range(3):
        assert_all_engines_agree(gaussian_layers(seed, SIZES), k, seed)
        assert_all_engines_agree(integer_layers(seed, SIZES, HOWS), k, seed, np.eye(3)[:, :k])


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_all_engines_agree_on_hundreds_of_networks(k):
    for seed in range(50):
        sizes = (5, 6, 5, 2) if k < 4 else (5, 5, 3, 2)
        assert_all_engines_agree(gaussian_layers(seed, sizes), k, seed)
    for seed in range(30):
        layers = integer_layers(seed, (5, 4, 3, 1), ("relu", "leaky", None))
        assert_all_engines_agree(layers, k, seed, np.eye(5)[:, :k])


# What is special ---------------------------------------------------------------------------------


def test_without_floats_rationals_find_the_facets(part, monkeypatch):
    monkeypatch.setattr(touching, "_holds", lambda table, _: table.plane < 0)
    monkeypatch.setattr(touching, "_solved", lambda table: (table.plane < 0, table.plane < 0))
    again = jr.partition(traced(LAYERS), CUBE)
    assert neighbours(again) == neighbours(part)
    assert again.settled_exactly > part.settled_exactly


def test_without_segments_programs_find_the_facets(part, monkeypatch):
    holds, calls = touching._holds, []

    def every_other(table, point):
        calls.append(len(point))
        return holds(table, point) & (len(calls) % 2 == 0)

    monkeypatch.setattr(touching, "_holds", every_other)
    again = jr.partition(traced(LAYERS), CUBE)
    assert neighbours(again) == neighbours(part)
    monkeypatch.setattr(touching, "_FEW", 0)
    again = jr.partition(traced(LAYERS), CUBE)
    assert neighbours(again) == neighbours(part)
    assert again.settled_exactly == part.settled_exactly


@pytest.mark.parametrize("margin", [-1.0, 1.0])
def test_a_solver_that_errs_is_not_believed(part, monkeypatch, margin):
    rng = np.random.default_rng(0)

    def wrong(slope, value):
        count, rows, k = slope.shape
        point, weight = rng.uniform(-1, 1, (count, k)), rng.uniform(0, 1, (count, rows))
        return Margins(np.full(count, margin), point, weight, np.ones(count, bool))

    monkeypatch.setattr(touching, "_crossing", lambda *given: given[1] + 9)
    monkeypatch.setattr(touching, "solve_margins", wrong)
    again = jr.partition(traced(LAYERS), CUBE)
    assert neighbours(again) == neighbours(part)
    assert again.settled_exactly > part.settled_exactly


def test_cells_by_qhull_are_those_of_the_vertices(part, monkeypatch):
    monkeypatch.setattr(polytopes, "subdivision", degenerate)
    alone = jr.partition(traced(LAYERS), CUBE)
    chex.assert_trees_all_close(alone.volume, part.volume, rtol=1e-9)
    assert len(alone.vertices) == len(alone.corner) == len(part.corner)
    assert alone.vertex_error.max() < 1e-9


def degenerate(net, windows, stopped):
    """``subdivision`` of windows that it does not order."""
    ledger, skeleton, counts = vertices.subdivision(net, windows, stopped)
    counts.status[:] = Status.DEGENERATE
    return ledger, skeleton, counts


@pytest.mark.slow
def test_the_corner_where_all_hyperplanes_of_batchnorm_meet():
    net, windows = at_centroid(7, 6, 3)
    part = jr.partition(net, windows[0])
    assert part.activation_regions == 2 * (1 + 6 + 15)
    assert part.volume.sum() == pytest.approx(np.exp(windows[0].log_volume()), rel=1e-12)
    times = np.bincount(part.corner)
    assert times.max() == part.activation_regions  # all cells share the centroid


@pytest.mark.slow
def test_maxima_are_one_region_per_maximiser():
    part = jr.partition(jnp.max, jr.Window(np.zeros(4), 1.0))
    assert part.activation_regions == part.affine_regions == 4 < len(part.witness)
    assert jr.count_regions(jnp.max, jr.Window(np.zeros(4), 1.0), affine=True).affine_regions == 4
    chex.assert_trees_all_close(np.bincount(part.region, part.volume), np.full(4, 4.0))
    winner = part.witness.argmax(axis=1)
    assert len({*zip(winner.tolist(), part.region.tolist(), strict=True)}) == 4


def test_above_the_dimensions_of_vertices_the_rest_is_the_same(part, monkeypatch):
    monkeypatch.setattr(polytopes, "MOST", 2)
    bare = jr.partition(traced(LAYERS), CUBE)
    assert_same_partition(bare, part)
    assert bare.vertices.shape == (0, 3)
    assert np.isnan(bare.volume).all()


@pytest.mark.slow
def test_nine_dimensions():
    kernel = np.random.default_rng(2).normal(size=(9, 5))
    part = jr.partition(lambda x: jax.nn.relu(x @ kernel + 0.1), jr.Window(np.zeros(9), 1.0))
    assert part.activation_regions == part.affine_regions == 2**5
    assert len(part.left) == 5 * 2**4  # the edges of a cube
    assert part.vertices.shape == (0, 9)
    assert np.isnan(part.volume).all()


def test_an_affine_function_has_one_cell():
    part = jr.partition(lambda x: 2 * x, CUBE)
    assert part.activation_regions == part.affine_regions == len(part.volume) == 1
    assert part.volume[0] == pytest.approx(8.0)
    assert len(part.left) == 0


# Limits ------------------------------------------------------------------------------------------


def test_a_region_limit_leaves_the_stages_that_were_finished(part):
    first = part.tables[0].regions
    some = jr.partition(traced(LAYERS), CUBE, max_regions=first)
    assert some.status == Status.MAX_REGIONS
    assert len(some.tables) == len(some.patterns) == 1
    assert len(some.witness) == first < some.activation_regions <= part.activation_regions
    assert (some.affine_regions, np.isnan(some.slope).all()) == (-1, True)
    assert some.volume.sum() == pytest.approx(8.0)
    counts = jr.count_regions(traced(LAYERS), CUBE, affine=True, max_regions=first)
    assert (counts.status, counts.affine_regions) == (Status.MAX_REGIONS, -1)
    assert first < counts.activation_regions <= part.activation_regions


def test_an_interrupt_leaves_what_was_finished(part, monkeypatch):
    cut, stages = leaves.cut, []

    def interrupted(search, frame, batch):
        stages.append(batch[0].stage)
        if stages[-1] == 1:
            raise KeyboardInterrupt
        return cut(search, frame, batch)

    monkeypatch.setattr(leaves, "cut", interrupted)
    some = jr.partition(traced(LAYERS), CUBE)
    assert (some.status, len(some.tables)) == (Status.INTERRUPTED, 1)
    assert some.activation_regions == part.tables[0].regions
    windows = jr.Window(np.zeros((3, 3)), 1.0)
    counts = jr.count_regions(traced(LAYERS), windows, affine=True)
    assert counts.status.tolist() == [Status.INTERRUPTED] * 3
    assert counts.activation_regions.tolist() == [part.tables[0].regions, 1, 1]


def test_no_time_leaves_the_window():
    some = jr.partition(traced(LAYERS), CUBE, max_seconds=1e-9)
    assert (some.status, some.tables, len(some.witness)) == (Status.MAX_SECONDS, (), 1)


@pytest.mark.slow
def test_cells_without_a_float_in_them_have_maps_and_facets():
    third = 1.0 / 3  # rounded down: no float64 lies between it and 1/3
    first = np.array([[1.0, 0, 0], [3.0, 0, 0]]), np.array([-third, -1.0]), "relu"
    layers = [first, (np.array([[1.0, -1.0]]), np.array([2.0**-56]), None)]
    part = jr.partition(traced(layers), CUBE)
    assert (part.certified, part.activation_regions, part.affine_regions) == (True, 3, 3)
    assert part.witness_inside.sum() == 2
    assert sorted(zip(part.left.tolist(), part.right.tolist(), strict=True)) == [(0, 1), (1, 2)]
    assert part.slope[:, 0].tolist() == [[-2, 0, 0], [1, 0, 0], [0, 0, 0]]
    counts = jr.count_regions(traced(layers), CUBE, affine=True)
    assert (counts.certified, counts.affine_regions) == (True, 3)


def test_many_windows_are_what_each_is_alone():
    windows = jr.Window(np.random.default_rng(0).normal(size=(6, 3)) / 2, 0.5)
    net = traced(LAYERS)
    together = jr.count_regions(net, windows, affine=True)
    alone = [jr.partition(net, windows[i]).affine_regions for i in range(6)]
    assert together.affine_regions.tolist() == alone


def test_what_needs_a_plane_says_so(part):
    with pytest.raises(ValueError, match="dimension 1 or 2, received 3; take a slice"):
        jr.level_set(part)
    with pytest.raises(ValueError, match="dimension 1 or 2, received 3; take a slice"):
        part.plot()
