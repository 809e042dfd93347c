import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from jaxregions import datasets, training
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.study import StudyConfig, prepare, run
from jaxregions.study.measure import distinct_hits, scene
from jaxregions.study.statistics import Summary, proportion, summarize, unpaired
from jaxregions.study.store import DamagedCheckpoint, claim, prepare_folder, read_state
from jaxregions.study.story import compare, plus_minus, verdict
from jaxregions.zoo import MLP

SMALL = StudyConfig(
    dataset="moons",
    widths=(6, 5),
    epochs=2,
    checkpoints=(0, 2),
    windows=9,
    radii=(0.003, 0.03, 0.3),
    slice_radii=(0.3,),
    slice_dimensions=(1, 2),
    batch_size=64,
    seed=3,
)


RESULTS = ("results.csv", "expected.csv", "results.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study, run once: its configuration and result."""
    config = replace(SMALL, output=str(tmp_path_factory.mktemp("study") / "report"))
    return config, run(prepare(config))


def files(config):
    return Path(config.output)


def rows(config):
    return json.loads((files(config) / "results.json").read_text())["rows"]


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_and_the_announced_steps(finished, tmp_path):
    config, _ = finished
    again = replace(config, output=str(tmp_path / "again"))
    ready, steps = prepare(again), []
    run(ready, lambda _, n: steps.append(n))
    for name in (*RESULTS, "config.json"):
        assert (files(config) / name).read_bytes() == (files(again) / name).read_bytes()
    assert sum(steps) == ready.steps


def test_another_seed_looks_elsewhere():
    data = datasets.load("moons")
    first, second = (scene(replace(SMALL, seed=seed), data) for seed in (3, 4))
    for name in ("batch", "centers", "bases", "points"):
        assert not np.array_equal(getattr(first, name), getattr(second, name))


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        "with BatchNorm: epoch 2",
        "without BatchNorm: epoch 1",
    ],
)
def test_an_interrupted_study_resumes_to_the_same_numbers(finished, tmp_path, where):
    config, _ = finished
    partial = replace(config, output=str(tmp_path / "partial"))

    def interrupt(what, steps):
        if what == where:
            raise Stop

    with pytest.raises(Stop):
        run(prepare(partial), interrupt)
    assert not (files(partial) / "results.csv").exists()
    seen = []
    run(prepare(replace(partial, resume=True)), lambda what, steps: seen.append((what, steps)))
    assert seen[0] == ("with BatchNorm: resumed", seen[0][1])
    for name in RESULTS:
        assert (files(partial) / name).read_bytes() == (files(config) / name).read_bytes()


@pytest.mark.slow
def test_damaged_checkpoints_are_named(finished, tmp_path):
    config, _ = finished
    shutil.copytree(config.output, tmp_path / "copy")
    copy = replace(config, output=str(tmp_path / "copy"), resume=True)
    for path in (tmp_path / "copy" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedCheckpoint, match=r"batch-000000\.npz: expected a checkpoint"):
        run(prepare(copy))
    last = max(config.schedule)
    with pytest.raises(DamagedCheckpoint, match=r"batch-\d+\.msgpack: .* received a damaged one"):
        read_state(copy, "batch", last, training.TrainState(None, None, 0))


@pytest.mark.slow
def test_progress_of_a_resumed_study_adds_up_too(finished):
    config, _ = finished
    ready = prepare(replace(config, resume=True))
    steps = []
    run(ready, lambda _, n: steps.append(n))
    assert sum(steps) == ready.steps


