"""Expected refinement against plain loops over the same samples and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxregions as jr
from jaxregions.refinement import estimate as estimating
from jaxregions.refinement import layers, network, samplers
from jaxregions.refinement.first_layer import first_hyperplanes
from jaxregions.refinement.programs import needed
from jaxregions.zoo import MLP, SmallCNN

KEY = jax.random.key(3)
MODEL = MLP(widths=(20,), num_outputs=1, weight_std=0.7, bias_std=0.3)
BATCH = np.random.default_rng(0).normal(size=(16, 2)) + np.array([0.5, -0.25])
WINDOWS = jr.Window(np.stack([[0.8, -0.5], jr.centroid(BATCH), [3.0, 1.0]]), 0.4)
BLOCK, COUNT = 64, 100  # the second block is not full


def run(num_samples=COUNT, *, model=MODEL, batch=BATCH, windows=WINDOWS, key=KEY, **options):
    options = {"block_size": BLOCK, "progress": False} | options
    return jr.expected_refinement(key, model, batch, windows, num_samples, **options)


@pytest.fixture(scope="module")
def found():
    return run()


@pytest.fixture(scope="module")
def drawn():
    """The variables of the first COUNT samples, drawn as documented."""
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(COUNT))
    return jax.jit(jax.vmap(lambda k: MODEL.init(k, jnp.zeros((1, 2)))["params"]))(keys)


@pytest.fixture(scope="module")
def loop(drawn):
    """hits and regions (COUNT, 3) of both twins, one sample after the other."""
    kernel, bias = (np.asarray(drawn["dense_0"][name], np.float64) for name in ("kernel", "bias"))
    twins = {"batch_norm": [], "no_batch_norm": []}
    for w, b in zip(kernel, bias, strict=True):
        switching = jr.batch_hyperplanes(w, BATCH).switching
        for name, planes in zip(twins, (switching, jr.dense_hyperplanes(w, b)), strict=True):
            hits = jr.count_hits(planes, WINDOWS).hits
            twins[name].append([hits, jr.count_arrangement(planes, WINDOWS).regions])
    twins = {name: np.array(rows).swapaxes(0, 1) for name, rows in twins.items()}
    return twins | {"difference": twins["batch_norm"] - twins["no_batch_norm"]}


@pytest.mark.parametrize("side", ["batch_norm", "no_batch_norm", "difference"])
def test_a_plain_loop_gives_the_same(side, found, loop):
    hits, regions = loop[side]
    estimates = getattr(found, side)
    assert np.array_equal(estimates.hits.mean[:, 0], hits.sum(axis=0) / COUNT)
    assert np.array_equal(estimates.regions.mean, regions.sum(axis=0) / COUNT)
    for value, samples in ((estimates.hits, hits[..., None]), (estimates.regions, regions)):
        error = samples.std(axis=0, ddof=1) / np.sqrt(COUNT)
        np.testing.assert_allclose(value.standard_error, error, rtol=1e-12)


def test_pooled_errors_count_the_correlation_of_windows(found, loop):
    means = loop["difference"][1].mean(axis=1)  # per sample
    pooled = found.difference.pooled.regions
    np.testing.assert_allclose(pooled.mean, means.mean(), rtol=1e-13)
    np.testing.assert_allclose(
        pooled.standard_error, means.std(ddof=1) / np.sqrt(COUNT), rtol=1e-12
    )


def test_log_density_is_that_of_every_sample(found, loop):
    logs = np.log(loop["no_batch_norm"][1]) - 2 * np.log(0.8)
    value = found.no_batch_norm.log_density
    np.testing.assert_allclose(value.mean, logs.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(
        value.standard_error, logs.std(axis=0, ddof=1) / np.sqrt(COUNT), rtol=1e-12
    )


def test_every_unit_hits_a_window_at_the_centroid(found):
    assert found.batch_norm.hits.mean[1] == 20
    assert found.batch_norm.regions.mean[1] == 40  # 2 n concurrent lines
    assert found.batch_norm.regions.standard_error[1] == 0
    assert found.exact
    assert found.certified
    assert (found.num_samples, found.status) == (COUNT, estimating.SamplingStatus.COMPLETE)


def corners(center, radius, height):
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * radius + center
    lifted = np.column_stack([square, np.full(4, height)])
    return lifted / np.linalg.norm(lifted, axis=1, keepdims=True)


def spherical_polygon(points):
    """Perimeter and area (Girard) of a convex spherical polygon."""
    after, before = np.roll(points, -1, axis=0), np.roll(points, 1, axis=0)
    perimeter = np.arccos((points * after).sum(axis=1)).sum()
    ahead, behind = np.cross(points, after), np.cross(points, before)
    cosine = (ahead * behind).sum(axis=1)
    cosine /= np.linalg.norm(ahead, axis=1) * np.linalg.norm(behind, axis=1)
    return perimeter, np.arccos(cosine).sum() - 2 * np.pi


def test_closed_forms_lie_within_the_errors():
    found = run(4096, key=jax.random.key(11))
    center = WINDOWS.center[0]
    perimeter, area = spherical_polygon(corners(center, 0.4, 0.3 / 0.7))
    hits = 20 * perimeter / (2 * np.pi)
    regions = 1 + hits + 190 * area / (2 * np.pi)
    np.testing.assert_allclose([hits, regions], [7.4444, 17.2982], rtol=1e-5)
    angles = np.arctan2(*(corners(center - jr.centroid(BATCH), 0.4, 0.0)[:, :2].T[::-1]))
    angles = (angles - angles[0] + np.pi) % (2 * np.pi)
    normalised = 20 * np.ptp(angles) / np.pi
    for twin, expected in (
        (found.no_batch_norm, (hits, regions)),
        (found.batch_norm, (normalised, 1 + normalised)),
    ):
        for value, mean in zip((twin.hits, twin.regions), expected, strict=True):
            assert abs(value.mean.ravel()[0] - mean) < 4.5 * value.standard_error.ravel()[0]


def test_stops_at_the_first_block_that_meets_the_target():
    target = 0.5
    stopped = run(4096, target_standard_error=target)
    assert stopped.status == estimating.SamplingStatus.TARGET_MET
    count = stopped.num_samples
    assert (count % BLOCK, count >= 1024) == (0, True)
    same, shorter = run(count), run(count - BLOCK)

    def worst(found):
        sides = (found.batch_norm, found.no_batch_norm, found.difference)
        return max(side.regions.standard_error.max() for side in sides)

    assert worst(stopped) <= target
    assert count == 1024 or worst(shorter) > target
    for one, two in zip(jax.tree.leaves(stopped), jax.tree.leaves(same), strict=True):
        assert np.array_equal(one, two) or two == estimating.SamplingStatus.COMPLETE


def test_interrupted_calls_return_what_is_finished(monkeypatch, found):
    blocks = estimating.blocks

    def interrupted(*arguments):
        yield next(iter(blocks(*arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(estimating, "blocks", interrupted)
    part = run()
    assert (part.num_samples, part.status) == (BLOCK, estimating.SamplingStatus.INTERRUPTED)
    monkeypatch.undo()
    assert np.array_equal(part.difference.regions.mean, run(BLOCK).difference.regions.mean)


def test_one_sample_is_its_own_mean(loop):
    one = run(1)
    assert np.array_equal(one.batch_norm.regions.mean, loop["batch_norm"][1][0])
    assert np.isposinf(one.batch_norm.regions.standard_error).all()


def test_windows_keep_their_shape(found):
    shaped = run(windows=WINDOWS.reshape(3, 1))
    assert shaped.batch_norm.hits.mean.shape == (3, 1, 1)
    assert np.array_equal(
        shaped.difference.regions.high.ravel(), found.difference.regions.high.ravel()
    )


@pytest.mark.slow
def test_bits_do_not_depend_on_the_block_size(found):
    for size in (32, 128):
        other = run(block_size=size)
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
            assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


BROKEN = jax.random.key(4)  # its first sample is NaN


def integer_sampler(key):
    """Few integers, so that parallel, equal, tangent and concurrent lines abound."""
    one, two = jax.random.split(key)
    kernel = jax.random.randint(one, (2, 20), -2, 3).astype(jnp.float32)
    bias = jax.random.randint(two, (20,), -1, 2).astype(jnp.float32)
    first = jax.random.key_data(jax.random.fold_in(BROKEN, 0))
    bias = jnp.where((jax.random.key_data(key) == first).all(), jnp.nan, bias)
    norm = {"scale": jnp.ones(20), "bias": jnp.zeros(20)}
    head = {"kernel": jnp.ones((20, 1)), "bias": jnp.zeros(1)}
    return {"params": {"dense_0": {"kernel": kernel, "bias": bias}, "norm_0": norm, "output": head}}


TIES = jr.Window(np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]]), 0.5)


def test_ties_are_counted_exactly():
    found = run(8, windows=TIES, sampler=integer_sampler)
    regions = []
    for i in range(8):
        dense = integer_sampler(jax.random.fold_in(KEY, i))["params"]["dense_0"]
        planes = jr.dense_hyperplanes(np.asarray(dense["kernel"]), np.asarray(dense["bias"]))
        regions.append(jr.count_arrangement(planes, TIES).regions)
    assert found.rechecked > 0
    assert np.array_equal(found.no_batch_norm.regions.mean, np.sum(regions, axis=0) / 8)


def axis_sampler(key):
    """Lines along an axis, which integers leave open; one of them along a window's edge."""
    variables = integer_sampler(key)
    dense = variables["params"]["dense_0"]
    normal = jax.random.normal(key, (3, 20)).at[0, ::3].set(0.0)
    edge = (jnp.arange(20) == 0) & (normal[1] > 0)
    dense["kernel"], dense["bias"] = normal[:2], jnp.where(edge, -normal[1] / 2, normal[2])
    return variables


