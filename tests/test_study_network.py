"""The study's exact counts of all layers, and its pictures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxregions.partitions import partition
from jaxregions.regions import Status
from jaxregions.study import StudyConfig, prepare, run
from jaxregions.study.deep import (
    CENTROID_WINDOWS,
    centroid_windows,
    picture_epochs,
    picture_window,
    traced,
)
from jaxregions.study.measure import scene
from jaxregions.study.store import read_checkpoint
from jaxregions.study.story import certificate
from jaxregions.study.table import tabulate
from jaxregions.windows import Window

RADIUS, WIDTHS = 0.4, (7, 5)


pytestmark = pytest.mark.slow  # a study of its own


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study of 30 inputs, run once: the study, its result and its folder."""
    config = StudyConfig(
        dataset="breast_cancer",
        widths=WIDTHS,
        epochs=1,
        windows=9,
        radii=(0.003,),
        slice_radii=(RADIUS,),
        slice_dimensions=(2,),
        batch_size=64,
        seed=5,
        output=str(tmp_path_factory.mktemp("network") / "report"),
    )
    ready = prepare(config)
    return ready, run(ready), Path(config.output)


def parameters(study, model, epoch):
    """Kernel and bias of every layer, from the stored checkpoint."""
    arrays = read_checkpoint(study.config, model, epoch)
    return {
        name.removeprefix("params/"): np.asarray(value, np.float64)
        for name, value in arrays.items()
        if name.startswith("params/")
    }


def patterns(params, x):
    """Signs of all hidden units at the points x (m, d): the forward pass without BatchNorm."""
    signs = []
    for layer in range(len(WIDTHS)):
        z = x @ params[f"dense_{layer}/kernel"] + params[f"dense_{layer}/bias"]
        signs.append(z > 0)
        x = np.maximum(z, 0)
    return np.unique(np.concatenate(signs, axis=1), axis=0)


def nested(params):
    tree = {}
    for name, value in params.items():
        layer, leaf = name.split("/")
        tree.setdefault(layer, {})[leaf] = value
    return {"params": tree}


@pytest.mark.parametrize("kind", [0, 1])
def test_a_windows_count_is_the_number_of_patterns_at_its_cells_witnesses(finished, kind):
    study, result, _ = finished
    params = parameters(study, "none", 1)
    counts = result.raw["none"][1]["network_regions"][0, kind, :, -1]
    chosen = int(counts.argmax())
    window, counted = study.scene.slices(2, RADIUS)[kind, chosen], counts[chosen]
    net = traced(study.scene, study.models["none"], nested(params))
    part = partition(net, window)
    inside = np.array([window.points(u) for u in part.witness])
    assert len(patterns(params, inside)) == counted == part.activation_regions
    u = np.random.default_rng(0).uniform(-RADIUS, RADIUS, (20_000, 2))
    sampled = patterns(params, np.asarray(window.center) + u @ np.asarray(window.basis).T)
    assert 1 < len(sampled) <= counted


def test_regions_of_the_first_layer_are_those_of_its_arrangement(finished):
    _, result, _ = finished
    for checkpoints in result.raw.values():
        for raw in checkpoints.values():
            np.testing.assert_array_equal(raw["network_regions"][..., 0], raw["regions_2"])


def test_batchnorm_at_initialisation_has_2n_first_regions_through_the_centroid(finished):
    _, result, _ = finished
    raw = result.raw["batch"][0]
    assert (raw["centroid_regions"][..., 0] == 2 * WIDTHS[0]).all()
    assert (raw["centroid_hits"][..., 0] == WIDTHS[0]).all()


def test_the_centroid_is_in_its_windows_exactly(finished):
    from jaxregions.batchnorm import centroid

    study, _, _ = finished
    middle = centroid(study.scene.batch)
    windows = centroid_windows(study.scene, RADIUS)
    np.testing.assert_array_equal(windows.anchor, np.broadcast_to(middle, windows.center.shape))
    np.testing.assert_array_equal(windows.shift, 0)
    assert len(windows.center) == min(CENTROID_WINDOWS, study.config.windows)
    np.testing.assert_array_equal(picture_window(study.scene).anchor, middle)