def test_all_files_are_there(finished):
    config, result = finished
    root = files(config)
    assert result.page == root / "index.html"
    for name in ("index.html", *RESULTS, "config.json", "windows.npz"):
        assert (root / name).stat().st_size > 0
    names = {path.stem for path in (root / "figures").iterdir()}
    layer_one = {"training", "hits", "radius", "regions", "deeper", "arrangement"}
    assert names == layer_one | {"expected", "network", "partitions", "slopes"}
    for path in (root / "figures").iterdir():
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_loads_nothing_from_elsewhere(finished):
    page = (files(finished[0]) / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="(.{0,22})', page)
    assert len(sources) == 10
    assert set(sources) == {"data:image/png;base64,"}


def test_the_page_states_the_bias_scale_and_what_is_exact(finished):
    page = (files(finished[0]) / "index.html").read_text(encoding="utf-8")
    for phrase in ("standard deviation 0.1", "What is exact", "What is statistical", "Controls"):
        assert phrase in page


def test_hits_at_initialisation_equal_the_formula(finished):
    config, _ = finished
    data = datasets.load("moons", seed=config.seed)
    arrays = np.load(files(config) / "windows.npz")
    batch, centers = arrays["batch"], arrays["centers"]
    for norm in ("batch", "none"):
        model = MLP(widths=config.widths, num_outputs=data.num_classes, norm=norm)
        key = jax.random.key(config.seed)
        params = training.init_state(model, data.x_train[:1], key=key).variables["params"]
        kernel = np.asarray(params["dense_0"]["kernel"], np.float64)
        bias = np.asarray(params["dense_0"]["bias"], np.float64)
        # At initialisation BatchNorm is z -> (z - mean) / std, so it switches where z is the mean.
        shift = (batch @ kernel).mean(0) if norm == "batch" else -bias
        for i, radius in enumerate(config.radii):
            value = abs(centers @ kernel - shift)
            hits = (value < radius * abs(kernel).sum(0)).sum(-1)
            np.testing.assert_array_equal(arrays[f"{norm}_hits"][0, i], hits)
            mean = next(
                r["mean"]
                for r in rows(config)
                if (r["model"], r["epoch"], r["kind"], r["radius"], r["quantity"])
                == (norm, 0, "data", radius, "hits")
            )
            assert mean == hits[0].mean()


def test_region_counts_equal_distinct_activation_patterns_on_a_grid(finished):
    config, result = finished
    arrays = np.load(files(config) / "windows.npz")
    u = np.linspace(-1, 1, 1000)[1:-1]
    grid = 0.3 * np.stack(np.meshgrid(u, u), -1).reshape(-1, 2)
    raw = result.raw["none"][2]
    normal, offset = raw["planes_normal"], raw["planes_offset"][:, 0]
    for kind, index in ((0, 0), (1, 4)):
        signs = (grid + arrays["centers"][kind, index]) @ normal.T > offset
        seen = len(np.unique(signs @ 2 ** np.arange(len(normal))))
        assert raw["regions_2"][0, kind, index] == seen


def test_first_stage_of_the_traced_network_agrees_with_layer_one(finished):
    from jaxregions.batchnorm import condition
    from jaxregions.depth import stage_hits
    from jaxregions.tracing import trace
    from jaxregions.windows import Window

    config, _ = finished
    ready = prepare(replace(config, output=config.output + "-unused"))
    model = ready.models["batch"]
    x = ready.data.x_train
    variables = training.init_state(model, x[:1], key=jax.random.key(config.seed)).variables
    batch = ready.scene.batch
    net = trace(condition(model, variables, batch, train=False), batch[0])
    arrays = np.load(files(config) / "windows.npz")
    for i, radius in enumerate(config.radii):
        found = stage_hits(net, Window(arrays["centers"], radius))
        np.testing.assert_array_equal(found.hits[..., 0], arrays["batch_hits"][0, i])
        no_hit = arrays["batch_hits"][0, i] == 0
        np.testing.assert_array_equal(arrays["batch_deep_inside"][0, i, ..., 0], no_hit)


def test_the_table_follows_from_the_raw_numbers(finished):
    config, _ = finished
    arrays = np.load(files(config) / "windows.npz")
    gap = arrays["batch_regions_2"][-1, 0, 1] - arrays["none_regions_2"][-1, 0, 1]
    interval = stats.t.interval(0.95, len(gap) - 1, gap.mean(), stats.sem(gap))
    row = next(
        r
        for r in rows(config)
        if (r["model"], r["epoch"], r["kind"], r["dimension"], r["quantity"])
        == ("batch - none", 2, "control", 2, "regions")
    )
    assert row["mean"] == pytest.approx(gap.mean())
    assert (row["low95"], row["high95"]) == pytest.approx(interval)


def test_deeper_hits_average_the_windows_inside_a_parent_region(finished):
    config, _ = finished
    arrays = np.load(files(config) / "windows.npz")
    hits, inside = (arrays[f"none_deep_{n}"][-1, 0, 0, :, 0] for n in ("hits", "inside"))
    found = {
        r["quantity"]: r
        for r in rows(config)
        if (r["model"], r["epoch"], r["layer"], r["kind"], r["radius"])
        == ("none", 2, 2, "data", config.radii[0])
    }
    assert inside.any()
    assert found["hits_in_parent"]["mean"] == pytest.approx(hits[inside].mean())
    assert found["hits_in_parent"]["count"] == inside.sum()
    assert found["share_in_parent"]["mean"] == pytest.approx(inside.mean())


def test_csv_and_json_hold_the_same_rows(finished):
    config, _ = finished
    with (files(config) / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows(config))
    for line, row in zip(table, rows(config), strict=True):
        assert {k: v or None for k, v in line.items()} == {
            k: None if v is None or v == "" else str(v) for k, v in row.items()
        }


def test_controls_share_the_marginals_of_the_data_only():
    config = replace(SMALL, dataset="digits", windows=64)
    data = datasets.load("digits", seed=config.seed)
    control = scene(config, data).centers[1]
    values = [set(column.astype(np.float64)) for column in data.x_train.T]
    assert all(set(column) <= allowed for column, allowed in zip(control.T, values, strict=True))
    rows = {tuple(row) for row in np.concatenate([data.x_train, data.x_test]).tolist()}
    assert not rows & {tuple(row) for row in control.tolist()}


def test_slices_are_orthonormal_and_nested():
    config = replace(SMALL, dataset="breast_cancer", windows=5)
    place = scene(config, datasets.load("breast_cancer", seed=config.seed))
    gram = np.swapaxes(place.bases, -1, -2) @ place.bases
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)
    window = place.slices(2, 0.1)
    assert window.basis is not None
    np.testing.assert_array_equal(window.basis, place.bases[..., :2])


