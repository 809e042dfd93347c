"""Exact affine-region geometry of piecewise-affine networks conditioned on a mini-batch."""

from jaxregions.activations import PiecewiseLinear
from jaxregions.windows import Window

__all__ = ["PiecewiseLinear", "Window"]
__version__ = "0.1.0"
