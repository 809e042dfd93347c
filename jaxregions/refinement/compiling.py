"""How XLA is asked to compile comparisons of integers; no global flag of XLA is touched."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp

__all__ = ["compiler_options"]

_WIDE = {"xla_cpu_prefer_vector_width": 512}  # XLA's 256 leave half of AVX-512 unused: a tenth


@lru_cache(maxsize=4)
def compiler_options(platform: str) -> dict[str, int] | None:
    """For ``jax.jit(compiler_options=)`` on this platform; None where this XLA knows none."""
    if platform != "cpu":
        return None
    try:
        device = jax.local_devices(backend="cpu")[0]
        with jax.default_device(device):
            jax.jit(jnp.negative, compiler_options=_WIDE)(0.0).block_until_ready()
    except (jax.errors.JaxRuntimeError, ValueError):  # an option of this XLA no more
        return None
    return dict(_WIDE)
