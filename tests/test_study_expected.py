"""Expected regions along the ray of a study: closed form, Monte Carlo, counts."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxregions import datasets
from jaxregions.batchnorm import centroid
from jaxregions.study import StudyConfig
from jaxregions.study.config import activation_named
from jaxregions.study.expected import QUICK_SAMPLES, expected, rows, sentence
from jaxregions.study.figures import draw_expected
from jaxregions.study.measure import first_layer, scene
from jaxregions.zoo import MLP

pytestmark = pytest.mark.slow  # compiles the estimator

CONFIG = StudyConfig(
    dataset="moons", widths=(6,), epochs=0, windows=9, slice_radii=(0.3,), batch_size=64, quick=True
)


def ray(config):
    data = datasets.load(config.dataset, seed=config.seed)
    place = scene(config, data)
    models = {
        norm: MLP(config.widths, 2, norm=norm, activation=activation_named(config.activation))
        for norm in ("batch", "none")
    }
    planes = {
        (norm, 0): first_layer(
            model, model.init(jax.random.key(0), place.batch), place.batch, model.activation
        )
        for norm, model in models.items()
    }
    return place, planes, expected(config, place, models["batch"], planes)


@pytest.fixture(scope="module")
def found():
    return ray(CONFIG)


def test_estimates_agree_with_the_closed_form(found):
    table = rows(found[2])
    assert {row["samples"] for row in table} == {QUICK_SAMPLES}
    for row in table:
        gap = abs(row["monte_carlo_mean"] - row["closed_form"])
        assert gap <= 4.5 * row["monte_carlo_standard_error"]
    certain = [row for row in table if row["monte_carlo_standard_error"] == 0]
    assert {row["model"] for row in certain} == {"batch"}  # the centroid is in these windows
    assert len(table) - len(certain) >= 14


def test_all_hyperplanes_meet_in_the_centroid(found):
    at_centroid = rows(found[2])[0]
    assert at_centroid["distance"] == 0
    assert at_centroid["closed_form"] == 12
    assert at_centroid["monte_carlo_mean"] == 12
    assert at_centroid["monte_carlo_standard_error"] == 0
    assert at_centroid["network_epoch_0"] == 12


@pytest.mark.parametrize("model", ["batch", "none"])
def test_counts_are_those_of_sign_patterns_on_a_grid(found, model):
    place, planes, result = found
    middle = centroid(place.batch)
    step = place.centers[0, 0] - middle
    centers = middle + result.line[:, None] * step / np.linalg.norm(step)
    normal, point, offset = (
        np.asarray(getattr(planes[model, 0], n), float) for n in ("normal", "point", "offset")
    )
    grid = np.stack(np.meshgrid(*[np.linspace(-0.2999, 0.2999, 400)] * 2), -1).reshape(-1, 2)
    for j in (5, 20, 40, 60):
        signs = (centers[j] + grid - point) @ normal.T > offset[:, 0]
        seen = len(np.unique(signs, axis=0))
        assert seen <= result.counts[model, 0][j] <= seen + 1  # a grid can miss a sliver


@pytest.mark.slow
def test_without_a_closed_form_nothing_is_claimed_about_it():
    config = replace(CONFIG, activation="hard_tanh")
    result = ray(config)[2]
    assert result.closed is None
    assert {row["closed_form"] for row in rows(result)} == {None}
    assert "no closed form holds" in sentence(config, result)


def test_the_figure_has_both_panels_labelled(found):
    left, right = draw_expected(CONFIG, found[2]).axes
    for ax in (left, right):
        assert "distance" in ax.get_xlabel()
        assert "input units" in ax.get_xlabel()
    assert "regions" in left.get_ylabel()
    assert len(left.get_legend_handles_labels()[1]) == 4
