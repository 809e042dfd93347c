"""``partition`` against plain NumPy forward passes and elementary geometry."""

import sys
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from small_networks import integer_layers, integer_windows, traced

import jaxregions as jr
from jaxregions import Status, partitions
from jaxregions.engines.points import CORNER, Ledger, Vertices
from jaxregions.engines.signs import patterns

SIZES = (2, 8, 8, 3)


def layers(seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)
    pairs = pairwise(sizes)
    return [(rng.normal(size=(b, a)) * np.sqrt(2 / a), rng.normal(size=b) * 0.3) for a, b in pairs]


def network(weights):
    def f(x):
        for w, b in weights[:-1]:
            x = jax.nn.relu(w @ x + b)
        w, b = weights[-1]
        return w @ x + b

    return f


def plain(weights, x):
    """Patterns (bool per hidden layer) and outputs, in NumPy."""
    signs = []
    for w, b in weights[:-1]:
        z = x @ w.T + b
        signs.append(z > 0)
        x = np.maximum(z, 0)
    w, b = weights[-1]
    return signs, x @ w.T + b


WEIGHTS = layers()
WINDOW = jr.Window(np.array([0.1, -0.2]), np.array([1.0, 0.7]))


@pytest.fixture(scope="module")
def part():
    return jr.partition(network(WEIGHTS), WINDOW)


def located(part, weights, u, points):
    """The cell of each point, by its pattern."""
    signs, outputs = plain(weights, points)
    table = {row.tobytes(): i for i, row in enumerate(np.concatenate(part.patterns, axis=1) > 0)}
    return [table[row.tobytes()] for row in np.concatenate(signs, axis=1)], outputs


def corners(part, cell):
    return part.vertices[part.corner[part.start[cell] : part.start[cell + 1]]]


def inside(polygon, u):
    """Whether u lies in a convex polygon given counter-clockwise, up to rounding."""
    step = np.roll(polygon, -1, axis=0) - polygon
    reach = u - polygon
    return (step[:, 0] * reach[:, 1] - step[:, 1] * reach[:, 0]).min() >= -1e-12


def sampled(count, seed=1):
    u = np.random.default_rng(seed).uniform(-1, 1, (count, 2)) * WINDOW.radii()
    return u, WINDOW.center + u


def test_every_point_lies_in_the_cell_of_its_pattern(part):
    u, points = sampled(2000)
    cells, _ = located(part, WEIGHTS, u, points)
    assert all(inside(corners(part, c), p) for c, p in zip(cells, u, strict=True))
    assert len(set(cells)) > part.activation_regions / 3


def test_affine_maps_are_the_function(part):
    u, points = sampled(500)
    cells, outputs = located(part, WEIGHTS, u, points)
    maps = np.einsum("fmk,fk->fm", part.slope[cells], u) + part.intercept[cells]
    chex.assert_trees_all_close(maps, outputs, rtol=1e-12, atol=1e-12)


def test_patterns_are_those_of_the_witnesses_and_all_different(part):
    signs, _ = plain(WEIGHTS, WINDOW.center + part.witness)
    for pattern, sign in zip(part.patterns, signs, strict=True):
        assert (pattern == np.where(sign, 1, -1)).all()
    every = np.concatenate(part.patterns, axis=1)
    assert len(np.unique(every, axis=0)) == len(every) == part.activation_regions
    assert part.witness_inside.all()
    assert all(inside(corners(part, c), u) for c, u in enumerate(part.witness))


@pytest.mark.parametrize(
    ("seed", "hows"),
    [(2, ("relu",) * 3), pytest.param(3, ("hard_tanh", 2, "relu"), marks=pytest.mark.slow)],
)
def test_patterns_of_degenerate_networks_are_those_of_evaluation(seed, hows):
    net = traced(integer_layers(seed, (3, 5, 4, 3), hows))
    window = integer_windows(seed, 1, 3, 2)[0]
    part = jr.partition(net, window, affine=False)
    assert part.witness_inside.all()
    none = np.full(len(part.witness), CORNER)
    at = Vertices(part.witness, np.zeros(len(none)), 0 * none, none, none, none, none, none)
    expected = patterns(Ledger(net, window.reshape(1), at), len(net.stages))
    assert len(part.patterns) == len(expected)
    assert all((p == e).all() for p, e in zip(part.patterns, expected, strict=True))


def test_count_is_that_of_count_regions(part):
    counts = jr.count_regions(network(WEIGHTS), WINDOW, affine=True)
    assert part.activation_regions == counts.activation_regions
    assert part.affine_regions == counts.affine_regions
    assert [t.hits for t in part.tables] == counts.hits.tolist()
    assert [t.regions for t in part.tables] == counts.by_stage.tolist()


