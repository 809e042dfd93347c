"""The sign-tree engine in windows of any dimension, against counts that share no code with it."""

import time
from fractions import Fraction
from math import comb

import numpy as np
import oracles
import pytest
from batchnorm_slices import at_centroid
from small_networks import gaussian_layers, integer_layers, integer_windows, recipe, traced

import jaxregions as jr
from jaxregions import exact
from jaxregions.engines import programs, sides
from jaxregions.engines.cells import count_cells
from jaxregions.engines.contests import merged_regions
from jaxregions.engines.farkas import decide
from jaxregions.engines.frontier import UNLIMITED, Limits, Status
from jaxregions.engines.longsteps import Bases, solve_wide
from jaxregions.engines.margins import solve_margins


def counted(layers, windows, limits=UNLIMITED, **options):
    return count_cells(traced(layers), windows, limits=limits, **options)


def box(d, radius):
    return jr.Window(np.zeros((1, d)), radius)


RECIPE = recipe((3, 8, 8), 3)
REGIONS = 646


# Oracles -----------------------------------------------------------------------------------------


def exact_cells(layers, radius):
    """Cells after every layer by a sign tree with an exact test at every node, any dimension."""
    k = len(radius)
    identity = [([Fraction(int(i == j)) for j in range(k)], Fraction(0)) for i in range(k)]
    cells, counts = [([], identity)], []
    for weights, bias, how in layers:
        if how is None:
            continue
        after = []
        for signs, maps in cells:
            z = [
                (
                    [sum(Fraction(w) * m[0][j] for w, m in zip(row, maps)) for j in range(k)],  # noqa: B905
                    sum(Fraction(w) * m[1] for w, m in zip(row, maps)) + Fraction(b),  # noqa: B905
                )
                for row, b in zip(weights.tolist(), bias.tolist(), strict=True)
            ]
            after += activated(signs, z, [], radius)
        cells = after
        counts.append(len(cells))
    return counts


def activated(signs, z, out, radius):
    if len(out) == len(z):
        return [(signs, out)]
    slope, value = z[len(out)]
    if not any(slope):
        return activated(signs, z, [*out, (slope, max(value, Fraction(0)))], radius)
    found = []
    for sign in (1, -1):
        side = [*signs, ([sign * s for s in slope], sign * value)]
        if oracles.feasible(oracles.box_rows(radius) + side):
            new = (slope, value) if sign > 0 else ([Fraction(0)] * len(slope), Fraction(0))
            found += activated(side, z, [*out, new], radius)
    return found


# Counts ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["relu", "hard_tanh"])
def test_agrees_with_the_planar_engine_where_everything_is_degenerate(how):
    for seed in range(8 if how == "relu" else 60):
        net = traced(integer_layers(seed, (3, 4, 3, 1), ("relu", how, None)))
        windows = integer_windows(seed, 4, 3, 2)
        plane, tree = jr.count_regions(net, windows), count_cells(net, windows, limits=UNLIMITED)
        assert tree.regions.tolist() == plane.activation_regions.tolist()
        assert tree.by_stage.tolist() == plane.by_stage.tolist()
        assert tree.hits.tolist() == plane.hits.tolist()
        assert tree.certified.all()


@pytest.mark.slow
def test_agrees_with_the_planar_engine_on_hundreds_of_networks():
    for seed in range(300):
        net = traced(gaussian_layers(seed, (2, 8, 8, 1)))
        windows = jr.Window(np.random.default_rng(seed).normal(size=(2, 2)), 1.0)
        plane, tree = jr.count_regions(net, windows), count_cells(net, windows, limits=UNLIMITED)
        assert tree.regions.tolist() == plane.activation_regions.tolist()
        assert tree.hits.tolist() == plane.hits.tolist()
        assert tree.certified.all()


@pytest.mark.slow
def test_orders_of_losers_are_merged_as_in_the_plane():
    for seed in range(4):
        net = traced(integer_layers(seed, (2, 3, 2), (3, 4)))
        windows = jr.Window(np.random.default_rng(seed).normal(size=(3, 2)), 1.5)
        cells = count_cells(net, windows, limits=UNLIMITED, certificate=True)
        last = cells.certificate.stage == len(net.stages)
        at = cells.certificate.window[last], cells.certificate.witness[last], {}
        regions, whole = merged_regions(net, windows, *at)
        assert whole.all()
        assert regions.tolist() == jr.count_regions(net, windows).activation_regions.tolist()
        assert (regions <= cells.regions).all()


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_fractions_in_three_dimensions(seed):
    layers = integer_layers(seed, (3, 4, 3, 1), ("relu", "relu", None))
    found = counted(layers, box(3, 1.5))
    assert found.by_stage[0].tolist() == exact_cells(layers, [1.5] * 3)
    assert found.certified.all()