def test_parallel_units_count_once_in_the_lower_bound():
    normal = np.array([[1.0, 0], [2.0, 0], [0, 1.0]])
    planes = Hyperplanes(normal, np.zeros(2), np.array([[1.0], [2.0], [0.5]]))
    hit = np.ones((4, 3, 1), bool)
    hit[0] = False
    hit[1, 0] = False
    np.testing.assert_array_equal(distinct_hits(planes, hit), [0, 2, 2, 2])


def test_a_new_study_removes_an_earlier_ones_files_and_no_others(finished, tmp_path):
    config = replace(SMALL, output=str(tmp_path / "shared"), seed=9)
    root = files(config)
    shutil.copytree(files(finished[0]), root)
    (root / "notes.txt").write_text("mine")
    (root / "figures" / "mine.png").write_text("mine")
    (root / "checkpoints" / "mine.npz").write_text("mine")
    prepare_folder(config)
    claim(config)
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left == {"config.json", "notes.txt", "figures/mine.png", "checkpoints/mine.npz"}
    assert json.loads((root / "config.json").read_text())["config"]["seed"] == 9


def test_a_foreign_index_is_not_overwritten(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"without index\.html or one that an earlier study wrote"):
        prepare(replace(SMALL, output=str(tmp_path)))


def test_resuming_another_configuration_names_what_differs(finished):
    config, _ = finished
    changed = replace(config, resume=True, learning_rate=0.01, windows=8)
    with pytest.raises(ValueError, match=r"learning_rate was 0.001, is 0.01; windows was 9, is 8"):
        prepare(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "cifar"}, "dataset: expected one of .* received 'cifar'"),
        ({"activation": "gelu"}, "activation: expected one of relu.* received 'gelu'"),
        ({"widths": ()}, r"widths: expected positive integers.* received \(\)"),
        ({"widths": (4, 0)}, "widths: expected positive integers"),
        ({"epochs": -1}, "epochs: expected an integer >= 0, received -1"),
        ({"batch_size": 1}, "batch_size: expected an integer >= 2, received 1"),
        ({"windows": 1}, "windows: expected an integer >= 2"),
        ({"radii": (0.1, 0.0)}, "radii: expected numbers > 0"),
        ({"slice_radii": ()}, "slice_radii: expected numbers > 0"),
        ({"slice_dimensions": (4,)}, "slice_dimensions: expected dimensions of 1, 2, 3"),
        ({"seed": -1}, "seed: expected an integer >= 0"),
        ({"bias_std": math.nan}, "bias_std: expected >= 0, received nan"),
        ({"learning_rate": 0}, "learning_rate: expected a number > 0"),
        ({"checkpoints": (0, 30)}, r"checkpoints: expected epochs in 0\.\.2"),
        ({"output": ""}, "output: expected a folder"),
    ],
)
def test_bad_configurations_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": 5000}, "windows: expected at most 400, the held-out examples of moons"),
        ({"batch_size": 5000}, "batch_size: expected at most 1600, the training examples"),
    ],
)
def test_data_that_is_too_small_is_rejected(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(replace(SMALL, output=str(tmp_path / "never"), **change))
    assert not (tmp_path / "never").exists()


def test_default_checkpoints_end_at_the_last_epoch():
    assert StudyConfig(epochs=30).schedule == (0, 1, 2, 5, 10, 20, 30)


def test_quick_caps_the_work():
    config = StudyConfig(quick=True)
    assert (config.epochs, config.windows, config.slice_radii) == (2, 16, (0.1,))


def test_summary_is_the_t_interval():
    values = [1.0, 4.0, 2.0, 2.5]
    found = summarize(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found[1:4] == pytest.approx((stats.sem(values), low, high))


def test_unpaired_difference_is_welchs():
    a, b = [1.0, 4.0, 2.0, 2.5], [0.0, 0.5, 0.25, 1.5, 9.0]
    test = stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(0.95)
    found = unpaired(a, b)
    assert found[2:4] == pytest.approx((interval.low, interval.high))


def test_share_is_wilsons():
    expected = stats.binomtest(3, 20).proportion_ci(0.95, method="wilson")
    found = proportion([True] * 3 + [False] * 17)
    assert found[2:4] == pytest.approx((expected.low, expected.high))


def test_shares_of_none_and_all_stay_in_range():
    assert proportion([False] * 9).low95 == 0
    assert proportion([True] * 9).high95 == 1


@pytest.mark.parametrize(
    ("difference", "word", "text"),
    [
        (Summary(12.3, 0.5, 11.2, 13.4, 64), "more", "BN has more hits than its twin"),
        (Summary(-4.0, 0.5, -5.0, -3.0, 64), "fewer", "BN has fewer hits than its twin"),
        (Summary(0.3, 0.5, -0.7, 1.3, 64), "unresolved", "no difference in hits between BN and"),
        (Summary(0.0, 0.0, 0.0, 0.0, 64), "equal", "BN and its twin have equally many hits"),
        (Summary(5.0, 0.1, 4.0, 6.0, 3), "unknown", "too few windows to compare the hits"),
        (Summary(math.nan, *[math.nan] * 3, 0), "unknown", "too few windows"),
    ],
)
def test_sentences_say_what_the_interval_resolves(difference, word, text):
    assert verdict(difference) == word
    assert compare("BN", "its twin", "hits", difference).startswith(text)


def test_numbers_are_written_to_two_digits_of_their_uncertainty():
    assert plus_minus(Summary(12.345, 0.5, 11.245, 13.445, 64)) == "12.3 ± 1.1"
    assert plus_minus(Summary(-0.03456, 0.01, -0.05456, -0.01456, 64)) == "−0.035 ± 0.020"
    assert plus_minus(Summary(321.4, 20.0, 281.4, 361.4, 64)) == "321 ± 40"


def test_the_pages_sentences_match_the_table(finished):
    config, _ = finished
    page = (files(config) / "index.html").read_text(encoding="utf-8")
    row = next(
        r
        for r in rows(config)
        if (r["model"], r["epoch"], r["kind"], r["dimension"], r["quantity"])
        == ("batch - none", 2, "data", 2, "regions")
    )
    word = "more" if row["low95"] > 0 else "fewer" if row["high95"] < 0 else None
    text = f"for k = 2 BN has {word} regions" if word else "for k = 2 no difference in regions"
    assert text in page
