"""The integers that crossings are compared as, against many digits, and what they cannot tell."""

import jax
import mpmath
import numpy as np
import pytest
from test_refinement_planes import DRAWS, POINT, UNITS, exactly, measured, planes_of

import jaxregions as jr
from jaxregions.refinement import rounded
from jaxregions.refinement.rounded import chords, intervals, table


@jax.jit
def integers(slope, value, error, centre, radius):
    lines = chords(slope, value, error, error, error > 0, 0.0)
    at = table(lines, np.arange(UNITS), UNITS - 1)
    return lines.sure, at, *intervals(lines, centre, radius)


def digits(value):
    return mpmath.mpf(float(value))


def parameter(lines, i, j):
    """t_ij with 60 digits, of the lines as they are stored; infinite for parallels."""
    (ax, ay, a), (bx, by, b) = ([digits(v) for v in lines[k]] for k in (i, j))
    first, second = mpmath.hypot(ax, ay), mpmath.hypot(bx, by)
    ax, ay, a, bx, by, b = ax / first, ay / first, a / first, bx / second, by / second, b / second
    rate = ay * bx - ax * by
    return (b - a * (ax * bx + ay * by)) / rate if rate else mpmath.inf


def interval(line, centre, radius):
    """Where a window begins and ends on the line, of t, with 60 digits."""
    x, y, h = map(digits, line)
    size = mpmath.hypot(x, y)
    x, y, h = x / size, y / size, h / size
    ends = []
    for k, (direction, foot) in enumerate(((-y, -h * x), (x, -h * y))):
        both = [
            (digits(centre[k]) + side * digits(radius[k]) - foot) / direction for side in (-1, 1)
        ]
        ends.append(sorted(both))
    return max(e[0] for e in ends), min(e[1] for e in ends)


@pytest.mark.parametrize("bend", [1.0, 1e-3, 3e-4])
def test_integers_are_as_near_as_the_bands_say(bend):
    """Random lines, and lines nearly parallel, whose crossings are the hardest to tell."""
    rng = np.random.default_rng(int(1 / bend))
    slope = np.array([0.8, -0.6]) + bend * rng.normal(size=(UNITS, 2))
    value = 0.3 * bend * rng.normal(size=UNITS)
    centre, radius = rng.uniform(-0.4, 0.4, (4, 2)), rng.uniform(0.05, 0.3, (4, 2))
    with jax.enable_x64(True):
        nothing = np.zeros(UNITS)
        found = integers(slope, value, nothing, centre, radius)
        at, middle, width = (np.asarray(v, np.int64) for v in found[1:])
    assert found[0]
    stored = np.column_stack([slope, value])
    limit, told = int(rounded._DISC * rounded._UNIT), 0
    with mpmath.workdps(60):
        for row, i in np.ndindex(at.shape):
            true = parameter(stored, i, (i + row + 1) % UNITS) * int(rounded._UNIT)
            if abs(at[row, i]) < limit:
                assert abs(true - int(at[row, i])) <= 0.63
                told += 1
            else:  # beyond every window, or said to be in doubt
                assert at[row, i] > 1.09 * rounded._UNIT or abs(true) > 1.06 * rounded._UNIT
        assert told > at.size / 3
        for w, i in np.ndindex(middle.shape):
            low, high = (v * int(rounded._UNIT) for v in interval(stored[i], centre[w], radius[w]))
            if max(abs(low), abs(high)) < 1.03 * rounded._UNIT:
                assert abs(low - int(middle[w, i] - width[w, i])) <= 4.5
                assert abs(high - int(middle[w, i] + width[w, i])) <= 4.5
            else:
                assert (low < high) == (width[w, i] > 0)


@pytest.mark.slow
def test_families_with_a_member_through_the_common_point():
    """As of relu6 behind BatchNorm: parallels, and concurrent lines among others."""
    rng = np.random.default_rng(24)
    normal = rng.normal(size=(DRAWS, 4, 2))
    planes = planes_of(normal, np.stack([np.zeros((DRAWS, 4)), 0.3 + rng.random((DRAWS, 4))], -1))
    found, (hits, regions) = measured(planes), exactly(planes)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)


@pytest.mark.slow
def test_many_lines_need_wider_sums():
    """More pairs than half of a 32-bit word counts."""
    rng = np.random.default_rng(25)
    planes = planes_of(rng.normal(size=(1, 380, 2)), 0.1 * rng.normal(size=(1, 380, 1)))
    windows = jr.Window(POINT[None], 4.0)
    found, (hits, regions) = measured(planes, windows), exactly(planes, windows)
    assert found.decided.all()
    np.testing.assert_array_equal(found.hits, hits)
    np.testing.assert_array_equal(found.lower, regions)