@pytest.mark.slow
def test_many_open_pairs_are_measured_in_float64_first(monkeypatch):
    one = run(8, windows=TIES, sampler=axis_sampler)
    monkeypatch.setattr(layers, "FEW", 0)
    seen, measure = [], layers.measure_again

    def watched(*arguments, **options):
        seen.append(measure(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(layers, "measure_again", watched)
    two = run(8, windows=TIES, sampler=axis_sampler)
    decided = np.concatenate([np.asarray(s.decided) for s in seen])
    assert decided.any()
    assert not decided.all()  # ties are left to the rationals
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_only_what_the_first_hyperplanes_need_is_drawn():
    """The first layer and its BatchNorm, of which the running statistics are not drawn at all."""
    model, call = MLP(widths=(5, 4), num_outputs=2), samplers.Call((), ())
    own = samplers.source(model, None, call, (2,))
    variables = jax.eval_shape(own.draw, KEY)
    keep = jax.tree.unflatten(jax.tree.structure(variables), needed(own, call, (16, 2)))
    assert set(variables) == {"params"}
    first = {"dense_0", "norm_0"}
    assert keep["params"] == {
        name: dict.fromkeys(part, name in first) for name, part in variables["params"].items()
    }


def test_samples_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="received NaN or infinity in sample 0"):
        run(1, windows=TIES, sampler=integer_sampler, key=BROKEN)


@pytest.mark.slow
def test_mini_batches_and_points_are_drawn_as_documented():
    data = np.random.default_rng(5).normal(size=(40, 2))
    found = run(30, batch=data, batch_size=8, points=data[:7])
    hits, init = [], jax.jit(MODEL.init)
    for i in range(30):
        key = jax.random.fold_in(KEY, i)
        rows = jax.random.choice(jax.random.fold_in(key, 1), 40, (8,), replace=False)
        point = jax.random.randint(jax.random.fold_in(key, 2), (), 0, 7)
        kernel = init(key, jnp.zeros((1, 2)))["params"]["dense_0"]["kernel"]
        planes = jr.batch_hyperplanes(np.asarray(kernel, np.float64), data[np.asarray(rows)])
        windows = jr.Window(WINDOWS.center + data[int(point)], 0.4)
        hits.append(jr.count_hits(planes.switching, windows).hits)
    assert np.array_equal(found.batch_norm.hits.mean[:, 0], np.sum(hits, axis=0) / 30)


def deep_sampler(key):
    normal = jax.random.normal(key, (2, 4))
    params = {"dense_0": {"kernel": normal, "bias": normal[0]}}
    params["dense_1"] = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    params["output"] = {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}
    for layer, width in enumerate((4, 3)):
        params[f"norm_{layer}"] = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
    return {"params": params}


def test_networks_are_averaged_sample_by_sample(monkeypatch):
    """Stage and window keep their places, and a block that is not full counts its samples only."""

    def counts(job, draw):
        kernel = float(np.asarray(draw.variables["params"]["dense_0"]["kernel"])[0, 0])
        place = np.arange(6).reshape(3, 2) * kernel
        regions = np.array([1.0, 2.0, 3.0]) * np.exp(kernel)
        return tuple(network.Counts(place + t, regions * 2**t, regions * 2**t) for t in range(2))

    monkeypatch.setattr(network, "measure_network", counts)
    model = MLP(widths=(4, 3), num_outputs=1)
    found = run(3, model=model, sampler=deep_sampler, block_size=2)
    keys = [jax.random.fold_in(KEY, i) for i in range(3)]
    kernel = np.array([deep_sampler(k)["params"]["dense_0"]["kernel"][0, 0] for k in keys])
    kernel = kernel.astype(np.float64)
    hits = np.arange(6).reshape(3, 2) * kernel.mean() + 1
    np.testing.assert_allclose(found.no_batch_norm.hits.mean, hits, rtol=1e-12)
    np.testing.assert_allclose(found.difference.hits.mean, -1, rtol=1e-12)
    regions = np.exp(kernel).mean() * np.array([2.0, 4.0, 6.0])
    np.testing.assert_allclose(found.no_batch_norm.regions.mean, regions, rtol=1e-12)
    error = np.exp(kernel).std(ddof=1) / np.sqrt(3) * np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(found.difference.regions.standard_error, error, rtol=1e-12)


@pytest.mark.slow
def test_whole_networks_are_counted_as_a_loop_would():
    model = MLP(widths=(4, 3), num_outputs=1)
    found = run(2, model=model, block_size=2)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(2))
    drawn = jax.jit(jax.vmap(lambda k: model.init(k, jnp.zeros((1, 2)))))(keys)
    for side, twin in (
        ("batch_norm", model),
        ("no_batch_norm", jr.without_batchnorm(model)),
    ):
        counted = []
        for i in range(2):
            variables = jax.tree.map(lambda v, i=i: v[i], drawn)
            counted.append(jr.count_regions(jr.condition(twin, variables, BATCH), WINDOWS))
        value = getattr(found, side)
        regions = np.mean([c.activation_regions for c in counted], axis=0)
        assert np.array_equal(value.regions.mean, regions)
        assert np.array_equal(value.hits.mean, np.mean([c.hits for c in counted], axis=0))