@pytest.mark.parametrize("k", [3, 4])
def test_agrees_with_fractions_on_one_layer(k):
    rng = np.random.default_rng(k)
    weights, bias = rng.integers(-2, 3, (5, k)).astype(float), rng.integers(-1, 2, 5).astype(float)
    rows = [
        ([Fraction(w) for w in row], Fraction(b))
        for row, b in zip(weights.tolist(), bias.tolist(), strict=True)
    ]
    found = counted([(weights, bias, "relu")], box(k, 1.0))
    assert found.regions[0] == oracles.count_cells(rows, [1.0] * k)


@pytest.mark.slow
def test_agrees_with_the_arrangement_of_one_layer():
    ((weights, bias, how),) = gaussian_layers(0, (3, 12), "relu")[:1]
    windows = jr.Window(np.random.default_rng(1).normal(size=(8, 3)) / 2, 0.7)
    planes = jr.dense_hyperplanes(weights.T, bias)
    expected = jr.count_arrangement(planes, windows)
    found = counted([(weights, bias, how or "relu")], windows)
    assert found.regions.tolist() == expected.regions.tolist()
    assert found.hits[:, 0].tolist() == expected.hyperplanes.tolist()


def test_recipe_in_three_dimensions():
    found = counted(recipe((3, 16, 16), 3), box(3, 1.0))
    assert found.regions.tolist() == [4896]
    assert found.certified.all()


@pytest.mark.slow
def test_recipe_in_four_dimensions():
    found = counted(recipe((4, 16, 16), 4), box(4, 0.5))
    assert found.regions.tolist() == [17007]
    assert found.certified.all()


@pytest.mark.parametrize(
    ("width", "d", "k"),
    [
        pytest.param(7, 6, 3, marks=pytest.mark.slow),
        pytest.param(7, 6, 4, marks=pytest.mark.slow),
        pytest.param(7, 6, 5, marks=pytest.mark.slow),
        pytest.param(5, 4, 3, marks=pytest.mark.slow),
        pytest.param(20, 3, 3, marks=pytest.mark.slow),
        pytest.param(14, 4, 4, marks=pytest.mark.slow),
        pytest.param(11, 8, 5, marks=pytest.mark.slow),
    ],
)
def test_hyperplanes_of_batchnorm_that_share_the_centroid(width, d, k):
    net, window = at_centroid(width, d, k)
    found = count_cells(net, window, limits=UNLIMITED)
    assert found.by_stage[0, 0] == 2 * sum(comb(width - 1, j) for j in range(k))
    assert found.certified.all()
    assert found.settled_exactly > 0


def test_many_windows_are_what_each_is_alone():
    windows = jr.Window(np.random.default_rng(0).normal(size=(9, 3)) / 3, 0.3)
    together = counted(RECIPE, windows)
    alone = [counted(RECIPE, windows[i : i + 1]) for i in range(9)]
    assert together.regions.tolist() == [int(c.regions[0]) for c in alone]
    assert together.hits.tolist() == [c.hits[0].tolist() for c in alone]


def wide(crossing):
    """64 inputs, 20 units; unit i < crossing is x_i, the others stay positive near the origin."""
    weights, bias = np.zeros((20, 64)), np.full(20, 100.0)
    weights[:, :20], bias[:crossing] = np.eye(20), 0.0
    weights[:, 20:] = np.random.default_rng(0).normal(size=(20, 44)) * 0.01
    return [(weights, bias, "relu")]


@pytest.mark.parametrize(("crossing", "most"), [(0, 0), (5, 60)])
def test_a_wide_window_costs_what_its_crossing_units_cost(crossing, most):
    found = counted(wide(crossing), box(64, 1.0))
    assert found.regions[0] == 2**crossing
    assert found.programs <= most
    assert found.certified.all()


def test_thin_cells_are_found():
    width = 2.0**-45
    weights = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    layers = [
        (weights, np.array([0.0, -width, 0.0]), "relu"),
        (np.array([[1.0, -1.0, 2.0]]), np.array([-width / 2]), "relu"),
    ]
    found = counted(layers, box(3, 1.0))
    assert found.by_stage[0].tolist() == exact_cells(layers, [1.0] * 3)
    assert found.certified.all()


