"""The zoo against NumPy forward passes, its initialisation, and the BN / no-BN twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batchnorm_models import linen_variables
from scipy.signal import correlate
from scipy.stats import kstest

from jaxregions import activations as act
from jaxregions.zoo import MLP, ResNet18, SmallCNN, SmallResNet

MODELS = [MLP, SmallCNN, SmallResNet]


def images(*shape):
    return np.random.default_rng(1).normal(size=shape)


KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default generator


def initial(model, x):
    """Variables of a model, as NumPy, with x64 on."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(model.init)(KEY, jnp.asarray(x)))


def run(model, x, *, train=False):
    """Random variables, output and updates of a model in float64, as NumPy."""
    with jax.enable_x64(True):
        variables = jax.tree.map(np.asarray, linen_variables(model, x))
        apply = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"]))
        return variables, *jax.tree.map(np.asarray, apply(variables, jnp.asarray(x)))


def dense(p, h):
    return h @ p["kernel"] + p["bias"]


def conv(p, h, stride=1):
    """Cross-correlation, zero padding as XLA's SAME: the extra row goes to the end."""
    kernel = p["kernel"]
    size, width = np.array(h.shape[1:3]), kernel.shape[0]
    total = np.maximum((-(-size // stride) - 1) * stride + width - size, 0)
    pads = [(0, 0), *[(t // 2, t - t // 2) for t in total], (0, 0)]
    padded = np.pad(h, pads)
    out = np.stack(
        [
            [correlate(image, kernel[..., o], "valid")[..., 0] for o in range(kernel.shape[-1])]
            for image in padded
        ]
    )
    return np.moveaxis(out, 1, -1)[:, ::stride, ::stride] + p["bias"]


def pool(h, window, reduce):
    rows, columns = ((n - window) // 2 + 1 for n in h.shape[1:3])
    return np.stack(
        [
            np.stack(
                [
                    reduce(h[:, 2 * i : 2 * i + window, 2 * j : 2 * j + window], axis=(1, 2))
                    for j in range(columns)
                ],
                axis=1,
            )
            for i in range(rows)
        ],
        axis=1,
    )


def relu(h):
    return np.maximum(h, 0)


@pytest.mark.parametrize(
    ("norm", "phi", "numpy_phi"), [("batch", act.relu, relu), ("none", act.abs_, np.abs)]
)
def test_mlp_is_dense_norm_activation(norm, phi, numpy_phi):
    """Training mode against NumPy, with biased batch statistics."""
    x = images(7, 2, 3)
    model = MLP((5, 4), 3, norm=norm, activation=phi, epsilon=0.1, param_dtype=jnp.float64)
    variables, out, _ = run(model, x, train=True)
    h, params = x.reshape(7, 6), variables["params"]
    for layer in range(2):
        h = dense(params[f"dense_{layer}"], h)
        if norm == "batch":
            h, norm_params = (
                (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 0.1),
                params[f"norm_{layer}"],
            )
            h = h * norm_params["scale"] + norm_params["bias"]
        h = numpy_phi(h)
    np.testing.assert_allclose(out, dense(params["output"], h), rtol=1e-6, atol=1e-7)


def test_mlp_without_hidden_layers_is_affine():
    """widths=() is allowed."""
    x = images(4, 3)
    variables, out, _ = run(MLP((), 2, param_dtype=jnp.float64), x)
    np.testing.assert_allclose(out, dense(variables["params"]["output"], x), rtol=1e-13)


def test_cnn_is_conv_pool_dense():
    """Against scipy's correlation and pooling by loops, on 8 x 9 images of two channels."""
    x = images(3, 8, 9, 2)
    model = SmallCNN((4, 3), (5,), 2, norm="none", param_dtype=jnp.float64)
    variables, out, _ = run(model, x)
    p = variables["params"]
    h = pool(relu(conv(p["conv_0"], x)), 3, np.max)
    h = pool(relu(conv(p["conv_1"], h)), 2, np.mean)
    h = relu(dense(p["dense_0"], h.reshape(3, -1)))
    np.testing.assert_allclose(out, dense(p["output"], h), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_resnet_is_residual_blocks():
    """Against scipy's correlation: identity shortcut, then a strided 1x1 projection."""
    x = images(2, 7, 8, 1)
    model = SmallResNet((3, 4), 2, norm="none", param_dtype=jnp.float64)
    variables, out, _ = run(model, x)
    p = variables["params"]
    h = relu(conv(p["stem"], x))
    h = relu(conv(p["block_0_conv_1"], relu(conv(p["block_0_conv_0"], h))) + h)
    inner = conv(p["block_1_conv_1"], relu(conv(p["block_1_conv_0"], h, 2)))
    h = relu(inner + conv(p["block_1_shortcut"], h, 2))
    expected = dense(p["output"], h.mean(axis=(1, 2)))
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_resnet18_is_stem_pool_and_eight_blocks():
    """Against scipy's correlation; the overlapping max-pool pads by one on every side."""
    x = images(2, 9, 8, 3)
    model = ResNet18(width=2, num_outputs=3, norm="none")
    variables = linen_variables(model, x)
    with jax.enable_x64(True):
        out = np.asarray(jax.jit(model.apply)(variables, jnp.asarray(x)))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    around = [(0, 0), (1, 1), (1, 1), (0, 0)]
    h = pool(np.pad(relu(conv(p["stem"], x)), around, constant_values=-np.inf), 3, np.max)
    for block in range(8):
        stride, name = 2 if block in (2, 4, 6) else 1, f"block_{block}"
        shortcut = conv(p[f"{name}_shortcut"], h, stride) if stride == 2 else h
        inner = relu(conv(p[f"{name}_conv_0"], h, stride))
        h = relu(conv(p[f"{name}_conv_1"], inner) + shortcut)
    assert h.shape == (2, 1, 1, 16)
    np.testing.assert_allclose(out, dense(p["output"], h.mean(axis=(1, 2))), rtol=1e-11, atol=1e-11)


def test_resnet18_has_the_channels_of_the_paper():
    """64, 128, 256 and 512 channels, 20 norms, and about 11 million parameters."""
    shapes = jax.eval_shape(ResNet18().init, KEY, jnp.zeros((2, 32, 32, 3)))["params"]
    kernels = {name: layer["kernel"].shape for name, layer in shapes.items() if "conv" in name}
    assert [kernels[f"block_{b}_conv_1"][-1] for b in range(8)] == [
        c for c in (64, 128, 256, 512) for _ in range(2)
    ]
    assert sum("norm" in name for name in shapes) == 20
    assert 11.1e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 11.2e6


@pytest.mark.parametrize("model", [SmallCNN, SmallResNet])
def test_convolutional_models_read_signals(model):
    """One space axis, as in mnist1d."""
    x = jnp.zeros((2, 40, 1))
    out, variables = jax.eval_shape(lambda: model(num_outputs=6).init_with_output(KEY, x))
    kernels = [v["kernel"].ndim for v in variables["params"].values() if "kernel" in v]
    assert out.shape == (2, 6)
    assert set(kernels) == {2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_norm_changes_no_kernel_and_no_raw_bias(model):
    """Same key, same names, same bits, with BatchNorm or without."""
    x = images(2, 8, 8, 1)
    with_norm = initial(model(norm="batch"), x)["params"]
    without = initial(model(norm="none"), x)
    assert set(without) == {"params"}
    assert set(with_norm) - set(without["params"]) == {n for n in with_norm if "norm" in n}
    for name, layer in without["params"].items():
        np.testing.assert_array_equal(layer["kernel"], with_norm[name]["kernel"])
        np.testing.assert_array_equal(layer["bias"], with_norm[name]["bias"])


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_float32_by_default(model):
    """Even where the caller has x64 on."""
    with jax.enable_x64(True):
        variables = jax.eval_shape(model().init, KEY, jnp.zeros((2, 8, 8, 1)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("weight_std", "expected"), [(None, np.sqrt(2 / 300)), (0.3, 0.3)])
def test_dense_kernels_are_gaussian_and_not_truncated(weight_std, expected):
    """Kolmogorov-Smirnov on 90,000 weights; a truncation at two deviations fails it by far."""
    params = initial(MLP((300,), weight_std=weight_std), images(1, 300))["params"]
    kernel = params["dense_0"]["kernel"].ravel() / expected
    assert kstest(kernel, "norm").pvalue > 1e-3
    assert np.abs(kernel).max() > 3.5


def test_convolution_kernels_have_the_fan_in_of_a_patch():
    """He: 2 / (3 * 3 * 64)."""
    params = initial(SmallCNN((64, 64), ()), images(1, 8, 8, 1))["params"]
    kernel = params["conv_1"]["kernel"].ravel() * np.sqrt(9 * 64 / 2)
    assert kstest(kernel, "norm").pvalue > 1e-3


def test_raw_biases_are_gaussian_with_bias_std():
    """Kolmogorov-Smirnov on 5000 biases, at the default 0.1."""
    params = initial(MLP((5000,)), images(1, 2))["params"]
    assert kstest(params["dense_0"]["bias"] / 0.1, "norm").pvalue > 1e-3


def test_zero_bias_std_gives_zero_biases():
    """Flax's own default, on request."""
    params = initial(MLP((4,), bias_std=0.0), images(1, 2))["params"]
    np.testing.assert_array_equal(params["dense_0"]["bias"], np.zeros(4))


def test_running_statistics_move_with_the_momentum():
    """new = momentum * old + (1 - momentum) * batch, from mean 0 and variance 1."""
    x = images(50, 3)
    variables, _, updates = run(MLP((4,), momentum=0.75), x, train=True)
    z = dense(variables["params"]["dense_0"], x)
    moved = updates["batch_stats"]["norm_0"]
    np.testing.assert_allclose(moved["mean"], 0.25 * z.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.75 + 0.25 * z.var(axis=0), rtol=1e-5)


def test_variance_survives_a_large_mean():
    """float32, mean 1000, deviation about 0.05: the one-pass variance would be off by far."""
    x = (1000 + 0.05 * images(400, 1)).astype(np.float32)
    model = MLP((1,), weight_std=1.0, bias_std=0.0, momentum=0.0)
    variables = model.init(KEY, x)
    _, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
    kernel = np.asarray(variables["params"]["dense_0"]["kernel"], np.float64)
    exact = (x.astype(np.float64) @ kernel).var()
    np.testing.assert_allclose(updates["batch_stats"]["norm_0"]["var"], exact, rtol=0.01)


def test_models_are_hashable_whatever_sequence_gives_the_sizes():
    """So that they can be static under jit."""
    assert hash(MLP([3, 4])) == hash(MLP((3, 4)))
    assert MLP([3, 4]) == MLP((3, 4))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MLP, {"norm": "layer"}, "norm: expected one of"),
        (MLP, {"widths": (4, 0)}, "widths: expected positive"),
        (MLP, {"widths": (4, -1)}, "widths: expected positive"),
        (MLP, {"widths": (2.5,)}, "widths: expected positive"),
        (MLP, {"widths": 4}, "widths: expected positive"),
        (MLP, {"num_outputs": 0}, "num_outputs"),
        (MLP, {"activation": jax.nn.relu}, "activation: expected a PiecewiseLinear"),
        (MLP, {"weight_std": -1.0}, "weight_std"),
        (MLP, {"bias_std": np.nan}, "bias_std"),
        (MLP, {"epsilon": -1e-5}, "epsilon"),
        (MLP, {"momentum": 1.5}, "momentum"),
        (SmallCNN, {"channels": ()}, "channels: expected at least one"),
        (SmallCNN, {"channels": (0,)}, "channels: expected positive"),
        (SmallCNN, {"norm": None}, "norm: expected one of"),
        (SmallResNet, {"channels": ()}, "channels: expected at least one"),
        (SmallResNet, {"norm": "group"}, "norm: expected one of"),
        (ResNet18, {"width": 0}, "width: expected a positive integer"),
        (ResNet18, {"stem_stride": 1.5}, "stem_stride: expected a positive integer"),
        (ResNet18, {"pool_stride": 0}, "pool_stride: expected a positive integer"),
    ],
)
def test_bad_options_are_rejected(model, options, message):
    """When the model is made, not when it is first run."""
    with pytest.raises(ValueError, match=message):
        model(**options)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (SmallCNN((4, 4)), (2, 64), r"\(N, \*space, C\)"),
        (SmallResNet(), (2, 64), r"\(N, \*space, C\)"),
        (ResNet18(), (2, 64), r"\(N, \*space, C\)"),
        (SmallCNN((4, 4, 4)), (2, 8, 8, 1), "at least 2 long at pooling 2"),
    ],
)
def test_bad_input_is_rejected(model, shape, message):
    """Flat rows for a convolution, or an image too small to pool."""
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, KEY, jnp.zeros(shape))