@pytest.mark.slow
def test_boxes_of_three_dimensions_are_bracketed_or_counted():
    batch = np.random.default_rng(7).normal(size=(16, 3))
    windows = jr.Window(np.array([[0.5, 0.0, 0.2]]), 0.4)
    bracket = run(20, batch=batch, windows=windows)
    counts = run(20, batch=batch, windows=windows, regions="exact")
    assert (bracket.exact, counts.exact) == (False, True)
    assert bracket.no_batch_norm.regions is None
    for side in ("batch_norm", "no_batch_norm", "difference"):
        value, known = getattr(bracket, side), getattr(counts, side).regions.mean
        assert value.regions_lower.mean <= known <= value.regions_upper.mean
    assert np.array_equal(bracket.difference.hits.mean, counts.difference.hits.mean)


class NnxOne(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.dense(x)))))


@pytest.mark.slow
def test_nnx_models_are_drawn_by_their_constructor():
    found = run(20, model=NnxOne)
    kernels = jax.jit(jax.vmap(lambda k: NnxOne(nnx.Rngs(k)).dense.kernel[...]))(
        jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(20))
    )
    planes = [jr.batch_hyperplanes(np.asarray(k, np.float64), BATCH).switching for k in kernels]
    hits = np.sum([jr.count_hits(p, WINDOWS).hits for p in planes], axis=0)
    assert np.array_equal(found.batch_norm.hits.mean[:, 0], hits / 20)


