"""The smooth hit count against closed forms, exact counts, finite differences and training."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxregions as jr


def draw(seed, n=6, d=3, breaks=2, count=5):
    rng = np.random.default_rng(seed)
    planes = jr.Hyperplanes(
        rng.normal(size=(n, d)), rng.normal(size=d) / 4, rng.normal(size=(n, breaks)) / 4
    )
    windows = jr.Window(rng.normal(size=(count, d)) / 2, rng.uniform(0.2, 0.6, (count, d)))
    return planes, windows


def loop(planes, windows, temperature):
    """P(|t + T Z| < 1), Z logistic, by the distribution function, one pair at a time."""

    def cdf(x):
        return 0.5 * (1 + np.tanh(x / (2 * temperature)))

    out = []
    for center, radius in zip(windows.center, windows.radii(), strict=True):
        total = 0.0
        for normal, offsets in zip(planes.normal, planes.offset, strict=True):
            reach = sum(radius * abs(normal))
            for offset in offsets:
                t = (normal @ (center - planes.point) - offset) / reach
                total += cdf(1 - t) - cdf(-1 - t)
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_is_the_probability_under_logistic_noise(temperature):
    planes, windows = draw(0)
    with jax.enable_x64(True):
        found = np.asarray(jr.soft_hits(planes, windows, temperature))
    np.testing.assert_allclose(found, loop(planes, windows, temperature), rtol=1e-12)


def test_limit_is_the_exact_count_on_random_planes():
    for seed in range(8):
        planes, windows = draw(seed)
        with jax.enable_x64(True):
            found = np.asarray(jr.soft_hits(planes, windows, 1e-9))
        np.testing.assert_array_equal(found, jr.count_hits(planes, windows).hits)


def test_limit_counts_a_tangent_hyperplane_half():
    # x = 0 and x = 3 in the cube (-1, 1)^3, x + y = +-2 that touch its edges, and nothing else.
    normal = np.zeros((6, 3))
    normal[:2] = [1, 0, 0], [1, 1, 0]
    offset = np.array([[0.0, 3.0], [2.0, -2.0], *np.zeros((4, 2))])
    planes = jr.Hyperplanes(normal, np.zeros(3), offset)
    windows = jr.Window(np.zeros((5, 3)), np.ones((5, 3)))
    exact = jr.count_hits(planes, windows)
    assert (exact.hits[0], exact.tangencies[0]) == (1, 2)
    with jax.enable_x64(True):
        assert jr.soft_hits(planes, windows, 1e-20)[0] == 1 + 2 / 2


def leaves(planes, windows):
    return planes.normal, planes.point, planes.offset, windows.center, windows.radius


def count(normal, point, offset, center, radius, temperature):
    planes = jr.Hyperplanes(normal, point, offset)
    return jr.soft_hits(planes, jr.Window(center, radius), temperature).sum()


@jax.jit
@functools.partial(jax.value_and_grad, argnums=range(6))
@functools.partial(chex.assert_max_traces, n=1)  # in all tests together
def traced(*arrays):
    return count(*arrays)


def value_and_gradient(*arrays):
    """Of ``count``, in float64."""
    with jax.enable_x64(True):
        return jax.device_get(traced(*(np.asarray(a, np.float64) for a in arrays)))


def test_gradient_is_that_of_finite_differences():
    point = *leaves(*draw(1)), 0.3
    gradient = value_and_gradient(*point)[1]
    rng = np.random.default_rng(2)
    for index in range(6):
        step = 1e-6 * rng.normal(size=np.shape(point[index]))
        sides = []
        for sign in (-1, 1):
            moved = list(point)
            moved[index] = point[index] + sign * step
            sides.append(value_and_gradient(*moved)[0])
        expected = (gradient[index] * step).sum()
        assert abs(expected) > 1e-9
        np.testing.assert_allclose((sides[1] - sides[0]) / 2, expected, rtol=1e-6, atol=1e-14)


def test_absent_hyperplanes_count_nothing_and_give_finite_gradients():
    normal, point, offset, center, radius = leaves(*draw(3))
    normal[0], offset[1] = 0.0, np.inf
    normal[2], offset[2] = 1e-290 * normal[2], 1e200  # t beyond the float64 range
    value, gradient = value_and_gradient(normal, point, offset, center, radius, 0.1)
    planes, windows = jr.Hyperplanes(normal[3:], point, offset[3:]), jr.Window(center, radius)
    np.testing.assert_allclose(value, loop(planes, windows, 0.1).sum(), rtol=1e-12)
    assert all(np.isfinite(g).all() for g in gradient)
    assert not gradient[0][:3].any()
    assert not gradient[2][:3].any()
    assert gradient[0][3:].all()


def test_the_smallest_normals_have_the_gradient_of_their_direction():
    normal, point, offset, *window = leaves(*draw(1))
    value, gradient = value_and_gradient(normal, point, offset, *window, 0.3)
    same, steep = value_and_gradient(1e-200 * normal, point, 1e-200 * offset, *window, 0.3)
    np.testing.assert_allclose(same, value, rtol=1e-12)
    np.testing.assert_allclose(1e-200 * steep[0], gradient[0], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(steep[3], gradient[3], rtol=1e-9, atol=1e-15)


@pytest.mark.slow
def test_is_smooth_where_a_hyperplane_passes_through_the_centre():
    def along(x):
        planes = jr.Hyperplanes([[2.0]], [0.0], [[0.0]])
        return jr.soft_hits(planes, jr.Window(jnp.reshape(x, (1,)), 1.0), 0.5)

    with jax.enable_x64(True):
        assert jax.grad(along)(0.0) == 0.0
        second = float(jax.grad(jax.grad(along))(0.0))
    # q = F(1 - t) - F(-1 - t), F the logistic distribution function with scale T: 2 F''(1) at 0.
    s = 1 / (1 + np.exp(-1 / 0.5))
    np.testing.assert_allclose(second, 2 * s * (1 - s) * (1 - 2 * s) / 0.5**2, rtol=1e-12)


@pytest.mark.slow
def test_slices_count_as_their_lifted_windows_do():
    planes, windows = draw(3, n=4, d=5)
    basis = np.linalg.qr(np.random.default_rng(4).normal(size=(5, 2)))[0]
    sliced = jr.Window(windows.center, windows.radius[:, 0], basis)
    # In slice coordinates u the hyperplanes are B'w . u = o - w . (c - p), one family a window.
    value = (windows.center - planes.point) @ planes.normal.T
    inside = jr.Hyperplanes(
        np.broadcast_to(planes.normal @ basis, (5, 4, 2)),
        np.zeros((5, 2)),
        planes.offset - value[..., None],
    )
    flat = jr.Window(np.zeros((5, 2)), windows.radius[:, 0])
    with jax.enable_x64(True):
        found = jr.soft_hits(planes, sliced, 0.2)
        expected = jr.soft_hits(inside, flat, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.slow
def test_leading_axes_and_vmap_agree_with_single_windows():
    planes, windows = draw(5, count=6)
    single = [jr.soft_hits(planes, windows[i], 0.3) for i in range(6)]
    assert single[0].shape == ()
    together = jr.soft_hits(planes, windows.reshape(2, 3), 0.3)
    mapped = jax.vmap(lambda w: jr.soft_hits(planes, w, 0.3))(windows)
    np.testing.assert_allclose(np.ravel(together), single, rtol=1e-6)
    np.testing.assert_allclose(mapped, single, rtol=1e-6)


@pytest.mark.slow
def test_memory_does_not_grow_with_windows_times_units():
    # 2^13 windows x 2^12 units would be 134 MB of float32 for every array of pairs.
    windows, units, d = 1 << 13, 1 << 12, 2
    shapes = [(units, d), (d,), (units, 1), (windows, d), (windows, d)]
    abstract = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes]
    lowered = jax.jit(jax.grad(count), static_argnums=5).lower(*abstract, 0.3)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 64e6


@pytest.mark.parametrize(
    ("temperature", "message"),
    [(0.0, "> 0"), (-1.0, "> 0"), (np.nan, "> 0"), (np.inf, "finite"), (np.ones(2), "shape")],
)
def test_refuses_what_is_no_temperature(temperature, message):
    with pytest.raises(ValueError, match=message):
        jr.soft_hits(*draw(0), temperature)


def test_refuses_windows_of_another_dimension():
    with pytest.raises(ValueError, match="3 dimensions"):
        jr.soft_hits(draw(0)[0], jr.Window(np.zeros(2), 1.0), 0.1)


# A worked example --------------------------------------------------------------------------------


def first_layer(params, batch):
    """The switching hyperplanes of a Dense layer with BatchNorm and ReLU."""
    return jr.batch_hyperplanes(
        params["kernel"], batch, gamma=params["gamma"], beta=params["beta"]
    ).switching


def logit(params, x):
    """Train-mode forward pass."""
    z = x @ params["kernel"]
    z = (z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-5)
    return jax.nn.relu(params["gamma"] * z + params["beta"]) @ params["out"]


def examples():
    """Four blobs, (64, 2), and whether the signs of a blob's centre agree."""
    rng = np.random.default_rng(0)
    corner = rng.choice([-1.0, 1.0], size=(64, 2))
    x = (corner + 0.2 * rng.normal(size=(64, 2))).astype(np.float32)
    return x, (corner.prod(axis=1) > 0).astype(int)


