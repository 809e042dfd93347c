"""Ball arithmetic and rationals against ``fractions``."""

import operator
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxregions import exact
from jaxregions.exact import Ball

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
NUMBERS = st.one_of(
    st.floats(-4, 4),
    st.sampled_from([0.0, 1.0, -1.0, 1 + 2**-52, 1 - 2**-53, 0.1, 1 / 3, 1e-16, 1e100, -1e-100]),
    st.floats(allow_nan=False, allow_infinity=False),
)
TREES = st.recursive(
    NUMBERS,
    lambda children: st.tuples(st.sampled_from(sorted(OPERATIONS)), children, children),
    max_leaves=10,
)


@pytest.fixture(params=["python-flint", "fractions"])
def backend(request, monkeypatch):
    if request.param == "fractions":
        monkeypatch.setattr(exact, "_fmpq", None)
    elif exact.rational_backend() != "python-flint":
        pytest.skip("python-flint is not installed")
    return request.param


def test_what_is_larger_than_every_float_rounds_to_infinity(backend):
    large = exact.rational(1e300)
    assert exact.rounded(large * large) == np.inf
    assert exact.rounded(-(large * large)) == -np.inf
    assert exact.rounded(1 / (large * large)) == 0.0


def as_fraction(q):
    return Fraction(*exact.key(q))


# Balls -------------------------------------------------------------------------------------------


def both(tree):
    """(ball, Fraction or None where the exact expression divides by zero)."""
    if not isinstance(tree, tuple):
        return Ball.exact(jnp.asarray(tree)), Fraction(tree)
    (left, p), (right, q) = both(tree[1]), both(tree[2])
    ball = OPERATIONS[tree[0]](left, right)
    if p is None or q is None or (tree[0] == "/" and q == 0):
        return ball, None
    return ball, OPERATIONS[tree[0]](p, q)


def assert_encloses(ball, value):
    mid, rad = float(ball.mid), float(ball.rad)
    assert rad >= 0 or np.isnan(rad)
    if value is not None and np.isfinite([mid, rad]).all():
        assert abs(Fraction(mid) - value) <= Fraction(rad)


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_ball_encloses_the_exact_value(tree):
    with jax.enable_x64(True):
        ball, value = both(tree)
        assert_encloses(ball, value)
        if bool(ball.nonzero()) and value is not None:
            assert value != 0


@given(TREES, TREES)
@settings(max_examples=100, deadline=None)
def test_certainly_less_is_never_wrong(first, second):
    with jax.enable_x64(True):
        (a, p), (b, q) = both(first), both(second)
        if p is not None and q is not None and bool(exact.certainly_less(a, b)):
            assert p < q


@pytest.mark.parametrize(
    "tree",
    [
        ("*", 1e-310, 1e300),
        ("/", 1e-310, 1e-100),
        ("/", ("+", 1e-310, 0.0), ("*", 1e-145, 1e-145)),
        ("/", ("*", 1e-155, 1e-155), ("+", 1e-290, 1e-290)),
        ("-", ("+", 1e16, 1.0), 1e16),
        ("/", 1.0, ("-", 0.1, 0.1)),
        ("*", ("-", 1 + 2**-52, 1.0), 2.0**52),
    ],
    ids=str,
)
def test_ball_encloses_subnormal_and_cancelling_values(tree):
    with jax.enable_x64(True):
        assert_encloses(*both(tree))


def test_ball_encloses_when_compiled_and_fused():
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=500) * 10.0 ** rng.integers(-8, 8, 500) for _ in range(3))

    def formula(a, b, c):
        return (a * b - c * c) / (a + b) - a * (b - c)

    with jax.enable_x64(True):
        ball = jax.jit(lambda *v: formula(*map(Ball.exact, v)))(a, b, c)
    for i in range(500):
        value = formula(*(Fraction(float(v[i])) for v in (a, b, c)))
        assert_encloses(Ball(ball.mid[i], ball.rad[i]), value)


def test_balls_are_tight():
    with jax.enable_x64(True):
        x = Ball.exact(jnp.asarray(1 / 3))
        y = (x * x + x) / x - x
    assert float(y.rad) < 20 * 2**-53


def test_division_by_what_may_be_zero_knows_nothing():
    with jax.enable_x64(True):
        tiny = Ball(jnp.asarray(1e-20), jnp.asarray(1e-20))
        for divisor in (tiny, Ball.exact(jnp.asarray(0.0))):
            quotient = Ball.exact(jnp.asarray(1.0)) / divisor
            assert float(quotient.rad) == np.inf
            assert not bool(quotient.nonzero())


def test_nan_and_overflow_decide_nothing():
    with jax.enable_x64(True):
        nan, huge = (Ball.exact(jnp.asarray(v)) for v in (np.nan, 1e308))
        one = Ball.exact(jnp.asarray(1.0))
        for wild in (nan, huge * huge, huge + huge):
            assert not bool(wild.nonzero())
            assert not bool(exact.certainly_less(one, wild))
            assert not bool(exact.certainly_less(wild, one))


