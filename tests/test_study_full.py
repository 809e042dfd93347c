"""The study's counts in full-dimensional windows, against an enumeration by linear programs."""

import jax
import numpy as np
import pytest
from cells import enumerated

from jaxregions import datasets
from jaxregions.study import StudyConfig, deep, full
from jaxregions.study.measure import scene
from jaxregions.study.table import MODELS, Table, _full
from jaxregions.zoo import MLP

RADII = (0.05, 0.4, 0.8)
CONFIG = StudyConfig(
    dataset="breast_cancer", widths=(5, 4), epochs=0, windows=8, radii=RADII, batch_size=32
)


@pytest.fixture(scope="module")
def place():
    return scene(CONFIG, datasets.load("breast_cancer", seed=0))


@pytest.fixture(scope="module")
def network(place):
    """A twin without BatchNorm, traced, and its layers as plain arrays."""
    model = MLP(widths=CONFIG.widths, num_outputs=2, norm="none", bias_std=0.5)
    variables = jax.jit(model.init)(jax.random.key(3), place.batch[:1])
    params = {
        n: {k: np.asarray(v, np.float64) for k, v in p.items()}
        for n, p in variables["params"].items()
    }
    layers = [(params[f"dense_{i}"]["kernel"].T, params[f"dense_{i}"]["bias"]) for i in range(2)]
    return deep.traced(place, model, variables), layers


@pytest.mark.slow
def test_counts_are_those_of_an_enumeration(place, network):
    net, layers = network
    steps = []
    found = full.count(CONFIG, place, net, lambda: steps.append(1))
    assert len(steps) == len(RADII)
    assert found["full_exact"].all()
    for i, radius in enumerate(RADII):
        for kind in range(2):
            for j in range(full.full_windows(CONFIG)):
                (weight, bias), *rest = layers
                moved = [(weight, weight @ place.centers[kind, j] + bias), *rest]
                expected = enumerated(moved, radius, 60.0)
                assert found["full_regions"][i, kind, j] == expected
    assert found["full_regions"].max() > 4


def test_what_passed_the_limit_is_a_bound_at_larger_radii_too(place, network, monkeypatch):
    whole = full.count(CONFIG, place, network[0], lambda: None)["full_regions"]
    most = int(np.median(whole[-1]))
    monkeypatch.setattr(full, "MOST", most)
    found = full.count(CONFIG, place, network[0], lambda: None)
    np.testing.assert_array_equal(found["full_exact"], whole <= most)
    assert 0 < found["full_exact"][-1].sum() < found["full_exact"][-1].size
    regions = found["full_regions"]
    np.testing.assert_array_equal(regions[found["full_exact"]], whole[found["full_exact"]])
    bounds = ~found["full_exact"]
    assert (regions[bounds] > most).all()
    assert (regions[bounds] <= whole[bounds]).all()


def test_quartiles_are_known_where_few_counts_ended_early():
    regions = np.array([[[1, 2, 3, 9]], [[4, 5, 9, 9]], [[9, 9, 9, 9]]])
    raw = {"full_regions": regions, "full_exact": regions < 9}
    found = full.quartiles(raw, "data")
    np.testing.assert_array_equal(found.low, [1, 4, np.nan])
    np.testing.assert_array_equal(found.middle, [2, 5, np.nan])
    np.testing.assert_array_equal(found.high, [3, np.nan, np.nan])


def test_data_of_few_dimensions_have_no_such_windows():
    assert full.has_full(CONFIG, 30)
    assert not full.has_full(CONFIG, 3)  # the slices of dimension 3 are these windows


def test_the_table_leaves_out_what_was_not_counted_to_the_end(place, network):
    net, _ = network
    one = full.count(CONFIG, place, net, lambda: None)
    cut = {**one, "full_exact": one["full_exact"].copy()}
    cut["full_exact"][2, 1, 0] = False
    raws = dict(zip(MODELS, (one, cut), strict=True))
    table = Table(list(_full(CONFIG, place, 0, raws)))
    at = {"epoch": 0, "layer": 2, "kind": "control", "radius": 0.8, "dimension": 30}
    whole, part = (table("regions_through_layer", model=m, **at) for m in MODELS)
    assert (whole.count, part.count) == (2, 1)
    assert whole.mean == one["full_regions"][2, 1].mean()
    assert part.mean == one["full_regions"][2, 1, 1]
    assert table("regions_through_layer", model="batch - none", **at).count == 1
    assert table("share_exact", model="none", **at).mean == 0.5