# The first layer ---------------------------------------------------------------------------------


def planes_of(model, variables, batch):
    net = jr.trace(jr.condition(model, variables, batch), batch[0])
    with jax.enable_x64(True):
        planes = jax.jit(lambda p: first_hyperplanes(net, p))(jr.centroid(batch))
    return net, jax.tree.map(np.asarray, planes)


def test_first_layer_is_that_of_the_closed_form(drawn):
    params = jax.tree.map(lambda v: v[0], drawn)
    model = MODEL.clone(activation=jr.PiecewiseLinear([-1, 1], [0, 1, 0]))
    _, planes = planes_of(model, {"params": params}, BATCH)
    kernel = np.asarray(params["dense_0"]["kernel"], np.float64)
    known = jr.batch_hyperplanes(kernel, BATCH, activation=model.activation)
    assert planes.offset.shape == (20, 2)  # one normal a unit
    assert np.array_equal(planes.point, known.switching.point)
    scale = known.std[:, None]
    np.testing.assert_allclose(planes.normal * scale, known.switching.normal, rtol=1e-12)
    np.testing.assert_allclose(planes.offset * scale, known.switching.offset, rtol=1e-12)


def test_batchnorm_keeps_the_centroid_exactly(drawn):
    _, planes = planes_of(MODEL, {"params": jax.tree.map(lambda v: v[1], drawn)}, BATCH)
    assert (planes.offset == 0).all()
    assert np.array_equal(planes.point, jr.centroid(BATCH))