def train_to(weight, steps=60):
    """Params before and after minimising cross-entropy - weight * (soft hits near the data)."""
    x, y = examples()
    windows = jr.Window(x, 0.2)
    rng, optimizer = np.random.default_rng(1), optax.adam(0.02)

    def loss(params):
        task = optax.sigmoid_binary_cross_entropy(logit(params, x), y).mean()
        return task - weight * jr.soft_hits(first_layer(params, x), windows, 1.0).mean()

    def step(carry, _):
        params, state = carry
        change, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, change), state), None

    params = {
        "kernel": jnp.asarray(rng.normal(size=(2, 24)), jnp.float32),
        "gamma": jnp.ones(24),
        "beta": jnp.zeros(24),
        "out": jnp.asarray(rng.normal(size=24) / 5, jnp.float32),
    }
    start = params, optimizer.init(params)
    return params, jax.lax.scan(step, start, length=steps)[0][0]


@pytest.mark.slow
def test_training_raises_and_lowers_refinement_near_the_data():
    x, _ = examples()
    windows = jr.Window(x, 0.2)
    start, end = jax.jit(jax.vmap(train_to, out_axes=(None, 0)))(jnp.array([0.3, 0.0, -0.3]))

    def exact(params):
        return jr.count_hits(first_layer(params, x), windows).hits.mean()

    start, end = jax.device_get((start, end))
    before = exact(start)
    raised, plain, lowered = (
        exact({name: value[i] for name, value in end.items()}) for i in range(3)
    )
    assert lowered < 0.5 * min(before, plain)
    assert raised > 1.2 * max(before, plain)
