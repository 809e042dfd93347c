"""The front door for windows of dimension 3 and above; the engine has tests of its own."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import initial_variables
from small_networks import integer_layers, network, recipe, traced

import jaxregions as jr
from jaxregions import regions, zoo
from jaxregions.engines import contests, frontier, search, unions


def test_a_recipe_network_has_its_known_count():
    window = jr.Window(np.zeros(3), 1.0)
    counts = jr.count_regions(network(recipe((3, 16, 16), 3)), window)
    assert counts.activation_regions == 4896
    assert counts.by_stage.tolist() == [654, 4896]
    assert counts.certified
    assert counts.status == jr.Status.COMPLETE
    assert (counts.decisions > 0, counts.affine_regions) == (True, None)


def test_batchnorm_at_initialisation_around_the_centroid():
    """n planes through one point: 2 (1 + (n - 1) + C(n - 1, 2)) regions after stage 1."""
    batch = np.random.default_rng(0).normal(size=(32, 3))
    model = zoo.MLP(widths=(7,))
    f = jr.condition(model, initial_variables(model, batch), batch, train=False)
    counts = jr.count_regions(f, jr.Window(jr.centroid(batch), 0.5))
    assert counts.activation_regions == 2 * (1 + 6 + 15)
    assert counts.certified


def test_leading_axes_and_slices_of_one_layer_against_the_arrangement():
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(5, 6)), rng.normal(size=6)
    windows = jr.Window(rng.normal(size=(2, 3, 5)), 0.8, rng.normal(size=(2, 3, 5, 3)))
    counts = jr.count_regions(lambda x: jax.nn.relu(x @ kernel + bias), windows)
    exact = jr.count_arrangement(jr.dense_hyperplanes(kernel, bias), windows)
    np.testing.assert_array_equal(counts.activation_regions, exact.regions)
    assert counts.hits.shape == (2, 3, 1)


def equal_planes(x):
    return jax.nn.relu(jnp.stack([x[0] + x[1], (x[0] + x[1]) * 0.5 + 0 * x[2], x[2]]))


def test_what_is_degenerate_is_counted_by_the_sign_tree():
    window = jr.Window(np.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]]), 1.0)
    counts = jr.count_regions(equal_planes, window)
    assert counts.activation_regions.tolist() == [4, 4]
    assert counts.status.tolist() == [jr.Status.COMPLETE] * 2
    assert counts.certified.all()


def test_high_dimensional_windows_of_one_layer():
    """Nine dimensions, 6 hyperplanes in general position, all through the window: 2^6."""
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(9, 6))
    counts = jr.count_regions(lambda x: jax.nn.relu(x @ kernel + 0.1), jr.Window(np.zeros(9), 1.0))
    assert counts.activation_regions == 2**6
    assert counts.certified


def test_maxima_count_their_maximisers():
    """Which of three coordinates is largest, in a cube around the origin."""
    counts = jr.count_regions(jnp.max, jr.Window(np.zeros(3), 1.0))
    assert counts.activation_regions == 3
    assert counts.certified


@pytest.mark.parametrize("stopped", [{"max_regions": 1}, {"max_seconds": 1e-9}])
def test_maxima_that_were_not_finished_have_one_region_proven(stopped):
    windows = jr.Window(np.zeros((2, 3)), 1.0)
    counts = jr.count_regions(jnp.max, windows, **stopped)
    assert counts.activation_regions.tolist() == [1, 1]
    assert (counts.status != jr.Status.COMPLETE).all()


def test_a_certificate_is_checked_from_scratch(tmp_path):
    net = jr.trace(network(recipe((3, 5, 4), 0)), np.zeros(3))
    window = jr.Window(np.zeros(3), 1.0)
    counts = jr.count_regions(net, window, certificate=True)
    assert counts.activation_regions == jr.count_regions(net, window).activation_regions
    jr.save_certificate(tmp_path / "saved", counts.certificate)
    stored = jr.load_certificate(tmp_path / "saved")
    assert jr.verify(net, window, stored) is True
    assert isinstance(jr.verify(net, jr.Window(np.zeros(3), 2.0), stored), str)
    written = jr.count_regions(net, window, certificate=str(tmp_path / "written"))
    assert jr.verify(net, window, written.certificate) is True
    assert jr.proven_regions(net, window, stored).regions == counts.activation_regions


def test_maxima_are_merged_from_a_certificate_on_disk(tmp_path):
    window = jr.Window(np.zeros(3), 1.0)
    counts = jr.count_regions(jnp.max, window, certificate=tmp_path / "proof")
    assert counts.activation_regions == 3
    assert jr.verify(jr.trace(jnp.max, np.zeros(3)), window, counts.certificate) is True


@pytest.mark.slow
def test_an_estimate_brackets_the_count():
    net, window = jr.trace(network(recipe((3, 6, 5), 1)), np.zeros(3)), jr.Window(np.zeros(3), 1.0)
    exact = int(jr.count_regions(net, window).activation_regions)
    found = jr.estimate_regions(net, window, descents=32, at_least=2)
    assert 2 <= found.low <= exact <= found.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f, w: jr.count_regions(f, w, affine=True, engine="vertices"),
            "affine: expected engine=None or 'cells' in dimension 3.*'vertices'",
        ),
        (
            lambda f, w: jr.count_regions(f, w, affine=True, certificate=True),
            "no certificate, received engine=None and certificate=True",
        ),
        (lambda f, w: jr.count_regions(f, w, engine="planar"), "'cells' or 'vertices'.*'planar'"),
        (
            lambda f, w: jr.count_regions(f, w, engine="vertices", certificate=True),
            "expected 'cells' with certificate=True",
        ),
        (lambda f, w: jr.estimate_regions(f, w, descents=1), "whole number >= 2, received 1"),
        (lambda _, w: jr.estimate_regions(jnp.max, w), "no maximum over many candidates"),
    ],
)
def test_what_does_not_go_together_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.abs, jr.Window(np.zeros(3), 1.0))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_function_with_nothing_to_switch_has_one_certified_region(k):
    net, window = jr.trace(lambda x: 2 * x, np.zeros(k)), jr.Window(np.zeros((2, k)), 1.0)
    counts = jr.count_regions(net, window, certificate=True)
    assert counts.activation_regions.tolist() == [1, 1]
    assert jr.verify(net, window, counts.certificate) is True


THIN = (  # rows, powers of two, offsets
    ([[1, -1, 1], [1, 1, -1], [1, -2, -2], [-1, 1, 0], [0, 1, -1]], [-29, 1, 18, 12, 26]),
    ([[-2, -2, 0, 2, 1], [-2, 1, -1, 0, 0]], [-14, 22]),
    ([[1, -1], [1, -2], [0, 1], [0, 0], [-1, 2]], [-8, 23, 11, 0, 5]),
)


@pytest.mark.slow
def test_what_floats_cannot_finish_is_finished_in_rationals():
    first, second, third = (np.ldexp(rows, np.array(p)[:, None]) for rows, p in THIN)

    def f(x):
        z = first @ x + np.array([-2.0, -1.0, 2.0, -2.0, 2.0])
        z = jnp.abs(second @ (z + jnp.abs(z)) + np.array([0.0, 2.0]))
        return jax.nn.hard_tanh(third @ z + np.array([-1.0, 2.0, 2.0, 1.0, 2.0]))

    net, window = jr.trace(f, np.zeros(3)), jr.Window([0.5, -0.5, 1.0], [1.0, 2.0, 0.5])
    part = jr.partition(net, window)
    assert part.certified
    assert part.activation_regions == 47  # by an enumeration in rationals
    counts = jr.count_regions(net, window, certificate=True)
    assert (counts.certified, counts.activation_regions) == (True, 47)
    assert jr.verify(net, window, counts.certificate) is True


# Limits while regions are merged -----------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until ``clock.late`` is set, and is over then."""
    hands = SimpleNamespace(late=False)
    hands.monotonic = lambda: np.inf if hands.late else 0.0
    for module in (regions, frontier, search):
        monkeypatch.setattr(module, "time", hands)
    return hands