@pytest.mark.slow
def test_first_layer_of_a_convolution_is_its_pull_back():
    batch = np.random.default_rng(2).normal(size=(6, 4, 4, 1))
    model = SmallCNN(channels=(2,), widths=(), num_outputs=1)
    variables = jax.jit(model.init)(KEY, jnp.asarray(batch, jnp.float32))
    net, planes = planes_of(model, variables, batch)
    there = jr.pull_back(net, batch[0], stage=0)
    point = batch[0].ravel()
    np.testing.assert_allclose(planes.normal, there.normal, atol=1e-12)
    value = planes.normal @ (point - planes.point) - planes.offset[:, 0]
    np.testing.assert_allclose(value, -there.offset[:, 0], atol=1e-12)


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples: expected an integer"),
        ({"confidence": 1.0}, "confidence: expected a number in"),
        ({"target_standard_error": 0.0}, "target_standard_error: expected"),
        ({"block_size": 12}, "block_size: expected a power of two"),
        ({"stages": "second"}, "stages: expected one of"),
        ({"regions": "some"}, "regions: expected one of"),
        ({"batch_size": 17}, "batch_size: expected an integer from 2 to 16"),
        ({"points": np.zeros((3, 1))}, "points: expected shape"),
        ({"points": np.full((3, 2), np.nan)}, "points: expected finite"),
        ({"windows": jr.Window(np.zeros(3), 1)}, "windows: expected centres of 2 entries"),
        ({"windows": np.zeros(2)}, "windows: expected a jr.Window"),
        ({"batch": BATCH[:1]}, "batch: expected at least two examples"),
        ({"batch": BATCH * np.inf}, "batch: expected finite"),
        ({"key": 3}, "key: expected one key"),
        ({"model": MLP}, "model: expected a flax.linen module"),
        ({"model": MLP(widths=(), num_outputs=1)}, "model: expected a nonlinearity"),
        ({"mesh": jax.devices()}, "mesh: expected a jax.sharding.Mesh"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_deep_networks_ask_for_slices():
    model = MLP(widths=(4, 3), num_outputs=1)
    with pytest.raises(ValueError, match="expected dimension 1 or 2 for a network of 2 stages"):
        run(model=model, batch=np.eye(3), windows=jr.Window(np.zeros(3), 1))