def test_extrema_enclose_the_exact_extrema():
    rng = np.random.default_rng(1)
    mid, rad = rng.normal(size=(50, 6)), abs(rng.normal(size=(50, 6)))
    inside = mid + rad * rng.uniform(-1, 1, size=(20, 50, 6))
    with jax.enable_x64(True):
        ball = Ball(jnp.asarray(mid), jnp.asarray(rad))
        high, low = exact.ball_max(ball, 1), exact.ball_min(ball, 1)
    assert (abs(inside.max(axis=2) - np.asarray(high.mid)) <= np.asarray(high.rad)).all()
    assert (abs(inside.min(axis=2) - np.asarray(low.mid)) <= np.asarray(low.rad)).all()


def test_ball_index_and_sign():
    with jax.enable_x64(True):
        ball = -Ball(jnp.arange(3.0), jnp.ones(3))[1:]
    np.testing.assert_array_equal(ball.mid, [-1, -2])
    np.testing.assert_array_equal(ball.rad, [1, 1])


# Rounding bounds ---------------------------------------------------------------------------------


def test_unit_roundoff():
    assert exact.unit_roundoff(np.float64) == 2.0**-53
    assert exact.unit_roundoff(np.float32) == 2.0**-24


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_gamma_bounds_the_error_of_a_dot_product(numbers):
    x = np.array(numbers)
    error = abs(Fraction(float(x @ x)) - sum(Fraction(v) ** 2 for v in numbers))
    underflow = Fraction(len(numbers), 2**1074)
    bound = Fraction(exact.gamma(len(x), np.float64)) * sum(Fraction(v) ** 2 for v in numbers)
    assert error <= bound * Fraction(1 + 2**-40) + underflow


def test_gamma_formula_and_its_range():
    u = Fraction(1, 2**53)
    assert abs(Fraction(exact.gamma(1000, np.float64)) / (1000 * u / (1 - 1000 * u)) - 1) < 1e-15
    with pytest.raises(ValueError, match="received n = 8388608"):
        exact.gamma(2**23, np.float32)


# Rationals ---------------------------------------------------------------------------------------


def test_backend_name(backend):
    assert exact.rational_backend() == backend


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=100)
def test_rational_is_the_float(x):
    assert as_fraction(exact.rational(x)) == Fraction(x)


@pytest.mark.parametrize("x", [0.1, -0.0, 5e-324, 1.7976931348623157e308, np.float32(0.1), 3])
def test_rational_of_extreme_floats(backend, x):
    assert as_fraction(exact.rational(x)) == Fraction(float(x))


@pytest.mark.parametrize("x", [np.nan, np.inf])
def test_rational_of_no_number(backend, x):
    with pytest.raises((ValueError, OverflowError)):
        exact.rational(x)


def test_rational_arrays_multiply_exactly(backend):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
    product = exact.rationals(a) @ exact.rationals(b)
    for i, j in np.ndindex(3, 2):
        expected = sum(Fraction(x) * Fraction(y) for x, y in zip(a[i], b[:, j], strict=True))
        assert as_fraction(product[i, j]) == expected
    assert exact.rationals(np.zeros((2, 0))).shape == (2, 0)
    assert as_fraction(exact.rationals(0.5)[()]) == Fraction(1, 2)


def test_compare(backend):
    a, b = exact.rational(0.1), exact.rational(np.nextafter(0.1, 1))
    assert (exact.compare(a, b), exact.compare(b, a), exact.compare(a, a)) == (-1, 1, 0)


def test_key_is_in_lowest_terms_and_hashable(backend):
    third = exact.rational(1.0) / exact.rational(3.0)
    assert exact.key(third) == exact.key(exact.rational(2.0) / exact.rational(6.0)) == (1, 3)
    assert exact.key(-third) == (-1, 3)
    assert {exact.key(exact.rational(0.0)), exact.key(exact.rational(-0.0))} == {(0, 1)}


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_solve_satisfies_the_equations(backend, k):
    rng = np.random.default_rng(k)
    matrix, right = rng.normal(size=(k, k)), rng.normal(size=k)
    matrix[0, 0] = 0.0 if k > 1 else 2.0  # a pivot has to be looked for
    a, b = exact.rationals(matrix), exact.rationals(right)
    x = exact.solve(a, b)
    assert all(exact.compare(p, q) == 0 for p, q in zip(a @ x, b, strict=True))
    np.testing.assert_array_equal(matrix, [[float(as_fraction(v)) for v in row] for row in a])


def test_solve_refuses_a_singular_matrix(backend):
    matrix = exact.rationals([[0.1, 0.2], [0.1 * 3, 0.2 * 3]])
    matrix[1] = 3 * matrix[0]
    with pytest.raises(ValueError, match="received a singular one"):
        exact.solve(matrix, exact.rationals([1.0, 2.0]))


@pytest.mark.parametrize("native", [True, False])
def test_rank(native, monkeypatch):
    if not native:
        monkeypatch.setattr(exact, "_fmpq_mat", None)
    rng = np.random.default_rng(0)
    for m, n, r in ((3, 5, 2), (5, 3, 3), (4, 4, 0), (6, 4, 1)):
        product = rng.integers(-3, 4, (m, r)) @ rng.integers(-3, 4, (r, n)) / 8
        assert exact.rank(exact.rationals(product)) == np.linalg.matrix_rank(product)
    # Of determinant 2^-80: singular for floats.
    near = exact.rationals([[1.0, 1.0], [1.0, 1.0]])
    assert exact.rank(near) == 1
    near[1, 1] += exact.rational(2.0**-80)
    assert exact.rank(near) == 2