def test_areas_are_those_of_the_polygons_and_fill_the_window(part):
    assert part.volume.sum() == pytest.approx(np.exp(WINDOW.log_volume()), rel=1e-13)
    assert (part.volume > 0).all()
    u, points = sampled(40_000)
    cells, _ = located(part, WEIGHTS, u, points)
    share = np.bincount(cells, minlength=len(part.volume)) / len(u)
    large = int(part.volume.argmax())
    assert share[large] == pytest.approx(part.volume[large] / part.volume.sum(), abs=0.01)


def test_slices_measure_area_in_input_space():
    basis = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    window = jr.Window(np.zeros(3), 0.5, basis=basis)
    weights = layers(3, (3, 6, 1))
    part = jr.partition(network(weights), window)
    assert part.volume.sum() == pytest.approx(2 * np.sqrt(2), rel=1e-13)
    signs, _ = plain(weights, part.witness @ basis.T)
    assert (part.patterns[0] == np.where(signs[0], 1, -1)).all()


def test_exactly_the_facets_unit_changes_across_a_facet(part):
    for stage, pattern in enumerate(part.patterns):
        differs = pattern[part.left] != pattern[part.right]
        own = part.facet_stage == stage
        assert (differs[own].sum(1) == 1).all()
        assert not differs[~own].any()
        assert (differs[own].argmax(1) == part.facet_unit[own]).all()


def test_facets_are_shared_edges_and_none_is_missing(part):
    edges = {}
    for cell in range(len(part.volume)):
        ring = part.corner[part.start[cell] : part.start[cell + 1]]
        for pair in zip(ring, np.roll(ring, -1), strict=True):
            edges.setdefault(frozenset(pair), set()).add(cell)
    shared = {edge: cells for edge, cells in edges.items() if len(cells) == 2}
    found = {
        frozenset(f): {a, b}
        for f, a, b in zip(part.facet.tolist(), part.left, part.right, strict=True)
    }
    assert found == shared


def test_stage_tables_say_who_cuts_whom(part):
    first, second = part.tables
    assert (first.parents, second.parents) == (1, first.regions)
    for table in part.tables:
        assert table.children.sum() == table.regions == len(table.parent)
        assert (np.bincount(table.parent, minlength=table.parents) == table.children).all()
    assert second.regions == part.activation_regions
    u, points = sampled(20_000)
    signs, _ = plain(WEIGHTS, points)
    cells, _ = located(part, WEIGHTS, u, points)
    parent = second.parent[cells]
    cuts = set(zip(second.cut_parent.tolist(), second.cut_unit.tolist(), strict=True))
    for one in np.unique(parent):
        here = signs[1][parent == one]
        both = np.flatnonzero(here.any(0) & ~here.all(0))
        assert {(one, unit) for unit in both} <= cuts


def test_euler_relation(part):
    edges = len(part.facet)
    ring = len(part.corner) - 2 * edges  # edges on the window's border
    assert len(part.vertices) - (edges + ring) + len(part.volume) == 1


def test_one_dimension():
    window = jr.Window(np.zeros(2), 1.5, basis=np.array([[0.6], [0.8]]))
    part = jr.partition(network(WEIGHTS), window)
    t = np.linspace(-1.5, 1.5, 20_001)[1:-1, None]
    signs, outputs = plain(WEIGHTS, t * np.array([0.6, 0.8]))
    every = np.concatenate(signs, axis=1)
    switches = 1 + (every[1:] != every[:-1]).any(1).sum()
    assert part.activation_regions == switches
    assert part.volume.sum() == pytest.approx(3.0, rel=1e-14)
    cell = np.searchsorted(np.sort(part.vertices[:, 0])[1:-1], t[:, 0])
    order = np.argsort(part.witness[:, 0])
    maps = part.slope[order][cell][..., 0] * t + part.intercept[order][cell]
    chex.assert_trees_all_close(maps, outputs, atol=1e-12)
    pieces, _ = jr.level_set(part, 0)
    crossings = np.flatnonzero(np.diff(outputs[:, 0] > 0))
    chex.assert_trees_all_close(np.sort(pieces.ravel()), t[crossings, 0], atol=2e-4)


