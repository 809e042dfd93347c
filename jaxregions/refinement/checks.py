"""What can be wrong with a request, looked at before any work."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxregions._records import is_traced, require_finite
from jaxregions.batchnorm.first_layer import as_batch
from jaxregions.windows import require_window

__all__ = ["known", "require_key", "require_names", "require_numbers"]


def require_numbers(num_samples: Any, confidence: Any, target: Any, block_size: Any) -> None:
    """ValueError unless these are counts and fractions as documented."""
    if not _is_count(num_samples) or num_samples >= 1 << 32:
        raise ValueError(
            f"num_samples: expected an integer from 1 to 2^32 - 1, received {num_samples!r}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), received {confidence}")
    if target is not None and not (math.isfinite(target) and target > 0):
        raise ValueError(
            f"target_standard_error: expected a finite number > 0 or None, received {target}"
        )
    if block_size is not None and (not _is_count(block_size) or block_size & (block_size - 1)):
        raise ValueError(f"block_size: expected a power of two or None, received {block_size!r}")


def require_names(stages: Any, regions: Any) -> None:
    """ValueError unless these are options there are."""
    for name, value, options in (
        ("stages", stages, ("all", "first")),
        ("regions", regions, ("auto", "exact", "bracket", "none")),
    ):
        if value not in options:
            raise ValueError(f"{name}: expected one of {options}, received {value!r}")


def known(batch: Any, windows: Any, batch_size: Any, points: Any) -> tuple[Any, Any]:
    """The batch and the points as float64, after a look at everything that must fit together."""
    require_window(windows)
    if is_traced(batch, windows, points):
        raise ValueError("expected known batch, windows and points, received tracers (under jit)")
    require_finite(windows.center, "windows.center")
    data = as_batch(batch)
    d = math.prod(data.shape[1:])
    if data.ndim < 2 or windows.input_dimension != d:
        raise ValueError(
            f"windows: expected centres of {d} entries for a batch of shape {data.shape}, "
            f"received {windows.input_dimension}"
        )
    if math.prod(windows.batch_shape) == 0:
        raise ValueError(f"windows: expected at least one, received shape {windows.batch_shape}")
    if batch_size is not None and not (_is_count(batch_size) and 2 <= batch_size <= len(data)):
        raise ValueError(
            f"batch_size: expected an integer from 2 to {len(data)}, the rows of the batch, "
            f"received {batch_size!r}"
        )
    if points is None:
        return data, None
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != d or len(points) == 0:
        raise ValueError(f"points: expected shape (M, {d}), M >= 1, received {points.shape}")
    require_finite(points, "points")
    if windows.anchor is not None:
        raise ValueError("points: expected windows without an anchor, received anchored ones")
    return data, points


def require_key(key: Any) -> None:
    """ValueError unless this is one random key."""
    try:
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        fits = key.shape == () if typed else key.dtype == np.uint32 and key.ndim == 1
    except AttributeError:
        fits = False
    if not fits:
        raise ValueError(
            f"key: expected one key from jax.random.key, received {type(key).__name__} "
            f"of shape {np.shape(key)}"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)
