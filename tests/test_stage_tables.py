"""Per-stage tables: all engines against each other, and against cells built in fractions."""

import math
import signal
from collections import Counter
from math import comb

import jax
import numpy as np
import oracles
import pytest
from small_networks import gaussian_layers, integer_layers, integer_windows, recipe, traced

import jaxregions as jr
from jaxregions import zoo
from jaxregions.engines.frontier import Limits
from jaxregions.partitions import tables

ENGINES = {1: ("segments",), 2: ("planar",), 3: ("vertices",), 4: ("vertices",)}
NO_LIMITS = Limits(None, math.inf)


def assert_same(mine, others):
    """Two lists of tables, number by number."""
    for a, b in zip(mine, others, strict=True):
        assert not isinstance(a, jr.Status)
        for one, other in zip(a, b, strict=True):
            for name, x, y in zip(jr.StageTable._fields, one, other, strict=True):
                np.testing.assert_array_equal(x, y, err_msg=name)


def of_the_certificate(net, windows):
    counts = jr.count_regions(net, windows, engine="cells", certificate=True)
    return jr.stage_tables(net, counts.certificate)


def of_the_vertices(net, windows):
    """In any dimension k >= 2; what is too degenerate by the sign tree."""
    found = tables._by_vertices(net, windows.reshape(-1), NO_LIMITS, lambda *_: None)
    return tables._tables(net, found)


def exact_tables(layers, center, radius, basis=None):
    """In fractions: cells as lists of vertices, cut where a value has both signs at these."""
    out = []
    for stage, (weights, bias, how) in enumerate(layers):
        if how is None:
            break
        before, after = (
            sorted(cells, key=flat_pattern)
            for cells in (
                oracles.window_polytopes(layers[:s], center, radius, basis)[-1]
                for s in (stage, stage + 1)
            )
        )
        breaks, cut_parent, cut_unit = oracles.PIECES[how][0], [], []
        for parent, cell in enumerate(before):
            rows = zip(oracles.fractions(weights), oracles.fractions(bias), strict=True)
            for unit, (row, shift) in enumerate(rows):
                slope, value = oracles.combination(row, shift, cell.maps)
                for t in breaks:
                    at = [oracles.at((slope, value - t), v) for v in cell.vertices]
                    if min(at) < 0 < max(at):
                        cut_parent.append(parent)
                        cut_unit.append(unit)
        place = {c.pattern: i for i, c in enumerate(before)}
        parent = [place[c.pattern[:-1]] for c in after]
        children = [parent.count(p) for p in range(len(before))]
        hits = oracles.hits_by_stage(after)[-1]
        sizes = len(before), len(after)
        out.append(jr.StageTable(*sizes, hits, cut_parent, cut_unit, children, parent))
    return out


def flat_pattern(cell):
    return [sign for stage in cell.pattern for unit in stage for sign in unit]


@pytest.mark.parametrize(
    ("k", "hows", "seed"),
    [
        (1, ("relu", "leaky", None), 0),
        (2, ("leaky", "relu", None), 1),
        (3, ("relu", "relu", None), 0),
        (3, ("leaky", "relu", None), 1),
        *(
            pytest.param(k, hows, seed, marks=pytest.mark.slow)
            for k in (1, 2, 3)
            for hows in (("relu", "relu", None), ("leaky", "relu", None))
            for seed in range(2, 10)
        ),
        *(
            pytest.param(4, ("relu", "leaky", None), seed, marks=pytest.mark.slow)
            for seed in range(3)
        ),
    ],
)
def test_every_engine_agrees_with_fractions_where_everything_is_degenerate(k, hows, seed):
    layers = integer_layers(seed, (max(3, k), 3, 3, 1), hows)
    for weights, *_ in layers:
        weights[~weights.any(axis=1), 0] = 1  # constant units have no number
    windows = integer_windows(seed, 3, max(3, k), k)
    expected = [
        exact_tables(layers, c, r, basis)
        for c, r, basis in zip(windows.center, windows.radii(), windows.basis, strict=True)
    ]
    net = traced(layers)
    for engine in (*ENGINES[k], "cells"):
        assert_same(jr.stage_tables(net, windows, engine=engine), expected)
    assert_same(of_the_certificate(net, windows), expected)