def test_cells_without_a_float_in_them_are_counted_and_refined():
    third = 1.0 / 3  # rounded down: no float64 lies between it and 1/3
    first = np.array([[1.0, 0, 0], [3.0, 0, 0]]), np.array([-third, -1.0]), "relu"
    weights = np.array([[1.0, -1.0], [-2.0, 1.0], [2.0, -0.5]])
    layers = [first, (weights, np.array([2.0**-56, 0.0, 2.0**-55]), "relu")]
    found = counted(layers, box(3, 1.0))
    assert found.by_stage[0].tolist() == exact_cells(layers, [1.0] * 3) == [3, 5]
    assert found.certified.all()


@pytest.mark.parametrize("powers", [(600, 400), (-500, -500)])
def test_rows_whose_length_overflows_are_decided_all_the_same(powers):
    layers, scaled, total = integer_layers(3, (2, 3, 3), ("relu", "relu")), [], 0
    for (weights, bias, how), power in zip(layers, powers, strict=True):
        total += power
        scaled.append((np.ldexp(weights, power), np.ldexp(bias, total), how))
    windows = box(2, [[1.5, 1.0]])
    found = counted(scaled, windows, certificate=True)
    assert found.by_stage[0].tolist() == exact_cells(layers, [1.5, 1.0])
    assert found.certified.all()
    assert jr.verify(traced(scaled), windows, found.certificate) is True


def test_a_window_of_the_largest_radius_is_counted():
    layers = [
        (np.array([[1.0, 2.0], [3.0, -1.0], [1e10, 1.0]]), np.array([1.0, 0.0, -2.0]), "relu")
    ]
    found = counted(layers, box(2, 1.5e308))
    assert found.regions.tolist() == exact_cells(layers, [1.5e308] * 2)
    assert found.certified.all()


def test_a_function_without_stages_is_one_region():
    net = jr.trace(lambda x: 2 * x, np.zeros(3))
    assert count_cells(net, box(3, 1.0), limits=UNLIMITED).regions.tolist() == [1]


# Solvers -----------------------------------------------------------------------------------------


def test_bases_of_a_variable_a_row_give_the_same_cells(monkeypatch):
    monkeypatch.setattr(sides, "SMALL_DIMENSION", 0)
    found = counted(RECIPE, box(3, 1.0), certificate=True)
    assert found.regions[0] == REGIONS
    assert found.certified.all()
    assert found.settled_exactly == 0
    assert jr.verify(traced(RECIPE), box(3, 1.0), found.certificate) is True


@pytest.mark.parametrize("backend", ["highs", pytest.param("linprog", marks=pytest.mark.slow)])
def test_what_the_arrays_give_up_goes_to_highs(monkeypatch, backend):
    def lost(slope, value, start):
        count, rows, k = slope.shape
        zeros = np.zeros((count, k)), np.zeros((count, rows)), np.zeros(count, bool)
        return sides.Margins(np.zeros(count), *zeros), start

    monkeypatch.setattr(sides, "SMALL_DIMENSION", 0)
    monkeypatch.setattr(sides, "solve_wide", lost)
    if backend == "linprog":
        monkeypatch.setattr(programs, "_highs", None)
        assert programs.backend() == "linprog"
    found = counted(RECIPE, box(3, 0.1))
    monkeypatch.undo()
    assert found.regions.tolist() == counted(RECIPE, box(3, 0.1)).regions.tolist()
    assert found.certified.all()
    assert found.settled_exactly == 0


def test_without_any_linear_program_rationals_decide(monkeypatch):
    def lost(slope, value):
        count, rows, k = slope.shape
        zeros = np.zeros((count, k)), np.zeros((count, rows)), np.zeros(count, bool)
        return sides.Margins(np.zeros(count), *zeros)

    monkeypatch.setattr(sides, "solve_margins", lost)
    found = counted(integer_layers(0, (3, 4, 3, 1), ("relu", "relu", None)), box(3, 1.5))
    monkeypatch.undo()
    again = counted(integer_layers(0, (3, 4, 3, 1), ("relu", "relu", None)), box(3, 1.5))
    assert found.regions.tolist() == again.regions.tolist()
    assert found.certified.all()