def test_level_set_is_where_the_difference_of_two_outputs_has_that_level(part):
    _, witness = plain(WEIGHTS, WINDOW.center + part.witness)
    level = float(np.median(witness[:, 0] - witness[:, 2]))
    pieces, cells = jr.level_set(part, 0, minus=2, level=level)
    _, ends = plain(WEIGHTS, WINDOW.center + pieces.reshape(-1, 2))
    assert len(pieces) > 3
    chex.assert_trees_all_close(ends[:, 0] - ends[:, 2], np.full(len(ends), level), atol=1e-12)
    for cell in range(len(part.volume)):
        _, at = plain(WEIGHTS, WINDOW.center + corners(part, cell))
        height = at[:, 0] - at[:, 2] - level
        assert (cell in cells) == (height.min() < 0 < height.max())


def test_level_set_refuses_outputs_that_do_not_exist(part):
    with pytest.raises(ValueError, match="output: expected 0 to 2, received 3"):
        jr.level_set(part, 3)
    with pytest.raises(ValueError, match="minus"):
        jr.level_set(part, 0, minus=-1)


@pytest.mark.slow
def test_maximum_over_candidates_is_one_region_per_maximiser():
    directions = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [1e-3, 1e-3]])
    part = jr.partition(lambda x: jnp.max(directions @ x), jr.Window(np.zeros(2), 1.0))
    winners = np.unique((part.witness @ directions.T).argmax(1))
    assert part.activation_regions == part.affine_regions == len(winners) == 4
    area = np.bincount(part.region, part.volume)
    chex.assert_trees_all_close(area, np.ones(4), atol=1e-12)


def test_cells_with_one_affine_map_share_their_label():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    # relu(x) - relu(-x) = x: the first two units switch, and the map stays.
    part = jr.partition(
        lambda x: jax.nn.relu(rows @ x) @ np.array([1.0, -1.0, 1.0]), jr.Window(np.zeros(2), 1.0)
    )
    assert (part.activation_regions, part.affine_regions) == (4, 2)
    upper = part.witness[:, 1] > 0
    assert len(set(part.affine_region[upper])) == len(set(part.affine_region[~upper])) == 1


def test_a_unit_that_vanishes_on_a_cell_has_pattern_zero():
    first, second = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, -1.0]])
    part = jr.partition(
        lambda x: jax.nn.relu(second @ jax.nn.relu(first @ x)), jr.Window(np.zeros(2), 1.0)
    )
    hidden = np.maximum(part.witness, 0)
    expected = np.sign(hidden @ second.T)
    assert (part.patterns[1] == expected).all()
    assert (expected == 0).sum() == 3  # both units where all is dead, the first in one more cell
    assert part.activation_regions == 5


def test_plain_dict_survives_a_file(part, tmp_path):
    np.savez(tmp_path / "part.npz", **jr.to_dict(part))
    with np.load(tmp_path / "part.npz") as loaded:
        assert set(loaded) == set(jr.to_dict(part))
        assert (loaded["pattern_1"] == part.patterns[1]).all()
        assert (loaded["stage_1_children"] == part.tables[1].children).all()
        assert (loaded["window_center"] == WINDOW.center).all()


def test_dual_graph(part):
    graph = jr.to_networkx(part)
    assert graph.number_of_nodes() == part.activation_regions
    assert graph.number_of_edges() == len(part.facet)
    assert networkx.is_connected(graph)
    left, right = int(part.left[0]), int(part.right[0])
    assert graph.edges[left, right] == {
        "stage": int(part.facet_stage[0]),
        "unit": int(part.facet_unit[0]),
    }


def test_missing_networkx_is_named(part, monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ImportError, match="pip install networkx"):
        jr.to_networkx(part)


def test_region_limit_keeps_the_stages_that_were_finished():
    part = jr.partition(network(WEIGHTS), WINDOW, max_regions=5)
    whole = jr.count_regions(network(WEIGHTS), WINDOW)
    assert part.status == Status.MAX_REGIONS
    assert len(part.tables) == len(part.patterns) == 1
    assert part.activation_regions == whole.by_stage[0] > 5
    assert part.affine_regions == -1
    assert np.isnan(part.slope).all()
    with pytest.raises(ValueError, match="complete partition"):
        jr.level_set(part, 0)


def test_several_windows_are_refused():
    with pytest.raises(ValueError, match=r"one window, received leading axes \(3,\)"):
        jr.partition(network(WEIGHTS), jr.Window(np.zeros((3, 2)), 1.0))


def test_affine_function_has_one_cell():
    part = jr.partition(lambda x: x @ np.ones((2, 2)), WINDOW)
    assert part.activation_regions == part.affine_regions == len(part.volume) == 1
    assert part.tables == part.patterns == ()
    assert partitions.level_set(part, 0)[0].shape == (1, 2, 2)
