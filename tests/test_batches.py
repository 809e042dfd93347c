"""The jitter of the partition with the mini-batch, against loops in NumPy and closed forms."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from batchnorm_models import initial_variables
from flax import nnx

import jaxregions as jr
from jaxregions import batches
from jaxregions.zoo import SmallCNN

KEY = jax.random.key(7)
SIZES, NUM = (6, 30), 48
EPSILON = 1e-5


class Net(nn.Module):
    """One BatchNorm layer of three ReLU units on two inputs."""

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(3, name="dense")(x))
        return nn.Dense(2, name="out")(nn.relu(h))


class Twin(nnx.Module):
    """The same in nnx."""

    def __init__(self, variables):
        rngs, params = nnx.Rngs(0), variables["params"]
        self.dense, self.out = nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        for layer, own in ((self.dense, params["dense"]), (self.out, params["out"])):
            layer.kernel[...], layer.bias[...] = own["kernel"], own["bias"]
        stats, norm = variables["batch_stats"]["norm"], params["norm"]
        self.norm.scale[...], self.norm.bias[...] = norm["scale"], norm["bias"]
        self.norm.mean[...], self.norm.var[...] = stats["mean"], stats["var"]

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.dense(x))))


def numbers(shape, seed, scale=1.0, shift=0.0):
    values = scale * np.random.default_rng(seed).normal(size=shape) + shift
    return values.astype(np.float32)


DATA = np.random.default_rng(0).normal(size=(30, 2)) @ [[1.0, 0.4], [0.0, 1.5]] + [3.0, -1.0]
VARIABLES = {
    "params": {
        "dense": {"kernel": numbers((2, 3), 1), "bias": numbers(3, 2)},
        "norm": {"scale": numbers(3, 3, 0.2, 1.0), "bias": numbers(3, 4, 0.5)},
        "out": {"kernel": numbers((3, 2), 5), "bias": numbers(2, 6)},
    },
    "batch_stats": {
        "norm": {"mean": numbers(3, 8), "var": numbers(3, 9, 0.1, 2.0)},
    },
}
# Segments of both directions around six of the points.
BASIS = np.concatenate([np.tile([[1.0], [0.5]], (3, 1, 1)), np.tile([[0.0], [1.0]], (3, 1, 1))])
WINDOWS = jr.Window(DATA[:6], 0.6, BASIS)


def measure(model=None, variables=VARIABLES, sizes=SIZES, num=NUM, **options):
    return jr.batch_dependence(
        KEY,
        Net() if model is None else model,
        variables,
        DATA,
        WINDOWS,
        batch_sizes=sizes,
        num_batches=num,
        **options,
    )


@pytest.fixture(scope="module")
def measured():
    return measure()


def first_layer(mean, std):
    """Signed distances (3,) from the data's mean, and which units refine the windows, (6, 3)."""
    params = {k: np.float64(v) for k, v in VARIABLES["params"]["dense"].items()}
    gamma, beta = (np.float64(VARIABLES["params"]["norm"][k]) for k in ("scale", "bias"))
    slope = params["kernel"] * gamma / std

    def value(x):
        return gamma * (x @ params["kernel"] + params["bias"] - mean) / std + beta

    reach = 0.6 * abs(BASIS[:, :, 0] @ slope)
    distance = value(DATA.mean(axis=0)) / np.linalg.norm(slope, axis=0)
    return distance, abs(value(DATA[:6])) < reach


def on_batch(rows):
    params = VARIABLES["params"]["dense"]
    z = DATA[rows] @ np.float64(params["kernel"]) + params["bias"]
    return first_layer(z.mean(axis=0), np.sqrt(z.var(axis=0) + EPSILON))


def compared(seen):
    distance, hit = seen
    whole_distance, whole_hit = on_batch(np.arange(30))
    changed = []
    for one, other in zip(hit, whole_hit, strict=True):
        one, other = set(np.flatnonzero(one)), set(np.flatnonzero(other))
        changed.append(1 - len(one & other) / len(one | other) if one | other else 0.0)
    return abs(distance - whole_distance), hit.sum(axis=1), np.array(changed)


def assert_same(shift, expected):
    for found, number in zip(shift[:3], expected, strict=True):
        np.testing.assert_allclose(found, number, rtol=1e-9, atol=1e-12)


def test_every_mini_batch_is_that_of_a_loop(measured):
    for s, size in enumerate(SIZES):
        for i in range(NUM):
            rows = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, i), 30))[:size]
            one = jax.tree.map(
                lambda v, at=(s, i): v[at], [f.samples for f in measured.batches[:3]]
            )
            assert_same(one, compared(on_batch(rows)))
            away = np.linalg.norm(DATA[rows].mean(axis=0) - DATA.mean(axis=0))
            np.testing.assert_allclose(measured.centroid.samples[s, i], away, atol=1e-12)


def test_mean_and_std_are_over_the_mini_batches(measured):
    hits = measured.batches.hits
    assert hits.samples.shape == (2, NUM, 6)
    np.testing.assert_allclose(hits.mean, [np.mean(v, axis=0) for v in hits.samples])
    middle = (hits.samples[0] - hits.samples[0].mean(axis=0)) ** 2
    np.testing.assert_allclose(hits.std[0], np.sqrt(middle.sum(axis=0) / (NUM - 1)))
    other = (measured.batches.changed.samples > 0).mean(axis=2)
    np.testing.assert_allclose(measured.windows_changed.samples, other)
    assert 0 < measured.windows_changed.mean[0] < 1