def assert_engines_agree(net, windows):
    """And with the counts; returns the tables."""
    found, counts = jr.stage_tables(net, windows), jr.count_regions(net, windows)
    assert_same(found, jr.stage_tables(net, windows, engine="cells"))
    if windows.dimension > 1:
        assert_same(found, of_the_vertices(net, windows))
    stages = [any(g.contest is not None for g in s.groups) for s in net.stages]
    for i, own in enumerate(found):
        before = 1
        for s, table in enumerate(own):
            assert table.parents == before == len(table.children)
            assert table.regions == counts.by_stage.reshape(len(found), -1)[i, s]
            assert table.regions == table.children.sum() == len(table.parent)
            assert (np.bincount(table.parent, minlength=before) == table.children).all()
            assert (np.diff(table.parent) >= 0).all()
            crossing = np.bincount(table.cut_parent, minlength=before)
            assert ((table.children > 1) == (crossing > 0)).all()
            hits = counts.hits.reshape(len(found), -1)[i, s]
            assert table.hits == (-1 if stages[s] else hits)
            before = table.regions
        if not any(stages):
            assert before == counts.activation_regions.reshape(-1)[i]
    return found


def test_engines_agree_on_windows_of_four_dimensions():
    net = traced(gaussian_layers(0, (4, 6, 6, 1)))
    windows = jr.Window(np.random.default_rng(0).normal(size=(2, 3, 4)), 0.4)
    assert len(assert_engines_agree(net, windows)) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "seed", "radius", "regions"),
    [((3, 16, 16), 3, 1.0, 4896), ((4, 16, 16), 4, 0.5, 17007), ((5, 9, 9), 5, 0.3, None)],
)
def test_recipe_networks(sizes, seed, radius, regions):
    net, window = traced(recipe(sizes, seed)), jr.Window(np.zeros(sizes[0]), radius)
    ((*_, last),) = assert_engines_agree(net, window)
    assert regions in (None, last.regions)


def mixed_layers(seed, sizes, hows):
    """As ``integer_layers``, in general position."""
    rng = np.random.default_rng(seed)
    shapes = integer_layers(seed, sizes, hows)
    return [(rng.normal(size=w.shape), rng.normal(size=b.shape) / 2, how) for w, b, how in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "hows",
    [
        ("relu", "leaky", None),
        ("hard_tanh", "relu", None),
        ("leaky", "hard_tanh", None),
        (2, "relu", None),
        ("relu", 3, None),
    ],
    ids=str,
)
def test_engines_agree_on_hundreds_of_networks(k, hows):
    """Equal, parallel and concurrent units, dead ones, windows with sides on hyperplanes."""
    for seed in range(6):
        sizes = (4, 4, 3, 1)
        windows = integer_windows(seed, 4, 4, k)
        assert_engines_agree(traced(integer_layers(100 * k + seed, sizes, hows)), windows)
        rng = np.random.default_rng(seed)
        windows = jr.Window(rng.normal(size=(4, 4)) / 2, 0.8, basis=rng.normal(size=(4, 4, k)))
        assert_engines_agree(traced(mixed_layers(200 * k + seed, sizes, hows)), windows)


def test_planes_through_one_point_need_no_sign_tree(monkeypatch):
    """In windows around, beside and far from it."""
    (weights, bias, how), *rest = gaussian_layers(0, (3, 6, 6, 1))
    net = traced([(weights, 0 * bias, how), *rest])
    windows = jr.Window(np.outer([0.01, 0.5, 2.0], np.ones(3)), 0.4)
    expected = jr.stage_tables(net, windows, engine="cells")
    monkeypatch.setattr(tables, "_by_cells", None)
    assert_same(jr.stage_tables(net, windows), expected)
    assert expected[0][0].children.tolist() == [2 * (1 + 5 + 10)]


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(6, 5), (9, 4, 3)])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_batchnorm_around_its_centroid_needs_no_sign_tree(monkeypatch, widths, k):
    rng = np.random.default_rng(k)
    batch = rng.normal(size=(32, k))
    model = zoo.MLP(widths=widths)
    f = jr.condition(model, model.init(jax.random.key(k), batch), batch, train=False)
    net = jr.trace(f, batch[0])
    windows = jr.Window(jr.centroid(batch) + np.outer([0.0, 0.3, 2.0], np.ones(k)), 0.5)
    expected = jr.stage_tables(net, windows, engine="cells")
    monkeypatch.setattr(tables, "_by_cells", None)
    assert_same(jr.stage_tables(net, windows), expected)
    if k > 1:
        assert_same(of_the_vertices(net, windows), expected)
    whole = expected[0][0]
    assert whole.children.tolist() == [2 * sum(comb(widths[0] - 1, j) for j in range(k))]
    assert whole.cut_unit.tolist() == list(range(widths[0]))