@pytest.mark.parametrize("seed", range(60))
def test_rational_decisions_are_those_of_elimination(seed):
    rng = np.random.default_rng(seed)
    k, m = rng.integers(1, 4), rng.integers(1, 7)
    slope, value = rng.integers(-2, 3, (m, k)).astype(float), rng.integers(-2, 3, m).astype(float)
    radius = rng.integers(1, 4, k) / 2
    rows = [
        ([Fraction(s) for s in row], Fraction(v))
        for row, v in zip(slope.tolist(), value.tolist(), strict=True)
    ]
    a, b, r = map(exact.rationals, (slope, value, radius))
    found = decide(a, b, r)
    assert (found.point is not None) == oracles.feasible(oracles.box_rows(radius) + rows)
    if found.point is not None:
        assert all(a @ found.point + b > 0)
        assert all(abs(found.point) < r)
    else:
        direction = sum(y * a[i] for i, y in found.weight.items())
        assert sum(y * b[i] for i, y in found.weight.items()) + sum(abs(direction) * r) <= 0
        assert min(found.weight.values()) > 0


def test_margins_of_arrays_are_those_of_highs():
    rng = np.random.default_rng(0)
    slope = rng.normal(size=(40, 12, 4))
    slope /= np.linalg.norm(slope, axis=2, keepdims=True)
    value = rng.normal(size=(40, 12)) * 0.4 + 0.3
    found = solve_margins(slope, value)
    for a, b, t, v, y in zip(slope, value, found.margin, found.point, found.weight, strict=True):
        answer = programs.MarginProgram(a, b).solve(list(range(12)))
        assert (t > 0) == (answer.margin > 0)
        if t > 0:
            assert (a @ v + b > 0).all()
        else:
            assert y @ b + np.abs(y @ a).sum() < 0


@pytest.mark.parametrize(("rows", "k"), [(5, 12), (12, 12), (14, 5)])
def test_margins_with_long_steps_are_those_of_highs(rows, k):
    rng = np.random.default_rng(rows)
    slope = rng.normal(size=(40, rows, k))
    slope /= np.linalg.norm(slope, axis=2, keepdims=True)
    value = rng.normal(size=(40, rows)) * 0.25 * np.sqrt(k)
    cold, bases = solve_wide(slope[:, :-1], value[:, :-1], Bases.first(40, rows - 1, k))
    found, _ = solve_wide(slope, value, bases.of_width(rows))  # from where they ended, a row more
    assert cold.solved.all()
    assert found.solved.all()
    assert 0 < (found.margin > 0).sum() < 40
    for a, b, t, v, y in zip(slope, value, found.margin, found.point, found.weight, strict=True):
        answer = programs.MarginProgram(a, b).solve(list(range(rows)))
        assert (t > 0) == (answer.margin > 0)
        if t > 0:
            assert (a @ v + b).min() >= answer.margin - 1e-9
        else:
            assert y @ b + np.abs(y @ a).sum() < 0


def test_a_window_in_784_dimensions_costs_what_its_crossing_units_cost():
    weights = np.random.default_rng(0).normal(size=(6, 784)) / 28
    layers = [(weights, np.array([0.1, 0.1, 0.1, 9.0, 9.0, 9.0]), "relu")]
    found = counted(layers, box(784, 0.1))
    assert found.regions[0] == 8
    assert found.programs <= 3 + 4
    assert found.certified.all()


# Limits ------------------------------------------------------------------------------------------


def test_stops_at_max_regions_with_a_lower_bound():
    found = counted(RECIPE, box(3, 1.0), Limits(100, np.inf))
    assert found.status.tolist() == [Status.MAX_REGIONS]
    assert 100 < found.regions[0] <= REGIONS
    assert not found.certified[0]


def test_a_limit_stops_only_the_windows_above_it():
    windows = jr.Window(np.zeros((2, 3)), [0.01, 1.0])
    found = counted(RECIPE, windows, Limits(100, np.inf))
    assert found.status.tolist() == [Status.COMPLETE, Status.MAX_REGIONS]
    assert found.by_stage[1].tolist() == [0, 0]


def test_stops_at_max_seconds():
    found = counted(RECIPE, box(3, 1.0), Limits(None, time.monotonic()))
    assert found.status.tolist() == [Status.MAX_SECONDS]
    assert found.regions[0] >= 1


def test_an_interrupt_keeps_what_is_proven():
    def watch(done, regions):
        raise KeyboardInterrupt

    found = counted(RECIPE, box(3, 1.0), watch=watch)
    assert found.status.tolist() == [Status.INTERRUPTED]
    assert 1 <= found.regions[0] < REGIONS
