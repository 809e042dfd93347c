"""How XLA is asked to compile, program by program; no global flag of XLA is touched."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp

__all__ = ["QUICK", "WIDE", "compiler_options"]

# Fusions of elementwise operations by the emitters of LLVM code that XLA had before those of MLIR:
# as fast, and compiled in two thirds of the time.
QUICK = "xla_cpu_use_fusion_emitters", False
WIDE = "xla_cpu_prefer_vector_width", 512  # XLA's 256 leave half of AVX-512 unused: a tenth


@lru_cache(maxsize=16)
def compiler_options(platform: str, *wanted: tuple[str, int]) -> dict[str, int] | None:
    """For ``jax.jit(compiler_options=)`` on this platform; None where this XLA knows none."""
    if platform != "cpu":
        return None
    options = dict(wanted)
    try:
        device = jax.local_devices(backend="cpu")[0]
        with jax.default_device(device):
            jax.jit(jnp.negative, compiler_options=options)(0.0).block_until_ready()
    except (jax.errors.JaxRuntimeError, ValueError):  # an option of this XLA no more
        return None
    return options