def test_centroids_move_as_sampling_without_replacement_says(measured):
    trace = np.trace(np.cov(DATA.T, bias=True))
    for s, size in enumerate(SIZES[:1]):
        squares = measured.centroid.samples[s] ** 2
        expected = trace / size * (30 - size) / 29
        error = squares.std(ddof=1) / np.sqrt(NUM)
        assert abs(squares.mean() - expected) < 4.5 * error
        assert abs(squares.mean() - 2 * expected) > 4.5 * error


def test_the_whole_data_set_as_mini_batch_moves_nothing(measured):
    assert_same(measured.full, compared(on_batch(np.arange(30))))
    assert not measured.full.displacement.any()
    np.testing.assert_allclose(measured.centroid.samples[1], 0, atol=1e-14)
    np.testing.assert_allclose(measured.batches.displacement.samples[1], 0, atol=1e-12)
    assert not measured.batches.changed.samples[1].any()


def test_running_statistics_are_those_of_the_variables(measured):
    stats = VARIABLES["batch_stats"]["norm"]
    std = np.sqrt(np.float64(stats["var"]) + EPSILON)
    assert_same(measured.running, compared(first_layer(np.float64(stats["mean"]), std)))
    assert measured.running.displacement.max() > 0.1


@pytest.mark.slow
def test_nnx_agrees_mini_batches_do_not_depend_on_the_others_and_counts_are_exact(measured):
    found = measure(Twin(VARIABLES), None, sizes=(6,), num=2, count=True)
    for name in ("displacement", "hits", "changed"):
        for one, other in (
            (
                getattr(found.batches, name).samples[0],
                getattr(measured.batches, name).samples[0, :2],
            ),
            (getattr(found.running, name), getattr(measured.running, name)),
        ):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    # Segments, one layer: every refining hyperplane crosses in a point of its own.
    np.testing.assert_array_equal(found.batches.regions.samples, found.batches.hits.samples + 1)
    np.testing.assert_array_equal(found.full.regions, found.full.hits + 1)
    np.testing.assert_array_equal(found.running.regions, found.running.hits + 1)
    assert found.full.regions.max() > 1


@pytest.mark.slow
def test_a_model_without_batchnorm_does_not_depend_on_the_batch():
    found = measure(jr.without_batchnorm(Net()), sizes=(6,), num=2)
    assert found.running is None
    assert not found.batches.displacement.samples.any()
    assert not found.windows_changed.samples.any()
    assert found.centroid.samples.min() > 0


@pytest.mark.slow
def test_blocks_change_nothing(measured, monkeypatch):
    monkeypatch.setattr(batches, "_FLOATS", 1)
    found = measure(sizes=(6,), num=2)
    before = measured.batches.displacement.samples[0, :2]
    np.testing.assert_allclose(found.batches.displacement.samples[0], before, rtol=1e-9)


@pytest.mark.slow
def test_convolutions_agree_with_each_batch_conditioned_by_itself():
    model = SmallCNN(channels=(3,), widths=(4,), num_outputs=2)
    data = np.random.default_rng(0).normal(size=(9, 6, 6, 1))
    variables = initial_variables(model, data)
    windows = jr.Window(data[:4].reshape(4, -1), 0.05)
    found = jr.batch_dependence(
        KEY, model, variables, data, windows, batch_sizes=(3,), num_batches=3
    )
    for i in range(3):
        rows = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, i), 9))[:3]
        net = jr.trace(jr.condition(model, variables, data[rows]), data[0])
        hits = jr.stage_hits(net, windows).hits[:, 0]
        np.testing.assert_array_equal(found.batches.hits.samples[0, i], hits)


BAD = {
    "data": ({"data": DATA[0]}, "data"),
    "windows": ({"windows": jr.Window(np.zeros(3), 1.0)}, "windows"),
    "no window": ({"windows": WINDOWS[:0]}, "at least one"),
    "small": ({"batch_sizes": (1,)}, "batch_sizes"),
    "large": ({"batch_sizes": (4, 31)}, "2 .. 30"),
    "none": ({"batch_sizes": ()}, "batch_sizes"),
    "fraction": ({"batch_sizes": (4.5,)}, "batch_sizes"),
    "one batch": ({"num_batches": 1}, "num_batches"),
    "mode": ({"train": True}, "inference"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name):
    change, message = BAD[name]
    options = {"data": DATA, "windows": WINDOWS, "batch_sizes": (4,), "num_batches": 2} | change
    data, windows = options.pop("data"), options.pop("windows")
    with pytest.raises(ValueError, match=message):
        jr.batch_dependence(KEY, Net(), VARIABLES, data, windows, **options)


def test_refuses_counts_in_many_dimensions():
    data = np.zeros((4, 3))
    with pytest.raises(ValueError, match="k = 3"):
        jr.batch_dependence(
            KEY,
            Net(),
            VARIABLES,
            data,
            jr.Window(data, 1.0),
            batch_sizes=(2,),
            num_batches=2,
            count=True,
        )
