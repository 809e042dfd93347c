"""From a function to its switching values: the only room that touches jax.extend."""

from jaxregions.tracing.flatten import NotPiecewiseAffineError
from jaxregions.tracing.network import CPAFunction, Stage, trace

__all__ = ["CPAFunction", "NotPiecewiseAffineError", "Stage", "trace"]