def late_from(monkeypatch, clock, module, name):
    """The time is over when this function is called."""
    function = getattr(module, name)

    def called(*args, **options):
        clock.late = True
        return function(*args, **options)

    monkeypatch.setattr(module, name, called)


@pytest.mark.parametrize(
    ("k", "module"),
    [pytest.param(1, regions, marks=pytest.mark.slow), (2, regions), (3, unions)],
)
def test_affine_regions_respect_the_time(k, module, clock, monkeypatch):
    net, window = traced(recipe((3, 4, 4), 1)), jr.Window(np.zeros(3), 1.0, basis=np.eye(3)[:, :k])
    whole = jr.count_regions(net, window, affine=True, max_seconds=1)
    assert whole.status == jr.Status.COMPLETE
    late_from(monkeypatch, clock, module, "same_maps" if k < 3 else "patterns")
    late = jr.count_regions(net, window, affine=True, max_seconds=1)
    assert (late.status, late.affine_regions) == (jr.Status.MAX_SECONDS, -1)
    assert late.activation_regions == whole.activation_regions


@pytest.mark.slow
def test_merging_maxima_respects_the_time(clock, monkeypatch):
    net = traced(integer_layers(1, (3, 3, 2), (3, 3)))
    window = jr.Window(np.zeros(3), 1.5)
    whole = jr.count_regions(net, window, max_seconds=1)
    assert whole.status == jr.Status.COMPLETE
    monkeypatch.setattr(contests, "_CELLS", 5)
    late_from(monkeypatch, clock, contests, "patterns")
    late = jr.count_regions(net, window, max_seconds=1)
    assert (late.status, late.certified) == (jr.Status.MAX_SECONDS, False)
    assert 1 < late.activation_regions < whole.activation_regions
