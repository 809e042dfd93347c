"""Convolutions of images smaller than their kernel: padded apart, same values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxregions as jr

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 2, 4))


def convolved(x, **options):
    """relu of an NHWC convolution."""
    options = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), **options}
    z = jax.lax.conv_general_dilated(
        x[None], jnp.asarray(KERNEL, x.dtype), dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )
    return jnp.maximum(z, 0)


def by_loops(x, padding, stride=1):
    """The convolution's values and Jacobian, entry by entry."""
    height, width, channels = x.shape
    (top, bottom), (left, right) = padding
    rows = range(-top, height + bottom - 2, stride)
    columns = range(-left, width + right - 2, stride)
    z = np.zeros((len(rows), len(columns), 4))
    slopes = np.zeros((*z.shape, *x.shape))
    inside = [
        (a, b, i, j, i0 + i, j0 + j)
        for a, i0 in enumerate(rows)
        for b, j0 in enumerate(columns)
        for i, j in np.ndindex(3, 3)
        if 0 <= i0 + i < height and 0 <= j0 + j < width
    ]
    for a, b, i, j, row, column in inside:
        z[a, b] += x[row, column] @ KERNEL[i, j]
        slopes[a, b, :, row, column, :] += KERNEL[i, j].T
    assert channels == 2
    return z.reshape(-1), slopes.reshape(z.size, x.size)


@pytest.mark.parametrize(
    ("shape", "padding", "stride"),
    [
        ((2, 2, 2), ((1, 1), (1, 1)), 1),
        ((1, 1, 2), ((1, 1), (1, 1)), 1),
        ((2, 3, 2), ((2, 0), (0, 1)), 1),
        ((2, 2, 2), ((1, 2), (1, 1)), 2),
        ((4, 4, 2), ((1, 1), (1, 1)), 1),
    ],
)
def test_values_and_pull_backs(shape, padding, stride):
    x = np.random.default_rng(1).normal(size=shape)
    net = jr.trace(lambda x: convolved(x, padding=padding, window_strides=(stride, stride)), x)
    values, slopes = by_loops(x, padding, stride)
    planes = jr.pull_back(net, x, stage=0)
    np.testing.assert_allclose(-planes.offset[:, 0], values, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(planes.normal, slopes, rtol=1e-13, atol=1e-13)
    hits = jr.stage_hits(net, jr.Window(x.ravel(), 0.1)).hits[0]
    assert hits == (np.abs(values) < 0.1 * np.abs(slopes).sum(axis=1)).sum()


def test_dilated_and_cropped_images_are_left_alone():
    """Against jax's own convolution."""
    x = np.random.default_rng(2).normal(size=(2, 2, 2))
    for options in (
        {"lhs_dilation": (2, 2)},
        {"padding": ((-1, 3), (1, 1))},
    ):
        net = jr.trace(lambda x, o=options: convolved(x, **o), x)
        with jax.enable_x64(True):
            expected = np.asarray(convolved(jnp.asarray(x), **options))
            np.testing.assert_allclose(net(x), expected, rtol=1e-14, atol=1e-14)


def test_small_images_reach_xla_padded():
    """The compiled convolution sees a 4 x 4 image, so that XLA does not swap it with the kernel."""
    net = jr.trace(convolved, np.zeros((2, 2, 2)))
    with jax.enable_x64(True):
        text = jax.jit(net.switching_values).lower(np.zeros((2, 2, 2))).compile().as_text()
    (line,) = (line for line in text.splitlines() if " convolution(" in line)
    assert "size=3x3" in line
    assert "rhs_reversal" not in line
