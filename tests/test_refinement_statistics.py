"""Streaming means and errors: right, stable, and the same bits however the stream is cut."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from jaxregions.refinement.statistics import Moments, Tree, estimate, merge, moments

SIZES = (1, 8, 64)  # block lengths


def streamed(values, size):
    """All moments of the rows, in blocks of this size."""
    tree = Tree()
    for first in range(0, len(values), size):
        rows = values[first : first + size]
        valid = np.arange(size) < len(rows)
        filled = np.concatenate([rows, np.full((size - len(rows), values.shape[1]), 7.0)])
        tree.push(moments(filled, valid))
    return tree.total()


def exact_moments(values):
    """Sum and squared deviations of one column, as exact fractions."""
    numbers = [Fraction(float(v)) for v in values]
    total = sum(numbers)
    return total, sum((v - total / len(numbers)) ** 2 for v in numbers)


def test_moments_are_those_of_exact_arithmetic():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=77), 1e8 + rng.normal(size=77)], axis=1)
    found = streamed(values, 8)
    for column in range(2):
        total, spread = exact_moments(values[:, column])
        np.testing.assert_allclose(found.total[column], float(total), rtol=1e-15)
        np.testing.assert_allclose(found.spread[column], float(spread), rtol=1e-7)
    assert found.count[0] == 77


def test_sums_of_integers_are_exact():
    values = np.random.default_rng(1).integers(0, 1 << 40, (100, 3)).astype(float)
    found = streamed(values, 8)
    assert [int(t) for t in found.total] == [sum(map(int, column)) for column in values.T]


@pytest.mark.parametrize("count", [1, 5, 64, 77, 130])
def test_bits_do_not_depend_on_the_length_of_the_blocks(count):
    values = np.random.default_rng(2).normal(size=(count, 4))
    found = [streamed(values, size) for size in SIZES]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


def test_merging_with_nothing_changes_no_bit():
    part = Moments(np.array([3.0]), np.array([0.1, 1e300]), np.array([0.7, 2.0]))
    none = Moments(np.zeros(1), np.zeros(2), np.zeros(2))
    for merged in (merge(part, none), merge(none, part)):
        assert all(np.array_equal(a, b) for a, b in zip(merged, part, strict=True))


def test_a_stream_holds_one_part_a_level():
    tree = Tree()
    one = Moments(np.ones(1), np.ones(1), np.zeros(1))
    for _ in range(1000):
        tree.push(one)
    assert len(tree._parts) == bin(1000).count("1")
    assert tree.total().total[0] == 1000


def test_interval_is_students():
    values = np.random.default_rng(3).normal(size=(12, 1))
    found = estimate(streamed(values, 8), 0.9)
    error = values.std(ddof=1) / np.sqrt(12)
    low, high = stats.t.interval(0.9, 11, loc=values.mean(), scale=error)
    np.testing.assert_allclose(found.standard_error, [error], rtol=1e-13)
    np.testing.assert_allclose([found.low[0], found.high[0]], [low, high], rtol=1e-12)


def test_one_sample_has_an_infinite_error():
    found = estimate(streamed(np.full((1, 1), 2.5), 1), 0.95)
    assert found.mean == 2.5
    assert np.isposinf([found.standard_error, found.high]).all()
    assert np.isneginf(found.low).all()