def test_means_and_paired_differences_follow_from_the_raw_counts(finished):
    _, result, root = finished
    rows = json.loads((root / "results.json").read_text())["rows"]
    raw = {m: result.raw[m][1]["network_regions"][0, 1, :, 1] for m in ("batch", "none")}
    expected = {**raw, "batch - none": raw["batch"] - raw["none"]}
    for model, values in expected.items():
        (mean,) = (
            r["mean"]
            for r in rows
            if (r["model"], r["epoch"], r["layer"], r["kind"], r["dimension"], r["quantity"])
            == (model, 1, 2, "control", 2, "regions_through_layer")
        )
        assert mean == pytest.approx(values.mean())


def test_all_counts_are_certified_and_the_page_says_so(finished):
    study, result, root = finished
    said = certificate(study.config, result.table)
    assert said.startswith("100% of the 104 counts")  # 2 networks, 2 checkpoints, 9 + 9 + 8 windows
    assert said in (root / "index.html").read_text(encoding="utf-8")


def test_windows_that_were_not_finished_are_left_out_loudly(finished):
    study, result, _ = finished
    raw = {m: {e: dict(arrays) for e, arrays in c.items()} for m, c in result.raw.items()}
    exact = raw["batch"][1]["network_exact"].copy()
    exact[0, 0, 2] = False
    raw["batch"][1]["network_exact"] = exact
    table = tabulate(study.config, study.scene, raw)
    said = certificate(study.config, table)
    assert said.startswith("WARNING: only 99.0% of the 104 counts are certified; the other 1 had")
    labels = {"epoch": 1, "kind": "data", "layer": 2, "radius": RADIUS, "dimension": 2}
    counts = np.delete(raw["batch"][1]["network_regions"][0, 0, :, 1], 2)
    mean = table("regions_through_layer", model="batch", **labels)
    assert (mean.mean, mean.count) == (pytest.approx(counts.mean()), 8)
    assert table("regions_through_layer", model="batch - none", **labels).count == 8
    assert table("regions_through_layer", model="none", **labels).count == 9


def test_affine_regions_are_counted_at_the_last_checkpoint(finished):
    _, result, _ = finished
    first, last = (result.raw["none"][e] for e in (0, 1))
    assert (first["network_affine"] == -1).all()
    assert (last["network_affine"] >= 1).all()
    assert (last["network_affine"] <= last["network_regions"][..., -1]).all()


def test_pictures_are_of_the_first_last_and_a_middle_checkpoint():
    assert picture_epochs(StudyConfig(epochs=20)) == (0, 2, 20)
    assert picture_epochs(StudyConfig(epochs=1)) == (0, 1)
    assert picture_epochs(StudyConfig(epochs=0)) == (0,)


def test_the_page_states_the_pictures_regions(finished):
    from jaxregions.study.deep import picture

    study, result, root = finished
    parts = [
        picture(study.scene, study.models["none"], result.raw["none"][epoch]) for epoch in (0, 1)
    ]
    assert [p.status for p in parts] == [Status.COMPLETE] * 2
    first, last = (p.activation_regions for p in parts)
    page = (root / "index.html").read_text(encoding="utf-8")
    assert f"its twin without BN {first} and {last}" in page


def test_whole_windows_of_planar_data_are_counted_whole():
    from jaxregions import datasets
    from jaxregions.study.deep import count

    config = StudyConfig(dataset="moons", widths=(4,), windows=2, slice_radii=(0.5,), epochs=0)
    place = scene(config, datasets.load("moons", seed=0))
    ready = prepare(replace(config, output="never-written"))
    rng = np.random.default_rng(1)
    params = {"dense_0": {"kernel": rng.normal(size=(2, 4)), "bias": rng.normal(size=4)}}
    params["output"] = {"kernel": rng.normal(size=(4, 2)), "bias": rng.normal(size=2)}
    net = traced(place, ready.models["none"], {"params": params})
    found = count(config, place, net, affine=False)["network_regions"][0, ..., 0]
    for kind in (0, 1):
        for i in (0, 1):
            box = Window(place.centers[kind, i], 0.5)
            assert partition(net, box).activation_regions == found[kind, i]