def test_degenerate_windows_alone_go_to_the_sign_tree(monkeypatch):
    """Equal planes, in one window of three."""
    (weights, bias, how), *rest = gaussian_layers(0, (3, 6, 6, 1))
    weights[1], bias[:2] = 2 * weights[0], 0
    net = traced([(weights, bias, how), *rest])
    windows = jr.Window(np.outer([3.0, 0.0, -3.0], weights[0]), 0.5)
    expected, real, asked = jr.stage_tables(net, windows, engine="cells"), tables._by_cells, []

    def by_cells(net, flat, *rest):
        asked.append(flat.center.tolist())
        return real(net, flat, *rest)

    monkeypatch.setattr(tables, "_by_cells", by_cells)
    assert_same(jr.stage_tables(net, windows, engine="vertices"), expected)
    assert asked == [[[0.0] * 3]]


@pytest.mark.parametrize("power", [20, 60])
def test_cells_thinner_than_the_rounding_of_their_vertices(power):
    """k + 1 planes through nearly one point: a simplex with legs of 2^-power is a cell."""
    legs = 2.0**-power
    layers = [(np.vstack([np.eye(3), np.ones(3)]), np.append(np.zeros(3), -legs), "relu")]
    windows = jr.Window(np.full((2, 3), legs / 8), [0.75, 2 * legs])
    found = jr.stage_tables(traced(layers), windows, engine="vertices")
    for (table,), center, radius in zip(found, windows.center, windows.radii(), strict=True):
        assert_same([[table]], [exact_tables(layers, center, radius)])
        assert table.regions == 15


def test_numbers_are_those_of_a_partition_but_for_the_order():
    net = traced(integer_layers(0, (3, 6, 6, 1), ("relu", "relu", None)))
    windows = integer_windows(0, 3, 3, 2)
    for i, own in enumerate(jr.stage_tables(net, windows)):
        part = jr.partition(net, windows[i], affine=False)
        for signs, mine, table in zip(part.patterns, own, part.tables, strict=True):
            assert (mine.parents, mine.regions, mine.hits) == table[:3]
            assert crossings(mine) == crossings(table)
            assert len(signs) == part.tables[-1].regions
        order = np.lexsort(np.concatenate(part.patterns, axis=1).T[::-1])
        last, rank = part.tables[-1].parent, np.argsort(order)
        before = {int(p): int(own[-1].parent[rank[c]]) for c, p in enumerate(last)}
        assert [before[int(p)] for p in last] == own[-1].parent[rank].tolist()


def crossings(table):
    """How often a parent is crossed by these units and falls into this many children."""
    cuts = [[] for _ in range(table.parents)]
    for parent, unit in zip(table.cut_parent.tolist(), table.cut_unit.tolist(), strict=True):
        cuts[parent].append(unit)
    return Counter(zip(map(tuple, map(sorted, cuts)), table.children.tolist(), strict=True))


# Edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["planar", "vertices", "cells"])
def test_no_stage_or_none_that_cuts(engine):
    k = 2 if engine == "planar" else 3
    windows = jr.Window(np.zeros((2, 3)), 1.0, np.eye(3)[:, :k])
    assert jr.stage_tables(lambda x: 2 * x, windows, engine=engine) == [(), ()]
    layers = [(w, np.maximum(b, 0), how) for w, b, how in gaussian_layers(0, (3, 6, 6, 1))]
    net = traced([(np.eye(6, 3), np.full(6, -5.0), "relu"), *layers[1:]])  # dead, then 0 or b
    for own in jr.stage_tables(net, windows, engine=engine):
        for table in own:
            assert (*table[:3], len(table.cut_unit)) == (1, 1, 0, 0)
    assert jr.stage_tables(net, windows[:0], engine=engine) == []


@pytest.mark.parametrize(
    ("k", "engine"), [(1, "segments"), (2, "planar"), (3, "vertices"), (3, "cells")]
)
def test_a_limit_stops_only_the_windows_above_it(k, engine):
    net = traced(gaussian_layers(0, (3, 6, 6, 1)))
    windows = jr.Window(np.zeros((2, 3)), np.outer([3.0, 1e-3], np.ones(k)), np.eye(3)[:, :k])
    stopped, whole = jr.stage_tables(net, windows, engine=engine, max_regions=4)
    assert stopped is jr.Status.MAX_REGIONS
    assert_same([whole], jr.stage_tables(net, windows[1], engine=engine))
    late = jr.stage_tables(net, windows, engine=engine, max_seconds=1e-9)
    assert late == [jr.Status.MAX_SECONDS] * 2


