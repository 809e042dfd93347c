"""The front door for windows of dimension 3 and above; the engine has tests of its own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import network, recipe

import jaxregions as jr
from jaxregions import zoo


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
    f = jr.condition(model, model.init(jax.random.key(0), batch), batch, train=False)
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


def test_equal_hyperplanes_are_a_status_and_a_lower_bound():
    def f(x):
        return jax.nn.relu(jnp.stack([x[0] + x[1], (x[0] + x[1]) * 0.5 + 0 * x[2], x[2]]))

    counts = jr.count_regions(f, jr.Window(np.array([0.1, 0.2, 0.3]), 1.0))
    known = len({tuple(np.sign(f(p)) > 0) for p in corners()})
    assert counts.status in (jr.Status.COMPLETE, jr.Status.DEGENERATE)
    assert counts.activation_regions <= known == 4


def corners():
    """Points of all four regions of the test above."""
    return [np.array(p) for p in itertools.product((-0.5, 0.6), (-0.4, 0.7), (-0.3, 0.8))]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, w: jr.count_regions(f, w, affine=True), "1 or 2 with affine=True, received 3"),
        (lambda _, w: jr.count_regions(jnp.max, w), "1 or 2 with a maximum over many"),
        (lambda f, w: jr.count_regions(f, w, engine="planar"), "'vertices'.*dimension 3.*'planar'"),
    ],
)
def test_what_is_not_counted_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.abs, jr.Window(np.zeros(3), 1.0))
