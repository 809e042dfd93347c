"""Small Flax models, each with BatchNorm or without it on the same weights."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxregions.activations import PiecewiseLinear, relu

__all__ = ["MLP", "ResNet18", "SmallCNN", "SmallResNet"]

NORMS = ("batch", "none")


class _Network(nn.Module, kw_only=True):
    """The options that all models of the zoo share."""

    activation: PiecewiseLinear = relu
    norm: str = "batch"
    weight_std: float | None = None
    bias_std: float = 0.1
    epsilon: float = 1e-5
    momentum: float = 0.9
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        _validate(self)
        super().__post_init__()


class MLP(_Network):
    """Dense -> norm -> activation for each hidden width, then a Dense output layer.

        h_l = phi(norm(W_l' h_{l-1} + b_l)),   logits = W_out' h_L + b_out

    Every kernel entry is N(0, weight_std^2), or N(0, 2/fan_in) where weight_std is None (He), not
    truncated; every raw bias is N(0, bias_std^2). bias_std is not 0 by default: with zero biases
    all first-layer hyperplanes of a model without BN pass through the origin.

    ``norm="none"`` drops the BatchNorm parameters and changes nothing else: the same key gives the
    same kernels and biases, under the same names (dense_0, ..., output).

    Args:
      widths: hidden widths; () is an affine model.
      num_outputs: number of logits.
      activation: phi, a PiecewiseLinear.
      norm: "batch" or "none".
      weight_std, bias_std: standard deviations of the initial weights and raw biases.
      epsilon, momentum: of BatchNorm.
      param_dtype: of the parameters.

    Call: (x (N, ...), train=False) -> (N, num_outputs). Axes after the first are flattened.
    ``train`` chooses batch statistics over running ones.

    Raises:
      ValueError: an unknown norm, a size that is not a positive integer, a standard deviation or
        epsilon that is negative, a momentum outside [0, 1], an activation of another kind.

    Source: MATHEMATICS.md, notation and expected refinement.
    """

    widths: tuple[int, ...] = (128, 128)
    num_outputs: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        h = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths):
            h = _dense(self, width, f"dense_{layer}")(h)
            h = self.activation(_norm(self, h, train, f"norm_{layer}"))
        return _dense(self, self.num_outputs, "output")(h)


class SmallCNN(_Network):
    """Conv -> norm -> activation -> pooling for each channel count, then an MLP head.

    Convolutions are 3 wide with zero padding. All but the last are followed by an overlapping
    max-pool (window 3, stride 2), the last by an average pool (window 2, stride 2), none padded.
    Initialisation, ``norm`` and errors as in ``MLP``.

    Args:
      channels: one convolution each, at least one.
      widths: hidden widths of the head.
      num_outputs: number of logits.

    Call: (x (N, *space, C), train=False) -> (N, num_outputs), any number of space axes.

    Raises:
      ValueError: as in ``MLP``; at the call, an input without space axes or too small to pool.

    Source: MATHEMATICS.md, recentring (convolutions).
    """

    channels: tuple[int, ...] = (8, 16)
    widths: tuple[int, ...] = (32,)
    num_outputs: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        h, space = x, _space_axes(x)
        for layer, features in enumerate(self.channels):
            last = layer == len(self.channels) - 1
            window = 2 if last else 3
            if min(h.shape[1:-1]) < window:
                raise ValueError(
                    f"expected an input whose space axes are at least {window} long at pooling "
                    f"{layer}, received {h.shape[1:-1]} there from an input of shape {x.shape}"
                )
            h = _conv(self, features, 3, 1, space, f"conv_{layer}")(h)
            h = self.activation(_norm(self, h, train, f"norm_{layer}"))
            pool = nn.avg_pool if last else nn.max_pool
            h = pool(h, (window,) * space, (2,) * space)
        h = h.reshape(h.shape[0], -1)
        for layer, width in enumerate(self.widths):
            h = _dense(self, width, f"dense_{layer}")(h)
            h = self.activation(_norm(self, h, train, f"dense_norm_{layer}"))
        return _dense(self, self.num_outputs, "output")(h)


class SmallResNet(_Network):
    """A stem convolution, one residual block for each channel count, mean over space, Dense.

        block(h) = phi(norm(conv(phi(norm(conv(h))))) + shortcut(h))

    Blocks after the first halve the space axes (stride 2). The shortcut is the identity where
    shapes agree, else a convolution of width 1 with norm. Initialisation, ``norm`` and errors as
    in ``MLP``.

    Args:
      channels: one block each, at least one; the stem has channels[0].
      num_outputs: number of logits.

    Call: (x (N, *space, C), train=False) -> (N, num_outputs), any number of space axes.

    Raises:
      ValueError: as in ``MLP``; at the call, an input without space axes.

    Source: MATHEMATICS.md, recentring (convolutions).
    """

    channels: tuple[int, ...] = (8, 16)
    num_outputs: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        space = _space_axes(x)
        h = _conv(self, self.channels[0], 3, 1, space, "stem")(x)
        h = self.activation(_norm(self, h, train, "stem_norm"))
        for block, features in enumerate(self.channels):
            stride = 1 if block == 0 else 2
            h = _residual(self, h, features, stride, train, space, f"block_{block}")
        h = h.mean(axis=tuple(range(1, h.ndim - 1)))
        return _dense(self, self.num_outputs, "output")(h)


class ResNet18(_Network):
    """ResNet-18 for small images: stem convolution, max-pool, eight residual blocks, mean, Dense.

    The stem is 3 wide with ``width`` channels, the max-pool overlaps (window 3, padded by 1). Four
    stages of two blocks as in ``SmallResNet`` have width, 2, 4 and 8 times width channels; the
    first block of the last three halves the space axes. With the defaults, 32 x 32 x 3 inputs have
    313,408 switching values (1,057,024 with ``pool_stride=1``). Initialisation, ``norm`` and errors
    as in ``MLP``.

    Args:
      width: channels of the stem and of the first stage.
      num_outputs: number of logits.
      stem_stride, pool_stride: of the stem convolution and of the max-pool.

    Call: (x (N, *space, C), train=False) -> (N, num_outputs), any number of space axes.

    Raises:
      ValueError: as in ``MLP``; at the call, an input without space axes.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016);
    MATHEMATICS.md, recentring (convolutions).
    """

    width: int = 64
    num_outputs: int = 10
    stem_stride: int = 1
    pool_stride: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        space = _space_axes(x)
        h = _conv(self, self.width, 3, self.stem_stride, space, "stem")(x)
        h = self.activation(_norm(self, h, train, "stem_norm"))
        strides, padding = (self.pool_stride,) * space, ((1, 1),) * space
        h = nn.max_pool(h, (3,) * space, strides, padding)  # pyright: ignore[reportArgumentType]
        for block in range(8):
            features, stride = self.width * 2 ** (block // 2), 2 if block in (2, 4, 6) else 1
            h = _residual(self, h, features, stride, train, space, f"block_{block}")
        h = h.mean(axis=tuple(range(1, h.ndim - 1)))
        return _dense(self, self.num_outputs, "output")(h)


def _residual(
    model: _Network, h: jax.Array, features: int, stride: int, train: bool, space: int, name: str
) -> jax.Array:
    shortcut = h
    if stride > 1 or h.shape[-1] != features:
        shortcut = _conv(model, features, 1, stride, space, f"{name}_shortcut")(h)
        shortcut = _norm(model, shortcut, train, f"{name}_shortcut_norm")
    h = _conv(model, features, 3, stride, space, f"{name}_conv_0")(h)
    h = model.activation(_norm(model, h, train, f"{name}_norm_0"))
    h = _conv(model, features, 3, 1, space, f"{name}_conv_1")(h)
    return model.activation(_norm(model, h, train, f"{name}_norm_1") + shortcut)


def _initializers(model: _Network) -> dict[str, Any]:
    # "normal" and not flax's he_normal, which is truncated: the closed forms are Gaussian.
    he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    return {
        "kernel_init": he if model.weight_std is None else nn.initializers.normal(model.weight_std),
        "bias_init": nn.initializers.normal(model.bias_std),
        "param_dtype": model.param_dtype,
    }


def _dense(model: _Network, features: int, name: str) -> nn.Module:
    return nn.Dense(features, name=name, **_initializers(model))


def _conv(model: _Network, features: int, width: int, stride: int, space: int, name: str):
    kernel, strides = (width,) * space, (stride,) * space
    return nn.Conv(features, kernel, strides, name=name, **_initializers(model))


def _norm(model: _Network, h: jax.Array, train: bool, name: str) -> jax.Array:
    if model.norm == "none":
        return h
    # The one-pass variance cancels catastrophically in float32 where |mean| >> std.
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=model.momentum,
        epsilon=model.epsilon,
        param_dtype=model.param_dtype,
        use_fast_variance=False,
        name=name,
    )(h)


def _space_axes(x: jax.Array) -> int:
    if x.ndim < 3:
        raise ValueError(f"expected an input of shape (N, *space, C), received {x.shape}")
    return x.ndim - 2


def _validate(model: _Network) -> None:
    if model.norm not in NORMS:
        raise ValueError(f"norm: expected one of {NORMS}, received {model.norm!r}")
    if not isinstance(model.activation, PiecewiseLinear):
        raise ValueError(f"activation: expected a PiecewiseLinear, received {model.activation!r}")
    for name in ("widths", "channels"):
        sizes = getattr(model, name, ())
        if not isinstance(sizes, tuple | list) or not all(map(_is_size, sizes)):
            raise ValueError(f"{name}: expected positive integers, received {sizes!r}")
        if isinstance(sizes, list):  # a model is hashable, so that it can be static under jit
            object.__setattr__(model, name, tuple(sizes))
    if not getattr(model, "channels", (1,)):
        raise ValueError("channels: expected at least one, received ()")
    for name in ("num_outputs", "width", "stem_stride", "pool_stride"):
        size = getattr(model, name, 1)
        if not _is_size(size):
            raise ValueError(f"{name}: expected a positive integer, received {size!r}")
    for name in ("weight_std", "bias_std", "epsilon"):
        value = getattr(model, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number >= 0, received {value}")
    if not 0 <= model.momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], received {model.momentum}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0