@pytest.mark.parametrize(
    ("call", "times", "finished"), [(1, 1, 1), (2, 1, 5), (1, 2, 0), (2, 2, 1)]
)
def test_an_interrupt_leaves_whole_tables_or_none(monkeypatch, call, times, finished):
    """In groups of 1, 4 and more windows; a second Ctrl-C, while signs are looked up, raises."""
    net = traced(gaussian_layers(0, (3, 6, 6, 1)))
    windows = jr.Window(np.random.default_rng(0).normal(size=(9, 3)), 0.5)
    expected, real, calls = jr.stage_tables(net, windows), tables.vertex_patterns, []

    def slow(*args):
        calls.append(args)
        for _ in range(times if len(calls) == call else 0):
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(tables, "vertex_patterns", slow)
    found = jr.stage_tables(net, windows)
    assert found[finished:] == [jr.Status.INTERRUPTED] * (9 - finished)
    assert_same(found[:finished], expected[:finished])


def test_cells_without_a_float_in_them():
    """Between 1/3 rounded down, which is a plane, and 1/3 itself."""
    weights = np.array([[1.0, 0, 0], [3, 0, 0], [0, 1, 0], [1, 0, 1]])
    layers = [(weights, -np.array([1 / 3, 1, 0, 0.25]), "relu")]
    net, window = traced(layers), jr.Window(np.zeros(3), 1.0)
    expected = [exact_tables(layers, np.zeros(3), 1.0)]
    assert expected[0][0].regions == 12
    for engine in (None, "cells"):
        assert_same(jr.stage_tables(net, window, engine=engine), expected)


def test_cells_of_windows_that_are_not_complete_do_not_count():
    net = traced(gaussian_layers(0, (3, 6, 6, 1)))
    windows = jr.Window(np.random.default_rng(0).normal(size=(3, 3)), 0.5)
    listed = tables._by_vertices(net, windows, NO_LIMITS, lambda *_: None)
    listed.status[1] = jr.Status.INTERRUPTED
    first, second, third = tables._tables(net, listed)
    assert second is jr.Status.INTERRUPTED
    assert_same([first, third], jr.stage_tables(net, windows[np.array([0, 2])]))


def test_cells_that_were_not_counted_are_refused(monkeypatch):
    net, windows = traced(gaussian_layers(0, (3, 6, 6, 1))), jr.Window(np.zeros((1, 3)), 1.0)
    real = tables.vertex_patterns

    def one_less(*args):
        window, signs = real(*args)
        return window[1:], [s[1:] for s in signs]

    monkeypatch.setattr(tables, "vertex_patterns", one_less)
    with pytest.raises(RuntimeError, match="contradict the counts"):
        jr.stage_tables(net, windows)


def test_a_count_that_was_stopped_has_no_tables():
    net = traced(gaussian_layers(0, (2, 6, 6, 1)))
    counts = jr.count_regions(
        net, jr.Window(np.zeros(2), 1.0), engine="cells", certificate=True, max_regions=3
    )
    with pytest.raises(ValueError, match="certificate: expected that of a finished count"):
        jr.stage_tables(net, counts.certificate)


def test_a_certificate_of_another_function():
    net = traced(gaussian_layers(0, (2, 6, 6, 1)))
    window = jr.Window(np.zeros(2), 1.0)
    proof = jr.count_regions(net, window, engine="cells", certificate=True).certificate
    for sizes in ((2, 6, 1), (2, 6, 3, 1), (2, 6, 9, 1)):
        with pytest.raises(ValueError, match="certificate: expected"):
            jr.stage_tables(traced(gaussian_layers(0, sizes)), proof)


def test_bad_input():
    net, window = traced(gaussian_layers(0, (3, 6, 6, 1))), jr.Window(np.zeros(3), 1.0)
    proof = jr.count_regions(net, window, engine="cells", certificate=True).certificate
    with pytest.raises(ValueError, match=r"expected 'cells' or 'vertices'.* received 'planar'"):
        jr.stage_tables(net, window, engine="planar")
    with pytest.raises(ValueError, match="max_regions: expected a number > 0"):
        jr.stage_tables(net, window, max_regions=0)
    with pytest.raises(ValueError, match="neither input_shape, engine nor limits"):
        jr.stage_tables(net, proof, max_regions=5)
    with pytest.raises(ValueError, match=r"f: expected the result of jr\.trace"):
        jr.stage_tables(lambda x: x, proof)
