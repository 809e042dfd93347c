"""Per-stage tables of certified counts, against the planar engine and brute force in fractions."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from oracles import box_rows, feasible, fractions
from small_networks import gaussian_layers, integer_layers, integer_windows, traced

import jaxregions as jr


def tables_of(net, windows):
    counts = jr.count_regions(net, windows, engine="cells", certificate=True)
    return counts, jr.stage_tables(net, counts.certificate)


def crossings(table):
    """How often a parent is crossed by these units and falls into this many children."""
    cuts = [[] for _ in range(table.parents)]
    for parent, unit in zip(table.cut_parent.tolist(), table.cut_unit.tolist(), strict=True):
        cuts[parent].append(unit)
    return Counter(zip(map(tuple, map(sorted, cuts)), table.children.tolist(), strict=True))


def generations(tables):
    """How often a cell with so many children has one with so many: parents' numbers are theirs."""
    return [
        Counter(zip(one.children[one.parent].tolist(), two.children.tolist(), strict=True))
        for one, two in pairwise(tables)
    ]


def brute_force(layers, radius):
    """The same per layer of a ReLU network, by a sign tree with an exact test at every node."""
    k = len(radius)
    cells = [([], [([Fraction(int(i == j)) for j in range(k)], Fraction(0)) for i in range(k)])]
    out = []
    for weights, bias, how in layers:
        if how is None:
            break
        found, after = Counter(), []
        for rows, maps in cells:
            z = [
                (
                    [sum(w * m[0][j] for w, m in zip(row, maps, strict=True)) for j in range(k)],
                    sum(w * m[1] for w, m in zip(row, maps, strict=True)) + b,
                )
                for row, b in zip(fractions(weights), fractions(bias), strict=True)
            ]
            crossing = [
                i
                for i, r in enumerate(z)
                if all(possible([*rows, signed(r, s)], radius) for s in (1, -1))
            ]
            new = [(rows, [])]
            for slope, value in z:
                halves = []
                for kept, images in new:
                    for sign in (1, -1):
                        flat = not any(slope)
                        side = kept if flat else [*kept, signed((slope, value), sign)]
                        if (flat and sign > 0) or (not flat and possible(side, radius)):
                            on = value > 0 if flat else sign > 0
                            image = (slope, value) if on else ([Fraction(0)] * k, Fraction(0))
                            halves.append((side, [*images, image]))
                new = halves
            found[tuple(crossing), len(new)] += 1
            after += new
        cells = after
        out.append(found)
    return out


def signed(row, sign):
    return [sign * s for s in row[0]], sign * row[1]


def possible(rows, radius):
    return feasible(box_rows(radius) + rows)


@pytest.mark.parametrize("how", ["relu", pytest.param("hard_tanh", marks=pytest.mark.slow)])
def test_tables_are_those_of_the_plane(how):
    for seed in range(3):
        net = traced(integer_layers(seed, (3, 4, 3, 1), ("relu", how, None)))
        windows = integer_windows(seed, 3, 3, 2)
        counts, tables = tables_of(net, windows)
        assert len(tables) == 3
        for i, found in enumerate(tables):
            part = jr.partition(net, windows[i], affine=False)
            for stage, (mine, plane) in enumerate(zip(found, part.tables, strict=True)):
                assert (mine.parents, mine.regions) == (plane.parents, plane.regions)
                assert mine.hits == plane.hits
                assert crossings(mine) == crossings(plane)
                assert mine.regions == counts.by_stage[i, stage]
            assert generations(found) == generations(part.tables)


@pytest.mark.parametrize("seed", range(2))
def test_tables_of_three_dimensions_against_fractions(seed):
    layers = integer_layers(seed, (3, 3, 3, 1), ("relu", "relu", None))
    net, window = traced(layers), jr.Window(np.zeros(3), 1.5)
    _, (tables,) = tables_of(net, window)
    assert [crossings(t) for t in tables] == brute_force(layers, [1.5] * 3)


def test_tables_fit_together_in_four_dimensions():
    net = traced(gaussian_layers(0, (4, 6, 6, 1)))
    windows = jr.Window(np.random.default_rng(0).normal(size=(2, 3, 4)), 0.4)
    swept, (_, tables) = jr.count_regions(net, windows), tables_of(net, windows)
    assert len(tables) == 6
    for i, found in enumerate(tables):
        before = 1
        for stage, table in enumerate(found):
            assert table.parents == before == len(table.children)
            assert table.regions == table.children.sum() == len(table.parent)
            assert (np.bincount(table.parent, minlength=table.parents) == table.children).all()
            assert table.regions == swept.by_stage.reshape(6, -1)[i, stage]
            assert table.hits == swept.hits.reshape(6, -1)[i, stage]
            crossing = np.bincount(table.cut_parent, minlength=table.parents)
            assert (table.children >= 1 + crossing).all()
            before = table.regions


@pytest.mark.slow
def test_stages_with_maxima_have_no_hits():
    layers = integer_layers(0, (2, 3, 2), ("relu", 2))
    net = traced(layers)
    _, (tables,) = tables_of(net, jr.Window(np.zeros(2), 1.5))
    assert tables[0].hits >= 0
    assert tables[1].hits == -1


def test_a_count_that_was_stopped_has_no_tables():
    net = traced(gaussian_layers(0, (2, 6, 6, 1)))
    counts = jr.count_regions(
        net, jr.Window(np.zeros(2), 1.0), engine="cells", certificate=True, max_regions=3
    )
    with pytest.raises(ValueError, match="certificate: expected that of a finished count"):
        jr.stage_tables(net, counts.certificate)


def test_a_certificate_of_another_function():
    net = traced(gaussian_layers(0, (2, 6, 6, 1)))
    counts, _ = tables_of(net, jr.Window(np.zeros(2), 1.0))
    for sizes in ((2, 6, 1), (2, 6, 3, 1)):
        with pytest.raises(ValueError, match="certificate: expected"):
            jr.stage_tables(traced(gaussian_layers(0, sizes)), counts.certificate)
